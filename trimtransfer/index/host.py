"""The host index: chunks of the operating system's own program files, found once and kept in the user's cache.

It covers what every user of the machine may read and nothing else, because what a client does not fetch tells a
repository what the client has; and home directories only where a user names them. See
:mod:`trimtransfer.index.tree` for how it is kept.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from trimtransfer.chunk import Kind
from trimtransfer.index.catalogue import Totals
from trimtransfer.index.globs import PathChooser
from trimtransfer.index.prefix import PrefixSet
from trimtransfer.index.seed import IndexedSeed, open_seed
from trimtransfer.index.tree import Progress, TreeIndex
from trimtransfer.index.update import StopRule, UpdateReport, update_index

MEMORY_CAP: Final = 192 << 20
"""Bytes of memory that a process stays below while it updates an index, whatever it indexes (resident, interpreter and
libraries included): region buffer 64 MiB, writer or merge 48 MiB, buffers of the threads 24 MiB, the catalogue's cache
8 MiB, the rest for what runs it. ``benchmarks/bench_index.py`` measures it."""
_RATE: Final = "scan-rate"
"""File in the index's directory: bytes per second of the last large scan."""
_LEAST_MEASURED: Final = 64 << 20
_LINUX: Final = ("/usr", "/opt", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_MACOS: Final = ("/System", "/Library", "/Applications")
_WINDOWS: Final = ("ProgramFiles", "ProgramFiles(x86)", "SystemRoot")


def default_directory() -> Path:
    """Return where the host index is kept: ``medv/index`` in the user's cache directory."""
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("medv")) / "index"


def default_paths(platform: str = sys.platform, environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Return the operating system's program and library directories that exist, without links to one another."""
    if platform == "win32":
        candidates = [environment[name] for name in _WINDOWS if name in environment]
    else:
        candidates = list(_MACOS if platform == "darwin" else _LINUX)
    return [path for path in map(Path, candidates) if path.is_dir() and not path.is_symlink()]


class HostIndex:
    """The host index in ``directory`` (default: :func:`default_directory`).

    Raises:
        TargetRefused: the directory is a symbolic link or belongs to another user.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self.directory = Path(directory) if directory is not None else default_directory()
        self._tree = TreeIndex(self.directory, kind=Kind.DISK)

    def __repr__(self) -> str:
        return f"HostIndex({str(self.directory)!r})"

    def update(
        self,
        paths: Sequence[str | os.PathLike[str]] | None = None,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        wanted: PrefixSet | None = None,
        report: UpdateReport | None = None,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> UpdateReport:
        """Bring the index up to date with the files at or below ``paths`` (default: :func:`default_paths`).

        ``include`` and ``exclude`` are patterns (:mod:`trimtransfer.index.globs`). Files that not every user may read
        are left out and counted; whoever wants them used names them as a seed. ``wanted`` are the chunks of a transfer:
        the scan ends where it does not pay (:class:`~trimtransfer.index.update.StopRule`) or has found them all.
        ``report`` is filled while this goes on.

        Raises:
            Locked: another process updates the index.
            NoSpace: no room for it; what was committed stays.
            Cancelled: ``cancel`` was set; what was indexed so far is kept.
            ValueError: a pattern is none.
        """
        done = update_index(
            self._tree,
            paths if paths is not None else default_paths(),
            chooser=PathChooser(include, exclude),
            public=True,
            stop=StopRule(wanted) if wanted is not None else None,
            report=report,
            progress=progress,
            cancel=cancel,
        )
        self._note_rate(done)
        return done

    def scan_rate(self) -> float | None:
        """Return the bytes per second of the last scan that read enough to tell; None if there was none."""
        try:
            rate = float((self.directory / _RATE).read_text())
        except (OSError, ValueError):
            return None
        return rate if math.isfinite(rate) and rate >= 1 else None

    def _note_rate(self, report: UpdateReport) -> None:
        """Remember how fast files were read, for decisions to come; a rate that is lost is measured again."""
        if report.bytes >= _LEAST_MEASURED and report.seconds > 0:
            with contextlib.suppress(OSError):
                (self.directory / _RATE).write_text(f"{report.bytes / report.seconds:.0f}\n")

    def seed(self) -> IndexedSeed:
        """Return the index, as it is, as a seed of category ``host``; an empty one if there is none or it is damaged.

        It reads only files that every user may read at that time.
        """
        return open_seed(self._tree, "host files", "host", public=True)

    def totals(self) -> Totals:
        """Count what the index holds; all zeros if there is none, or a damaged one."""
        return self._tree.totals()

    def clear(self) -> None:
        """Delete the index; raise ``Locked`` if another process updates it."""
        self._tree.clear()
