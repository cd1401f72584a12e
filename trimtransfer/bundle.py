"""Bundles: what is needed of a repository in one file, for removable media and prestaging.

A bundle maps names of a repository's objects to the very bytes that they have there, whole or in part; so everything in
it is authenticated by the digests that also hold for the repository. Names are keys, never paths. This module knows the
header and the directory; the bytes follow in the order of the directory. FORMAT.md, "Bundle".

Invariant: a constructed :class:`Directory` is valid: distinct names, the pieces of each object in order, none over
another or beyond the object's end.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import CHECK_SIZE, Bytes, object_digest, object_hasher
from trimtransfer.errors import FormatError
from trimtransfer.frontreader import FrontReader
from trimtransfer.names import check_name

MAGIC: Final = b"TrimBndl"
FORMAT: Final = 1
MAX_DIRECTORY: Final = 64 << 20
MAX_OBJECTS: Final = 1 << 18
"""Most objects: packs of 1 TB."""
MAX_PIECES: Final = 1 << 20
MAX_PIECE: Final = 4 << 20
"""Longest piece in bytes: what a reader checks it takes into memory."""
MAX_VERSIONS: Final = 1 << 10
MAX_BASES: Final = 16
_HEADER: Final = struct.Struct("<8sHHIQ32s")
HEADER_SIZE: Final = _HEADER.size
_COUNTS: Final = struct.Struct("<III")
_BEFORE_DIGEST: Final = 24
_OBJECT: Final = np.dtype([("name", "u1"), ("length", "<u8"), ("pieces", "<u4")])
PIECE: Final = np.dtype([("start", "<u8"), ("length", "<u4"), ("check", "u1", (CHECK_SIZE,))])
"""A piece of an object that a bundle holds: where it begins in the object, its length, its check."""
_NAME: Final = re.compile(r"(?=.{1,255}\Z)[a-z0-9][A-Za-z0-9._-]*(?:/[a-z0-9][A-Za-z0-9._-]*)*")


Held: TypeAlias = list[tuple[int, int, int]]
"""What a bundle has of a range: (start in the object, length, place in the bundle), in order."""


@dataclass(frozen=True, slots=True)
class BundleVersion:
    """A version in a bundle; with ``bases`` (or ``files``: image files that it does not name) only what machines lack
    that have one of these versions of the image; with ``deltas`` from the one base, where there are any, instead."""

    image: str
    version: str
    bases: tuple[str, ...] = ()
    files: bool = False
    deltas: bool = False

    @property
    def complete(self) -> bool:
        """Whether any machine can be brought to the version."""
        return not self.bases and not self.files

    def __str__(self) -> str:
        return f"{self.image} {self.version}"


@dataclass(frozen=True, slots=True)
class Header:
    """The first bytes of a bundle: length of the directory, length of the whole, digest of header and directory."""

    directory: int
    length: int
    digest: bytes

    @classmethod
    def from_bytes(cls, data: Bytes) -> Header:
        """Parse the first ``HEADER_SIZE`` bytes.

        Raises:
            FormatError: not the header of a bundle; one of a newer format asks to upgrade.
        """
        if len(data) < HEADER_SIZE:
            raise FormatError("bundle", 0, f"a header of {HEADER_SIZE} bytes", f"{len(data)} bytes")
        magic, version, reserved, directory, length, digest = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise FormatError("bundle", 0, MAGIC, magic)
        if version != FORMAT or reserved:
            raise FormatError("bundle", 8, f"format {FORMAT} (a newer one needs a newer program)", (version, reserved))
        if not _COUNTS.size <= directory <= MAX_DIRECTORY or not HEADER_SIZE + directory <= length < 1 << 62:
            limits = f"a directory of at most {MAX_DIRECTORY} bytes within the bundle"
            raise FormatError("bundle", 12, limits, f"{directory} of {length} bytes")
        return cls(directory, length, digest)


@dataclass(frozen=True, slots=True, eq=False)
class Directory:
    """What a bundle holds.

    ``names`` and ``lengths`` (int64) of objects; ``first`` (int64, one more than objects) is the number of each one's
    first piece; ``pieces`` (dtype ``PIECE``) of all objects, whose bytes follow the directory in this order.
    """

    versions: tuple[BundleVersion, ...]
    names: tuple[str, ...]
    lengths: NDArray[np.int64]
    first: NDArray[np.int64]
    pieces: NDArray[np.void]
    positions: NDArray[np.int64] = field(init=False, repr=False)
    """Where each piece begins in the bundle, and where the last one ends."""
    _numbers: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check everything and derive where the pieces lie.

        Raises:
            FormatError: the parts do not make a valid directory.
        """
        self._check_counts()
        self._check_names()
        self._check_pieces()
        ends = np.cumsum(self.pieces["length"], dtype=np.int64)
        begin = HEADER_SIZE + self._size()
        object.__setattr__(self, "positions", np.concatenate((np.zeros(1, dtype=np.int64), ends)) + begin)
        object.__setattr__(self, "_numbers", {name: number for number, name in enumerate(self.names)})

    @property
    def length(self) -> int:
        """Length of the whole bundle in bytes."""
        return int(self.positions[-1])

    def find(self, name: str) -> int | None:
        """Return the number of an object, None if the bundle has nothing of it."""
        return self._numbers.get(name)

    def held(self, number: int, start: int, length: int) -> Held:
        """Return what the bundle holds of a range of an object."""
        low, high = int(self.first[number]), int(self.first[number + 1])
        begins = self.pieces["start"][low:high].astype(np.int64)
        at = max(0, int(np.searchsorted(begins, start, side="right")) - 1)
        found: Held = []
        for piece in range(low + at, high):
            begin = int(self.pieces["start"][piece])
            if begin >= start + length:
                break
            lower, upper = max(begin, start), min(begin + int(self.pieces["length"][piece]), start + length)
            if lower < upper:
                found.append((lower, upper - lower, int(self.positions[piece]) + lower - begin))
        return found

    def to_bytes(self) -> bytes:
        """Return header and directory, with which a bundle begins."""
        body = b"".join(
            (
                _COUNTS.pack(len(self.versions), len(self.names), len(self.pieces)),
                b"".join(_encode_version(version) for version in self.versions),
                self._columns(),
                "".join(self.names).encode("ascii"),
                *(np.ascontiguousarray(self.pieces[name]).tobytes() for name in ("start", "length", "check")),
            )
        )
        begin = _HEADER.pack(MAGIC, FORMAT, 0, len(body), self.length, bytes(32))[:_BEFORE_DIGEST]
        return begin + object_digest(begin + body) + body

    @classmethod
    def from_bytes(cls, data: Bytes) -> Directory:
        """Parse header and directory.

        Raises:
            FormatError: anything but a valid header and directory.
        """
        view = memoryview(data)
        header = Header.from_bytes(view)
        body = view[HEADER_SIZE:]
        if len(body) != header.directory:
            raise FormatError("bundle", HEADER_SIZE, f"a directory of {header.directory} bytes", f"{len(body)} bytes")
        hasher = object_hasher()
        hasher.update(view[:_BEFORE_DIGEST])
        hasher.update(body)
        found = hasher.digest()
        if found != header.digest:
            raise FormatError("bundle", 24, f"the directory's digest {found.hex()[:16]}...", header.digest.hex()[:16])
        directory = _parse(body)
        if directory.length != header.length:
            raise FormatError("bundle", 16, f"a length of {directory.length:,} bytes", f"{header.length:,}")
        return directory

    def _columns(self) -> bytes:
        sizes = np.array([len(name) for name in self.names], dtype=np.uint8)
        counts = np.diff(self.first).astype("<u4")
        return sizes.tobytes() + self.lengths.astype("<u8").tobytes() + counts.tobytes()

    def _size(self) -> int:
        """Return the length of the directory in bytes."""
        versions = sum(len(_encode_version(version)) for version in self.versions)
        names = sum(len(name) for name in self.names)
        rows = _OBJECT.itemsize * len(self.names) + PIECE.itemsize * len(self.pieces)
        return _COUNTS.size + versions + names + rows

    def _check_counts(self) -> None:
        counts = (len(self.versions), len(self.names), len(self.pieces))
        limits = (MAX_VERSIONS, MAX_OBJECTS, MAX_PIECES)
        if not all(1 <= count <= limit for count, limit in zip(counts, limits, strict=True)):
            raise FormatError("bundle", "directory", "1 to {} versions, {} objects, {} pieces".format(*limits), counts)
        if len(self.first) != counts[1] + 1 or self.first[0] != 0 or self.first[-1] != counts[2]:
            raise FormatError("bundle", "directory", f"{counts[2]} pieces in all", "another number")
        if (np.diff(self.first) < 1).any():
            raise FormatError("bundle", "directory", "a piece of each object", "none")

    def _check_names(self) -> None:
        for name in self.names:
            if not _NAME.fullmatch(name):
                raise FormatError("bundle", "directory", "names of a repository's objects", repr(name[:80]))
        if len(set(self.names)) != len(self.names):
            raise FormatError("bundle", "directory", "distinct names", "one twice")
        for version in self.versions:
            check_name("image", version.image)
            for name in (version.version, *version.bases):
                check_name("version", name)
            if len(version.bases) > MAX_BASES:
                raise FormatError("bundle", "directory", f"at most {MAX_BASES} bases", len(version.bases))

    def _check_pieces(self) -> None:
        starts, lengths = self.pieces["start"], self.pieces["length"].astype(np.int64)
        fits = (starts < 1 << 62) & (lengths >= 1) & (lengths <= MAX_PIECE)
        ends = starts.astype(np.int64) + lengths
        owner = np.repeat(np.arange(len(self.names)), np.diff(self.first))
        fits &= ends <= self.lengths[owner]
        same = owner[1:] == owner[:-1]
        fits[1:] &= ~same | (starts[1:].astype(np.int64) >= ends[:-1])
        if not fits.all():
            wrong = self.names[int(owner[int(np.argmin(fits))])]
            raise FormatError("bundle", "directory", f"pieces of {wrong} in order, each within it", "others")


