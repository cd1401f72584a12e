"""Makes golden vectors of recompression: run as a program it adds those that ``golden/recompress.json`` lacks.

The vectors are part of the format: entries are added, never changed. Each has a content (a recipe of ``vectors.py``), a
record, and the size and SHA-256 of the file that comes of them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from deflating import compressor, deflated
from vectors import content as content_of

from trimtransfer import native
from trimtransfer.recompress import Part, number, sealed
from trimtransfer.wrapped import unwrap

GOLDEN = Path(__file__).parent / "golden" / "recompress.json"
MIXED = [["words", 40, 1], ["random", 6, 2], ["zeros", 3, 0], ["sparse", 10, 4], ["text", 20, 5], ["words", 12, 1]]
SMALL = [["words", 2, 9], ["periodic", 1, 7], ["random", 1, 3]]


def blamed(stream: bytes, by: bytes) -> bytes:
    """Return the record of a raw stream by this compressor, right or wrong."""
    found = native.inflate(stream, limit=1 << 30)
    assert found is not None
    made = native.explain(stream, found, by, stop=1 << 30, room=16 * len(stream) + 4096)
    assert made is not None
    return sealed(bytes([Part.DEFLATE]) + by + b"\0" + number(len(made[0])) + made[0])


def sliced(stream: bytes, by: bytes, cut: int) -> tuple[bytes, bytes]:
    """Return the bytes of a raw stream behind its first third of blocks, less ``cut``, and the record that makes them.

    The content before them is the context, so that the content is that of the whole stream.
    """
    out = np.empty(1 << 23, np.uint8)
    ends, _ = native.inflate_blocks(stream, out, bit=0, context=0, most=1 << 16)
    content, first = out[: int(ends[-1, 1])].tobytes(), len(ends) // 3
    (bit, context), data = ends[first, :2].tolist(), stream[int(ends[first, 0]) // 8 :]
    blocks, empty = len(ends) - first - 1, (np.diff(ends[first:, 1]) == 0) & (ends[first + 1 :, 2] == 0)
    flushes = np.unique(ends[first + 1 :, 1][empty])
    flushes = flushes[flushes > context].astype(np.uint64)
    made = native.explain_slice(
        data, content, flushes, by, bit=bit % 8, context=context, blocks=blocks, room=2 * len(data) + 4096
    )
    assert made is not None
    file = data[1 : len(data) - cut]
    sizes = bytes([bit % 8]) + number(context) + b"\0" + number(1) + number(len(file)) + number(len(made))
    return file, sealed(bytes([Part.SLICE]) + by + sizes + made)


def best(file: bytes) -> bytes:
    """Return the record that a publisher makes of a file."""
    made = unwrap(file, limit=1 << 30)
    assert made is not None
    return made.record


def gnu(data: bytes, level: int) -> bytes:
    """Return what GNU gzip makes."""
    return subprocess.run(["gzip", "-n", f"-{level}"], input=data, capture_output=True, check=True).stdout


def in_parts(data: bytes, flush: int) -> bytes:
    """Return a stream that is flushed every 30,000 bytes."""
    return deflated([data[at : at + 30_000] for at in range(0, len(data), 30_000)], level=5, flush=flush)


def members(data: bytes) -> bytes:
    """Return two gzip members, the first with a name, and a tail."""
    head = bytes.fromhex("1f8b0808000000000203") + b"first\0"
    check = zlib.crc32(data[:9000]).to_bytes(4, "little") + (9000).to_bytes(4, "little")
    return head + deflated([data[:9000]]) + check + gzip.compress(data[9000:], mtime=0) + bytes(40)


def makers() -> dict[str, tuple[list[list[Any]], Callable[[bytes], tuple[bytes, bytes]]]]:
    """Return for each name a recipe and what makes a file and its record of the content."""
    made: dict[str, tuple[list[list[Any]], Callable[[bytes], tuple[bytes, bytes]]]] = {}

    def raw(name: str, by: bytes, make: Callable[[bytes], bytes], recipe: list[list[Any]] = MIXED) -> None:
        made[name] = recipe, lambda data: (make(data), blamed(make(data), by))

    for level in range(1, 10):
        raw(f"zlib {level}", compressor(level), lambda data, level=level: deflated([data], level=level))
        made[f"gnu {level}"] = MIXED, lambda data, level=level: (gnu(data, level), best(gnu(data, level)))
    for memory, window in ((1, 15), (9, 15), (4, 12), (8, 9)):
        settings = {"memory": memory, "window": window}
        raw(f"zlib {settings}", compressor(6, **settings), lambda data, s=settings: deflated([data], **s))
    for name, strategy, ours in (("filtered", 1, 1), ("runs", 3, 2), ("no matches", 2, 3), ("fixed", 4, 0)):
        by = compressor(7, strategy=ours)
        raw(f"zlib {name}", by, lambda data, strategy=strategy: deflated([data], level=7, strategy=strategy))
    raw("sync flush", compressor(5), lambda data: in_parts(data, zlib.Z_SYNC_FLUSH))
    raw("partial flush", compressor(5), lambda data: in_parts(data, zlib.Z_PARTIAL_FLUSH))
    raw("full flush", bytes([0x85, 0xF7, 14]), lambda data: in_parts(data, zlib.Z_FULL_FLUSH))
    raw("greedy flush", compressor(2), lambda data: deflated([data[:9000], data[9000:]], level=2, flush=2))
    raw("stored", compressor(6), lambda data: deflated([data], level=0), SMALL)
    raw("corrections", compressor(1), lambda data: deflated([data], level=9), SMALL)
    raw("wrong codes", compressor(6), lambda data: deflated([data], level=6, memory=3), SMALL)
    for level in (9, 2):
        by = compressor(level, gnu=True)
        made[f"slice {level}"] = MIXED, lambda data, by=by, level=level: sliced(gnu(data, level)[10:-8], by, level)
    by = bytes([0x85, 0xF7, 14])
    made["slice, full flush"] = MIXED, lambda data: sliced(in_parts(data, zlib.Z_FULL_FLUSH), by, 0)
    made["members"] = SMALL, lambda data: (members(data), best(members(data)))
    made["zlib file"] = SMALL, lambda data: (zlib.compress(data), best(zlib.compress(data)))
    return made


def main() -> None:
    """Add the vectors that are not there."""
    vectors = json.loads(GOLDEN.read_text())
    for name, (recipe, make) in makers().items():
        if name in vectors:
            continue
        vector = {"content": recipe, "length": 4096 * sum(piece[1] for piece in recipe)}
        file, record = make(content_of(vector))
        vectors[name] = vector | {
            "record": record.hex(),
            "size": len(file),
            "sha256": hashlib.sha256(file).hexdigest(),
        }
    lines = [f"  {json.dumps(name)}: {json.dumps(vector)}" for name, vector in vectors.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
