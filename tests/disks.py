"""Disks for the tests: sparse raw images of random content, and containers that qemu-img makes of them.

``golden/disks`` holds a small file of each kind, compressed, and ``golden/disks.json`` what must be read from it for
ever. Run as a program, this file adds those that are missing; it never changes one.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SECTOR = 512
needs_qemu_img = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img (package qemu-utils)")


def qemu_img(*arguments: str | Path) -> str:
    """Run qemu-img; what it says becomes the test's message if it fails."""
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}"
    return done.stdout


def info(path: Path, format: str) -> dict[str, Any]:
    """Return what qemu-img knows of a disk."""
    found: dict[str, Any] = json.loads(qemu_img("info", "-f", format, "--output=json", path))
    return found


def data_map(path: Path, format: str) -> list[tuple[int, int]]:
    """Return the parts (offset, length) that qemu-img says hold data that may not be zeros."""
    rows = json.loads(qemu_img("map", "-f", format, "--output=json", path))
    return [(row["start"], row["length"]) for row in rows if row["data"] and not row["zero"]]


def sparse_content(size: int, rnd: random.Random, *, extents: int = 12) -> bytearray:
    """Return ``size`` bytes of zeros with some extents of content: random, compressible, or long runs."""
    content = bytearray(size)
    for _ in range(extents):
        start = rnd.randrange(size // SECTOR) * SECTOR
        length = min(size - start, rnd.choice((SECTOR, 3 * SECTOR, 4096, 65536, 200 * SECTOR, size // 9 + 1)))
        kind = rnd.randrange(3)
        piece = rnd.randbytes(length) if kind == 0 else (rnd.randbytes(97) * (length // 97 + 1))[:length]
        content[start : start + length] = bytes([rnd.randrange(1, 256)]) * length if kind == 2 else piece
    return content


def write_sparse(path: Path, content: bytes | bytearray) -> Path:
    """Write a raw image whose sectors of zeros, 4 KiB of them at least, are holes."""
    with open(path, "wb") as file:
        file.truncate(len(content))
        for at in range(0, len(content), 4096):
            piece = content[at : at + 4096]
            if any(piece):
                file.seek(at)
                file.write(piece)
    return path


@dataclass(frozen=True)
class Make:
    """A kind of container: our name of its format, qemu-img's, options, and whether content is compressed."""

    format: str
    qemu: str
    options: str = ""
    compressed: bool = False

    def __str__(self) -> str:
        return "-".join(filter(None, (self.format, self.options, "compressed" if self.compressed else "")))

    def of(self, raw: Path, path: Path) -> Path:
        """Convert ``raw``."""
        options = ["-o", self.options] if self.options else []
        packed = ["-c"] if self.compressed else []
        qemu_img("convert", "-f", "raw", "-O", self.qemu, *packed, *options, raw, path)
        return path


MAKES = (
    *(Make("qcow2", "qcow2", f"cluster_size={size}") for size in (512, 4096, 65536, 2 << 20)),
    *(Make("qcow2", "qcow2", f"cluster_size={size}", True) for size in (512, 65536, 2 << 20)),
    Make("qcow2", "qcow2", "compat=0.10"),
    Make("qcow2", "qcow2", "compat=0.10", True),
    Make("qcow2", "qcow2", "compression_type=zstd", True),
    Make("qcow2", "qcow2", "compression_type=zstd,cluster_size=4096", True),
    Make("qcow2", "qcow2", "extended_l2=on,cluster_size=16384"),
    Make("qcow2", "qcow2", "extended_l2=on,cluster_size=131072"),
    Make("qcow2", "qcow2", "extended_l2=on", True),
    *(Make("qcow2", "qcow2", f"preallocation={how}") for how in ("metadata", "falloc", "full")),
    Make("qcow2", "qcow2", "lazy_refcounts=on,refcount_bits=64"),
    *(
        Make("vhd", "vpc", f"subformat={kind},force_size={force}")
        for kind in ("fixed", "dynamic")
        for force in ("on", "off")
    ),
    Make("vhdx", "vhdx"),
    *(Make("vhdx", "vhdx", f"block_size={size}M") for size in (1, 256)),
    Make("vhdx", "vhdx", "subformat=fixed"),
    *(
        Make("vmdk", "vmdk", f"subformat={kind}")
        for kind in ("monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat")
    ),
    Make("vmdk", "vmdk", "subformat=monolithicSparse,zeroed_grain=on"),
    Make("vmdk", "vmdk", "subformat=streamOptimized", True),
    Make("vmdk", "vmdk", "subformat=streamOptimized"),
    Make("vmdk", "vmdk", "compat6=on"),
)

GOLDEN = Path(__file__).parent / "golden" / "disks"
GOLDEN_FACTS = GOLDEN.with_suffix(".json")
GOLDEN_SIZE = 20 * 63 * 512  # whole cylinders, so a VHD has the same size


def golden_content() -> bytearray:
    """Return what all golden disks hold: three pieces of a few KiB, one of them at the end."""
    content = bytearray(GOLDEN_SIZE)
    for at, size in ((0, 2048), (300_032, 1536), (GOLDEN_SIZE - 512, 512)):
        content[at : at + size] = random.Random(at).randbytes(size)
    return content


def _add_golden(folder: Path) -> None:
    import zstandard
    from blake3 import blake3

    facts = json.loads(GOLDEN_FACTS.read_text()) if GOLDEN_FACTS.exists() else {}
    GOLDEN.mkdir(exist_ok=True)
    raw = write_sparse(folder / "raw", golden_content())
    for make in MAKES:
        name = str(make).replace("=", "-").replace(",", "-")
        if name in facts or "Flat" in name or "twoGb" in name or "fixed" in name or "256M" in name:
            continue
        path = make.of(raw, folder / name)
        qemu_img("convert", "-f", make.qemu, "-O", "raw", path, folder / "read")
        content = (folder / "read").read_bytes()
        stored = zstandard.ZstdCompressor(level=19).compress(path.read_bytes())
        (GOLDEN / f"{name}.zst").write_bytes(stored)
        facts[name] = {"format": make.format, "size": len(content), "blake3": blake3(content).hexdigest()}
    GOLDEN_FACTS.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        _add_golden(Path(folder))
