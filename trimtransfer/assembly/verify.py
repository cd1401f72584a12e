"""Comparing what a file holds with a manifest: whole regions by content digest, or record by record.

Regions are hashed by a few threads, each in pieces of 1 MiB. What is hashed is what a reader of the file would get;
holes of a sparse file are zeros to him (POSIX, lseek), so they are hashed from a constant instead of being read.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol, TypeVar

import numpy as np

from trimtransfer.assembly.plan import Mask, Window
from trimtransfer.assembly.report import MissingDisk, VerifyReport
from trimtransfer.assembly.side import SideDirectory
from trimtransfer.chunk import DIGEST_SIZE, MAX_CHUNK_SIZE, ZEROS, chunk_digest, region_hasher
from trimtransfer.disk.source import open_content
from trimtransfer.errors import FormatError, NotFound, SourceChanged, TargetRefused
from trimtransfer.manifest import Manifest, Region, zero_region_digest
from trimtransfer.names import disk_name
from trimtransfer.watch import Progress, Watch

T = TypeVar("T")

_LOG: Final = logging.getLogger("trimtransfer.assembly")
PIECE: Final = len(ZEROS)
THREADS: Final = min(4, os.cpu_count() or 1)
UNREADABLE: Final = (SourceChanged, FormatError)
"""What says that a file ends too early, or that a container's tables are damaged: it does not hold what it should."""
_GAP: Final = 64 << 10
"""Shorter holes are read: finding them costs as much."""


class Readable(Protocol):
    """Something that can be compared: a file, or what it will be. Safe among threads."""

    size: int

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset`` on; ``SourceChanged`` if it ends before."""
        ...

    def extents(self, start: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of a range that may hold data; what lies between is zeros."""
        ...


