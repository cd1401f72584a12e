"""What in an image ruins reuse, or costs bytes in vain: found before it is published, told with a remedy.

Some things make content new as a whole whenever a little of it changes (compression and encryption below the guest's
files), some are content that nobody needs (remains of deleted files, swap), some hide content that is known (files off
the block grid, file systems made anew). Content is looked at in samples; each piece of advice has a threshold, so that
what costs little is not mentioned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from trimtransfer.chunk import BLOCK_SIZE
from trimtransfer.errors import FormatError, IntegrityError, NotFound
from trimtransfer.filesystem.contents import CLEAN, FileSystem
from trimtransfer.filesystem.marks import Identity, compression, container, encryption, identity, packed_file, sleeps
from trimtransfer.filesystem.ranges import Column, Ranges, intersection, merged, ranges_of, total
from trimtransfer.filesystem.volume import Volume
from trimtransfer.filesystem.volumes import Found, find_file_systems
from trimtransfer.geometry import Geometry, Read
from trimtransfer.image import Source
from trimtransfer.manifest import Manifest
from trimtransfer.names import disk_name
from trimtransfer.repository.advice import Advice
from trimtransfer.repository.contentkind import is_packed, is_swap
from trimtransfer.repository.inventory import IN_PARENT, Inventory
from trimtransfer.watch import Watch

_LEAST: Final = 8 << 20
"""Bytes that are worth advice."""
_LEAST_SHARE: Final = 0.02
"""And the share of an image's data that they must be."""
_OFF_GRID_SHARE: Final = 0.25
_NOISE_SHARE: Final = 0.9
_SAMPLES: Final = 256
_NOISE_SAMPLE: Final = 32 << 10
_HEADER: Final = 64 << 10
"""Bytes of a swap space that are no content."""
_SAME: Final = 0.5
_MOVED: Final = 0.3
"""Shares of content that is known, and of the known content that lies elsewhere, from which on that is remarkable."""


def examine(source: Source, geometry: Geometry, watch: Watch) -> tuple[Advice, ...]:
    """Return advice on an image by itself.

    Reads the structures of its clean file systems, and samples of content. Memory: 200 bytes for each file.

    Raises:
        Cancelled: as asked; SourceChanged: the image shrank meanwhile.
    """
    found = find_file_systems(source.read, source.size)
    data = merged(np.array(list(source.extents(0, source.size)), dtype=np.int64).reshape(-1, 2))
    examiner = _Examiner(source, geometry, data, watch)
    advice = list(examiner.whole(found))
    while found:  # one file system in memory at a time
        watch.check()
        advice += examiner.volume(found.pop(0))
    return tuple(advice)


def dropped_disks(parent: Manifest, disks: int) -> tuple[Advice, ...]:
    """Return advice on a new version that has fewer disks, ``disks``, than the one before it."""
    gone = [disk_name(parent.image, number) for number in range(max(1, disks), 1 + len(parent.disks))]
    if not gone:
        return ()
    text = f"{', '.join(gone)} of version {parent.version} is not among the disks of this version"
    remedy = "clients keep their files of it as they are, and update them no more; if that is not meant, name all disks"
    return (Advice("dropped-disks", text, remedy),)


