"""How exactly compressors are predicted, and how fast files are unwrapped and rewrapped; prints one JSON object.

    python benchmarks/bench_recompress.py [--data FILE] [--mib 16] [--rounds 3] [--documents FOLDER]

The content is FILE, or programs and libraries of the machine. It is compressed by GNU gzip and zlib, and by pigz and
others where they are installed; every file is unwrapped as a publisher does it and rewrapped as a client does, and must
come again exactly. Times are CPU times of the same run, the best of the rounds; MB/s of content. With ``--documents``
all gzip files below a folder are unwrapped, too, and it says how large their records are on the whole.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import times
from pathlib import Path
from typing import Any

from trimtransfer.recompress import rewrap
from trimtransfer.wrapped import unwrap

MB = 1e6
LIMIT = 1 << 30


@dataclass(frozen=True, slots=True)
class Tool:
    """A compressor: its name, and a function that makes a file of content."""

    name: str
    run: Callable[[bytes], bytes]
    record_at_most: float | None = None


def program(*command: str) -> Callable[[bytes], bytes]:
    """Return a function that pipes content through a program."""
    return lambda content: subprocess.run(command, input=content, stdout=subprocess.PIPE, check=True).stdout


def with_zlib(level: int, memory: int) -> Callable[[bytes], bytes]:
    """Return a function that makes a gzip file by zlib."""

    def run(content: bytes) -> bytes:
        made = zlib.compressobj(level, zlib.DEFLATED, 31, memory)
        return made.compress(content) + made.flush()

    return run


def tools() -> list[Tool]:
    """Return the compressors that this machine has; the bars are the project's own."""
    found = []
    for level in (6, 9, 1):
        found.append(Tool(f"gzip -{level}", program("gzip", "-n", f"-{level}"), 0.005))
        found.append(Tool(f"zlib {level}", with_zlib(level, 8), 0.005))
    found.append(Tool("zlib 6, memory level 9", with_zlib(6, 9), 0.005))
    for name, *options in (
        ("pigz", "-n", "-6"),
        ("pigz", "-n", "-9"),
        ("libdeflate-gzip", "-c", "-6"),
        ("zopfli", "-c"),
    ):
        if shutil.which(name):
            found.append(Tool(" ".join([name, *options]), program(name, *options), 0.05))
    return found


def machine_files(size: int) -> bytes:
    """Return the first MiB of each of the machine's largest libraries and programs."""
    folders = [Path("/usr/lib"), Path("/usr/bin")]
    files = {path.resolve() for folder in folders for path in folder.rglob("*") if path.is_file()}
    largest = sorted(files, key=lambda path: (-path.stat().st_size, str(path)))
    content = bytearray()
    for path in largest:
        with path.open("rb") as file:
            content += file.read(1 << 20)
        if len(content) >= size:
            break
    return bytes(content[:size])


def timed(run: Callable[[], Any], rounds: int) -> tuple[Any, float]:
    """Return the result, and the least CPU time of this process and its children in seconds."""
    best, result = float("inf"), None
    for _ in range(rounds):
        before = times()
        result = run()
        after = times()
        best = min(best, sum(after[:4]) - sum(before[:4]))
    return result, max(best, 0.005)


def measure(tool: Tool, content: bytes, rounds: int) -> dict[str, Any]:
    """Return what one compressor's file costs."""
    file, compressing = timed(lambda: tool.run(content), 1)
    _, plain = timed(lambda: gzip.decompress(file), rounds)
    made, unwrapping = timed(lambda: unwrap(file, limit=LIMIT), rounds)
    row: dict[str, Any] = {"tool": tool.name, "compressed": len(file), "compress_mb_s": len(content) / MB / compressing}
    row |= {"decompress_mb_s": len(content) / MB / plain, "unwrap_mb_s": len(content) / MB / unwrapping}
    if made is None:
        return row | {"record": None}
    again, rewrapping = timed(lambda: rewrap(made.content, made.record, limit=len(file)), rounds)
    if again != file or made.content != content:
        sys.exit(f"{tool.name}: not the same file")
    share = len(made.record) / len(file)
    row |= {"record": len(made.record), "record_share": share, "rewrap_mb_s": len(content) / MB / rewrapping}
    row["rewrap_of_compress"] = compressing / rewrapping
    return row | (
        {"record_at_most": tool.record_at_most, "good": share <= tool.record_at_most} if tool.record_at_most else {}
    )


def documents(folder: Path) -> dict[str, Any]:
    """Unwrap all gzip files below a folder."""
    files = [path.read_bytes() for path in sorted(folder.rglob("*.gz")) if path.is_file() and not path.is_symlink()]
    start = time.process_time()
    made = [unwrap(file, limit=LIMIT) for file in files]
    seconds = time.process_time() - start
    whole, records = sum(map(len, files)), sum(len(one.record) for one in made if one)
    content = sum(len(one.content) for one in made if one)
    row = {"files": len(files), "unwrapped": sum(one is not None for one in made), "compressed": whole}
    return row | {"records": records, "record_share": records / max(1, whole), "unwrap_mb_s": content / MB / seconds}


def rounded(value: Any) -> Any:
    """Return a row with figures that can be read."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return float(f"{value:.3g}") if isinstance(value, float) else value


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all rows and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--mib", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=Path)
    options = parser.parse_args(arguments)
    content = options.data.read_bytes()[: options.mib << 20] if options.data else machine_files(options.mib << 20)
    result: dict[str, Any] = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "content": len(content),
    }
    result["rows"] = [rounded(measure(tool, content, options.rounds)) for tool in tools()]
    if options.documents:
        result["documents"] = rounded(documents(options.documents))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
