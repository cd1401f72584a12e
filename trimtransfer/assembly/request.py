"""What a sync or plan was asked for, and the first things that it reads: recorded state, head, manifest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trimtransfer.assembly.refusal import device_behind
from trimtransfer.assembly.side import SideDirectory, default_path
from trimtransfer.assembly.ways import WriteOption
from trimtransfer.bundlestore import BundleStore
from trimtransfer.catalogue import Entry
from trimtransfer.disk.layouts import WRITABLE
from trimtransfer.errors import NotFound, TargetRefused
from trimtransfer.head import Head
from trimtransfer.index.host import HostIndex
from trimtransfer.manifest import FileRef, Manifest
from trimtransfer.names import check_name, disk_name
from trimtransfer.nearstore import behind_bundles, is_offline
from trimtransfer.repository.catalogues import read_channel_head, stored_catalogue
from trimtransfer.repository.reading import read_head, read_manifest
from trimtransfer.store import Store
from trimtransfer.trust.attacks import withdrawn
from trimtransfer.trust.imagerole import ImageRole
from trimtransfer.trust.options import NOBODY, Trusting
from trimtransfer.trust.state import TrustState

_SUFFIXES: Final = {".img": "raw", ".raw": "raw", ".vmdk": "vmdk", **{f".{name}": name for name in WRITABLE}}


@dataclass(frozen=True, slots=True)
class Request:
    """What a sync or plan was asked for: see :func:`trimtransfer.assembly.sync.sync`."""

    image: str
    version: str | None
    side: SideDirectory
    seeds: tuple[str | os.PathLike[str], ...]
    host_index: HostIndex | None
    refresh_host_index: bool
    write: WriteOption
    cache: Path
    disk_format: str | None = None
    disk_outputs: tuple[Path, ...] = ()
    manifest_digest: bytes | None = None
    """Of further disks, which the first one's manifest names."""
    channel: str | None = None
    """Whose version is wanted, if no ``version`` is named."""
    trusting: Trusting = NOBODY
    signed: ImageRole | None = None
    """What the repository's signed metadata say of the image, once they were read; None: it is not signed."""

    def further(self, manifest: Manifest) -> list[Request]:
        """Return what to ask for to have the further disks of a version, whose first disk's manifest this is.

        Raises:
            TargetRefused: it is not known where a disk belongs, or there are more outputs than disks.
        """
        for spare in self.disk_outputs[len(manifest.disks) :]:
            disks = f"{1 + len(manifest.disks)} {'disks' if manifest.disks else 'disk'}"
            reason = f"is one output too many: {manifest.image} {manifest.version} has {disks}"
            raise TargetRefused(str(spare), f"{reason}; name one output for each, the first one first")
        sides = self.side.further([device_behind(one) for one in self.disk_outputs], len(manifest.disks))
        pairs = zip(manifest.disks, sides, strict=True)
        return [self._further(manifest, number, file, side) for number, (file, side) in enumerate(pairs, 1)]

    def _further(self, manifest: Manifest, number: int, file: FileRef, side: SideDirectory) -> Request:
        return replace(
            self,
            image=disk_name(manifest.image, number),
            version=manifest.version,
            side=side,
            disk_outputs=(),
            manifest_digest=file.digest,
        )

    def written_format(self, manifest: Manifest | None = None) -> str | None:
        """Return the format to write: the one asked for, else that of the image as recorded, else (a file) that of the
        publisher's file, as far as it can be written; None where that takes the manifest to know."""
        installed = self.side.installed()
        if self.disk_format is not None or installed is not None:
            return self.disk_format or (installed.disk_format if installed is not None else None)
        if manifest is None:
            return None
        free = self.write != "in-place" and not self.side.output.exists()
        return manifest.disk_format if free and manifest.disk_format in WRITABLE else "raw"


def make_request(
    image: str,
    output: str | os.PathLike[str] | None,
    version: str | None,
    seeds: Sequence[str | os.PathLike[str]],
    host_index: HostIndex | None,
    refresh_host_index: bool,
    write: WriteOption,
    side: str | os.PathLike[str] | None,
    cache: str | os.PathLike[str] | None,
    disk_format: str | None = None,
    disk_outputs: Sequence[str | os.PathLike[str]] = (),
    *,
    channel: str | None = None,
    trusting: Trusting = NOBODY,
) -> Request:
    """Check the arguments of a sync or plan; ``FormatError`` for a name that is none, ``ValueError`` for others."""
    check_name("image", image)
    if version is not None:
        check_name("version", version)
    if channel is not None:
        check_name("channel", channel)
        if version is not None:
            raise ValueError("a channel says which version it is: name one or the other")
    if write not in ("auto", "new", "in-place"):
        raise ValueError(f"write={write!r}: auto, new or in-place")
    if disk_format not in (None, "raw", *WRITABLE):
        raise ValueError(f"format={disk_format!r}: raw, {', '.join(WRITABLE)}")
    named = Path(output or f"{image}.{disk_format if disk_format not in (None, 'raw') else 'img'}")
    directory = SideDirectory(device_behind(named), Path(side) if side is not None else default_path(named))
    if cache is None:
        from platformdirs import user_cache_dir

        cache = user_cache_dir("medv")
    named_seeds = tuple(seeds)
    further = tuple(Path(one) for one in disk_outputs)
    local = named_seeds, host_index, refresh_host_index, write, Path(cache), disk_format, further
    return Request(image, version, directory, *local, channel=channel, trusting=trusting)