class _Examiner:
    """Looks at one image; ``data`` are its parts that are no holes."""

    def __init__(self, source: Source, geometry: Geometry, data: Ranges, watch: Watch) -> None:
        self._source, self._geometry, self._data, self._watch = source, geometry, data, watch
        self._least = max(_LEAST, round(_LEAST_SHARE * total(data)))
        self._starts = np.array([segment.start for segment in geometry.segments], dtype=np.int64)

    def whole(self, found: Sequence[Found]) -> Iterator[Advice]:
        """Yield advice on the image as a whole: a file that is compressed."""
        if self._geometry.name == "file":
            end = self._source.read(max(0, self._source.size - 512), 512)
            name, way = container(self._source.read(0, 512), end)
            if name:
                text = f"the file is {name}, which is not read here: it is published as a file, not as a disk"
                yield Advice("unread-container", text, f"convert it first: {way}", self._source.size)
        how = packed_file(self._source.read(0, 64)) if self._geometry.name == "file" else ""
        if how and self._source.size >= _LEAST:
            remedy = "unpack it and publish what is in it: of what is compressed as a whole, a small change changes all"
            yield Advice("compressed-image", f"the file is compressed ({how})", remedy, self._source.size)

    def volume(self, found: Found) -> Iterator[Advice]:
        """Yield advice on a volume."""
        volume, inside = found.volume, intersection(self._data, _range_of(found.volume))
        name = _name(found)
        if sort := encryption(volume, found.kind):
            remedy = "publish it decrypted; encrypt the repository's transport, and disks where the image is used"
            yield Advice(
                "encrypted", f"{name} is encrypted ({sort}), so nothing in it is shared", remedy, total(inside)
            )
        elif sort := compression(volume, found.kind):
            remedy = "build it without compression; transfers are compressed anyway, and files then share content"
            yield Advice("compressed-file-system", f"{name} is compressed by {sort}", remedy, total(inside))
        elif found.kind == "swap" or sleeps(volume):
            yield from self._swap_space(found, inside)
        elif found.file_system is not None and found.file_system.state == CLEAN:
            yield from self._file_system(found.file_system, name, inside)
        elif self._geometry.name != "file" or not packed_file(self._source.read(0, 64)):
            yield from self._noise(name, inside)

    def _swap_space(self, found: Found, inside: Ranges) -> Iterator[Advice]:
        volume = found.volume
        header = ranges_of(np.array([volume.start + _HEADER]), np.array([max(0, volume.length - _HEADER)]))
        size = self._filled(intersection(inside, header))
        if sleeps(volume):
            text = f"{_name(found)} holds the memory of a system that hibernates"
            yield Advice("hibernation", text, "start that system and shut it down in full", size)
        elif size >= self._least:
            remedy = "make it anew before publishing (swapoff, mkswap -U with the same UUID), or leave it out"
            yield Advice("swap", f"{_name(found)} is swap space with about {_mib(size)} of old memory", remedy, size)

    def _noise(self, name: str, inside: Ranges) -> Iterator[Advice]:
        """Yield advice on content of no known file system that looks like noise."""
        pieces = list(_sample(inside, _SAMPLES // 2, _NOISE_SAMPLE))
        contents = [self._source.read(at, length) for at, length in pieces]
        filled = [content for content in contents if any(content)]
        size = total(inside) * len(filled) // max(1, len(contents))
        packed = sum(is_packed(content) for content in filled)
        if size >= self._least and len(filled) >= 8 and packed >= _NOISE_SHARE * len(filled):
            share = round(100 * packed / len(filled))
            text = f"{name} looks compressed or encrypted ({share} % of {_mib(size)} cannot be made smaller)"
            yield Advice("noise", text, "publish its content as it is before that", size)

    def _file_system(self, file_system: FileSystem, name: str, inside: Ranges) -> Iterator[Advice]:
        try:
            packed, free = file_system.packed(), file_system.free()
            files = _Files.of(file_system, self._starts, self._data)
        except FormatError:  # nothing that is not clean is judged
            return
        if packed >= self._least:
            remedy = "decompress or decrypt them (Windows: compact /u /s, compact /compactos:never, cipher /d)"
            text = f"files of {_mib(packed)} in {name} are compressed or encrypted by the file system"
            yield Advice("compressed-file-system", text, remedy, packed)
        if files.off_grid >= max(self._least, _OFF_GRID_SHARE * files.bytes):
            yield self._off_grid(file_system, name, files)
        for path, space in files.swap:
            size = self._filled(space)
            if size >= self._least:
                remedy = "turn it off and delete it before publishing; the system makes it anew"
                yield Advice("swap-file", f"{path} in {name} holds about {_mib(size)} of old memory", remedy, size)
        remains = self._filled(intersection(inside, free))
        if remains >= self._least:
            text = f"about {_mib(remains)} of free space in {name} are remains of deleted files"
            yield Advice("remains", text, "publish with --trim", remains)

    def _off_grid(self, file_system: FileSystem, name: str, files: _Files) -> Advice:
        text = f"{_mib(files.off_grid)} of files in {name} do not begin on multiples of 4 KiB"
        if file_system.block_size < BLOCK_SIZE:
            text += f", for its blocks have {file_system.block_size} bytes"
            remedy = "make it with blocks of 4 KiB (mke2fs -b 4096, mkntfs -c 4096, mkfs.fat -s 8)"
        else:
            remedy = "let its volume begin at a multiple of 1 MiB"
        return Advice("off-grid", f"{text}, so they share less with other images and hosts", remedy, files.off_grid)

    def _filled(self, ranges: Ranges) -> int:
        """Return about how many bytes of some ranges are not zeros, by samples."""
        pieces = list(_sample(ranges, _SAMPLES, BLOCK_SIZE))
        filled = sum(any(self._source.read(at, length)) for at, length in pieces)
        return total(ranges) * filled // max(1, len(pieces))


@dataclass(frozen=True, slots=True)
class _Files:
    """What the files of a file system are like: bytes of content, those off the block grid; swap files with data."""

    bytes: int
    off_grid: int
    swap: tuple[tuple[str, Ranges], ...]

    @classmethod
    def of(cls, file_system: FileSystem, starts: Column, data: Ranges) -> _Files:
        """Look at all files; ``starts`` are those of the segments; ``FormatError`` if they cannot be listed."""
        content = off_grid = 0
        swap: list[tuple[str, Ranges]] = []
        for entry in file_system.files():
            places, lengths = entry.extents[:, 1], entry.extents[:, 2]
            origin = starts[np.searchsorted(starts, places, side="right") - 1]
            content += int(lengths.sum())
            off_grid += int(lengths[(places - origin - entry.extents[:, 0]) % BLOCK_SIZE != 0].sum())
            if entry.path.count(b"/") <= 1 and is_swap(entry.path.rpartition(b"/")[2].decode(errors="replace").lower()):
                space = merged(ranges_of(places, lengths))
                swap.append((entry.path.decode(errors="replace"), intersection(space, data)))
        return cls(content, off_grid, tuple(swap))


# ---- beside the parent


@dataclass(frozen=True, slots=True)
class Shared:
    """What an image shares with its parent: bytes of chunks it has, those that the parent has, and of these the ones
    that lie in another region of it."""

    chunk_bytes: int
    known_bytes: int
    moved_bytes: int


def shared_content(inventory: Inventory) -> Shared:
    """Return what the chunks of an inventory, once what is known was found, share with the parent."""
    chunks = known = moved = 0
    for part in inventory.slices():
        lengths = inventory.length[part]
        there = (inventory.marks[part] & IN_PARENT) != 0
        elsewhere = there & (inventory.parent_region[part] != inventory.region[part])
        chunks += int(lengths.sum(dtype=np.int64))
        known += int(lengths[there].sum(dtype=np.int64))
        moved += int(lengths[elsewhere].sum(dtype=np.int64))
    return Shared(chunks, known, moved)


def compare(source: Source, parent: Read, parent_size: int, shared: Shared) -> tuple[Advice, ...]:
    """Return advice on an image beside its parent, which ``parent`` reads: whether it was made anew, or moved about.

    A parent that is damaged where it is read is not compared with: publishing heals it.
    """
    if shared.known_bytes < _SAME * shared.chunk_bytes:
        return ()  # another image, or most of it was replaced
    try:
        pairs = list(_pairs(find_file_systems(source.read, source.size), parent, parent_size))
    except (FormatError, IntegrityError, NotFound):
        return ()
    advice = []
    for found, new, old in pairs:
        what = _changed(new, old)
        if what:
            text = f"{_name(found)} was made anew with another {what}, though most of its content is the same"
            remedy = "bring the old image up to date instead, or give the same ones (mke2fs -U, -E hash_seed=)"
            advice.append(Advice("new-identity", text, remedy))
    rebuilt = any(new != old for _, new, old in pairs)
    if not rebuilt and shared.moved_bytes >= max(_LEAST, _MOVED * shared.known_bytes):
        text = f"{_mib(shared.moved_bytes)} of known content lie elsewhere than in the parent"
        remedy = "do not defragment or rebuild it between versions: every client copies what has moved"
        advice.append(Advice("moved", text, remedy, shared.moved_bytes))
    return tuple(advice)


def _pairs(found: Sequence[Found], parent: Read, size: int) -> Iterator[tuple[Found, Identity, Identity]]:
    """Yield volumes with their identities in the image and, at the same place, in its parent, where both have one."""
    for one in found:
        volume = one.volume
        there = Volume(parent, volume.start, max(0, min(volume.length, size - volume.start)), volume.name)
        new, old = identity(volume, one.kind), identity(there, one.kind)
        if new is not None and old is not None:
            yield one, new, old


def _changed(new: Identity, old: Identity) -> str:
    """Return what differs between two identities, in words."""
    names = [name for name, one, other in (
        ("identity (UUID, serial number)", new.identity, old.identity),
        ("hash seed", new.seed, old.seed),
    ) if one != other]  # fmt: skip
    return " and ".join(names)


def _range_of(volume: Volume) -> Ranges:
    return ranges_of(np.array([volume.start]), np.array([volume.length]))


def _sample(ranges: Ranges, count: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield places and lengths of at most ``count`` pieces, spread evenly over all of some merged ranges."""
    size = total(ranges)
    ends = np.cumsum(ranges[:, 1])
    count = min(count, -(-size // length))
    for number in range(count):
        at = (2 * number + 1) * size // (2 * count)
        row = int(np.searchsorted(ends, at, side="right"))
        place = int(ranges[row, 0]) + at - int(ends[row] - ranges[row, 1])
        place = max(int(ranges[row, 0]), place - place % BLOCK_SIZE)
        yield place, min(length, int(ranges[row].sum()) - place)


def _name(found: Found) -> str:
    kind = found.file_system.kind if found.file_system is not None else found.kind
    return f"{found.volume.name} ({kind})" if kind else found.volume.name


def _mib(size: float) -> str:
    return f"{size / (1 << 20):.0f} MiB"
