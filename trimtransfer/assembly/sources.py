"""Opening the local sources of a sync, in the order in which they are asked: the old image, what an interrupted run of
another version left, the seeds that were named, the host index."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from trimtransfer.assembly.anywhere import Anywhere, Done
from trimtransfer.assembly.bundleseed import bundle_seeds
from trimtransfer.assembly.container import marked_format
from trimtransfer.assembly.extents import Extents
from trimtransfer.assembly.hostfiles import Refreshed, bring_up_to_date
from trimtransfer.assembly.installed import InstalledImage
from trimtransfer.assembly.journal import load_journal
from trimtransfer.assembly.payoff import Judge, Line
from trimtransfer.assembly.rawfile import RawFile
from trimtransfer.assembly.redo import RedoData, read_header
from trimtransfer.assembly.resolve import Resolver
from trimtransfer.assembly.rolling import NamedFile
from trimtransfer.assembly.side import SideDirectory
from trimtransfer.assembly.tablefile import TableFile
from trimtransfer.assembly.ways import Old
from trimtransfer.chunk import Kind
from trimtransfer.disk.source import DiskSource, open_content, open_disk
from trimtransfer.errors import FormatError, SourceChanged, SourceRefused
from trimtransfer.index.disk import seed_from_disk
from trimtransfer.index.host import HostIndex
from trimtransfer.index.seed import Seed, seed_from_path
from trimtransfer.localfile import look
from trimtransfer.manifest import Manifest, Region
from trimtransfer.watch import Watch

_LOG: Final = logging.getLogger("trimtransfer.assembly")


class Sources:
    """Opens seeds and closes them at the end of its ``with`` block. ``cache`` keeps the indexes of scanned seeds."""

    def __init__(self, side: SideDirectory, manifest: Manifest, tables: TableFile, cache: Path, watch: Watch) -> None:
        self._side, self._manifest, self._tables = side, manifest, tables
        self._cache, self._watch = cache, watch
        self._files: list[NamedFile] = []
        self.read_seconds = 0.0
        """Time in which the repository was read."""
        self._stack = ExitStack()

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(self, old: Old | None, paths: Sequence[str | os.PathLike[str]], host: HostIndex | None) -> list[Seed]:
        """Return all seeds; the old image comes first if its tables are known. Files without tables are scanned.

        Raises:
            FileNotFoundError: a named seed does not exist; TimeoutError: its file system does not answer.
            Cancelled, NoSpace: from scanning.
        """
        seeds: list[Seed] = []
        if old is not None:
            known = old.image is not None and old.image.is_complete()
            seeds.append(old.image if old.image is not None and known else self._unknown(old))
        seeds += self._abandoned()
        output = os.fsencode(self._side.output.resolve())
        for path in paths:
            real, found = look(path)  # first of all: nothing else asks a file system that may not answer
            if real != output:
                seeds.append(self._installed(Path(path), found) or self._named(Path(path), real, found))
        if host is not None:
            seeds.append(self._stack.enter_context(contextlib.closing(host.seed())))
        return seeds

    def add_host(
        self, host: HostIndex, resolver: Resolver, windows: Iterable[Sequence[Region]], done: Done, line: Line
    ) -> Refreshed:
        """Give the resolver the host index, brought up to date first as far as that pays.

        Arguments and errors are those of :func:`trimtransfer.assembly.hostfiles.bring_up_to_date`.
        """
        refreshed = bring_up_to_date(host, resolver, windows, done, self._watch, line)
        resolver.add(self._stack.enter_context(contextlib.closing(host.seed())))
        return refreshed

    def add_bundles(self, resolver: Resolver) -> None:
        """Give the resolver the other versions in the bundles that lie near the repository."""
        for seed in bundle_seeds(resolver.remote.store, self._manifest, self._side.path, self._watch):
            resolver.add(seed)

    def search_anywhere(
        self, resolver: Resolver, windows: Iterable[Sequence[Region]], done: Done, judge: Judge
    ) -> tuple[str, ...]:
        """Look through named files, as far as that pays, for what is found nowhere, at any offset, and give the
        resolver what is there.

        ``windows`` are the regions to be written; ``done`` tells what of them is written already. Returns warnings.
        Raises what :meth:`trimtransfer.assembly.anywhere.Anywhere.search` raises.
        """
        if self._manifest.kind is not Kind.DISK:
            return ()  # chunks that are cut at any byte are found at any offset by cutting
        anywhere = Anywhere(resolver, self._files, self._side.path, self._watch, judge)
        seed = anywhere.search(windows, done)
        if seed is not None:
            resolver.add(self._stack.enter_context(contextlib.closing(seed)))
        self.read_seconds += anywhere.read_seconds
        return tuple(anywhere.warnings)

    def _named(self, path: Path, real: bytes, found: os.stat_result) -> Seed:
        disk = _container(path, found)
        if disk is not None and (inside := self._inside(disk)) is not None:
            return inside
        seed = self._scanned(path)
        if stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode):
            self._files.append(NamedFile(real, found, seed))
        return seed

    def _scanned(self, path: Path) -> Seed:
        scratch = self._cache / "seeds"
        scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = seed_from_path(
            path, self._manifest.kind, scratch=scratch, progress=self._watch.progress, cancel=self._watch.cancel
        )
        return self._stack.enter_context(contextlib.closing(found))

    def _unknown(self, old: Old) -> Seed:
        """Return the old image, whose tables are lost, as a seed."""
        if old.disk_format != "raw":
            with contextlib.suppress(FormatError, SourceRefused):
                disk = open_disk(old.source.path, format=old.disk_format)
                if (inside := self._inside(disk)) is not None:
                    return inside
        return self._scanned(old.source.path)

    def _inside(self, disk: DiskSource) -> Seed | None:
        """Return what a disk's guest sees as a seed; None if it cannot be read to its end, then it is a file as any."""
        directory, watch = self._side.path, self._watch
        try:
            seed = seed_from_disk(
                disk, self._manifest.kind, directory=directory, progress=watch.progress, cancel=watch.cancel
            )
        except (FormatError, SourceChanged, SourceRefused) as error:
            _LOG.warning("the seed %s is read as the file that it is: %s", disk.path, error)
            disk.close()
            return None
        self._stack.callback(seed.close)
        return seed

    def _installed(self, path: Path, found: os.stat_result) -> InstalledImage | None:
        """Return an image of ours as a seed without a scan, if it looks as it was recorded."""
        side = SideDirectory(path)
        installed = side.installed()
        if installed is None or not installed.file.believed(found):
            return None
        manifest = side.read_manifest(side.manifest, installed.manifest_digest)
        if manifest is None or manifest.kind != self._manifest.kind:
            return None
        try:
            tables = self._stack.enter_context(TableFile(side.tables, writable=False))
        except OSError:
            return None
        try:
            source = open_content(path, installed.disk_format)
        except (FormatError, SourceRefused):
            return None  # written to since, by somebody who has set the times back
        self._stack.callback(source.close)
        return InstalledImage(source, manifest, tables, self._side.path, category="seed")

    def _abandoned(self) -> Iterator[InstalledImage]:
        """Yield what an interrupted run of another version had written, or collected in its redo file."""
        side = self._side
        manifest = side.read_manifest(side.abandoned_manifest)
        if manifest is None:
            return
        if side.abandoned.exists():
            loaded = load_journal(side.abandoned_journal)
            ours = loaded is not None and loaded[0].target == manifest.digest()
            extents = loaded[1] if loaded is not None and ours else Extents.none()
            disk_format = marked_format(loaded[0].base_manifest) if loaded is not None else "raw"
            with contextlib.suppress(FormatError, SourceRefused):
                source = open_content(side.abandoned, disk_format)
                self._stack.callback(source.close)
                yield InstalledImage(source, manifest, self._tables, side.path, category="seed", extents=extents)
        if side.abandoned_redo.exists():
            redo = self._stack.enter_context(contextlib.closing(RedoData(side.abandoned_redo, manifest.digest())))
            yield InstalledImage(redo, manifest, self._tables, side.path, category="seed", extents=redo.extents)


