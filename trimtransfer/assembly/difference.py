"""What an update consists of: the bytes of :mod:`updatecost` told by file, folder, kind and place, with what can be
done about them.

Files are those of clean file systems that are known here. Elsewhere content is told by its place and by what it looks
like. All parts add up to what is fetched; how the length of a frame, or of a unit of deltas, is shared out among the
files in it is an estimate by their lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.assembly.differencereport import (
    Amounts,
    DifferenceReport,
    Stretch,
    VolumeDifference,
    advice_on,
    folders_of,
    largest,
    mib,
    part_of,
    parts_of_kinds,
    worth_telling,
)
from trimtransfer.assembly.updatecost import Curve, UpdateCost, update_cost
from trimtransfer.filesystem.contents import CLEAN, FileEntry, FileSystem
from trimtransfer.filesystem.ranges import Ranges, difference, joined, merged, no_ranges, ranges_of
from trimtransfer.filesystem.volumes import Found, find_file_systems
from trimtransfer.manifest import Manifest
from trimtransfer.names import disk_name
from trimtransfer.repository.advice import Advice
from trimtransfer.repository.contentkind import HEAD, kind_of_content, kind_of_file
from trimtransfer.repository.published import PublishedImage
from trimtransfer.repository.reading import VersionReader, further_disks, read_head, read_manifest
from trimtransfer.store import DirectoryStore
from trimtransfer.watch import Progress, Watch

_STRETCH: Final = 1 << 20
"""New content of no file that lies closer than this is told as one stretch."""
_LOOKS: Final = 4096
"""Pieces of content of no file that are looked at for their kind; of more, some."""


def difference_of(
    repository: DirectoryStore, image: str, old: str, new: str, *, top: int = 20, progress: Progress | None = None
) -> DifferenceReport:
    """Return where the bytes of the update from version ``old`` of an image to ``new`` go; the ``top`` of each list.

    The report is of the first disk; those of further disks are in it. Memory: some 200 bytes for each file of the new
    version, 100 for each chunk that is new, one disk at a time.

    Raises:
        NotFound: no such image or version; FormatError, IntegrityError: the repository is damaged.
    """
    watch = Watch(progress)
    client = DirectoryStore(repository.path)
    manifest = _wanted(client, image, new)
    before = VersionReader.open(repository, image, old)
    report = _difference_of_disk(image, client, manifest, before, old, top, watch)
    known: list[VersionReader | None] = [*further_disks(repository, before.manifest)]
    disks = []
    for number, file in enumerate(manifest.disks):
        client = DirectoryStore(repository.path)
        disk = read_manifest(client, disk_name(image, number + 1), new, digest=file.digest)
        there = known[number] if number < len(known) else None
        disks.append(_difference_of_disk(image, client, disk, there, old, top, watch))
    return replace(report, disks=tuple(disks))


def _wanted(store: DirectoryStore, image: str, version: str) -> Manifest:
    """Read what a client reads first: the head only where it asks for the newest version."""
    newest = read_head(DirectoryStore(store.path), image).version == version
    head = read_head(store, image) if newest else None
    return read_manifest(store, image, version, head=head)


def _difference_of_disk(
    image: str,
    client: DirectoryStore,
    manifest: Manifest,
    before: VersionReader | None,
    old: str,
    top: int,
    watch: Watch,
) -> DifferenceReport:
    """Return the difference of one disk; ``client`` is the store that the manifest was read from, and nothing else."""
    content = PublishedImage(VersionReader(DirectoryStore(client.path), manifest))
    volumes = [_Volume(found) for found in find_file_systems(content.read, content.size)]
    spare = merged(joined(volume.free for volume in volumes))
    cost = update_cost(client, manifest, before, spare=spare, watch=watch)
    difference = _Difference(image, content, volumes, cost, watch)
    return difference.report("" if before is None else old, top)


class _Volume:
    """A volume, and what its file system says of it if it is clean and known."""

    def __init__(self, found: Found) -> None:
        self.name, self.kind = found.volume.name, found.kind
        self.range = ranges_of(np.array([found.volume.start]), np.array([found.volume.length]))
        self.problem = found.problem
        self.file_system: FileSystem | None = None
        self.free = no_ranges()
        self.remedy = "" if found.file_system is None else "shut its guest down cleanly, or repair the file system"
        if found.file_system is not None:
            self.kind = found.file_system.kind
            state = found.file_system.state
            if state == CLEAN:
                self.file_system, self.free = found.file_system, found.file_system.free()
            else:
                self.problem = state


@dataclass(slots=True)
class _Tally:
    """What was told so far: amounts by kind, changed files (name, volume, kind), their amounts."""

    kinds: dict[str, Amounts] = field(default_factory=dict)
    files: list[tuple[str, str, str]] = field(default_factory=list)
    amounts: list[Amounts] = field(default_factory=list)

    def add(self, kind: str, amounts: Amounts) -> None:
        """Add to a kind."""
        self.kinds[kind] = self.kinds.get(kind, np.zeros(3)) + amounts


class _Difference:
    """One run of :func:`difference_of`, once it is known what is fetched."""

    def __init__(
        self, image: str, content: PublishedImage, volumes: Sequence[_Volume], cost: UpdateCost, watch: Watch
    ) -> None:
        self._image, self._content, self._volumes, self._cost, self._watch = image, content, volumes, cost, watch
        pieces = cost.pieces
        starts, lengths = pieces["offset"], pieces["length"]
        columns = (lengths.astype(np.float64), pieces["plain"], pieces["delta"])
        self._curves = tuple(Curve(starts, lengths, column) for column in columns)
        self._new = merged(ranges_of(starts, lengths))
        self._tally = _Tally()
        self._looked: list[tuple[int, int, str]] = []
        """Content of no known file: place, length, kind."""

    def report(self, old: str, top: int) -> DifferenceReport:
        """Tell everything and put it together; ``old`` is empty where that version has no such disk."""
        self._tell_volumes()
        self._tell_outside()
        manifest, cost, tally = self._content.reader.manifest, self._cost, self._tally
        content = int(cost.pieces["length"].sum())
        files = [part_of(*name, amounts) for name, amounts in zip(tally.files, tally.amounts, strict=True)]
        return DifferenceReport(
            image=manifest.image,
            old=old,
            new=manifest.version,
            length=manifest.length,
            content_bytes=content,
            fetched_bytes=cost.fetched_bytes,
            plain_bytes=cost.plain_bytes,
            delta_bytes=cost.delta_bytes,
            gap_bytes=cost.gap_bytes,
            metadata_bytes=cost.metadata_bytes,
            requests=cost.requests,
            deltas=cost.deltas,
            changed_files=len(files),
            kinds=parts_of_kinds(tally.kinds, (content, cost.plain_bytes, cost.delta_bytes)),
            files=largest(files, top),
            folders=largest(folders_of(tally.files, tally.amounts), top),
            stretches=self._stretches(top),
            volumes=tuple(self._volume(volume) for volume in self._volumes),
            advice=(*advice_on(tally.kinds, files, cost.plain_bytes + cost.delta_bytes), *self._advice(old)),
        )

    def _advice(self, old: str) -> Iterator[Advice]:
        """Yield what can be done where there are no deltas, or volumes whose files are not known."""
        manifest = self._content.reader.manifest
        packed = np.array([part[:2] for part in self._looked if part[2] == "random"], dtype=np.int64).reshape(-1, 2)
        size = round(float(self._amounts(packed)[:, 1:].sum()))
        if size >= worth_telling(self._cost.plain_bytes + self._cost.delta_bytes):
            text = f"{mib(size)} lie in no known file and look compressed or encrypted"
            yield Advice("packed", text, "publish a file system that is known, and content that is neither", size)
        if (
            old not in ("", manifest.parent) and not self._cost.deltas and self._cost.plain_bytes
        ):  # from that were tried
            command = f"medv-repo delta REPO --image {self._image} --from {old} --to {manifest.version}"
            yield Advice(
                "no-deltas", f"there are no deltas from {old}", f"make some: {command}", self._cost.plain_bytes
            )
        for volume in self._volumes:
            if volume.kind and volume.file_system is None and self._amounts(volume.range)[0, 0]:
                text = f"the files of {volume.name} ({volume.kind}) are not known, as {volume.problem}"
                yield Advice("unread-volume", text, volume.remedy)

    def _amounts(self, ranges: Ranges) -> Amounts:
        """Return the amounts in each of some ranges, shape (n, 3)."""
        found: Amounts = np.stack([curve.within(ranges) for curve in self._curves], axis=1)
        return found

    def _tell_volumes(self) -> None:
        for volume in self._volumes:
            if volume.file_system is None:
                continue
            whole = self._amounts(volume.range)[0]
            free = self._amounts(volume.free).sum(axis=0)
            files = self._tell_files(volume.file_system, volume.name)
            self._tally.add("free", free)
            self._tally.add("structure", np.maximum(whole - free - files, 0.0))

    def _tell_files(self, file_system: FileSystem, volume: str) -> Amounts:
        """Tell the changed files of a file system; return what they come to."""
        changed, owners, space = self._changed_files(file_system)
        if not changed:
            return np.zeros(3)
        amounts = self._amounts(space)
        sums = np.stack([np.bincount(owners, amounts[:, n], minlength=len(changed)) for n in range(3)], axis=1)
        kinds = self._kinds_of_files(changed)
        for number, (path, _) in enumerate(changed):
            self._tally.add(kinds[number], sums[number])
            self._tally.files.append((path, kinds[number], volume))
            self._tally.amounts.append(sums[number])
        whole: Amounts = sums.sum(axis=0)
        return whole

    def _changed_files(self, file_system: FileSystem) -> tuple[list[tuple[str, int]], NDArray[np.int64], Ranges]:
        """Return files that have new content: path, and where they begin (-1: nowhere); then ranges, the last block of
        each file whole, with the numbers of the files that own them. What files share counts for the first of them."""
        changed: list[tuple[str, int]] = []
        owners: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        spaces: list[Ranges] = [no_ranges()]
        block = file_system.block_size
        for entry in file_system.files():
            space = _space(entry, block)
            if not self._curves[0].within(space).any():
                continue
            first = int(entry.extents[0, 1]) if int(entry.extents[0, 0]) == 0 else -1
            owners.append(np.full(len(space), len(changed), dtype=np.int64))
            changed.append((entry.path.decode(errors="replace"), first))
            spaces.append(space)
        space, owner = np.concatenate(spaces), np.concatenate(owners)
        order = np.argsort(space[:, 0], kind="stable")
        return changed, owner[order], _clipped(space[order])

    def _kinds_of_files(self, changed: Sequence[tuple[str, int]]) -> list[str]:
        """Look at the first bytes of files, in the image's order."""
        kinds = [""] * len(changed)
        for done, number in enumerate(sorted(range(len(changed)), key=lambda number: changed[number][1])):
            path, first = changed[number]
            kinds[number] = kind_of_file(path, self._content.read(first, HEAD) if first >= 0 else b"")
            if done % 256 == 0:
                self._watch.report("look", done, len(changed))
        return kinds

    # ---- what lies in no known file

    def _tell_outside(self) -> None:
        """Tell what lies outside of volumes, and in those whose files are not known."""
        volumes = self._volumes
        outside = difference(self._new, merged(joined(volume.range for volume in volumes)))
        self._tally.add("table", self._amounts(outside).sum(axis=0))
        known = merged(joined(volume.range for volume in volumes if volume.file_system is not None))
        for start, length, kind in self._looks(difference(difference(self._new, known), outside)):
            self._looked.append((start, length, kind))
            self._tally.add(kind, self._amounts(np.array([[start, length]], dtype=np.int64))[0])

    def _looks(self, ranges: Ranges) -> Iterator[tuple[int, int, str]]:
        """Yield parts of ranges with the kind of their content; a part's beginning speaks for it."""
        size = max(64 << 10, -(-int(ranges[:, 1].sum()) // _LOOKS)) if len(ranges) else 1
        for start, length in ranges.tolist():
            for at in range(start, start + length, size):
                count = min(size, start + length - at)
                yield at, count, kind_of_content(self._content.read(at, min(count, 64 << 10)))

    def _stretches(self, top: int) -> tuple[Stretch, ...]:
        if not self._looked:
            return ()
        groups: list[list[tuple[int, int, str]]] = []
        for part in self._looked:
            if groups and part[0] - sum(groups[-1][-1][:2]) < _STRETCH:
                groups[-1].append(part)
            else:
                groups.append([part])
        found = []
        for group in groups:
            ranges = np.array([part[:2] for part in group], dtype=np.int64)
            amounts = self._amounts(ranges).sum(axis=0)
            sizes: dict[str, int] = {}
            for _, length, kind in group:
                sizes[kind] = sizes.get(kind, 0) + length
            start, end = int(ranges[0, 0]), int(ranges[-1].sum())
            most = max(sizes, key=lambda kind: sizes[kind])
            found.append(Stretch(start, end - start, most, round(amounts[0]), round(amounts[1] + amounts[2])))
        return tuple(sorted(found, key=lambda one: -one.fetched)[:top])

    def _volume(self, volume: _Volume) -> VolumeDifference:
        content, plain, delta = self._amounts(volume.range)[0].tolist()
        return VolumeDifference(volume.name, volume.kind, volume.problem, round(content), round(plain + delta))


def _space(entry: FileEntry, block: int) -> Ranges:
    """Return where a file's content lies, its last block whole."""
    lengths = -(-entry.extents[:, 2] // block) * block
    return ranges_of(entry.extents[:, 1], lengths)


def _clipped(space: Ranges) -> Ranges:
    """Return ascending ranges without what earlier ones have."""
    ends = np.maximum.accumulate(space[:, 0] + space[:, 1])
    starts = space[:, 0].copy()
    starts[1:] = np.maximum(starts[1:], ends[:-1])
    return ranges_of(starts, np.maximum(space[:, 0] + space[:, 1] - starts, 0))