def piece_array(rows: Sequence[tuple[int, int]]) -> NDArray[np.void]:
    """Return pieces (start, length) as rows of dtype ``PIECE``, without their checks."""
    pieces = np.zeros(len(rows), dtype=PIECE)
    if rows:
        columns = np.array(rows, dtype=np.int64)
        pieces["start"], pieces["length"] = columns[:, 0], columns[:, 1]
    return pieces


def _encode_version(version: BundleVersion) -> bytes:
    names = (version.image, version.version, *version.bases)
    flags = len(version.bases) | version.deltas << 6 | version.files << 7
    return bytes([flags]) + b"".join(bytes([len(name)]) + name.encode("ascii") for name in names)


def _parse(body: memoryview) -> Directory:
    reader = FrontReader(body, "bundle", offset=HEADER_SIZE)
    versions, objects, pieces = reader.unpack(_COUNTS)
    if versions > MAX_VERSIONS or objects > MAX_OBJECTS or pieces > MAX_PIECES:
        raise FormatError("bundle", HEADER_SIZE, "counts within their limits", (versions, objects, pieces))
    named = tuple(_parse_version(reader) for _ in range(versions))
    sizes = reader.column("u1", objects)
    lengths, counts = reader.column("<u8", objects), reader.column("<u4", objects)
    if (lengths >= 1 << 62).any():
        raise FormatError("bundle", "directory", "objects of less than 2^62 bytes", "a longer one")
    text = reader.ascii(int(sizes.sum(dtype=np.int64)))
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    names = tuple(text[end - size : end] for size, end in zip(sizes.tolist(), ends, strict=True))
    rows = np.zeros(pieces, dtype=PIECE)
    rows["start"], rows["length"] = reader.column("<u8", pieces), reader.column("<u4", pieces)
    rows["check"] = reader.column("u1", pieces, CHECK_SIZE).reshape(pieces, CHECK_SIZE)
    reader.end()
    first = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)))
    return Directory(named, names, lengths.astype(np.int64), first, rows)


def _parse_version(reader: FrontReader) -> BundleVersion:
    flags = reader.take(1)[0]
    bases = flags & 0x3F
    if bases > MAX_BASES:
        raise FormatError("bundle", "directory", f"at most {MAX_BASES} bases", bases)
    image, version, *others = (reader.text() for _ in range(2 + bases))
    return BundleVersion(image, version, tuple(others), bool(flags & 0x80), bool(flags & 0x40))
