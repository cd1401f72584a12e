"""Commands on a repository in an object store: done on a working copy of it, and pushed.

The working copy is a directory of this user's state. It can be deleted at any time: the next command fetches it again.
As long as it is kept, only what others changed is fetched. A command that was cut off between its end and that of its
push is pushed by the next one, unless somebody else has published since: then it counts for nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trimtransfer.bucket.claim import Claim, Terms, claimed
from trimtransfer.bucket.commit import read_commit, settle
from trimtransfer.bucket.comparing import objects_of
from trimtransfer.bucket.pushing import PushReport, pull, push
from trimtransfer.bucket.states import known_states
from trimtransfer.bucket.wire import Wire
from trimtransfer.errors import Locked, NotFound, TargetRefused
from trimtransfer.fetch.account import Account, Address
from trimtransfer.store import DirectoryStore
from trimtransfer.watch import Watch

_CHANGED: Final = "changed"
_TRIES: Final = 3
_LOG: Final = logging.getLogger("trimtransfer.bucket")


@dataclass(slots=True)
class Working:
    """A working copy at ``path``; ``report`` tells what was pushed, once it was."""

    path: Path
    report: PushReport | None = field(default=None)


def working_path(url: str, account: Account) -> Path:
    """Return where the working copy of a place is kept."""
    from platformdirs import user_state_path

    place = hashlib.sha256(f"{account.endpoint} {url}".encode()).hexdigest()[:16]
    return user_state_path("medv", appauthor=False) / "buckets" / place


@contextlib.contextmanager
def changing(
    url: str,
    purpose: str,
    *,
    collecting: bool = False,
    break_others: bool = False,
    terms: Terms = Terms(),  # noqa: B008 - immutable
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> Iterator[Working]:
    """Hold a place for writing: a working copy of it is yielded, and pushed on a clean exit.

    ``collecting``: what is deleted meanwhile was of no use for long enough, and is deleted there at once.

    Raises:
        Locked: another process publishes there, or works on the copy. Else what pulling and pushing raise.
    """
    account = Account()
    with Wire(url, account=account, cancel=watch.cancel) as wire:
        working = Working(working_path(wire.url, account))
        with _held(working.path), claimed(wire, purpose, break_others=break_others, terms=terms) as claim:
            store = DirectoryStore(working.path)
            _bring_up(wire, claim, store, watch)
            before = {name for name, _ in store.list()}
            mark = store.private(_CHANGED)
            mark.touch()
            yield working
            after = {name for name, _ in store.list()}
            if after:
                due = frozenset(before - after) if collecting else frozenset[str]()
                working.report = push(wire, claim, store, due=due, watch=watch)
            mark.unlink(missing_ok=True)


def reading(url: str, watch: Watch) -> Path:
    """Bring a working copy up to date for reading, and return where it is; nobody is kept out.

    Raises:
        NotFound: there is no repository.
        Locked: another command works on the copy.
        TargetRefused: others keep changing it.
    """
    account = Account()
    path = working_path(str(Address.parse(url)), account)
    if DirectoryStore(path).private(_CHANGED).exists():
        with changing(url, "finishing what was interrupted", watch=watch):
            pass
    with Wire(url, account=account, cancel=watch.cancel) as wire, _held(path):
        store = DirectoryStore(path)
        for _ in range(_TRIES):
            last = read_commit(wire)
            pull(wire, store, replacing=True, watch=watch)
            if read_commit(wire) == last:
                return store.path
    raise TargetRefused(url, "it keeps changing while it is read: somebody publishes; try again later")


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Keep other commands on this machine away from a working copy; ``Locked``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(str(path), "another command on the same repository, here") from None
        yield


def _bring_up(wire: Wire, claim: Claim, store: DirectoryStore, watch: Watch) -> None:
    """Push what an interrupted command left, or else make the working copy what the place holds."""
    last = settle(wire)
    mark = store.private(_CHANGED)
    if mark.exists():
        known = known_states(store, wire.url)
        if (last is None and not objects_of(wire)) or (last is not None and last.id in known):
            with contextlib.suppress(NotFound):  # nothing had been made yet
                push(wire, claim, store, watch=watch)
            mark.unlink()
            return
        _LOG.warning("%s: somebody else has published since; what was not pushed before counts for nothing", wire.url)
    if last is None and not objects_of(wire):
        for name in [name for name, _ in store.list()]:
            store.delete(name)
    else:
        pull(wire, store, replacing=True, watch=watch)
    mark.unlink(missing_ok=True)
