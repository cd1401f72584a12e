"""What deltas fetch for files packed by xz and zstd that an update changed, and what it costs; prints one JSON object.

    python benchmarks/bench_members.py --packages FOLDER [--folders 'fs net'] [--level 19] [NAME]...
    python benchmarks/bench_members.py --rates --packages FOLDER

FOLDER holds Debian packages, two versions of each (the cache of the tests has them). Modules of the kernel in these
folders are packed one by one as its own build does it, and as other makers do; packages are taken as they are, too.
Each pair goes into two ext4 images by mke2fs; both are published, deltas are made, and a client that has the first one
fetches the second. The result is compared. For scale: the same by deltas that look into nothing. ``--rates`` measures
what compressing again takes.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import zstandard
from bench_delta import unpacked
from bench_inside import BLIND, DELTA, answer, archive
from measure import PUBLISH, SYNC, run

KERNEL = ("linux-image-6.1.0-", ("50", "56"))
Packer = Callable[[Path], None]
Writer = Callable[[argparse.Namespace, int, Path], None]


def by_program(*command: str) -> Packer:
    """Return what packs a file by a program that takes its place."""
    return lambda path: _run(*command, path)


def by_library(level: int) -> Packer:
    """Return what packs a file as a program of this library's release does."""

    def pack(path: Path) -> None:
        how = {"write_checksum": True, "write_content_size": True, "threads": 1}
        data = zstandard.ZstdCompressor(level=level, **how).compress(path.read_bytes())
        path.with_name(f"{path.name}.zst").write_bytes(data)
        path.unlink()

    return pack


def modules(pack: Packer) -> Writer:
    """Return what writes the kernel's modules, packed one by one, into a folder."""

    def write(options: argparse.Namespace, version: int, tree: Path) -> None:
        (kernel,) = unpacked(options.packages, KERNEL[0], KERNEL[1][version]).glob("lib/modules/*/kernel")
        for folder in options.folders.split():
            shutil.copytree(kernel / folder, tree / folder)
        for path in sorted(tree.rglob("*.ko")):
            pack(path)

    return write


def boot_image(options: argparse.Namespace, version: int, tree: Path) -> None:
    """Write the modules as a boot image: one zstd frame, as mkinitramfs has it made."""
    folder = tree / "modules"
    modules(lambda path: None)(options, version, folder)
    files = [(str(path.relative_to(folder)), path.read_bytes()) for path in sorted(folder.rglob("*.ko"))]
    with open(tree / "initrd.img", "wb") as file:
        subprocess.run(["zstd", "-q", "-9", "-T0"], input=archive(iter(files)), stdout=file, check=True)
    shutil.rmtree(folder)


def packages(names: Sequence[str]) -> Writer:
    """Return what writes packages as they are."""

    def write(options: argparse.Namespace, version: int, tree: Path) -> None:
        for name in names:
            found = sorted(options.packages.glob(f"{name}_*.deb"))
            shutil.copy(found[version], tree / f"{name}.deb")

    return write


CASES: dict[str, Writer] = {
    "modules, xz": modules(by_program("xz", "--check=crc32", "--lzma2=dict=1MiB")),
    "modules, zstd 3 of the library's release": modules(by_library(3)),
    "modules, zstd 19 of the library's release": modules(by_library(19)),
    "modules, zstd (program)": modules(by_program("zstd", "-q", "-T0", "--rm")),
    "boot image, zstd -9": boot_image,
    "packages": packages(["libssl3", "samba-libs", "python3.11-minimal", "libpoppler126"]),
}


def _run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


def image(write: Writer, options: argparse.Namespace, version: int, folder: Path) -> int:
    """Make an image of a case; return the bytes of its files."""
    tree = folder / f"tree{version}"
    tree.mkdir()
    write(options, version, tree)
    sizes = [path.stat().st_size for path in tree.rglob("*") if path.is_file()]
    target = folder / f"{version}.img"
    with open(target, "wb") as file:
        file.truncate((sum(sizes) + 8192 * len(sizes) + (24 << 20)) >> 20 << 20)
    _run("mke2fs", "-q", "-t", "ext4", "-b", 4096, "-m", 0, "-d", tree, target)
    shutil.rmtree(tree)
    return sum(sizes)


def measure(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the figures of a case."""
    repository, found = folder / "repository", dict[str, Any](folders=options.folders)
    for version in (0, 1):
        found[f"bytes {version}"] = image(CASES[name], options, version, folder)
        command = [*PUBLISH, repository, folder / f"{version}.img", "--image", "boot", "--version", version]
        run([*map(str, command), "--no-delta", "--level", "3"], log=folder / "log")
    for way, command in (("looked into nothing", BLIND), ("looked into", DELTA)):
        words = [*command, repository, "--image", "boot", "--from", "0", "--level", options.level, "--json"]
        making = run([*map(str, words), "--no-progress"], log=folder / "log")
        report = answer(folder / "log")
        for version in ("0", "1"):
            words = [*SYNC, repository, "boot", "--version", version, "-o", folder / "boot.img", "--json"]
            syncing = run([*map(str, words), "--no-progress"], log=folder / "log")
        if (folder / "boot.img").read_bytes() != (folder / "1.img").read_bytes():
            sys.exit("not the same image")
        sync = answer(folder / "log")
        shutil.rmtree(folder / "boot.img.medv")
        (folder / "boot.img").unlink()
        row = {"fetched": sync["network"]["bytes"], "deltas": sync["deltas"], "tool_seconds": report["tool_seconds"]}
        found[way] = {**row, "make": making.to_dict(), "sync": syncing.to_dict()}
    return found


def rates(options: argparse.Namespace) -> dict[str, float]:
    """Return megabytes of modules that a core compresses in a second, by tool."""
    (kernel,) = unpacked(options.packages, KERNEL[0], KERNEL[1][1]).glob("lib/modules/*/kernel")
    files = [path.read_bytes() for path in sorted(kernel.rglob("*.ko"))[::60]]
    files = [data for data in files if len(data) < 4 << 20]
    found: dict[str, float] = {}

    def note(name: str, compress: Callable[[bytes], object]) -> None:
        started = time.process_time()
        for data in files:
            compress(data)
        found[name] = round(sum(map(len, files)) / (time.process_time() - started) / 1e6, 2)

    for preset in (0, 1, 2, 3, 4, 5, 6, 5 | lzma.PRESET_EXTREME, 6 | lzma.PRESET_EXTREME):
        filters = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": 1 << 20}]
        note(f"xz {preset & 15}{'e' * (preset > 15)}", partial(lzma.compress, format=lzma.FORMAT_RAW, filters=filters))
    for level in range(1, 23):
        note(f"zstd {level}", zstandard.ZstdCompressor(level=level).compress)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"cases: {', '.join(CASES)}")
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--folders", default="fs net drivers/net")
    parser.add_argument("--level", type=int, default=19)
    parser.add_argument("--rates", action="store_true")
    options = parser.parse_args(arguments)
    if options.rates:
        print(json.dumps(rates(options), indent=1))
        return
    found = {}
    for name in options.names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(name, options, Path(folder))
            print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
