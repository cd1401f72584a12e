"""Units and their identity: block, region and chunk sizes, and the BLAKE3-256 digests.

Content (chunk, table, region, image) has a BLAKE3 context for each kind (key derivation, BLAKE3 paper section 2.3),
so a digest of one kind can never pass for another. Stored objects are named by plain BLAKE3, what ``b3sum`` prints.
Digests are 32 bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from enum import IntEnum
from typing import Final, TypeAlias

from blake3 import blake3

Bytes: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes, as arguments of this package's functions."""


class Kind(IntEnum):
    """What is cut, and so by which rule; the number is stored in manifests as the chunker's."""

    DISK = 1
    """Disk images and host files: chunks of whole 4 KiB blocks that follow files."""
    BYTES = 2
    """Any other file: cuts at any byte."""


DIGEST_SIZE: Final = 32
CHECK_SIZE: Final = 16
"""Length of the shortened digests that authenticate stored (compressed) bytes."""
BLOCK_SIZE: Final = 4096
REGION_SIZE: Final = 64 << 20
MAX_CHUNK_SIZE: Final = 256 << 10
MAX_IMAGE_SIZE: Final = 1 << 46
"""64 TiB, as much as a VHDX holds: what is kept per region stays within some ten MiB (a million regions)."""

ZEROS: Final = memoryview(bytes(1 << 20))
"""One MiB of zeros, to hash or write in place of a hole."""

_CHUNK: Final = "trimtransfer 1 chunk"
_TABLE: Final = "trimtransfer 1 table"
_REGION: Final = "trimtransfer 1 region"
_IMAGE: Final = "trimtransfer 1 image"


def chunk_digest(data: Bytes) -> bytes:
    """Return the digest that names the chunk with exactly these bytes."""
    return blake3(data, derive_key_context=_CHUNK).digest()


def table_digest(canonical: Bytes) -> bytes:
    """Return the digest of a region's table in canonical form (FORMAT.md, "Table")."""
    return blake3(canonical, derive_key_context=_TABLE).digest()


def region_hasher(zeros: int = 0) -> blake3:
    """Return a hasher for a region's content: feed it the region's true bytes in order, zeros included.

    It has taken the first ``zeros`` bytes, all zeros, already: most of them are hashed once per process.
    """
    pieces, rest = divmod(zeros, len(ZEROS))
    hasher = _after_zeros(pieces).copy()
    hasher.update(ZEROS[:rest])
    return hasher


@functools.cache
def _after_zeros(pieces: int) -> blake3:
    """Return a hasher for a region that has taken so many ``ZEROS``; to be copied, not fed. At most 65 of 2 KiB."""
    if not pieces:
        return blake3(derive_key_context=_REGION)
    hasher = _after_zeros(pieces - 1).copy()
    hasher.update(ZEROS)
    return hasher


def region_digest(data: Bytes) -> bytes:
    """Return the content digest of a region given whole."""
    return blake3(data, derive_key_context=_REGION).digest()


def image_digest(length: int, segments: Iterable[tuple[int, int]], contents: Iterable[bytes]) -> bytes:
    """Return the digest of an image from its length in bytes, its segments (start, length) and its content digests.

    It does not depend on the chunker: FORMAT.md, "Digests".
    """
    hasher = blake3(derive_key_context=_IMAGE)
    hasher.update(length.to_bytes(8, "little"))
    for start, size in segments:
        hasher.update(start.to_bytes(8, "little") + size.to_bytes(8, "little"))
    for content in contents:
        hasher.update(content)
    return hasher.digest()


def object_digest(data: Bytes) -> bytes:
    """Return the digest that names a stored object (pack, manifest, or a stored piece of tables or locations)."""
    return blake3(data).digest()


def object_hasher() -> blake3:
    """Return a hasher for a stored object that is read in parts."""
    return blake3()


def object_check(data: Bytes) -> bytes:
    """Return the first 16 bytes of :func:`object_digest`: what locations and manifests record of stored bytes."""
    return object_digest(data)[:CHECK_SIZE]
