"""Manifests: what a version of an image is, and where its tables and locations are stored.

A manifest is small (a few hundred bytes and 184 for each region that is not all zero) and is the one thing that must be
trusted; everything else is authenticated through it. FORMAT.md, "Manifest".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import (
    CHECK_SIZE,
    DIGEST_SIZE,
    MAX_IMAGE_SIZE,
    REGION_SIZE,
    Bytes,
    Kind,
    image_digest,
    object_digest,
    region_hasher,
)
from trimtransfer.errors import FormatError
from trimtransfer.frontreader import FrontReader
from trimtransfer.names import MAX_DISKS, check_name, disk_name, keys_name, locations_name, manifest_name, tables_name

MAGIC: Final = b"TrimManf"
FORMATS: Final = (1, 2, 3)
"""Format 2 names key files, format 3 further disks. What needs neither is of format 1, as if there were no others."""
DISK_FORMATS: Final = ("raw", "qcow2", "vhd", "vhdx", "vmdk")
"""What an image may be published from; stored as the number in this order."""
MAX_SEGMENTS: Final = 256
MAX_FILES: Final = 4096
MAX_STORED: Final = 4 << 20
"""Longest stored piece of tables or locations, in bytes."""
_HEADER: Final = struct.Struct("<8sHHBBBBQQQ32s32sIIII")
_SEGMENT: Final = struct.Struct("<QQ")
_FILE: Final = struct.Struct("<B3xQ32sB")
TABLES, LOCATIONS, KEYS, DISK = 1, 2, 3, 4
"""Kinds of files that a manifest refers to; the last is the manifest of a further disk of the version."""
_NAMES: Final = {TABLES: tables_name, LOCATIONS: locations_name, KEYS: keys_name}

REF: Final = np.dtype([("file", "<u2"), ("length", "<u4"), ("offset", "<u8"), ("check", "u1", (CHECK_SIZE,))])
"""A stored piece: number of its file, its length (0: there is none), its offset, and its check."""
ROW: Final = np.dtype(
    [
        ("content", "u1", (DIGEST_SIZE,)),
        ("table", "u1", (DIGEST_SIZE,)),
        ("full", REF),
        ("difference", REF),
        ("fresh", REF),
        ("rest", REF),
    ]
)
"""A region that is not all zero: content digest, table digest, and its four stored pieces."""
REFS: Final = ("full", "difference", "fresh", "rest")


@dataclass(frozen=True, slots=True)
class Segment:
    """Part of an image with a block grid of its own: absolute ``start`` and ``length``, in bytes."""

    start: int
    length: int

    @property
    def regions(self) -> int:
        """Number of regions."""
        return -(-self.length // REGION_SIZE)


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file of stored pieces or keys, or a further disk's manifest: kind, the version it belongs to, its length and
    object digest."""

    kind: int
    version: str
    length: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class StoredRef:
    """A stored piece: number of its file in the manifest, offset, length (0: there is none) and check."""

    file: int
    offset: int
    length: int
    check: bytes


NO_REF: Final = StoredRef(0, 0, 0, bytes(CHECK_SIZE))