def _container(path: Path, found: os.stat_result) -> DiskSource | None:
    """Open a disk image that is not raw, as far as it can be read by itself; None for anything else."""
    if not stat.S_ISREG(found.st_mode):
        return None
    try:
        disk = open_disk(path)
    except (FormatError, SourceRefused, OSError):
        return None
    if disk.format == "raw":
        disk.close()
        return None
    return disk


def set_aside(side: SideDirectory, target: bytes) -> None:
    """Keep what an interrupted run of another version has written as a seed; anything else half-written is deleted.

    Only a run's own order of files counts as one: journal, manifest and file must be there. Hold the lock.
    """
    _set_redo_aside(side, target)
    if not side.partial.exists():
        return
    loaded = load_journal(side.journal)
    if loaded is not None and loaded[0].target == target:
        return
    if loaded is None or side.read_manifest(side.target, loaded[0].target) is None:
        return  # taken as a file of unknown content: what is right in it stays
    side.abandoned_redo.unlink(missing_ok=True)
    side.journal.replace(side.abandoned_journal)
    side.target.replace(side.abandoned_manifest)
    side.partial.replace(side.abandoned)


def _set_redo_aside(side: SideDirectory, target: bytes) -> None:
    """Do the same with a redo file: nothing of it was applied, or it would be gone by now."""
    if not side.redo.exists():
        return
    with RawFile(side.redo, writable=False) as file:
        header = read_header(file)
    if header is None or header[0].target == target or side.read_manifest(side.target, header[0].target) is None:
        return
    for path in (side.abandoned, side.abandoned_journal):
        path.unlink(missing_ok=True)
    side.target.replace(side.abandoned_manifest)
    side.redo.replace(side.abandoned_redo)


def discard_abandoned(side: SideDirectory) -> bool:
    """Delete what is kept as a seed; return whether there was anything. Hold the lock."""
    abandoned = (side.abandoned, side.abandoned_redo, side.abandoned_manifest, side.abandoned_journal)
    there = [path for path in abandoned if path.exists()]
    if there:
        side.remove(*there)
    return bool(there)


def discard_unfinished(side: SideDirectory) -> None:
    """Delete everything half-written: the image is what it should be. Hold the lock."""
    discard_abandoned(side)
    there = [path for path in (side.redo, side.journal, side.partial, side.target) if path.exists()]
    if there:
        side.remove(*there)
