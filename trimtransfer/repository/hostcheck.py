"""Checking profiles and the deltas from host files: what tells of them, their indexes, that their packs are there, and,
where the files of the profile are at hand, that each unit makes its chunks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import Bytes
from trimtransfer.errors import Cancelled, FormatError, IntegrityError, NotFound, SourceRefused, TrimTransferError
from trimtransfer.hostdelta import MAX_HOST_DELTA, HostDelta
from trimtransfer.hosts import MAX_HOSTS, parse_hosts
from trimtransfer.manifest import Manifest
from trimtransfer.names import host_delta_name, hosts_name, profile_name
from trimtransfer.repository.contents import Damage
from trimtransfer.repository.deltacheck import DeltaCheck
from trimtransfer.repository.hostreuse import groups, numbers_of
from trimtransfer.repository.profilefiles import ProfileFiles
from trimtransfer.repository.profiles import is_tree, list_profiles, open_profile
from trimtransfer.repository.reading import host_profiles
from trimtransfer.store import DirectoryStore

_REMEDY: Final = "delete it, or make it again with `medv-repo delta`: clients fetch plain packs instead"
_PROFILE_REMEDY: Final = "record it again with `medv-repo profile`; deltas that were made from it stay good"


class HostCheck:
    """Checks deltas from host files, and profiles. ``deltas`` is what makes units; it takes the damage and the packs.

    ``not_made`` are the indexes of which not all units that were picked could be made, because the files of their
    profile are not at hand, or not all of them. Use it as a context manager: it keeps files open.
    """

    def __init__(self, store: DirectoryStore, deltas: DeltaCheck) -> None:
        self._store, self._deltas = store, deltas
        self._files: dict[str, ProfileFiles | None] = {}
        self._stack = ExitStack()
        self.not_made: list[str] = []

    def __enter__(self) -> HostCheck:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def profiles(self) -> None:
        """Check that all profiles can be read."""
        for found in list_profiles(self._store):
            if found.problem:
                self._deltas.damage.append(Damage(profile_name(found.profile), found.problem, _PROFILE_REMEDY))

    def run(self, target: Manifest) -> None:
        """Check all deltas from host files that make ``target``."""
        image, version = target.image, target.version
        if self._store.exists(hosts_name(image, version)):
            with self._noting(hosts_name(image, version)):
                parse_hosts(self._store.read(hosts_name(image, version), limit=MAX_HOSTS))
        for profile in host_profiles(self._store, image, version):
            with self._noting(host_delta_name(image, version, profile)):
                self._check(profile, target)

    @contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """Take an error in the block for damage of the object ``name``."""
        try:
            yield
        except Cancelled:
            raise
        except (TrimTransferError, OSError) as error:
            self._deltas.damage.append(Damage(name, str(error), _REMEDY))

    def _check(self, profile: str, target: Manifest) -> None:
        name = host_delta_name(target.image, target.version, profile)
        delta = HostDelta(self._store.read(name, limit=MAX_HOST_DELTA))
        if delta.index.target != target.digest():
            raise IntegrityError("target of a delta index", target.digest(), delta.index.target)
        files = self._open(profile)
        if files is not None and files.digest != delta.index.base:
            files = None
        found = files.find(delta.chunks.prefixes, delta.chunks.lengths) if files is not None else None
        first, incomplete = groups(len(delta.chunks)), False

        def base(runs: NDArray[np.void]) -> Bytes | None:
            nonlocal incomplete
            chunks = numbers_of(runs, first)
            if not len(chunks):
                return b""  # what is solid starts from nothing
            content = None if files is None or found is None else _content(files, found[chunks])
            incomplete = incomplete or content is None
            return content

        self._deltas.check_index(delta.index, target, base)
        if incomplete:
            self.not_made.append(name)

    def _open(self, profile: str) -> ProfileFiles | None:
        """Return the files of a profile, if they are at hand."""
        if profile not in self._files:
            self._files[profile] = None
            try:
                opened = open_profile(self._store, profile)
            except (NotFound, FormatError, SourceRefused):
                return None  # a damaged one is noted with the profiles
            if opened.trees and all(map(is_tree, opened.trees)):
                self._files[profile] = self._stack.enter_context(ProfileFiles(opened))
        return self._files[profile]


def _content(files: ProfileFiles, numbers: NDArray[np.int64]) -> Bytes | None:
    """Return the content of chunks, one after the other; None if one is not in the files any more."""
    if (numbers < 0).any():
        return None
    content = memoryview(bytearray(int(files.lengths[numbers].sum(dtype=np.int64))))
    at = 0
    for number in numbers.tolist():
        length = int(files.lengths[number])
        if not files.read(number, content[at : at + length]):
            return None
        at += length
    return content