@dataclass(frozen=True, slots=True)
class Region:
    """One region: number, absolute start and length in bytes, digests, and where its stored pieces are."""

    index: int
    start: int
    length: int
    zero: bool
    content: bytes
    table: bytes
    full: StoredRef
    difference: StoredRef
    fresh: StoredRef
    rest: StoredRef


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """A version of an image.

    ``parent`` is the version it was made after ("" for none), ``created`` seconds since 1970, ``length`` in
    bytes; ``flat`` is the plain BLAKE3 of the whole image where the publisher asked for it; ``disk_format`` is that of
    the file it was published from, no part of the content. ``disk`` is its number in a version of several; that with
    number 0 names the others (:attr:`disks`) and stands for the version. ``zero`` (bool, one per region) marks regions
    of zeros only; ``rows`` (dtype ``ROW``) describes the others, in order.
    """

    image: str
    version: str
    parent: str
    sequence: int
    created: int
    kind: Kind
    length: int
    segments: tuple[Segment, ...]
    files: tuple[FileRef, ...]
    zero: NDArray[np.bool_]
    rows: NDArray[np.void]
    flat: bytes | None = None
    disk: int = 0
    disk_format: str = "raw"
    _starts: NDArray[np.int64] = field(init=False, repr=False)
    _lengths: NDArray[np.int64] = field(init=False, repr=False)
    _row_of: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check everything and derive where the regions lie.

        Raises:
            FormatError: the parts do not make a valid manifest.
        """
        self._check_numbers()
        starts, lengths = region_geometry(self.segments)
        if len(self.zero) != len(starts) or int(np.count_nonzero(~self.zero)) != len(self.rows):
            raise FormatError(
                "manifest", "regions", f"{len(starts)} regions", f"{len(self.zero)}, {len(self.rows)} rows"
            )
        object.__setattr__(self, "_starts", starts)
        object.__setattr__(self, "_lengths", lengths)
        object.__setattr__(self, "_row_of", np.cumsum(~self.zero) - 1)
        self._check_refs()

    def _check_numbers(self) -> None:
        for what, name in (("image", self.image), ("version", self.version), ("version", self.parent or "none")):
            check_name(what, name)
        if not 0 <= self.length <= MAX_IMAGE_SIZE:
            raise FormatError("manifest", "length", f"at most {MAX_IMAGE_SIZE} bytes", self.length)
        if not 0 < len(self.segments) <= MAX_SEGMENTS or len(self.files) > MAX_FILES:
            limits = f"1 to {MAX_SEGMENTS} segments, at most {MAX_FILES} files"
            raise FormatError("manifest", "header", limits, f"{len(self.segments)}, {len(self.files)}")
        at = 0
        for segment in self.segments:
            if segment.start != at or (segment.length <= 0 and self.length > 0):
                raise FormatError("manifest", "segments", f"a segment from byte {at} on", segment)
            at += segment.length
        if at != self.length:
            raise FormatError("manifest", "segments", f"segments of {self.length} bytes in all", at)
        for file in self.files:
            check_name("version", file.version)
            if file.kind not in (*_NAMES, DISK) or not 0 < file.length < 1 << 63:
                raise FormatError("manifest", "files", "files of kind 1 to 4 that are not empty", file)
        self._check_disks()

    def _check_disks(self) -> None:
        """Only disk 0 names others, those of its own version."""
        others = self.disks
        if self.disk >= MAX_DISKS or len(others) >= MAX_DISKS or (self.disk and others):
            raise FormatError("manifest", "disks", f"{MAX_DISKS} at most, named by the first", len(others))
        if any(file.version != self.version for file in others):
            raise FormatError("manifest", "files", "further disks of the same version", others[0])

    def _check_refs(self) -> None:
        kinds = np.array([file.kind for file in self.files] or [0])
        sizes = np.array([file.length for file in self.files] or [0], dtype=np.uint64)
        for name, kind in zip(REFS, (TABLES, TABLES, LOCATIONS, LOCATIONS), strict=True):
            ref = self.rows[name]
            there = ref["length"] > 0
            known = ref["file"] < len(self.files)
            number = np.where(known, ref["file"], 0)
            fits = known & (kinds[number] == kind) & (ref["length"] <= MAX_STORED) & (ref["offset"] <= sizes[number])
            fits &= ref["length"] <= sizes[number] - np.minimum(ref["offset"], sizes[number])
            bad = there & ~fits
            if name == "full":
                bad |= ~there
            if bad.any():
                raise FormatError(
                    "manifest", f"region row {int(np.argmax(bad))}", f"a stored piece ({name})", "none such"
                )

    @property
    def format(self) -> int:
        """Number of the format that the manifest is written in."""
        kinds = {file.kind for file in self.files}
        return 3 if DISK in kinds else 2 if KEYS in kinds else 1

    @property
    def disks(self) -> tuple[FileRef, ...]:
        """The manifests of the version's further disks, from number 1 on."""
        return tuple(file for file in self.files if file.kind == DISK)

    def file_names(self) -> list[str]:
        """Return the store names of ``files``."""
        disks = count(1)
        return [
            manifest_name(disk_name(self.image, next(disks)), file.version)
            if file.kind == DISK
            else _NAMES[file.kind](self.image, file.version)
            for file in self.files
        ]

    @property
    def region_count(self) -> int:
        """Number of regions, those of zeros included."""
        return len(self.zero)

    def region(self, index: int) -> Region:
        """Return region number ``index``."""
        start, length = int(self._starts[index]), int(self._lengths[index])
        if self.zero[index]:
            nothing = (NO_REF, NO_REF, NO_REF, NO_REF)
            return Region(index, start, length, True, zero_region_digest(length), b"", *nothing)
        row = self.rows[self._row_of[index]]
        refs = (stored_ref(row[name]) for name in REFS)
        return Region(index, start, length, False, row["content"].tobytes(), row["table"].tobytes(), *refs)

    @property
    def starts(self) -> NDArray[np.int64]:
        """Absolute start of each region, in bytes."""
        return self._starts

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of each region, in bytes."""
        return self._lengths

    def contents(self) -> Iterator[bytes]:
        """Yield the content digest of every region, in order."""
        rows = iter(self.rows["content"])
        for size, zero in zip(self._lengths, self.zero, strict=True):
            yield zero_region_digest(int(size)) if zero else next(rows).tobytes()

    def image_digest(self) -> bytes:
        """Return the digest of the image's content."""
        return image_digest(self.length, ((s.start, s.length) for s in self.segments), self.contents())

    def digest(self) -> bytes:
        """Return the object digest of the manifest's bytes."""
        return object_digest(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the manifest's bytes."""
        names = b"".join(bytes([len(name)]) + name.encode() for name in (self.image, self.version, self.parent))
        segments = b"".join(_SEGMENT.pack(s.start, s.length) for s in self.segments)
        files = b"".join(
            _FILE.pack(f.kind, f.length, f.digest, len(f.version)) + f.version.encode() for f in self.files
        )
        bitmap = np.packbits(~self.zero, bitorder="little").tobytes()
        flags = (self.flat is not None) | DISK_FORMATS.index(self.disk_format) << 4
        header = _HEADER.pack(
            MAGIC, self.format, self.disk, self.kind, 0, 0, flags, self.sequence, self.created,
            self.length, self.image_digest(), self.flat or bytes(DIGEST_SIZE), REGION_SIZE, len(self.segments),
            len(self.files), len(self.rows),
        )  # fmt: skip
        body = b"".join((header, names, segments, files, bitmap, self.rows.tobytes()))
        return body + object_digest(body)

    @classmethod
    def from_bytes(cls, data: Bytes) -> Manifest:
        """Parse a manifest.

        Raises:
            FormatError: anything but a valid manifest; one of a newer format asks to upgrade.
        """
        reader = FrontReader(memoryview(data)[: max(0, len(data) - DIGEST_SIZE)], "manifest")
        head = reader.unpack(_HEADER)
        magic, version, disk, kind, codec, encryption, flags, sequence, created, length = head[:10]
        digest, flat, region_size, segments, files, rows = head[10:]
        if magic != MAGIC:
            raise FormatError("manifest", 0, MAGIC, magic)
        if version not in FORMATS:
            raise FormatError(
                "manifest", 8, f"format {FORMATS[0]} to {FORMATS[-1]} (a newer one needs a newer program)", version
            )
        _check_trailer(memoryview(data))
        known = not flags & 0x0E and flags >> 4 < len(DISK_FORMATS)
        if (codec, encryption, region_size) != (0, 0, REGION_SIZE) or not known or kind not in tuple(Kind):
            raise FormatError("manifest", 12, "known kind, codec, encryption, flags, region size", head[3:7])
        image, name, parent = reader.text(), reader.text(), reader.text()
        if not 0 < segments <= MAX_SEGMENTS or files > MAX_FILES:
            raise FormatError("manifest", 112, f"1 to {MAX_SEGMENTS} segments, {MAX_FILES} files", (segments, files))
        parts = tuple(Segment(*reader.unpack(_SEGMENT)) for _ in range(segments))
        refs = tuple(_file_ref(reader) for _ in range(files))
        if sum(part.length for part in parts) > MAX_IMAGE_SIZE:
            raise FormatError("manifest", "segments", f"at most {MAX_IMAGE_SIZE} bytes", "more")
        regions = sum(part.regions for part in parts)
        used = reader.bitmap(regions)
        table = np.frombuffer(reader.take(rows * ROW.itemsize), dtype=ROW)
        reader.end()
        manifest = cls(
            image,
            name,
            parent,
            sequence,
            created,
            Kind(kind),
            length,
            parts,
            refs,
            ~used,
            table,
            flat if flags & 1 else None,
            disk,
            DISK_FORMATS[flags >> 4],
        )
        if manifest.format != version:
            raise FormatError("manifest", 8, f"format {manifest.format} for its files", version)
        found = manifest.image_digest()
        if found != digest:
            raise FormatError("manifest", "image digest", digest.hex(), found.hex())
        return manifest


def _check_trailer(data: memoryview) -> None:
    """A manifest ends in the digest of all bytes before it, so that damage to a local copy is found at once."""
    at = len(data) - DIGEST_SIZE
    found = object_digest(data[:at])
    if found != data[at:]:
        raise FormatError("manifest", at, f"the digest {found.hex()[:16]}... of what precedes", data[at : at + 8].hex())


def _file_ref(reader: FrontReader) -> FileRef:
    kind, length, digest, size = reader.unpack(_FILE)
    return FileRef(kind, reader.ascii(size), length, digest)


def stored_ref(ref: np.void) -> StoredRef:
    """Return a reference (dtype ``REF``) as a value."""
    return StoredRef(int(ref["file"]), int(ref["offset"]), int(ref["length"]), ref["check"].tobytes())


def region_geometry(segments: tuple[Segment, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return absolute start and length of every region of these segments, in bytes (int64 each)."""
    starts = [np.arange(s.regions, dtype=np.int64) * REGION_SIZE + s.start for s in segments]
    joined = np.concatenate(starts) if starts else np.zeros(0, dtype=np.int64)
    lengths = np.full(len(joined), REGION_SIZE, dtype=np.int64)
    at = 0
    for segment in segments:
        at += segment.regions
        if segment.regions:
            lengths[at - 1] = segment.length - (segment.regions - 1) * REGION_SIZE
    return joined, lengths


@lru_cache(maxsize=64)
def zero_region_digest(length: int) -> bytes:
    """Return the content digest of a region of ``length`` zero bytes."""
    hasher, piece = region_hasher(), bytes(1 << 20)
    for _ in range(length >> 20):
        hasher.update(piece)
    hasher.update(piece[: length & ((1 << 20) - 1)])
    return hasher.digest()
