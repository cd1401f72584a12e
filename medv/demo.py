"""The demonstration: a real disk image, published, served over HTTPS, synced, updated, and proved equal.

Everything is the product's own path; only the images are made for the occasion (:mod:`medv.sample`). The server runs in
this process on loopback, its certificate is verified like any other.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3

from medv import sample
from medv.server import LoopbackServer
from trimtransfer.assembly.report import CATEGORIES
from trimtransfer.assembly.sync import sync
from trimtransfer.errors import IntegrityError, NoSpace
from trimtransfer.index.host import HostIndex
from trimtransfer.repository.publish import publish

if TYPE_CHECKING:
    from trimtransfer.assembly.report import SyncReport
    from trimtransfer.repository.publication import PublishReport
    from trimtransfer.watch import Progress

IMAGE: Final = "demo"
_LEVEL: Final = 9
"""Publishing at this zstd level takes a third of the default's time; the result is hardly larger."""
_ROOM: Final = 6
"""Times the image's size that must be free: two images, the tree that one is made of, repository, two of the result."""
_HEADINGS: Final = ("unchanged", "version", "files", "fetched", "zeros")
"""Of ``CATEGORIES``, below the words "old" and "host"."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Proof:
    """The plain BLAKE3 of a published file and of what was synced, each read from its own file."""

    version: str
    source: str
    result: str


@dataclass(slots=True)
class Demonstration:
    """What the demonstration did: reports of the library by step, and seconds of the steps that have none."""

    folder: str
    kept: bool
    files: int = 0
    changes: dict[str, int] = field(default_factory=dict)
    indexed_bytes: int = 0
    published: list[PublishReport] = field(default_factory=list)
    synced: list[SyncReport] = field(default_factory=list)
    proofs: list[Proof] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a JSON object."""
        return {
            "files": self.files,
            "changes": self.changes,
            "indexed_bytes": self.indexed_bytes,
            "publish": [report.to_dict() for report in self.published],
            "sync": [report.to_dict() for report in self.synced],
            "proof": [asdict(proof) for proof in self.proofs],
            "seconds": {step: round(seconds, 2) for step, seconds in self.seconds.items()},
        }


def run(*, keep: Path | None, mebibytes: int, say: Say, progress: Progress) -> Demonstration:
    """Do the whole demonstration in ``keep``, or in a temporary directory that is removed at the end.

    Raises:
        SampleFailed: no e2fsprogs, or too few files to make an image of.
        NoSpace: the directory's disk has not enough room.
        IntegrityError: a result differs from what was published, which must not happen.
    """
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise FileExistsError(errno.EEXIST, "directory is not empty; name a new one for --keep", str(keep))
        return _run(keep, mebibytes << 20, say, progress, kept=True)
    with tempfile.TemporaryDirectory(prefix="medv-demo-") as folder:
        return _run(Path(folder), mebibytes << 20, say, progress, kept=False)


def _run(folder: Path, size: int, say: Say, progress: Progress, *, kept: bool) -> Demonstration:
    free = shutil.disk_usage(folder).free
    if free < _ROOM * size:
        raise NoSpace(str(folder), _ROOM * size, free)
    done = Demonstration(str(folder), kept)
    started = time.monotonic()
    first, following = folder / "source-1.img", folder / "source-2.img"
    choice = _make_images(done, first, following, size, folder, say)
    for version, file in (("1", first), ("2", following)):
        done.published.append(
            publish(folder / "repository", file, image=IMAGE, version=version, level=_LEVEL, progress=progress)
        )
        added = done.published[-1].stored_bytes + done.published[-1].metadata_bytes
        say(f"Published version {version}: {_mib(added)} added to the repository")
    with LoopbackServer(folder / "repository") as server, _without_proxy():
        say(f"Serving it at {server.url}")
        index = HostIndex(folder / "index")
        done.indexed_bytes = index.update(choice.folders, exclude=choice.exclude, progress=progress).bytes
        say(f"Indexed {_mib(done.indexed_bytes)} of this machine's files in {len(choice.folders)} folders")
        result = folder / f"{IMAGE}.img"
        say("First download, of version 1, with the host files' help")
        done.synced.append(_sync(server, result, progress, version="1", host_index=index))
        done.proofs.append(prove("1", first, result))
        say("Update to the newest version, with the help of the old one")
        done.synced.append(_sync(server, result, progress))
        done.proofs.append(prove("2", following, result))
        say("Once more, with nothing new")
        done.synced.append(_sync(server, result, progress))
    done.seconds["all"] = time.monotonic() - started
    return done


