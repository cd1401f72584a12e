"""What scattered writes of a database cost: pages of 4 KiB changed all over an image. Prints JSON.

    python benchmarks/bench_scattered.py [--gib 4] [--changes 2560] [--level 3]

The image is a SQLite database of rows of text and noise. It is published, synced and changed twice: so many rows get
another value (``rows``: real writes of SQLite, a few bytes in each page), then as many pages are overwritten with noise
(``noise``: nothing of them can be reused). Everything happens in a local directory; every program is a process of its
own, and bytes and requests are those of its report. ``written`` is what changed, in whole pages. Takes about twice the
image's size on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from measure import PUBLISH, SYNC, run

PAGE: Final = 4096
SETTLE_SECONDS: Final = 2.5
"""An image is believed to be what was recorded of it once its time of change lies two seconds back."""
WORDS: Final = [f"{word}{number:03}" for word in ("invoice", "customer", "article", "remark") for number in range(250)]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4, help="length of the image")
    parser.add_argument("--changes", type=int, default=2560, help="rows, then pages, that are changed")
    parser.add_argument("--level", type=int, default=3, help="compression level")
    parser.add_argument("--scratch", type=Path, help="where to work (default: a temporary directory)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-scattered-", dir=options.scratch) as scratch:
        print(json.dumps(bench(Path(scratch), options), indent=1))


def bench(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return what each step costs."""
    rng = np.random.default_rng(1)
    database = scratch / "database"
    fill(database, int(options.gib * (1 << 30)), rng)
    report: dict[str, Any] = {"publish": published(scratch, "1", options.level), "first download": synced(scratch)}
    changes: list[tuple[str, Callable[[Path, int, np.random.Generator], None]]] = [("rows", rows), ("noise", noise)]
    for number, (name, change) in enumerate(changes, 2):
        before = pages(database)
        change(database, options.changes, rng)
        written = PAGE * int(np.count_nonzero(pages(database) != before))
        time.sleep(SETTLE_SECONDS)
        cost = {"publish": published(scratch, str(number), options.level), **synced(scratch)}
        report[name] = {"written": written, "share": round(cost["bytes"] / written, 3), **cost}
    return report


def fill(database: Path, size: int, rng: np.random.Generator) -> None:
    """Make a database of about ``size`` bytes; a row has 150 bytes of words and 60 of noise."""
    with sqlite3.connect(database) as base:
        base.execute(f"pragma page_size={PAGE}")
        base.execute("pragma journal_mode=off")
        base.execute("create table items (id integer primary key, text text, value blob)")
        while database.stat().st_size < size:
            base.executemany("insert into items (text, value) values (?, ?)", made(20_000, rng))
            base.commit()
    base.close()


def made(count: int, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Yield values of rows."""
    for chosen in rng.integers(0, len(WORDS), (count, 15)).tolist():
        yield " ".join(WORDS[number] for number in chosen), rng.bytes(60)


def rows(database: Path, count: int, rng: np.random.Generator) -> None:
    """Give so many rows another value of the same length."""
    with sqlite3.connect(database) as base:
        (last,) = base.execute("select max(id) from items").fetchone()
        chosen = rng.choice(last, count, replace=False).tolist()
        base.executemany("update items set value=? where id=?", ((rng.bytes(60), number + 1) for number in chosen))
    base.close()


def noise(database: Path, count: int, rng: np.random.Generator) -> None:
    """Overwrite so many pages."""
    with open(database, "r+b") as file:
        for number in rng.choice(database.stat().st_size // PAGE, count, replace=False).tolist():
            os.pwrite(file.fileno(), rng.bytes(PAGE), number * PAGE)


def pages(database: Path) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Return a sum of each page that tells whether it changed."""
    content = np.memmap(database, dtype="<u8", mode="r").reshape(-1, PAGE // 8)
    return (content * np.arange(1, 2 * content.shape[1], 2, dtype=np.uint64)).sum(axis=1)


def published(scratch: Path, version: str, level: int) -> dict[str, Any]:
    """Publish the database as the next version and return what that cost."""
    options = ["--image", "database", "--version", version, "--level", str(level), "--kind", "disk"]
    command = [*PUBLISH, scratch / "repository", scratch / "database", *options, "--json", "--no-progress"]
    return run(command, log=scratch / "log").to_dict()


def synced(scratch: Path) -> dict[str, Any]:
    """Sync and return what it cost, with the bytes and requests of its report."""
    command = [*SYNC, scratch / "repository", "database", "-o", scratch / "copy", "--json", "--no-progress"]
    cost = run([*command, "--no-host-index"], log=scratch / "log").to_dict()
    return {**json.loads((scratch / "log").read_text())["network"], **cost}


if __name__ == "__main__":
    main()
