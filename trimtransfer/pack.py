"""Frames and packs: how chunk content is compressed, and the immutable files that hold it.

A frame is the unit of compression and transfer, a pack a file of frames named by its digest. Where each chunk lies is
told by locations, never by the pack itself. FORMAT.md, "Frame and pack".
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from trimtransfer.chunk import DIGEST_SIZE, MAX_CHUNK_SIZE, Bytes, object_check, object_digest
from trimtransfer.codec import compress, decompress
from trimtransfer.errors import FormatError, IntegrityError

PACK_MAGIC: Final = b"TrimPack\x01\x00\x00\x00\x00\x00\x00\x00"
"""First sixteen bytes of every pack: name, format version 1, reserved zeros."""
MAX_PACK: Final = 4_000_000
"""Longest pack in bytes: caches keep objects of that size by default."""
MAX_FRAME_RAW: Final = 2 << 20
"""Most bytes of content that a reader agrees to: room for publishers that fill frames further."""
LEAST_PACK: Final = len(PACK_MAGIC) + 2 * MAX_CHUNK_SIZE
"""Least limit for a pack in bytes: a frame that one chunk more would fill always fits."""
_LEAST_GAIN: Final = 32  # stored plain where zstd gains less than 1/32: decoding costs time, plain does not


class Codec(IntEnum):
    """How a frame is stored."""

    PLAIN = 0
    ZSTD = 1


def encode_frame(raw: Bytes, *, level: int) -> tuple[Codec, bytes]:
    """Return codec and stored bytes of a frame with this content; plain where zstd at ``level`` gains next to nothing.

    Raises:
        ValueError: no content, or more than ``MAX_FRAME_RAW`` bytes.
    """
    size = len(raw)
    if not 0 < size <= MAX_FRAME_RAW:
        raise ValueError(f"a frame holds 1 to {MAX_FRAME_RAW} bytes, not {size}")
    stored = compress(raw, level)
    if len(stored) > size - size // _LEAST_GAIN:
        return Codec.PLAIN, bytes(raw)
    return Codec.ZSTD, stored


def decode_frame(stored: Bytes, *, codec: int, raw: int, check: bytes) -> bytes:
    """Return the ``raw`` bytes of a frame's content; ``check`` is compared before anything is decoded.

    Raises:
        IntegrityError: the stored bytes are not those that ``check`` names.
        FormatError: unknown codec, or content of another length.
    """
    found = object_check(stored)
    if found != check:
        raise IntegrityError("frame", check, found)
    if codec == Codec.PLAIN:
        content = bytes(stored)
    elif codec == Codec.ZSTD:
        content = decompress(stored, MAX_FRAME_RAW, "frame")
    else:
        raise FormatError("frame", "codec", "0 (plain) or 1 (zstd)", codec)
    if len(content) != raw:
        raise FormatError("frame", "content", f"{raw} bytes", f"{len(content)} bytes")
    return content


class PackBuilder:
    """Collects stored frames into one pack in memory (at most ``limit`` bytes)."""

    def __init__(self, *, limit: int = MAX_PACK) -> None:
        if not LEAST_PACK <= limit <= MAX_PACK:
            raise ValueError(f"a pack's limit lies between {LEAST_PACK} and {MAX_PACK} bytes")
        self._limit = limit
        self._data = bytearray(PACK_MAGIC)

    def __len__(self) -> int:
        return len(self._data)

    @property
    def empty(self) -> bool:
        """Whether no frame was added yet."""
        return len(self._data) == len(PACK_MAGIC)

    def full(self, next_size: int) -> bool:
        """Whether a stored frame of ``next_size`` bytes no longer fits."""
        return len(self._data) + next_size > self._limit

    def add(self, stored: Bytes) -> int:
        """Append a stored frame and return its offset in the pack.

        Raises:
            ValueError: it does not fit; ask :meth:`full` first.
        """
        if self.full(len(stored)):
            raise ValueError(f"a frame of {len(stored)} bytes does not fit a pack of {len(self._data)} bytes")
        offset = len(self._data)
        self._data += stored
        return offset

    def finish(self) -> tuple[bytes, bytes]:
        """Return the pack's digest and bytes."""
        data = bytes(self._data)
        return object_digest(data), data


def check_pack(data: Bytes, digest: bytes) -> None:
    """Check a whole pack against its name.

    Raises:
        FormatError: not a pack, or longer than packs are.
        IntegrityError: not the pack with this ``digest``.
    """
    if not len(PACK_MAGIC) <= len(data) <= MAX_PACK or bytes(data[: len(PACK_MAGIC)]) != PACK_MAGIC:
        raise FormatError("pack", 0, f"{PACK_MAGIC!r} and at most {MAX_PACK} bytes in all", bytes(data[:16]))
    found = object_digest(data)
    if found != digest:
        raise IntegrityError("pack", digest, found)


def pack_name(digest: bytes) -> str:
    """Return the store name of the pack with this digest: ``packs/ab/abcd....bin``."""
    if len(digest) != DIGEST_SIZE:
        raise ValueError(f"a digest has {DIGEST_SIZE} bytes, not {len(digest)}")
    name = digest.hex()
    return f"packs/{name[:2]}/{name}.bin"
