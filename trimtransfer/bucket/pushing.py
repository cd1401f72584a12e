"""A repository's directory and its copy in an object store: brought up to date in either direction.

``push``: packs first, then the files of versions and numbered metadata, then the commit of what readers start from.
What is there already is not sent again. An interrupted push is gone on with by the next one.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from trimtransfer.bucket.claim import Claim
from trimtransfer.bucket.commit import (
    Commit,
    do_commit,
    headers_of,
    is_lasting,
    is_pointer,
    read_commit,
    settle,
    write_commit,
)
from trimtransfer.bucket.fetching import fetch_objects
from trimtransfer.bucket.listing import Listed
from trimtransfer.bucket.store import BucketStore
from trimtransfer.bucket.uploading import PART, abandon, begun_uploads, is_tag, send_file, tag_of
from trimtransfer.bucket.wire import Wire
from trimtransfer.errors import FormatError, NotFound, TargetRefused, TrimTransferError
from trimtransfer.repository.catalogues import current
from trimtransfer.repository.intent import clean_up, repository_lock
from trimtransfer.repository.reading import read_manifest
from trimtransfer.store import DirectoryStore, sync_directory
from trimtransfer.watch import Watch

GRACE: Final = 7 * 86_400
_BASE: Final = "bucket.json"


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
            _check_base(wire, store, last, there)
        wanted = [name for name in here if not is_pointer(name)]
        missing = [name for name in wanted if not _is_there(store, name, there.get(name), least, sure=not replacing)]
        _send(wire, store, missing, here, threads, least, watch)
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
    threads: int = 8,
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> tuple[int, int]:
    """Make the directory what the place holds, and return the number and the bytes of objects that were fetched. Hold
    the claim, or nobody may be writing. What the place does not have is deleted here.

    Raises:
        NotFound: there is no repository.
        FormatError, IntegrityError: what came is not what its name, or the list, says.
    """
    with repository_lock(store, "pulling"):
        clean_up(store)
        last = read_commit(wire)
        there = objects_of(wire)
        if not there:
            raise NotFound("a repository", wire.url)
        missing = [one for name, one in there.items() if not _is_there(store, name, one, PART)]
        for early in (False, True):
            part = [one for one in missing if is_pointer(one.name) is early]
            fetch_objects(wire, store, part, threads=threads, watch=watch)
        for name in [name for name, _ in store.list() if name not in there]:
            store.delete(name)
        note_states(store, wire.url, [last.id] if last else [])
        return len(missing), sum(one.length for one in missing)


def objects_of(wire: Wire) -> dict[str, Listed]:
    """Return the objects of the repository by name."""
    return {one.name: one for one in wire.objects() if not one.name.startswith(".")}


def known_states(store: DirectoryStore, url: str) -> list[str]:
    """Return the ids of the commits, of which a directory knows one to be the newest of a place: that which it last
    pulled or pushed, and one that it was about to push. None: it never met the place."""
    try:
        fields = json.loads(store.private(_BASE).read_bytes())
        return [str(id) for id in fields.get(url, [])]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, AttributeError) as error:
        raise FormatError(str(store.private(_BASE)), 0, "what this directory knows of object stores", error) from None


def note_states(store: DirectoryStore, url: str, ids: list[str]) -> None:
    """Note these ids, durably, beside those of other places."""
    path = store.private(_BASE)
    fields: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        fields = dict(json.loads(path.read_bytes()))
    staged = path.with_name(_BASE + ".new")
    with open(staged, "w", encoding="utf-8") as file:
        file.write(json.dumps({**fields, url: ids}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)
    sync_directory(path.parent)


def _check_base(wire: Wire, store: DirectoryStore, last: Commit | None, there: Mapping[str, Listed]) -> None:
    """Refuse to undo what another working copy has pushed, or what lies there otherwise."""
    if last is not None:
        if last.id in known_states(store, wire.url):
            return
        raise TargetRefused(
            wire.url,
            "somebody else has published there, or from another directory, since this one was brought up to date; get "
            f"that first (medv-repo pull {wire.url} DIR), publish to {wire.url} directly, or say --replace if what is "
            "there does not count",
        )
    for name in there:
        image = name.split("/")[1]
        if name.endswith("/head.json") and is_pointer(name):
            with contextlib.closing(BucketStore(wire.url)) as place:
                for entry in current(place, image).versions:
                    if not _has(store, image, entry.version, entry.manifest_digest):
                        raise TargetRefused(
                            wire.url,
                            f"it has {image} {entry.version}, which this directory does not have; name another prefix, "
                            f"or get it first (medv-repo pull {wire.url} DIR)",
                        )


def _has(store: DirectoryStore, image: str, version: str, digest: bytes) -> bool:
    try:
        read_manifest(store, image, version, digest=digest)
    except TrimTransferError:
        return False
    return True


def _is_there(store: DirectoryStore, name: str, one: Listed | None, least: int, *, sure: bool = True) -> bool:
    """Tell whether directory and place have the same under a name.

    The length is enough for what never changes, if both are ``sure`` to tell of the same versions.
    """
    if one is None or not store.exists(name) or store.size(name) != one.length:
        return False
    if name.startswith("packs/") or (sure and is_lasting(name)):
        return True
    if not is_tag(one.etag):
        return is_lasting(name)
    return one.etag in (tag_of(_path(store, name), least=least), tag_of(_path(store, name)))


def _path(store: DirectoryStore, name: str) -> Path:
    return store.path.joinpath(*name.split("/"))


def _send(
    wire: Wire,
    store: DirectoryStore,
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
        send_file(wire, name, _path(store, name), headers=headers_of(name), least=least, sent=sent)

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
    pointers = [name for name in here if is_pointer(name)]
    changed = [name for name in pointers if not _is_there(store, name, there.get(name), PART)]
    put = {name: _path(store, name).read_bytes() for name in changed}
    drop = tuple(name for name in there if is_pointer(name) and name not in here)
    old = last.unused if last is not None else {}
    unused = {name: old.get(name, int(claim.now())) for name in there if name not in here and not is_pointer(name)}
    known = known_states(store, wire.url)
    if last is not None and not put and not drop and unused == old and last.id in known:
        note_states(store, wire.url, [last.id])
        return last
    commit = Commit.new(put, drop, unused)
    note_states(
        store, wire.url, [*([last.id] if last else []), commit.id]
    )  # whether or not it gets there: the next push knows it
    write_commit(wire, commit)
    done = do_commit(wire, commit)
    note_states(store, wire.url, [done.id])
    return done


def _delete(wire: Wire, commit: Commit, due: frozenset[str], before: int, threads: int) -> set[str]:
    """Delete what is due, or of no use since ``before`` or earlier; return the names."""
    old = {name for name, since in commit.unused.items() if name in due or since <= before}

    def delete(name: str) -> None:
        wire.ask("DELETE", name)

    in_pool(delete, sorted(old), threads)
    return old
