"""What the report of an update's bytes consists of, and the advice that is drawn from it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtransfer.repository.advice import Advice
from trimtransfer.repository.contentkind import KINDS

_DEPTH: Final = 3
"""Parts of a path by which folders are told."""
_WORTH: Final = 1 << 20
_WORTH_SHARE: Final = 0.02
"""Advice is given about so many bytes, and about such a share of what is fetched."""

Amounts: TypeAlias = NDArray[np.float64]
"""Shape (n, 3) or (3,): bytes of new content, and of it what plain frames and units of deltas take."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an update, in bytes: new ``content``, and what is ``fetched`` for it (of which ``delta`` as deltas)."""

    name: str
    content: int
    fetched: int
    delta: int
    kind: str = ""
    volume: str = ""


@dataclass(frozen=True, slots=True)
class Stretch:
    """New content that lies in no known file: where, what it looks like mostly; bytes as for :class:`Part`."""

    start: int
    length: int
    kind: str
    content: int
    fetched: int


@dataclass(frozen=True, slots=True)
class VolumeDifference:
    """A volume: its file system, why its files are not known (empty: they are), new content, what is fetched for it."""

    name: str
    file_system: str
    problem: str
    content: int
    fetched: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What a client fetches for a disk, or for several together; sizes in bytes.

    ``fetched_bytes`` are ``plain_bytes`` (frames), ``delta_bytes`` (units of deltas), ``gap_bytes`` between them and
    ``metadata_bytes``.
    """

    length: int
    content_bytes: int
    fetched_bytes: int
    plain_bytes: int
    delta_bytes: int
    gap_bytes: int
    metadata_bytes: int
    requests: int
    changed_files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole(Fetched):
    """What all ``disks`` of a version come to."""

    disks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceReport(Fetched):
    """What a client of version ``old`` (empty: it has no such disk) fetches for ``new`` of a disk; sizes in bytes.

    ``kinds`` add up to ``content_bytes``, and to plain and delta bytes. ``files`` and ``folders`` (three levels deep)
    are the largest of ``changed_files``, ``stretches`` the largest of what lies in no known file. The report of a
    version's first disk has those of the further ``disks``.
    """

    image: str
    old: str
    new: str
    deltas: bool
    kinds: tuple[Part, ...]
    files: tuple[Part, ...]
    folders: tuple[Part, ...]
    stretches: tuple[Stretch, ...]
    volumes: tuple[VolumeDifference, ...]
    advice: tuple[Advice, ...]
    disks: tuple[DifferenceReport, ...] = ()

    def whole(self) -> Whole:
        """Return what this disk and the further ones come to."""
        reports = (self, *self.disks)
        amounts = {one.name: sum(getattr(report, one.name) for report in reports) for one in fields(Fetched)}
        return Whole(disks=len(reports), **amounts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, those of the version as a whole as ``whole``."""
        return {**asdict(self), "whole": asdict(self.whole())}


def apportion(amounts: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Return amounts as whole numbers that add up to ``total``, which is about their sum; the largest remainders first.

    None differs by more than one but for what ``total`` differs from the sum.
    """
    if not len(amounts):
        return np.zeros(0, dtype=np.int64)
    whole = np.floor(amounts).astype(np.int64)
    rest = total - int(whole.sum())
    order = np.argsort(-(amounts - whole), kind="stable")
    whole[order] += rest // len(amounts)
    whole[order[: rest % len(amounts)]] += 1
    return whole


def parts_of_kinds(kinds: Mapping[str, Amounts], totals: tuple[int, int, int]) -> tuple[Part, ...]:
    """Return the kinds with the most first; each column adds up to its total."""
    names = [name for name in KINDS if name in kinds]
    columns = [apportion(np.array([kinds[name][n] for name in names]), total) for n, total in enumerate(totals)]
    content, plain, delta = (column.tolist() for column in columns)
    parts = [Part(KINDS[name], content[n], plain[n] + delta[n], delta[n], kind=name) for n, name in enumerate(names)]
    return tuple(sorted((part for part in parts if part.content or part.fetched), key=lambda part: -part.fetched))


def part_of(name: str, kind: str, volume: str, amounts: Amounts) -> Part:
    """Return a part with its amounts rounded."""
    content, plain, delta = amounts.tolist()
    return Part(name, round(content), round(plain + delta), round(delta), kind, volume)


def folders_of(files: Iterable[tuple[str, str, str]], amounts: Iterable[Amounts]) -> list[Part]:
    """Return the folders, three levels deep, of files (path, kind, volume)."""
    sums: dict[tuple[str, str], Amounts] = {}
    for (path, _, volume), amount in zip(files, amounts, strict=True):
        folder = "/".join(path.split("/")[:-1][:_DEPTH])
        sums[folder, volume] = sums.get((folder, volume), np.zeros(3)) + amount
    return [part_of(f"{folder}/", "", volume, amount) for (folder, volume), amount in sums.items()]


def largest(parts: Iterable[Part], top: int) -> tuple[Part, ...]:
    """Return the parts for which most is fetched."""
    return tuple(sorted(parts, key=lambda part: (-part.fetched, part.name))[:top])


_KIND_ADVICE: Final = (
    ("free", "remains", "{size} are remains of deleted files in free space", "publish with --trim"),
    ("swap", "swap-file", "{size} are swap or hibernation files", "delete them before publishing, or turn them off"),
    ("lists", "package-lists", "{size} are package lists", "delete them before publishing; the guest fetches its own"),
    ("log", "logs", "{size} are logs", "delete them before publishing"),
)
_CACHES: Final = ("var/cache/apt/archives/", "var/cache/dnf/", "var/cache/pacman/pkg/")


def advice_on(kinds: Mapping[str, Amounts], files: Sequence[Part], spent: int) -> Iterator[Advice]:
    """Yield what can be done about content for which ``spent`` bytes in all are fetched."""
    least = worth_telling(spent)
    for kind, code, text, remedy in _KIND_ADVICE:
        size = round(float(kinds.get(kind, np.zeros(3))[1:].sum()))
        if size >= least:
            yield Advice(code, text.format(size=mib(size)), remedy, size)
    fetched = sum(part.fetched for part in files if part.name.startswith(_CACHES))
    if fetched >= least:
        text = f"{mib(fetched)} are packages kept after their installation"
        yield Advice("cached-packages", text, "delete them before publishing (apt-get clean, dnf clean all)", fetched)


def worth_telling(spent: int) -> float:
    """Return the bytes from which on something is worth advice, of ``spent`` in all."""
    return max(_WORTH, _WORTH_SHARE * spent)


def mib(size: float) -> str:
    """Return a size in MiB."""
    return f"{size / (1 << 20):.1f} MiB"
