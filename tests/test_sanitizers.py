"""The compiled functions under the address and undefined-behaviour sanitizers, and on 64-bit Arm where that can be run.

``native_driver.c`` runs each of them over golden vectors and random lengths, in buffers without a byte to spare, on
every path; what it prints is compared with the slow twins. A new function gets a check there and an entry in ``TWINS``.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import deflating
import pytest
import reference
from test_delta import programs
from test_similar import twin as anchor_twin
from vectors import DISK, KINDS, content, load, make

NATIVE = Path(__file__).parent.parent / "native"
DRIVER = Path(__file__).parent / "native_driver.c"
EDGES = [0, 1, 2, 15, 16, 17, 63, 64, 65, 4095, 4096, 4097, 8192, 3 * 4096 + 1, 16 * 4096 - 1, 65 * 4096]
SANITIZE = ["-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def disk(data: bytes) -> str:
    """What the driver prints for chunker 1."""
    blocks = reference.blocks_of(data)
    hints = [f"{block.mixed}:{1 if block.zero else 2 if block.zero_tail else 0}" for block in blocks]
    return " ".join(hints + [f"{'-' * record.zero}{record.length}" for record in reference.cut_blocks(blocks)])


def chunks(data: bytes) -> str:
    """What the driver prints for chunker 2: cuts at the end of the data, and where more is to follow."""
    rule = reference.SEARCH_RULES[1 << 10]
    found = [reference.search(data, rule, final=final) for final in (True, False)]
    return " ".join(" ".join([*map(str, ends), "/"]) for ends in found)


def scan(data: bytes) -> str:
    """What the driver prints for the scans of chunker 2, of which some paths have two."""
    whole = (len(data) - 131) // 256 * 256
    candidates = reference.search_candidates(data, 111)[131 : 131 + whole] if whole > 0 else []
    found = [str(131 + at) for at, candidate in enumerate(candidates) if candidate]
    return " ".join([*found, "/", *found])


def match(data: bytes) -> str:
    """What the driver prints for the rolling match."""
    if len(data) < 48:
        return ""
    rows: dict[int, int] = {}
    for row, key in enumerate(sorted(reference.window_keys(data, 48, step=48))):
        rows.setdefault(key, row)
    here = reference.window_keys(data[:20_000], 48)
    return " ".join(f"{offset}:{rows[key]}" for offset, key in enumerate(here) if key in rows)


def delta(data: bytes) -> str:
    """What the driver prints for deltas of parts of the data: they make the same again, without sites and with."""
    return "same same"


def anchors(data: bytes) -> str:
    """What the driver prints for anchors, of which it has room for a thousand."""
    return " ".join(f"{key}:{place}" for key, place in anchor_twin(data[:20_000], 4)[:1000])


TWINS: dict[str, Callable[[bytes], str]] = {
    "disk": disk,
    "bytes": chunks,
    "scan": scan,
    "match": match,
    "delta": delta,
    "anchors": anchors,
}


def inputs(seed: int) -> dict[str, bytes]:
    """Contents of all kinds at the edge lengths and at random ones, and the golden vectors that are not large."""
    rng = random.Random(seed)
    kinds = sorted(KINDS)
    found = {f"edge-{size}": make([[rng.choice(kinds), size // 4096 + 1, seed]], length=size) for size in EDGES}
    for number in range(8):
        text = make([[rng.choice(kinds), rng.randint(1, 20), number], ["words", 3, number]])
        stream = bytearray(
            deflating.deflated([text[:7000], text[7000:]], level=rng.randint(0, 9), flush=zlib.Z_SYNC_FLUSH)
        )
        if number % 2:
            stream[rng.randrange(len(stream))] ^= 1 << rng.randrange(8)
        found[f"stream-{number}"] = bytes(stream)
    for number in range(24):
        pieces = [[rng.choice(kinds), rng.randint(1, 40), rng.randint(0, 99)] for _ in range(rng.randint(1, 5))]
        found[f"random-{number}"] = make(pieces, length=rng.randint(0, 4096 * sum(piece[1] for piece in pieces)))
    old, new = programs(seed, 300)
    found["programs"] = old + new + old
    for number, vector in enumerate(load(DISK).values()):
        if vector["length"] < 5 << 20:
            found[f"vector-{number}"] = content(vector)
    return found


def inflate(data: bytes) -> str:
    """What the driver prints for the decoder: sizes of stream and content, if the data is a stream."""
    stream = zlib.decompressobj(-15)
    try:
        content = stream.decompress(data)
    except zlib.error:
        return ""
    return f"{len(data) - len(stream.unused_data)} {len(content)}" if stream.eof else ""


PREDICTED = ["01f70e", "43f70f", "04970e", "06f70e", "49f70f", "09f007", "19f80f", "26f70e", "36f70e"]


def recompress(data: bytes) -> str:
    """What the driver prints for the predictor: how many tokens, and a sum of them."""
    size = min(len(data), 2500)
    start = min(len(data) // 3, len(data) - size)
    found = []
    for by in PREDICTED[len(data) % 3 :: 3]:
        tokens = deflating.Twin(data[start : start + size], bytes.fromhex(by)).tokens()
        total = 0
        for token in tokens:
            total = (total * 31 + token.length * 32771 + token.value) % 2**32
        found.append(f"{len(tokens)}:{total}")
    return " ".join(found)


TWINS |= {"inflate": inflate, "recompress": recompress, "slices": inflate}


def build(compiler: str, flags: list[str], target: Path) -> None:
    sources = [str(path) for path in sorted(NATIVE.glob("*.c"))]
    command = [compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", *flags, "-I", str(NATIVE), str(DRIVER), *sources]
    done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_and_compare(command: list[str], folder: Path, seed: int) -> None:
    contents = inputs(seed)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    done = subprocess.run([*command, *contents], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = {tuple(line.split(" ", 2)[:2]): line.split(" ", 2)[2:] for line in done.stdout.splitlines()}
    for name, data in contents.items():
        for function, twin in TWINS.items():
            assert " ".join(printed[name, function]) == twin(data), (name, function)


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_sanitizers(compiler: str, tmp_path: Path, seed: int) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    build(compiler, SANITIZE, tmp_path / "driver")
    run_and_compare([str(tmp_path / "driver")], tmp_path, seed)


@pytest.mark.slow
def test_arm(tmp_path: Path, seed: int) -> None:
    """The NEON path, compiled for Arm and run by an emulator."""
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if shutil.which("aarch64-linux-gnu-gcc") is None or emulator is None:
        pytest.skip("needs gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user")
    build("aarch64-linux-gnu-gcc", ["-O2", "-static"], tmp_path / "driver")
    run_and_compare([emulator, str(tmp_path / "driver")], tmp_path, seed)
