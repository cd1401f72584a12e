"""Golden vectors of the chunkers: contents described by recipes, and the records that every version must cut.

``golden/chunker_disk.json`` and ``golden/chunker_bytes.json`` hold the recipes and their expected records for chunkers
1 and 2. They are part of the format: entries are added, never changed. Run as a program, this file computes the records
of recipes that have none yet, by the slow twins.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BLOCK = 4096
DISK = Path(__file__).parent / "golden" / "chunker_disk.json"
BYTES = Path(__file__).parent / "golden" / "chunker_bytes.json"

Piece = Sequence[Any]
"""Kind of content, number of 4 KiB blocks, seed."""


def make(pieces: Sequence[Piece], *, length: int | None = None) -> bytes:
    """Return the content that a recipe describes, cut off at ``length`` bytes if given."""
    return b"".join(KINDS[kind](blocks * BLOCK, str(seed).encode()) for kind, blocks, seed in pieces)[:length]


def _random(size: int, seed: bytes) -> bytes:
    """Incompressible: the output of SHAKE-128, which is the same everywhere."""
    return hashlib.shake_128(seed).digest(size)


def _zeros(size: int, seed: bytes) -> bytes:
    return bytes(size)


def _file(size: int, seed: bytes) -> bytes:
    """A file in a disk image: its last block is filled up with 1 to 4095 zeros."""
    slack = int.from_bytes(_random(2, b"slack" + seed), "little") % (BLOCK - 1) + 1
    return _random(size - slack, seed) + bytes(slack)


def _files(size: int, seed: bytes) -> bytes:
    """Files of one block each, with 16 to 255 zeros at their ends."""
    data = bytearray(_random(size, seed))
    for end in range(BLOCK, size + 1, BLOCK):
        slack = max(16, data[end - BLOCK])
        data[end - slack : end] = bytes(slack)
    return bytes(data)


def _sparse(size: int, seed: bytes) -> bytes:
    """Four bytes in each block that are not zero, now and then at its very start or end."""
    data = bytearray(size)
    noise = _random(size // BLOCK * 16, seed)
    for block in range(size // BLOCK):
        for value, low, high in zip(*[iter(noise[16 * block : 16 * block + 12])] * 3, strict=True):
            at = min((high * 256 + low) % (BLOCK + 512), BLOCK - 1)
            data[block * BLOCK + at] = value | 1
    return bytes(data)


def _text(size: int, seed: bytes) -> bytes:
    """Lines with a running number: no two blocks equal, and compressible."""
    word = hashlib.sha256(seed).hexdigest()[:12]
    return "".join(f"{word} {number:08d} the same again\n" for number in range(size // 37 + 1)).encode()[:size]


def _periodic(size: int, seed: bytes) -> bytes:
    """Repeats itself; the seed is the period."""
    period = _random(int(seed), b"period" + seed) if int(seed) else b"\xff"
    return (period * (size // len(period) + 1))[:size]


def _counter(size: int, seed: bytes) -> bytes:
    """32-bit numbers in order, little-endian."""
    return b"".join((int(seed) + k).to_bytes(4, "little") for k in range(size // 4))


def _words(size: int, seed: bytes) -> bytes:
    """Words of a small language in random order, the common ones more often: it compresses as text does."""
    words = [_random(2 + number % 9, b"word %d " % number + seed).hex().encode() for number in range(400)]
    draws = _random(size // 2, b"order" + seed)
    pairs = zip(draws[::2], draws[1::2], strict=False)
    return b" ".join(words[first * second // 164] for first, second in pairs)[:size].ljust(size, b".")


KINDS: dict[str, Callable[[int, bytes], bytes]] = {
    "random": _random,
    "zeros": _zeros,
    "file": _file,
    "files": _files,
    "sparse": _sparse,
    "text": _text,
    "periodic": _periodic,
    "counter": _counter,
    "words": _words,
}


def load(path: Path) -> dict[str, dict[str, Any]]:
    """Return a file of vectors: name -> recipe and expectation."""
    loaded: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return loaded


def content(vector: dict[str, Any]) -> bytes:
    """Return the bytes that a vector is about."""
    made = make(vector["content"], length=vector["length"])
    assert len(made) == vector["length"]
    return made


def digest(records: Sequence[tuple[int, bool]]) -> str:
    """Return the SHA-256 of records as little-endian 32-bit lengths, bit 31 set for zero records."""
    return hashlib.sha256(b"".join((n | zero << 31).to_bytes(4, "little") for n, zero in records)).hexdigest()


def expectation(records: Sequence[tuple[int, bool]]) -> dict[str, Any]:
    """Return what a vector says of its records: all of them if they are few (zero records negative), else the first."""
    lengths = [-n if zero else n for n, zero in records[:64]]
    return {"records": len(records), "sha256": digest(records), "first": lengths}


def _complete() -> None:
    import reference

    for path, twin in ((DISK, reference.cut_disk), (BYTES, reference.cut_bytes)):
        vectors = load(path)
        for vector in vectors.values():
            if "expected" not in vector:
                options = {"mean": vector["mean"]} if "mean" in vector else {}
                vector["expected"] = expectation(twin(content(vector), **options))
        lines = [f"  {json.dumps(name)}: {json.dumps(vector)}" for name, vector in vectors.items()]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    _complete()
