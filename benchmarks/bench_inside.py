"""What deltas fetch for a boot image that a kernel update changed, as it is compressed by gzip; prints one JSON object.

    python benchmarks/bench_inside.py OLD.img NEW.img [--packer "zstd -q -9 -T0"] [--level 19] [--keep FOLDER]

The images are ext4 with a kernel's modules each (those of the tests' cache: ``old.img`` and ``new.img`` of a set). The
modules that boot images have are put into an archive as it is for them (cpio, newc), compressed by GNU gzip -9 or as
one says, and put into an ext4 image by mke2fs. Both images are published, deltas are made, and a client that has the
first one fetches the second; the result is compared. For scale: the same with deltas that look into nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from measure import PUBLISH, SYNC, Cost, run

FOLDERS = (
    "fs", "crypto", "lib", "net/ipv4", "drivers/net/ethernet", "drivers/scsi", "drivers/ata", "drivers/usb",
    "drivers/nvme", "drivers/md", "drivers/block", "drivers/hid", "drivers/mmc", "drivers/virtio",
    "drivers/gpu/drm/i915",
)  # fmt: skip
MODULES = "/lib/modules"
DELTA = (sys.executable, "-c", "from trimtransfer.cli.repo import repo; repo()", "delta")
BLIND = (
    sys.executable,
    "-c",
    "from trimtransfer.repository.deltaunits import NewContent; NewContent._insides = lambda *_: None; "
    "from trimtransfer.cli.repo import repo; repo()",
    "delta",
)


def debugfs(image: Path, request: str) -> str:
    """Return what debugfs answers."""
    done = subprocess.run(["debugfs", "-R", request, str(image)], capture_output=True, text=True, check=True)
    return done.stdout


def modules(image: Path, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of modules of an image's kernel, and of the folders they are in."""
    kernel = re.findall(r"\d+\.\d+\.\d+-\S+", debugfs(image, f"ls {MODULES}"))[-1]
    for name in FOLDERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        debugfs(image, f"rdump {MODULES}/{kernel}/kernel/{name} {(folder / name).parent}")
    for path in sorted(folder.rglob("*")):
        yield f"usr{MODULES}/{kernel}/{path.relative_to(folder)}", path.read_bytes() if path.is_file() else b""


def archive(files: Iterator[tuple[str, bytes]]) -> bytes:
    """Return a cpio archive (newc)."""
    out = bytearray()
    for number, (name, data) in enumerate([*files, ("TRAILER!!!", b"")]):
        path = name.encode() + b"\0"
        mode = 0o100644 if data else 0o40755
        fields = [number, mode, 0, 0, 1, 1_700_000_000, len(data), 0, 0, 0, 0, len(path), 0]
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out) + bytes(-len(out) % 512)


def boot_image(source: Path, folder: Path, target: Path, packer: Sequence[str]) -> tuple[int, int]:
    """Make an ext4 image with a boot image; return the sizes of its archive and of that compressed."""
    tree = folder / "tree"
    tree.mkdir(parents=True)
    content = archive(modules(source, folder / "modules"))
    packed = subprocess.run(packer, input=content, stdout=subprocess.PIPE, check=True).stdout
    (tree / "initrd.img").write_bytes(packed)
    with open(target, "wb") as file:
        file.truncate(len(packed) + (64 << 20))
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(target)], check=True)
    return len(content), len(packed)


def answer(log: Path) -> dict[str, Any]:
    """Return the object that a program printed."""
    found: dict[str, Any] = json.loads(log.read_text())
    return found


def deltas(command: Sequence[str], folder: Path, level: int) -> tuple[dict[str, Any], Cost]:
    """Make the deltas, and return the program's answer."""
    options = ["--image", "boot", "--from", "1", "--level", str(level), "--json", "--no-progress"]
    cost = run([*command, folder / "repository", *options], log=folder / "delta.log")
    return answer(folder / "delta.log"), cost


def fetched(folder: Path, version: str) -> tuple[int, Cost]:
    """Sync to a version and return the bytes that crossed the line."""
    command = [
        *SYNC,
        folder / "repository",
        "boot",
        "--version",
        version,
        "-o",
        folder / "boot.img",
        "--json",
        "--no-progress",
    ]
    cost = run(command, log=folder / "sync.log")
    size: int = answer(folder / "sync.log")["network"]["bytes"]
    return size, cost


def measure(images: Sequence[Path], folder: Path, level: int, packer: Sequence[str]) -> dict[str, Any]:
    """Return all figures."""
    found: dict[str, Any] = {}
    for number, source in enumerate(images, 1):
        sizes = boot_image(source, folder / str(number), folder / f"{number}.img", packer)
        found[f"version {number}"] = {"content": sizes[0], "compressed": sizes[1]}
        command = [
            *PUBLISH,
            folder / "repository",
            folder / f"{number}.img",
            "--image",
            "boot",
            "--version",
            str(number),
        ]
        run([*command, "--no-delta", "--level", "3"], log=folder / "publish.log")
    for name, command in (("looked into nothing", BLIND), ("looked into", DELTA)):
        report, making = deltas(command, folder, level)
        fetched(folder, "1")
        size, syncing = fetched(folder, "2")
        if (folder / "boot.img").read_bytes() != (folder / "2.img").read_bytes():
            sys.exit("not the same image")
        row = {"fetched": size, "stored": report["stored_bytes"], "units": report["units"]}
        found[name] = {**row, "wrapped": report["wrapped_units"], "make": making.to_dict(), "sync": syncing.to_dict()}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs=2)
    parser.add_argument("--level", type=int, default=19)
    parser.add_argument("--packer", default="gzip -n9")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        where, packer = options.keep or Path(folder), options.packer.split()
        print(json.dumps(measure(options.images, where, options.level, packer), indent=1))


if __name__ == "__main__":
    main()