@contextmanager
def _without_proxy() -> Iterator[None]:
    """Reach this machine's loopback directly, as nobody's proxy can; afterwards the environment is as it was."""
    before = os.environ.get("no_proxy")
    exempt = before or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = f"{exempt},127.0.0.1" if exempt else "127.0.0.1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["no_proxy"]
        else:
            os.environ["no_proxy"] = before


def _make_images(done: Demonstration, first: Path, following: Path, size: int, folder: Path, say: Say) -> sample.Choice:
    say("Making an ext4 image of programs, libraries and data of this machine")
    started = time.monotonic()
    choice = sample.choose(size)
    sample.build_first(choice, first, folder)
    done.files = len(choice.kept)
    say(f"  {done.files:,} files, {_mib(sum(file.size for file in choice.kept))}")
    say("Upgrading it inside the file system to the next version")
    changes = sample.build_next(choice, first, following, folder)
    done.changes = asdict(changes)
    say("  files: " + ", ".join(f"{count:,} {what}" for what, count in done.changes.items()))
    done.seconds["images"] = time.monotonic() - started
    return choice


def _sync(
    server: LoopbackServer,
    result: Path,
    progress: Progress,
    *,
    version: str | None = None,
    host_index: HostIndex | None = None,
) -> SyncReport:
    return sync(
        server.url,
        IMAGE,
        output=result,
        version=version,
        host_index=host_index,
        ca_cert=server.ca_file,
        cache=result.parent / "cache",
        progress=progress,
    )


def prove(version: str, source: Path, result: Path) -> Proof:
    """Read two files whole and compare their plain BLAKE3; raise ``IntegrityError`` if it differs."""
    digests = [blake3(max_threads=blake3.AUTO).update_mmap(path) for path in (source, result)]
    if digests[0].digest() != digests[1].digest():
        raise IntegrityError(str(result), digests[0].digest(), digests[1].digest(), "please report this")
    return Proof(version, digests[0].hexdigest(), digests[1].hexdigest())


def text(done: Demonstration) -> str:
    """Return the result for people: the table of sources, the proof, and what to think of the figures."""
    whole = done.published[0].stored_bytes + done.published[0].metadata_bytes
    first, update = done.synced[0].network.bytes, done.synced[1].network.bytes
    proofs = "\n".join(
        f"  version {proof.version}: published {proof.source[:32]}...\n             received  {proof.result[:32]}..."
        for proof in done.proofs
    )
    kept = f"\n\nKept in {done.folder}. Look at it: medv-repo ls {done.folder}/repository" if done.kept else ""
    return f"""
{_draw(_table(done))}

The image is {_mib(done.published[0].length)} in all; without any reuse a download would be {_mib(whole)}.
First download: {_mib(first)}. Nearly everything was found on this host, because the image was made of this
  very host's files; an image of a related system finds a part of it, a foreign one little.
Update: {_mib(update)}. The new programs were kept out of the first version and of the host index, so all of
  them had to be fetched.

Proof, plain BLAKE3 of both files, read after the sync:
{proofs}

All of it took {done.seconds["all"]:.0f} s.{kept}"""


def _table(done: Demonstration) -> list[list[str]]:
    rows = [["", "", "old", "host", "", "", "", "", ""], ["MiB", *_HEADINGS, "network", "requests", "seconds"]]
    for name, report in zip(("first", "update", "again"), done.synced, strict=True):
        content = [f"{getattr(report.content, category) / (1 << 20):,.1f}" for category in CATEGORIES]
        network = f"{report.network.bytes / (1 << 20):,.2f}"
        rows.append([name, *content, network, str(report.network.requests), f"{report.seconds:.1f}"])
    return rows


def _draw(rows: list[list[str]]) -> str:
    """Return a table in columns, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.rjust(width) if number else cell.ljust(width) for number, (cell, width) in enumerate(cells))
        for cells in ([*zip(row, widths, strict=True)] for row in rows)
    )
    return "\n".join(line.rstrip() for line in lines)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"
