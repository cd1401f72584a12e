"""An index of files kept in a directory: the catalogue, run files with the rows, and a lock.

Kept up to date in small steps (:mod:`trimtransfer.index.update`); a kill at any instant leaves a valid index, damaged
files are noticed and lead to a new index. The directory belongs to one user alone (mode 0700).

What it says is never believed: content found with it is verified by whoever uses it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import Kind
from trimtransfer.errors import FormatError, Locked, NoSpace, TargetRefused
from trimtransfer.index.catalogue import Catalogue, Totals
from trimtransfer.index.prefix import Live, PrefixIndex, merge
from trimtransfer.index.rowfile import RowFile

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called as ``progress(phase, done_bytes, total_bytes)``; a total of 0 is unknown."""

MAX_RUNS: Final = 8
"""Runs that lookups go through; when there are more, the smallest are merged."""
MERGED_RUNS: Final = 4
"""Runs merged at a time: every row is then rewritten about log4(runs) times."""
MAX_STALE: Final = 0.25
"""Share of rows of files that are gone or were scanned anew, above which all runs are merged without them."""
_OPEN_ATTEMPTS: Final = 5


class TreeIndex:
    """An index of files in ``directory``, which is made if need be; ``kind`` is the chunker that cuts the files.

    Raises:
        TargetRefused: the directory is a symbolic link or belongs to another user.
    """

    def __init__(self, directory: str | os.PathLike[str], *, kind: Kind) -> None:
        self.directory = Path(directory)
        self.kind = kind
        self._make_private()

    def __repr__(self) -> str:
        return f"TreeIndex({str(self.directory)!r}, {self.kind.name})"

    @property
    def catalogue_path(self) -> Path:
        """Where the catalogue is."""
        return self.directory / "catalogue.sqlite"

    def run_path(self, number: int) -> Path:
        """Return where the run with this number is."""
        return self.directory / f"run-{number}.bin"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the right to change the index; raise ``Locked`` if another process has it."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # gone if it was cleared meanwhile
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 20, 0).decode("ascii", "replace")
                raise Locked(str(self.directory), f"process {holder or 'unknown'}") from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            with _space_errors(self.directory):
                yield
        finally:
            os.close(descriptor)

    def open_catalogue(self) -> Catalogue:
        """Open the catalogue for changes, after checking every run and deleting what a kill left behind.

        Call it while the index is :meth:`locked`.

        Raises:
            FormatError: something is damaged; :meth:`wipe` and open again.
        """
        catalogue = Catalogue(self.catalogue_path, kind=self.kind, create=True)
        try:
            wanted = dict(catalogue.runs())
            for number, rows in wanted.items():
                self._check_run(number, rows)
            self._delete_strays({self.run_path(number).name for number in wanted})
        except BaseException:
            catalogue.close()
            raise
        return catalogue

    def wipe(self) -> None:
        """Delete the catalogue and all runs; the lock stays. Call it while the index is :meth:`locked`."""
        for path in self.directory.iterdir():
            if path.name.startswith(("catalogue.sqlite", "run-", "spill-")) and not path.is_dir():
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete the index with its directory; raise ``Locked`` if it is being updated."""
        with self.locked():
            shutil.rmtree(self.directory)

    def totals(self) -> Totals:
        """Count what the index holds; all zeros if there is none, or a damaged one."""
        try:
            with Catalogue(self.catalogue_path, kind=self.kind, create=False) as catalogue:
                return catalogue.totals()
        except (FormatError, OSError):
            return Totals(0, 0, 0, 0, 0)

    def open_runs(self) -> tuple[Catalogue | None, list[PrefixIndex]]:
        """Open everything for lookups: the catalogue, and the runs, the newest first.

        Without an index, or with a damaged catalogue, that is None and no runs; a damaged run is left out.
        """
        for _ in range(_OPEN_ATTEMPTS):
            try:
                catalogue = Catalogue(self.catalogue_path, kind=self.kind, create=False)
            except (FormatError, OSError):
                return None, []
            with suppress(FormatError):
                runs: list[PrefixIndex] = []
                try:
                    for number, _ in catalogue.runs():
                        with suppress(FormatError):
                            runs.append(PrefixIndex.open(self.run_path(number)))
                    return catalogue, runs
                except FileNotFoundError:  # merged away by an update just now: what replaced it is in the catalogue
                    pass
            catalogue.close()
        return None, []

    def merge_if_many(self, catalogue: Catalogue) -> None:
        """Merge the smallest runs until at most :data:`MAX_RUNS` are left."""
        while len(runs := sorted(catalogue.runs(), key=lambda run: run[1])) > MAX_RUNS:
            self._merge(catalogue, [number for number, _ in runs[:MERGED_RUNS]], None)

    def put_in_order(self, catalogue: Catalogue, *, added: int) -> None:
        """Merge all runs into one at the end of an update that ``added`` so many rows, if that pays.

        It does when much was added, so that what is rewritten is in proportion to what was done, or when rows of files
        that are gone are more than :data:`MAX_STALE` of all; such rows are dropped.
        """
        totals = catalogue.totals()
        grown = totals.runs > 1 and added >= MAX_STALE * totals.stored_rows
        if grown or totals.stale_share > MAX_STALE:
            live = live_numbers(catalogue.numbers())
            self._merge(catalogue, [number for number, _ in catalogue.runs()], live)

    def _merge(self, catalogue: Catalogue, numbers: Sequence[int], live: Live | None) -> None:
        run = catalogue.next_run()
        paths = [self.run_path(number) for number in numbers]
        rows = merge(paths, self.run_path(run), kind=self.kind, live=live)
        catalogue.commit_merge(numbers, run=run, rows=rows)
        for path in paths if rows else [*paths, self.run_path(run)]:
            path.unlink(missing_ok=True)

    def _make_private(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(self.directory)
        if not stat.S_ISDIR(found.st_mode):
            raise TargetRefused(str(self.directory), "an index needs a real directory, not a link; choose another one")
        if found.st_uid != os.geteuid():
            raise TargetRefused(str(self.directory), "belongs to another user; choose another directory")
        if found.st_mode & 0o077:
            os.chmod(self.directory, 0o700)
            if found.st_mode & 0o022:  # others could write here: what lies in it may be anybody's
                with self.locked():
                    self.wipe()

    def _check_run(self, number: int, rows: int) -> None:
        path = self.run_path(number)
        try:
            with RowFile(path) as file:
                if (len(file), file.kind) != (rows, self.kind):
                    raise FormatError(f"index {path.name}", "rows and kind", (rows, self.kind), (len(file), file.kind))
                file.check()
        except FileNotFoundError:
            raise FormatError(f"index {path.name}", "directory", "a file", "none") from None

    def _delete_strays(self, wanted: set[str]) -> None:
        for path in self.directory.iterdir():
            stray = path.name.startswith("run-") and path.name not in wanted
            if stray or path.name.startswith("spill-"):
                path.unlink(missing_ok=True)


def live_numbers(numbers: NDArray[np.uint32]) -> Live:
    """Return the test whether file numbers are among ``numbers``, which ascend."""

    def live(files: NDArray[np.uint32]) -> NDArray[np.bool_]:
        if not len(numbers):
            return np.zeros(len(files), dtype=np.bool_)
        at = np.minimum(np.searchsorted(numbers, files), len(numbers) - 1)
        return np.asarray(numbers[at] == files)

    return live


@contextmanager
def _space_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(str(directory), None, shutil.disk_usage(directory).free) from error
        raise
