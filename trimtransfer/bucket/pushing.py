"""A repository's directory and its copy in an object store: brought up to date in either direction.

``push``: packs first, then the files of versions and numbered metadata, then the commit of what readers start from.
What is there already is not sent again. An interrupted push is gone on with by the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from trimtransfer.bucket.claim import Claim
from trimtransfer.bucket.commit import Commit, do_commit, headers_of, is_pointer, read_commit, settle, write_commit
from trimtransfer.bucket.comparing import Comparison, objects_of
from trimtransfer.bucket.fetching import fetch_objects
from trimtransfer.bucket.listing import Listed
from trimtransfer.bucket.states import check_pull, check_push, known_states, note_states
from trimtransfer.bucket.uploading import PART, abandon, begun_uploads, send_file
from trimtransfer.bucket.wire import Wire
from trimtransfer.errors import NotFound
from trimtransfer.repository.intent import clean_up, repository_lock
from trimtransfer.store import DirectoryStore
from trimtransfer.watch import Watch

GRACE: Final = 7 * 86_400


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push did, in objects and bytes; ``kept`` were there already, ``waiting`` are of no use but not old enough
    to be deleted."""

    url: str
    commit: str
    sent: int
    sent_bytes: int
    kept: int
    kept_bytes: int
    deleted: int
    waiting: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def push(
    wire: Wire,
    claim: Claim,
    store: DirectoryStore,
    *,
    grace: int = GRACE,
    due: frozenset[str] = frozenset(),
    replacing: bool = False,
    threads: int = 8,
    least: int = PART,
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> PushReport:
    """Bring the place up to what the directory holds. Objects that lack here are deleted once that has been so for
    ``grace`` seconds by the store's clock, those of ``due`` at once. ``replacing``: whatever state the place has.

    Raises:
        TargetRefused: the place has another state than the one that this directory knows.
        Locked, FetchError, AccessDenied, NoSpace, Cancelled: as they say; what was sent need not be sent again.
    """
    with repository_lock(store, "pushing"):
        clean_up(store)
        here = dict(store.list())
        if not here:
            raise NotFound("the repository, a directory,", store.url)
        last = settle(wire)
        there = objects_of(wire)
        if not replacing:
            check_push(wire, store, last, there)
        wanted = [name for name in here if not is_pointer(name)]
        compared = Comparison(wire, store, there, least=least)
        missing = [name for name in wanted if not compared.same(name)]
        _send(wire, compared, missing, here, threads, least, watch)
        done = _commit(wire, claim, store, last, there, here)
        deleted = _delete(wire, done, due, int(claim.now()) - grace, threads)
        for name, id in begun_uploads(wire):
            abandon(wire, name, id)
        kept = [name for name in wanted if name not in set(missing)]
        waiting = len(done.unused) - len(deleted)
        if deleted:
            write_commit(wire, replace(done, unused={k: v for k, v in done.unused.items() if k not in deleted}))
        return PushReport(
            wire.url, done.id, len(missing), sum(here[name] for name in missing), len(kept),
            sum(here[name] for name in kept), len(deleted), waiting,
        )  # fmt: skip


def pull(
    wire: Wire,
    store: DirectoryStore,
    *,
    replacing: bool = False,
    threads: int = 8,
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> tuple[int, int]:
    """Make the directory what the place holds, and return the number and the bytes of objects that were fetched. Hold
    the claim, or nobody may be writing. What the place does not have is deleted here. ``replacing``: whatever versions
    the directory has.

    Raises:
        NotFound: there is no repository.
        TargetRefused: the directory was changed since it was last brought up to date, and has versions that the place
            has not.
        FormatError, IntegrityError: what came is not what its name, or the list, says.
    """
    with repository_lock(store, "pulling"):
        clean_up(store)
        last = read_commit(wire)
        there = objects_of(wire)
        if not there:
            raise NotFound("a repository", wire.url)
        if not replacing:
            check_pull(wire, store)
        compared = Comparison(wire, store, there)
        missing = [one for name, one in there.items() if not compared.same(name)]
        for early in (False, True):
            part = [one for one in missing if is_pointer(one.name) is early]
            fetch_objects(wire, store, part, threads=threads, watch=watch)
        for name in [name for name, _ in store.list() if name not in there]:
            store.delete(name)
        note_states(store, wire.url, [last.id] if last else [], same=True)
        return len(missing), sum(one.length for one in missing)


def _send(
    wire: Wire,
    compared: Comparison,
    names: list[str],
    lengths: Mapping[str, int],
    threads: int,
    least: int,
    watch: Watch,
) -> None:
    """Send packs, then all others: what refers to something comes after it."""
    total, done, lock = sum(lengths[name] for name in names), 0, threading.Lock()

    def sent(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            watch.report("push", done, total)

    def send(name: str) -> None:
        watch.check()
        send_file(wire, name, compared.path(name), headers=headers_of(name), least=least, sent=sent)

    for packs in (True, False):
        in_pool(send, (name for name in names if name.startswith("packs/") is packs), threads)
    watch.report("push", total, total)


def in_pool(call: Callable[[str], None], names: Iterable[str], threads: int) -> None:
    """Call a function for each name from threads; the first exception ends the rest and is raised."""
    failed = threading.Event()

    def run(name: str) -> None:
        if failed.is_set():
            return
        try:
            call(name)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(threads, "bucket") as pool:
        futures = [pool.submit(run, name) for name in names]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()


def _commit(
    wire: Wire,
    claim: Claim,
    store: DirectoryStore,
    last: Commit | None,
    there: Mapping[str, Listed],
    here: Mapping[str, int],
) -> Commit:
    compared = Comparison(wire, store, there)
    changed = [name for name in here if is_pointer(name) and not compared.same(name)]
    put = {name: compared.path(name).read_bytes() for name in changed}
    drop = tuple(name for name in there if is_pointer(name) and name not in here)
    old = last.unused if last is not None else {}
    unused = {name: old.get(name, int(claim.now())) for name in there if name not in here and not is_pointer(name)}
    known = known_states(store, wire.url)
    if last is not None and not put and not drop and unused == old and last.id in known:
        note_states(store, wire.url, [last.id], same=True)
        return last
    commit = Commit.new(put, drop, unused)
    # Whether or not it gets there, the next push knows it.
    note_states(store, wire.url, [*([last.id] if last else []), commit.id], same=False)
    write_commit(wire, commit)
    done = do_commit(wire, commit)
    note_states(store, wire.url, [done.id], same=True)
    return done


def _delete(wire: Wire, commit: Commit, due: frozenset[str], before: int, threads: int) -> set[str]:
    """Delete what is due, or of no use since ``before`` or earlier; return the names."""
    old = {name for name, since in commit.unused.items() if name in due or since <= before}

    def delete(name: str) -> None:
        wire.ask("DELETE", name)

    in_pool(delete, sorted(old), threads)
    return old