def vouched(store: Store, request: Request) -> tuple[Request, tuple[str, ...]]:
    """Return the request with what is signed of its image, and warnings about that; as it is for a repository that
    nobody told to trust.

    Raises:
        Untrusted: signed metadata that must not be believed; and what reading them raises.
    """
    installed, trusting, store = request.side.installed(), request.trusting, behind_bundles(store)
    origin = installed.repository if installed is not None else ""
    offline = isinstance(store, BundleStore)
    place = None if offline else store.url if "://" in store.url else os.path.realpath(store.url)
    known = origin or (place is not None and TrustState(trusting.state).at(place))
    if trusting.unsigned or not (trusting.root or trusting.first or known):
        return request, ()
    from trimtransfer.trust.client import vouch

    found = vouch(store, place, request.image, trusting, installed=origin, offline=offline)
    return (request, ()) if found is None else (replace(request, signed=found.role), found.warnings)


def misnamed(output: Path, disk_format: str) -> tuple[str, ...]:
    """Return a warning if a file's name belongs to another format than is in it: many programs go by names."""
    usual = _SUFFIXES.get(output.suffix.lower())
    if usual in (None, disk_format) or output.is_block_device():
        return ()
    remedy = "ask for another format with --format, or for another name with -o"
    return (f"{output} is {disk_format}, as was asked for or published, although its name says {usual}: {remedy}",)


def left_over_warnings(side: SideDirectory, manifest: Manifest) -> tuple[str, ...]:
    """Return warnings of the disks at the output that the version of ``manifest`` does not have any more."""
    names = (str(one.output) for one in ([] if manifest.disk else side.left_over(len(manifest.disks))))
    reason = (
        f"belongs to no disk of {manifest.image} {manifest.version}; it stays as it is, delete it if it is not needed"
    )
    return tuple(f"{name} {reason}" for name in names if os.path.lexists(name))


def newest(store: Store, request: Request) -> Head:
    """Return the head of the wanted image, or of the wanted channel; ``NotFound`` that names it, ``FormatError``.

    Where metadata are signed these tell it; of a bundle, which may have other versions than the newest, its head says
    which is meant (``Untrusted`` if that one is not signed, or not any more).
    """
    signed = request.signed
    if signed is not None and not is_offline(store):
        return _signed_newest(signed, request.channel, store.url)
    head = _unsigned_newest(store, request)
    return head if signed is None else signed_head(signed, head.version)


def _signed_newest(signed: ImageRole, channel: str | None, url: str) -> Head:
    found = signed.head(None if channel is None else signed.as_catalogue().channel(channel).version)
    if found is None:
        raise NotFound(f"a signed version of image {signed.image}", url)
    return found


def _unsigned_newest(store: Store, request: Request) -> Head:
    if request.channel is None:
        return read_head(store, request.image)
    try:
        return read_channel_head(store, request.image, request.channel)
    except NotFound as error:
        raise NotFound(f"channel {request.channel} of image {request.image}", error.url) from error


def signed_head(signed: ImageRole, version: str) -> Head:
    """Return what is signed of a version that a bundle has; ``Untrusted`` if nothing is."""
    head = signed.head(version)
    if head is None:
        raise withdrawn(f"{signed.image} {version}")
    return head


def newer_installed(store: Store, request: Request, head: Head | None) -> Manifest | None:
    """Return the manifest of the version at the output if that is newer than ``head`` of a bundle; else None.

    A repository says what its newest version is; a bundle may have lain in a drawer for a year.
    """
    installed = request.side.believed()
    if head is None or installed is None or not is_offline(store):
        return None
    manifest = request.side.read_manifest(request.side.manifest, installed.manifest_digest)
    if manifest is None or manifest.image != head.image or manifest.sequence <= head.sequence:
        return None
    return manifest if installed.disk_format == (request.disk_format or installed.disk_format) else None


def wanted_manifest(store: Store, request: Request, head: Head | None) -> Manifest:
    """Return the manifest of the wanted version: one kept from an interrupted run, else the repository's.

    Raises:
        NotFound: there is no such version; FormatError, IntegrityError: the repository is damaged.
    """
    if head is None and request.signed is not None and request.manifest_digest is None:
        head = _signed_named(request.signed, request.version or "", store.url)
    digest = head.manifest_digest if head is not None else request.manifest_digest
    if digest is not None:
        side = request.side
        kept = side.read_manifest(side.target, digest) or side.read_manifest(side.manifest, digest)
        if kept is not None:
            return kept
    if head is not None:
        return read_manifest(store, request.image, head.version, head=head)
    version = request.version or ""
    try:
        return read_manifest(store, request.image, version, digest=digest)
    except NotFound:
        entry = _labelled(store, request) if digest is None else None
        if entry is None:
            raise
        return read_manifest(store, request.image, entry.version, digest=entry.manifest_digest)


def _signed_named(signed: ImageRole, name: str, url: str) -> Head:
    """Return what is signed of a version by its name or label; ``NotFound``."""
    found = signed.find(name) or signed.as_catalogue().find(name)
    head = signed.head(found.version) if found is not None else None
    if head is None:
        raise NotFound(f"version {name} of image {signed.image}, among those that are signed,", url)
    return head


def _labelled(store: Store, request: Request) -> Entry | None:
    """Return the version that has the wanted one's name as its label; None where there is none."""
    return stored_catalogue(store, request.image).find(request.version or "")


def going_back_from(request: Request, manifest: Manifest) -> str:
    """Return the name of the version that is here, if it is newer than the wanted one; else nothing."""
    installed = request.side.believed()
    if installed is None:
        return ""
    here = request.side.read_manifest(request.side.manifest, installed.manifest_digest)
    newer = here is not None and here.image == manifest.image and here.sequence > manifest.sequence
    return here.version if here is not None and newer else ""
