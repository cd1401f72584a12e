"""A copy of a repository in an object store, to be served: kept up to date, and the store sends the packs itself."""

from __future__ import annotations

import contextlib
import time
from typing import Final

from trimtransfer.bucket.commit import read_commit
from trimtransfer.bucket.wire import Wire
from trimtransfer.bucket.working import reading
from trimtransfer.errors import Locked
from trimtransfer.watch import Watch

SECONDS: Final = 300
"""For how long a URL of a pack is good: a request of it must have begun by then."""
_LOOK: Final = 30.0


class Mirror:
    """The directory ``path``, a copy of the place ``url`` (``s3://bucket/prefix``) as it is now.

    Raises what :func:`~trimtransfer.bucket.working.reading` raises.
    """

    def __init__(self, url: str, *, watch: Watch = Watch(), every: float = _LOOK) -> None:  # noqa: B008 - immutable
        self._wire, self._every = Wire(url), every
        self._watch = watch
        self._state = read_commit(self._wire)
        self.path = reading(self._wire.url, watch)
        self._looked = time.monotonic()

    def __repr__(self) -> str:
        return f"Mirror({self._wire.url!r})"

    def refresh(self) -> None:
        """Bring the copy up to date if somebody has published; not more often than every half minute."""
        if time.monotonic() - self._looked < self._every:
            return
        self._looked = time.monotonic()
        state = read_commit(self._wire)
        if state != self._state:
            with contextlib.suppress(Locked):  # a command is at work here; the next look is soon
                reading(self._wire.url, self._watch)
                self._state = state

    def link(self, name: str) -> str:
        """Return a URL with which this object can be fetched from the store, and nothing else."""
        return self._wire.link(name, SECONDS)
