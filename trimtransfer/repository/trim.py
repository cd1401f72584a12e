"""Trim: publish an image with the free blocks of its clean file systems blanked, and prove that nothing else changed.

What is blanked is what a file system marks free, and only if its reader finds it clean: nothing that is reached from
its root or its structures is marked free. The proof comes in two parts. By construction a :class:`TrimmedSource`
differs from its image in the blanked ranges alone. And what the reader makes of the trimmed image, from scratch, is
what it made of the image: the same paths, sizes and extents, the same free space, and the same bytes in everything in
use, hashed in the image's order. That costs two readings of what is in use, wherever it lies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from trimtransfer.errors import IntegrityError
from trimtransfer.filesystem.contents import CLEAN, FileSystem
from trimtransfer.filesystem.marks import encryption
from trimtransfer.filesystem.ranges import Ranges, intersection, joined, merged, no_ranges, total
from trimtransfer.filesystem.volumes import Found, find_file_systems
from trimtransfer.image import Source
from trimtransfer.repository.trimmed import TrimmedSource
from trimtransfer.watch import Watch

_PIECE: Final = 4 << 20
_SECTOR: Final = 512
_GAP: Final = 64 << 10
"""Bytes of free space that are read rather than passed over."""
_WITHOUT_FREE_SPACE: Final = ("swap", "ISO 9660")
_ZEROS: Final = "; zeros in its free space cost nothing (fstrim on a disk that discards, or a program that writes them)"


@dataclass(frozen=True, slots=True)
class TrimmedVolume:
    """What trim did to one volume, sizes and positions in bytes.

    ``problem`` says why it was left as it is (empty: it was trimmed). ``free_bytes`` were blanked; ``blanked_bytes`` of
    them were not zeros before, by sectors of 512. ``files`` and ``kept_bytes`` (files and structures in use) were
    proven to be unchanged.
    """

    name: str
    file_system: str
    start: int
    length: int
    problem: str = ""
    free_bytes: int = 0
    blanked_bytes: int = 0
    files: int = 0
    kept_bytes: int = 0


def trim_image(source: Source, watch: Watch) -> tuple[Source, tuple[TrimmedVolume, ...]]:
    """Return the image with the free space of its clean file systems blanked, and what was done to each volume.

    Raises:
        IntegrityError: something in use would change: the image is written to meanwhile.
        Cancelled: as asked.
    """
    looks = _look(source, watch, "check")
    trimmed = TrimmedSource(source, merged(joined(look.free for look in looks)))
    again = _look(trimmed, watch, "prove")
    for before, after in zip(looks, again, strict=True):
        if before.digest != after.digest or not _same_free(before, after):
            raise IntegrityError(
                f"{before.facts.name} of {source.path} with its free space blanked",
                before.digest,
                after.digest,
                "nothing may write to the image meanwhile; publish it without --trim else",
            )
    return trimmed, tuple(_with_gain(look, source, watch) for look in looks)


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    """What a reader makes of a volume: its free space, and a digest of all that it is but what is free."""

    facts: TrimmedVolume
    free: Ranges
    digest: bytes


def _look(source: Source, watch: Watch, phase: str) -> list[_Look]:
    """Look at all volumes of an image, one file system in memory at a time."""
    found = find_file_systems(source.read, source.size)
    looks: list[_Look] = []
    while found:
        looks.append(_look_at(found.pop(0), source, watch, phase))
    return looks


def _look_at(found: Found, source: Source, watch: Watch, phase: str) -> _Look:
    facts = TrimmedVolume(found.volume.name, found.kind, found.volume.start, found.volume.length, found.problem)
    if found.file_system is None:
        return _Look(replace(facts, problem=f"{found.problem}; {_without(found)}"), no_ranges(), b"")
    facts = replace(facts, file_system=found.file_system.kind)
    watch.check()
    state = found.file_system.state
    if state != CLEAN:
        return _Look(replace(facts, problem=state), no_ranges(), b"")
    hasher = blake3()
    free = found.file_system.free()
    files = _hash_listing(found.file_system, hasher)
    kept = _hash_content(merged(found.file_system.reached()), source, hasher, watch, phase)
    return _Look(replace(facts, files=files, kept_bytes=kept, free_bytes=total(free)), free, hasher.digest())


def _without(found: Found) -> str:
    """Return what happens to a volume whose free space cannot be told, and what would help."""
    if encryption(found.volume, found.kind):
        return "it is published whole; decrypt it, or open it and publish what is inside"
    return f"it is published whole{'' if found.kind in _WITHOUT_FREE_SPACE else _ZEROS}"


def _hash_listing(file_system: FileSystem, hasher: blake3) -> int:
    """Hash what the files are called, how long they are and where they lie; return their number."""
    files = 0
    for file in file_system.files():
        files += 1
        for part in (file.path, file.size.to_bytes(8, "little"), file.extents.astype("<i8").tobytes()):
            hasher.update(len(part).to_bytes(8, "little") + part)
    return files


def _hash_content(kept: Ranges, source: Source, hasher: blake3, watch: Watch, phase: str) -> int:
    """Hash what is in use, in the image's order; return its length.

    The listing says which of these bytes are which file's, so equal digests mean equal files.
    """
    done, size = 0, total(kept)
    watch.report(phase, done, size)
    buffer = memoryview(bytearray(_PIECE))
    for span in _spans(kept):
        first, last = span[0][0], span[-1][1]
        source.read_into(buffer[: last - first], first)
        for start, end in span:
            hasher.update(buffer[start - first : end - first])
            done += end - start
        watch.report(phase, done, size)
    return size


def _spans(kept: Ranges) -> Iterator[list[tuple[int, int]]]:
    """Yield the ranges as (start, end), those together that are worth one reading; long ones in pieces."""
    span: list[tuple[int, int]] = []
    for start, length in kept.tolist():
        for at in range(start, start + length, _PIECE):
            end = min(at + _PIECE, start + length)
            if span and (at - span[-1][1] > _GAP or end - span[0][0] > _PIECE):
                yield span
                span = []
            span.append((at, end))
    if span:
        yield span


def _same_free(before: _Look, after: _Look) -> bool:
    return before.free.tobytes() == after.free.tobytes() and before.facts == after.facts


def _with_gain(look: _Look, source: Source, watch: Watch) -> TrimmedVolume:
    """Add how much of what was blanked was not zeros before."""
    if not len(look.free):
        return look.facts
    first, last = int(look.free[0, 0]), int(look.free[-1].sum())
    data = np.array(list(source.extents(first, last - first)), dtype=np.int64).reshape(-1, 2)
    there = intersection(merged(data), look.free)
    done, size, blanked = 0, total(there), 0
    watch.report("gain", done, size)
    buffer = memoryview(bytearray(_PIECE))
    for start, length in there.tolist():
        for at in range(start, start + length, _PIECE):
            piece = buffer[: min(_PIECE, start + length - at)]
            source.read_into(piece, at)
            blanked += _not_zero(np.frombuffer(piece, dtype=np.uint8))
            done += len(piece)
            watch.report("gain", done, size)
    return replace(look.facts, blanked_bytes=blanked)


def _not_zero(piece: NDArray[np.uint8]) -> int:
    """Return the bytes of the sectors that hold something."""
    whole = len(piece) // _SECTOR * _SECTOR
    some = piece[:whole].view(np.uint64).reshape(-1, _SECTOR // 8).any(axis=1)
    return int(some.sum()) * _SECTOR + (len(piece) - whole) * bool(piece[whole:].any())
