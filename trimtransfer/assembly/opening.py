"""Opening a disk to be written: its lock, what a killed run left, the old image, and the way that is chosen.

All of this happens before content is fetched, for one disk at a time, and can be done again at no loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from trimtransfer.assembly.allocation import layout_for
from trimtransfer.assembly.choice import Choice, choose
from trimtransfer.assembly.recovery import finish_interrupted
from trimtransfer.assembly.refusal import check_output
from trimtransfer.assembly.remote import Remote
from trimtransfer.assembly.request import Request
from trimtransfer.assembly.side import SideDirectory
from trimtransfer.assembly.sources import discard_abandoned, set_aside
from trimtransfer.assembly.tablefile import TableFile
from trimtransfer.assembly.ways import Old, open_old
from trimtransfer.assembly.windows import comes_from_parent, share_that_stays, windows
from trimtransfer.disk.layout import Layout
from trimtransfer.durable import space_errors
from trimtransfer.errors import NoSpace
from trimtransfer.manifest import Manifest
from trimtransfer.store import Store
from trimtransfer.watch import Watch


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A disk that can be written: what the repository has of it, the tables kept, the old image (None: there is none)
    and how to write (None: the old image is this version already)."""

    side: SideDirectory
    remote: Remote
    tables: TableFile
    old: Old | None
    choice: Choice | None


@contextmanager
def at_work(side: SideDirectory, watch: Watch) -> Iterator[None]:
    """Hold the lock of an output, and finish what a killed run had begun to write."""
    check_output(side.output)
    with space_errors(side.output), side.locked():
        side.clear_temporary()
        finish_interrupted(side, watch)
        yield


def aim(side: SideDirectory, manifest: Manifest) -> None:
    """Record which version is about to be written; what was begun of another is kept as a seed. Hold the lock."""
    set_aside(side, manifest.digest())
    side.write(side.target, manifest.to_bytes())


@contextmanager
def opened(request: Request, store: Store, manifest: Manifest, tables: TableFile, watch: Watch) -> Iterator[Opened]:
    """Open everything of a disk that :func:`aim` was called for; hold the lock.

    Raises:
        TargetRefused: the output cannot be written as asked.
        NoSpace: on a file system without holes, which gives a file all its room at once.
        FetchError, FormatError, IntegrityError: from reading tables, where these decide.
    """
    side, disk_format = request.side, request.written_format(manifest) or "raw"
    with ExitStack() as stack:
        old = open_old(side, tables)
        if old is not None:
            stack.callback(old.source.close)
        remote = Remote(store, manifest, tables, request.signed)
        choose_way = partial(
            choose,
            request.write,
            side,
            manifest,
            old,
            watch,
            lambda mask: share_that_stays(remote, old, mask),
            disk_format,
            None if disk_format == "raw" else lambda: _layout(remote, old, disk_format, side),
        )
        try:
            choice = choose_way()
        except NoSpace:
            if not discard_abandoned(side):
                raise
            choice = choose_way()
        if choice is not None:
            stack.callback(choice.way.close)
        yield Opened(side, remote, tables, old, choice)


def _layout(remote: Remote, old: Old | None, disk_format: str, side: SideDirectory) -> Layout:
    """Return the layout of the container that is written; the tables that it takes are kept."""
    base = old.image if old is not None and comes_from_parent(remote.manifest, old) else None
    filled = windows(remote.manifest, np.flatnonzero(~remote.manifest.zero).tolist())
    tables = base.table_at if base is not None else None
    return layout_for(remote, filled, tables, disk_format, str(side.output))
