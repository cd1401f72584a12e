"""Synthetic data shaped like what disks hold: text, tables, code, metadata, samples, sparse and repeating bytes.

:data:`SHAPES` maps a name to a function (size in bytes, numpy generator) -> array of exactly that many bytes. None of
them repeats itself over more than a few hundred bytes, so that a count over a long array is a count over many contexts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.uint8]
Shape: TypeAlias = Callable[[int, np.random.Generator], Array]

SHAPES: dict[str, Shape] = {}


def _shape(function: Shape) -> Shape:
    """Register a shape under its name without the leading underscore. It is asked for more than is needed, since what
    it makes of lines and words is only about as long as it was told."""
    name = function.__name__.lstrip("_")
    SHAPES[name] = lambda size, rng: np.ascontiguousarray(function(size + size // 2 + 64, rng)[:size])
    return function


def _bytes_of(values: np.ndarray) -> Array:
    return np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)


def _joined(lines: list[str]) -> Array:
    return np.frombuffer("".join(lines).encode(), np.uint8)


def _words(rng: np.random.Generator, alphabet: str) -> list[str]:
    """A vocabulary of 4,000 words over an alphabet whose letters are unequally frequent."""
    weights = 1 / np.arange(1, len(alphabet) + 1)
    letters = rng.choice(list(alphabet), size=(4000, 12), p=weights / weights.sum())
    return ["".join(row[:length]) for row, length in zip(letters, rng.integers(1, 12, 4000), strict=True)]


def _prose(size: int, rng: np.random.Generator, alphabet: str) -> str:
    """Words with frequencies as in natural language (Zipf), with full stops and line ends."""
    words = _words(rng, alphabet)
    ranks = np.minimum(rng.zipf(1.2, size // 4 + 8) - 1, 3999)
    ends = rng.choice([" ", ", ", ". ", "\n"], size=len(ranks), p=[0.85, 0.06, 0.06, 0.03])
    return "".join(words[rank] + end for rank, end in zip(ranks, ends, strict=True))


def _records(size: int, fields: list[tuple[str, str]]) -> np.ndarray:
    dtype = np.dtype(fields)
    return np.zeros(size // dtype.itemsize + 1, dtype)


@_shape
def _random(size: int, rng: np.random.Generator) -> Array:
    return rng.integers(0, 256, size, dtype=np.uint8)


@_shape
def _prose_ascii(size: int, rng: np.random.Generator) -> Array:
    return _joined([_prose(size, rng, "etaoinshrdlcumwfgypbvkjxqz")])


@_shape
def _prose_utf16(size: int, rng: np.random.Generator) -> Array:
    return np.frombuffer(_prose(size // 2 + 8, rng, "etaoinshrdlcumwfgypbvkjxqz").encode("utf-16-le"), np.uint8)


@_shape
def _prose_cyrillic(size: int, rng: np.random.Generator) -> Array:
    return _joined([_prose(size, rng, "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъ")])


@_shape
def _source_code(size: int, rng: np.random.Generator) -> Array:
    words = _words(rng, "etaoinshrdlcumwfgypbvkjxqz_")
    lines = []
    for depth, *picks in zip(
        rng.integers(0, 5, size // 24 + 8), *rng.integers(0, 600, (3, size // 24 + 8)), strict=True
    ):
        a, b, c = (words[pick] for pick in picks)
        lines.append(f"{'    ' * depth}{a} = {b}({c}, {picks[0]});\n")
    return _joined(lines)


@_shape
def _json(size: int, rng: np.random.Generator) -> Array:
    names = _words(rng, "etaoinshrdlc")
    values = rng.integers(0, 10**6, (3, size // 80 + 8))
    return _joined(
        [f'{{"id": {i}, "name": "{names[a % 4000]}", "size": {b}, "ok": {c % 2}, "path": "/usr/lib/{c}"}},\n'
         for i, (a, b, c) in enumerate(values.T)]
    )  # fmt: skip


@_shape
def _csv_numbers(size: int, rng: np.random.Generator) -> Array:
    values = rng.normal(20, 5, (4, size // 28 + 8))
    return _joined([f"{a:.2f},{b:.3f},{c:.2f},{d:.1f}\n" for a, b, c, d in values.T])


@_shape
def _log_lines(size: int, rng: np.random.Generator) -> Array:
    words = _words(rng, "etaoinshrdlcum")
    count = size // 60 + 8
    seconds = np.cumsum(rng.integers(0, 4, count))
    return _joined(
        [f"Jan 11 {s // 3600 % 24:02d}:{s // 60 % 60:02d}:{s % 60:02d} host daemon[{p}]: {words[w]} {words[v]} done\n"
         for s, p, w, v in zip(seconds, rng.integers(900, 999, count), *rng.integers(0, 300, (2, count)), strict=True)]
    )  # fmt: skip


@_shape
def _hex_digits(size: int, rng: np.random.Generator) -> Array:
    return np.frombuffer(rng.bytes(size // 2 + 1).hex().encode(), np.uint8)


@_shape
def _base64_lines(size: int, rng: np.random.Generator) -> Array:
    alphabet = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", np.uint8)
    text = alphabet[rng.integers(0, 64, (size // 77 + 1, 77))]
    text[:, 76] = ord("\n")
    return text.ravel()


@_shape
def _dna(size: int, rng: np.random.Generator) -> Array:
    return np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, size)]


@_shape
def _counter_32(size: int, rng: np.random.Generator) -> Array:
    return _bytes_of(np.arange(size // 4 + 1, dtype="<u4") + rng.integers(1 << 20))


@_shape
def _counter_64(size: int, rng: np.random.Generator) -> Array:
    return _bytes_of((np.arange(size // 8 + 1, dtype="<u8") + np.uint64(rng.integers(1 << 20))) * np.uint64(24))


@_shape
def _offsets_rising(size: int, rng: np.random.Generator) -> Array:
    return _bytes_of(np.cumsum(rng.integers(1, 200, size // 4 + 1)).astype("<u4"))


@_shape
def _pointers(size: int, rng: np.random.Generator) -> Array:
    return _bytes_of(np.uint64(0x7F3A12000000) + (rng.integers(0, 1 << 22, size // 8 + 1) * 16).astype("<u8"))


@_shape
def _small_integers(size: int, rng: np.random.Generator) -> Array:
    return _bytes_of(rng.integers(0, 100, size // 4 + 1).astype("<i4"))


@_shape
def _small_differences(size: int, rng: np.random.Generator) -> Array:
    return _bytes_of(rng.normal(0, 12, size // 2 + 1).astype("<i2"))


@_shape
def _sound(size: int, rng: np.random.Generator) -> Array:
    n = size // 4 + 1
    wave = 8000 * np.sin(np.cumsum(rng.normal(0.05, 0.004, n))) + rng.normal(0, 300, n)
    return _bytes_of(np.stack([wave, 0.8 * wave + rng.normal(0, 200, n)], axis=1).astype("<i2"))


@_shape
def _floats_smooth(size: int, rng: np.random.Generator) -> Array:
    return _bytes_of(np.cumsum(rng.normal(0, 0.01, size // 4 + 1)).astype("<f4"))


@_shape
def _doubles(size: int, rng: np.random.Generator) -> Array:
    return _bytes_of(rng.normal(0, 1, size // 8 + 1).astype("<f8"))


@_shape
def _image_noisy(size: int, rng: np.random.Generator) -> Array:
    n = size // 3 + 1
    light = 128 + 60 * np.sin(np.arange(n) / 700) + rng.normal(0, 3, n)
    return np.clip(light[:, None] + [0, 8, -12] + rng.normal(0, 2, (n, 3)), 0, 255).astype(np.uint8).ravel()


@_shape
def _image_flat(size: int, rng: np.random.Generator) -> Array:
    """Pixels of four bytes in runs of one colour, as in screenshots and icons."""
    lengths = rng.geometric(0.04, size // 60 + 16)
    colours = rng.integers(0, 256, (len(lengths), 4), dtype=np.uint8)
    colours[:, 3] = 255
    return np.repeat(colours, lengths, axis=0).ravel()


@_shape
def _bit_map(size: int, rng: np.random.Generator) -> Array:
    """Allocation bitmaps: runs of full and empty bytes with broken ends."""
    lengths = rng.geometric(0.03, size // 16 + 16)
    values = np.where(np.arange(len(lengths)) % 2 == 0, 0xFF, 0).astype(np.uint8)
    data = np.repeat(values, lengths)
    ends = np.cumsum(lengths)[:-1]
    data[ends] = (0xFF >> rng.integers(0, 8, len(ends))).astype(np.uint8)
    return data


@_shape
def _sparse_2(size: int, rng: np.random.Generator) -> Array:
    return np.where(rng.random(size) < 0.02, rng.integers(1, 256, size), 0).astype(np.uint8)


@_shape
def _sparse_5_small(size: int, rng: np.random.Generator) -> Array:
    return np.where(rng.random(size) < 0.05, rng.integers(1, 8, size), 0).astype(np.uint8)


@_shape
def _sparse_20(size: int, rng: np.random.Generator) -> Array:
    return np.where(rng.random(size) < 0.2, rng.integers(1, 256, size), 0).astype(np.uint8)


@_shape
def _inodes(size: int, rng: np.random.Generator) -> Array:
    """ext4 inodes of 256 bytes: mode, size, times and one extent; most of the rest is zero."""
    table = _records(size, [("mode", "<u2"), ("uid", "<u2"), ("size", "<u4"), ("times", "<u4", (4,)), ("links", "<u2"),
                            ("blocks", "<u4"), ("flags", "<u4"), ("extent", "<u4", (6,)), ("fill", "u1", (94,)),
                            ("extra", "<u4", (6,)), ("end", "u1", (72,))])  # fmt: skip
    n = len(table)
    table["mode"] = rng.choice([0o100644, 0o100755, 0o40755, 0o120777], n)
    table["size"] = rng.lognormal(8, 2, n).astype(np.uint32)
    table["times"] = 1_700_000_000 + rng.integers(0, 3, (n, 4)) * rng.integers(0, 90_000, (n, 1))
    table["links"], table["flags"] = 1, 0x80000
    table["blocks"] = (table["size"] + 4095) // 4096 * 8
    table["extent"][:, 0], table["extent"][:, 1] = 0x1F30A, 4
    table["extent"][:, 5] = np.cumsum(rng.integers(1, 9, n)) + 40_000
    table["extra"][:, 0], table["extra"][:, 3] = 32, rng.integers(0, 1 << 32, n)
    return _bytes_of(table)


@_shape
def _directory(size: int, rng: np.random.Generator) -> Array:
    """Directory entries: inode, lengths, type, and a name padded to four bytes."""
    words, parts, total, inode = _words(rng, "etaoinshrdlcum.-_"), [], 0, 1000
    for pick in rng.integers(0, 4000, size // 14 + 8):
        name = (words[pick] + words[pick * 7 % 4000][:3]).encode()
        padded = -(-len(name) // 4) * 4
        inode += 1
        parts.append(inode.to_bytes(4, "little") + bytes([8 + padded, 0, len(name), 1]) + name.ljust(padded, b"\0"))
        total += 8 + padded
    return np.frombuffer(b"".join(parts), np.uint8)


@_shape
def _symbols(size: int, rng: np.random.Generator) -> Array:
    """Symbol tables of 24-byte records."""
    table = _records(size, [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"),
                            ("size", "<u8")])  # fmt: skip
    n = len(table)
    table["name"] = np.cumsum(rng.integers(4, 30, n))
    table["info"], table["section"] = rng.choice([0x12, 0x11, 0x02], n), rng.integers(1, 24, n)
    table["value"], table["size"] = rng.integers(0, 1 << 20, n) * 16 + 0x400000, rng.integers(0, 400, n)
    return _bytes_of(table)


@_shape
def _machine_code(size: int, rng: np.random.Generator) -> Array:
    """Instructions from a small set of opcodes with small operands, as compilers make them."""
    forms = [rng.integers(0, 256, length, dtype=np.uint8) for length in rng.integers(1, 6, 120)]
    ranks = np.minimum(rng.zipf(1.3, size // 3 + 8) - 1, 119)
    operands = rng.geometric(0.03, len(ranks)).astype("<u4")
    parts = [forms[rank].tobytes() + (int(operand).to_bytes(4, "little") if rank % 3 == 0 else bytes([operand & 0x7F]))
             for rank, operand in zip(ranks, operands, strict=True)]  # fmt: skip
    return np.frombuffer(b"".join(parts), np.uint8)


@_shape
def _database_pages(size: int, rng: np.random.Generator) -> Array:
    """Pages of 8 KiB: header, line pointers, a gap of zeros, rows from the end."""
    pages = np.zeros((size // 8192 + 1, 8192), np.uint8)
    pointers = np.arange(8192 - 64, 8192 - 64 * 61, -64).astype("<u2")
    pages[:, 24 : 24 + 2 * len(pointers)] = _bytes_of(pointers)
    rows = np.zeros((len(pages) * 60, 64), np.uint8)
    rows[:, :4] = _bytes_of(np.arange(len(rows), dtype="<u4")).reshape(-1, 4)
    rows[:, 8:10], rows[:, 24:40] = [3, 9], rng.integers(97, 123, (len(rows), 16))
    rows[:, 44:46] = rng.integers(0, 256, (len(rows), 2))
    pages[:, -64 * 60 :] = rows.reshape(len(pages), -1)
    return pages.ravel()


@_shape
def _variable_integers(size: int, rng: np.random.Generator) -> Array:
    """Tagged values with seven bits to the byte, as in protocol buffers."""
    values, parts = rng.geometric(0.002, size // 3 + 8), []
    for number, value in enumerate(values.tolist()):
        parts.append(bytes([8 * (number % 5 + 1), value & 0x7F | 0x80, value >> 7 & 0x7F]))
    return np.frombuffer(b"".join(parts), np.uint8)