def in_parallel(function: Callable[[T], bool], items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Yield (item, function(item)) as results arrive, a few at a time; the first error ends all and is raised."""
    with ThreadPoolExecutor(THREADS, "verify") as pool:
        running: dict[Future[bool], T] = {}
        try:
            for item in items:
                running[pool.submit(function, item)] = item
                if len(running) >= 2 * THREADS:
                    yield from _finished(running)
            while running:
                yield from _finished(running)
        finally:
            for future in running:
                future.cancel()


def _finished(running: dict[Future[bool], T]) -> Iterator[tuple[T, bool]]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        item = running.pop(future)
        yield item, future.result()


def region_is(source: Readable, region: Region) -> bool:
    """Return whether the file holds exactly this region's content at its place."""
    if region.start + region.length > source.size:
        return False
    try:
        return _content_digest(source, region.start, region.length) == region.content
    except UNREADABLE:
        return False


def _content_digest(source: Readable, start: int, length: int) -> bytes:
    """Return the content digest of a region as it is in the file; ``SourceChanged`` if the file ends before."""
    data, _ = next(source.extents(start, length), (None, 0))
    if data is None:
        return zero_region_digest(length)
    hasher = region_hasher(data - start)
    for _, part in read_pieces(source, data, start + length - data):
        hasher.update(part)
    return hasher.digest()


def read_pieces(source: Readable, start: int, length: int) -> Iterator[tuple[int, memoryview]]:
    """Yield (offset, bytes) of a range of the file, in order and without gaps; holes are not read.

    A piece is valid until the next; ``SourceChanged`` if the file ends before.
    """
    buffer = memoryview(bytearray(min(PIECE, length)))
    at = start
    for first, end in _joined(source.extents(start, length)):
        yield from _zeros(at, first)
        for at in range(first, end, PIECE):
            part = buffer[: min(PIECE, end - at)]
            source.read_into(part, at)
            yield at, part
        at = end
    yield from _zeros(at, start + length)


def _joined(extents: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield extents (offset, length) as their (first byte, end), neighbours with little between them as one."""
    first = last = -1
    for start, length in extents:
        if first < 0:
            first = start
        elif start - last > _GAP:
            yield first, last
            first = start
        last = start + length
    if first >= 0:
        yield first, last


def _zeros(start: int, end: int) -> Iterator[tuple[int, memoryview]]:
    for at in range(start, end, PIECE):
        yield at, ZEROS[: end - at]


def wrong_regions(
    source: Readable, manifest: Manifest, regions: Sequence[int], watch: Watch, *, phase: str = "verify"
) -> list[int]:
    """Return which of these regions (by number) the file does not hold; ``Cancelled`` on request."""
    lengths = manifest.lengths
    total = int(lengths[np.array(regions, dtype=np.int64)].sum()) if regions else 0
    done, wrong = 0, []
    watch.report(phase, done, total)
    for region, right in in_parallel(lambda region: region_is(source, region), map(manifest.region, regions)):
        done += region.length
        watch.report(phase, done, total)
        if not right:
            _LOG.debug("region %d, from byte %d on, has other content", region.index, region.start)
            wrong.append(region.index)
    return sorted(wrong)


def right_records(source: Readable, window: Window, regions: Sequence[Region]) -> Mask:
    """Return which records of a window the file holds at their place (bool, one per record): all are read."""
    right = np.zeros(len(window), dtype=np.bool_)

    def look(row: int) -> bool:
        first, last = int(window.first[row]), int(window.first[row + 1])
        right[first:last] = _right_in_region(source, window, first, last)
        return True

    for _ in in_parallel(look, range(len(regions))):
        pass
    return right


def _right_in_region(source: Readable, window: Window, first: int, last: int) -> Mask:
    right = np.zeros(last - first, dtype=np.bool_)
    buffer = memoryview(bytearray(MAX_CHUNK_SIZE))
    offsets, lengths = window.offsets[first:last].tolist(), window.lengths[first:last].tolist()
    digests = window.digests[first:last].tobytes()
    for number, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        if offset + length > source.size:
            break
        if window.zero[first + number]:
            right[number] = _is_zero(source, offset, length)
            continue
        part = buffer[:length]
        try:
            source.read_into(part, offset)
        except UNREADABLE:
            break
        right[number] = chunk_digest(part) == digests[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE]
    return right


def _is_zero(source: Readable, offset: int, length: int) -> bool:
    buffer = memoryview(bytearray(min(PIECE, length)))
    try:
        for start, size in source.extents(offset, length):
            for at in range(start, start + size, PIECE):
                part = buffer[: min(PIECE, start + size - at)]
                source.read_into(part, at)
                if np.frombuffer(part, dtype=np.uint8).any():
                    return False
    except UNREADABLE:
        return False
    return True


def verify_image(
    path: str | os.PathLike[str],
    *,
    disks: Sequence[str | os.PathLike[str]] = (),
    side: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Compare an image with the manifest in its side directory (``side``: another than the default); all data are read.

    So are the further disks of the version: the files ``disks``, or where the sync put them.

    Raises:
        NotFound: there is no manifest to compare with.
        FormatError, SourceRefused: a container that is damaged, or was written to since.
        SourceChanged: somebody wrote to the image meanwhile.
        OSError: the image cannot be read.
    """
    directory = SideDirectory(Path(path), Path(side) if side is not None else None)
    report, manifest = _verify_disk(directory, Watch(progress))
    found, missing = list[VerifyReport](), list[MissingDisk]()
    sides = _further(directory, disks, manifest)
    for number, (file, further) in enumerate(zip(manifest.disks, sides, strict=True), 1):
        try:
            disk, own = _verify_disk(further, Watch(progress)) if further is not None else (None, None)
        except (NotFound, FileNotFoundError):
            disk = own = None
        if disk is None or own is None:
            missing.append(MissingDisk(disk_name(manifest.image, number), str(further.output) if further else ""))
        else:
            found.append(replace(disk, belongs=own.digest() == file.digest))
    return replace(report, disks=tuple(found), missing=tuple(missing))


def _further(
    directory: SideDirectory, named: Sequence[str | os.PathLike[str]], manifest: Manifest
) -> Sequence[SideDirectory | None]:
    """Return the side directories of a version's further disks; nothing where nobody recorded where they are."""
    try:
        return directory.further([Path(one) for one in named], len(manifest.disks))
    except TargetRefused:
        return [None] * len(manifest.disks)


def _verify_disk(directory: SideDirectory, watch: Watch) -> tuple[VerifyReport, Manifest]:
    """Compare one image with what is recorded of it; return its manifest, too."""
    started = time.monotonic()
    installed = directory.installed()
    manifest = None if installed is None else directory.read_manifest(directory.manifest, installed.manifest_digest)
    if installed is None or manifest is None:
        raise NotFound(f"the record that a sync of {directory.output} leaves", str(directory.manifest))
    with open_content(directory.output, installed.disk_format) as source:
        wrong = wrong_regions(source, manifest, range(manifest.region_count), watch)
        source.check_unchanged()
        found_length = manifest.length if source.is_device and source.size >= manifest.length else source.size
    report = VerifyReport(
        manifest.image,
        manifest.version,
        str(directory.output),
        manifest.length,
        manifest.image_digest(),
        tuple((int(manifest.starts[index]), int(manifest.lengths[index])) for index in wrong),
        found_length,
        time.monotonic() - started,
    )
    return report, manifest
