"""A repository behind HTTP or HTTPS: the store that reads objects and ranges of them from any static web server.

Synchronous httpx in a few threads, HTTP/1.1, single ranges. Nothing that a server says is believed beyond what
``answer.py`` checks; the caller verifies the bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from trimtransfer.fetch.approach import Approach
from trimtransfer.fetch.credentials import NOTHING, Credential
from trimtransfer.fetch.line import Line
from trimtransfer.fetch.reach import Reach
from trimtransfer.fetch.retry import FetchOptions
from trimtransfer.fetch.throttle import Throttle
from trimtransfer.fetch.transfer import Transfer
from trimtransfer.store import Range, StoreStats

__all__ = ["FetchOptions", "HttpStore"]


class HttpStore:
    """Objects below ``url``; credentials in the URL are used for basic authentication and never shown.

    At most ``connections`` requests run at once, of all threads that use this store together. ``limit_rate`` is in
    bytes per second, all connections together; a ``throttle``, which stores can share, takes its place. ``ca_cert`` is
    a file or directory of certificate authorities to believe instead of the system's. ``credential`` is shown to this
    origin alone. Once ``cancel`` is set, running
    calls raise ``Cancelled``. ``on_bytes`` is called from worker threads with the number of body bytes that came.

    A URL ``s3://bucket/prefix`` is an object store, asked by the keys that ``account.py`` finds.

    Raises ``ValueError`` for a malformed URL or limit, ``FetchError`` for unusable certificates, ``AccessDenied`` for
    credentials that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int = 4,
        limit_rate: float | None = None,
        ca_cert: str | None = None,
        credential: Credential = NOTHING,
        cancel: threading.Event | None = None,
        on_bytes: Callable[[int], None] | None = None,
        options: FetchOptions | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        if connections < 1:
            raise ValueError(f"connections={connections}: at least 1 is needed")
        approach, reach = Approach(url, ca_cert=ca_cert, credential=credential), Reach()
        self._line = Line(
            approach.site,
            lambda line: approach.connection(line, reach),
            connections=connections,
            throttle=throttle or Throttle(limit_rate),
            options=options or FetchOptions(),
            cancel=cancel or threading.Event(),
            on_bytes=on_bytes,
        )

    def __repr__(self) -> str:
        return f"HttpStore({self.url!r})"

    @property
    def url(self) -> str:
        """The repository's URL without secrets, for messages."""
        return self._line.site.url

    @property
    def stats(self) -> StoreStats:
        """Body bytes that really arrived (failed attempts included), requests (redirects included), retries."""
        return self._line.stats

    @property
    def limit_rate(self) -> float | None:
        """Bytes per second, None for no limit; may be changed while ranges are being fetched."""
        return self._line.throttle.limit

    @limit_rate.setter
    def limit_rate(self, rate: float | None) -> None:
        self._line.throttle.limit = rate

    def read(self, name: str, *, limit: int) -> bytes:
        """Return a small object whole; caches on the way are asked for its newest state.

        Raises ``FormatError`` for one longer than ``limit`` (reading stops there), ``NotFound``, ``FetchError``.
        """
        return Transfer(self._line).read(name, limit)

    def read_range(self, wanted: Range) -> bytes:
        """Return exactly the wanted bytes."""
        result: list[bytes] = []
        self.fetch([wanted], lambda _, data: result.append(bytes(data)))
        return result[0]

    def fetch(
        self,
        ranges: Iterable[Range],
        deliver: Callable[[Range, memoryview], None],
        *,
        again: bool = False,
        lacking: Callable[[Range], None] | None = None,
    ) -> None:
        """Deliver each range exactly once, complete, in any order, from worker threads.

        ``ranges`` is pulled by worker threads too, one at a time and as late as possible; where the server ignores
        ranges, up to ``FetchOptions.look_ahead`` of them are pulled before the first is delivered, so the iterable must
        not wait for a delivery. ``deliver`` must not use this store. Each connection holds one buffer of the longest
        range. The first fatal error, or an exception of ``deliver``, ends the rest and is raised; then, too, nothing
        of the caller's runs any more. ``again`` asks caches on the way for fresh copies. ``lacking`` is
        called with ranges of objects that are not there, instead of an error.
        """
        Transfer(self._line, ranges, deliver, fresh=again, lacking=lacking).fetch()

    def go_by(self, options: FetchOptions) -> None:
        """Use other timers and limits from the next call on."""
        self._line.options = options

    def close(self) -> None:
        """Close the connections; the store must not be used afterwards."""
        self._line.close()
