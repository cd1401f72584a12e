"""The server's log: a line of JSON for each request and each event, written by a thread of its own.

No secret gets into it: queries, headers and bodies are not among what is logged, and of a path only what it names. A
disk or pipe that is full or slow loses lines, which are counted, but never holds a request up.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

REQUESTS: Final = logging.getLogger("medv.request")
"""One record for each request; its facts are the record's ``facts``."""
_WAITING: Final = 20_000
"""Lines that may wait to be written."""
_OURS: Final = ("medv", "trimtransfer", "uvicorn.error")
_SECRET: Final = re.compile(
    r"\b(medv_[a-z0-9]{12})_[A-Za-z0-9_-]{20,}|(\bey[A-Za-z0-9_-]{6})[A-Za-z0-9_.-]{20,}|(\?)\S+"
    r"|(\b(?:Negotiate|Basic) )[A-Za-z0-9+/]{20,}=*"
)
"""What must not be logged even if somebody puts it into a message: tokens of ours, JWTs, queries of URLs, headers."""


class Lines(logging.Formatter):
    """Records as JSON objects: ``time`` (UTC), ``level``, ``event``, and the facts."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        values: dict[str, Any] = {"time": f"{moment}.{int(record.msecs):03}Z", "level": record.levelname.lower()}
        facts = getattr(record, "facts", None)
        if isinstance(facts, Mapping):
            values |= {"event": record.getMessage(), **facts}
        else:
            values |= {"event": "message", "logger": record.name, "text": redact(record.getMessage())}
        if record.exc_info and record.exc_info[1] is not None:
            values["trace"] = redact("".join(traceback.format_exception(record.exc_info[1])))
        return json.dumps(values, default=str)


class Waiting(logging.handlers.QueueHandler):
    """Hands records over to the thread that writes; counts those that found no place."""

    def __init__(self) -> None:
        self.lines: queue.Queue[Any] = queue.Queue(_WAITING)
        super().__init__(self.lines)
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Leave the record as it is: it does not leave this process."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put a record into the queue if there is room."""
        try:
            self.lines.put_nowait(record)
        except queue.Full:
            self.dropped += 1


@contextmanager
def journal(file: str = "", *, level: str = "info") -> Iterator[Waiting]:
    """Write the log to ``file`` (reopened when it was moved away) or to standard error, until the end of the block.

    Raises ``OSError`` where the file cannot be written to.
    """
    target: logging.Handler = (
        logging.handlers.WatchedFileHandler(file, encoding="utf-8") if file else logging.StreamHandler(sys.stderr)
    )
    target.setFormatter(Lines())
    waiting = Waiting()
    listener = logging.handlers.QueueListener(waiting.lines, target)
    loggers = [logging.getLogger(name) for name in _OURS]
    before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING if logger.name == "uvicorn.error" else level.upper())
        logger.propagate = False
        logger.handlers = [waiting]
    listener.start()
    try:
        yield waiting
    finally:
        for logger, (old_level, propagate, handlers) in zip(loggers, before, strict=True):
            logger.setLevel(old_level)
            logger.propagate, logger.handlers = propagate, handlers
        listener.stop()
        target.close()


def event(name: str, **facts: Any) -> None:
    """Log something that is no request."""
    REQUESTS.info(name, extra={"facts": facts})


def redact(text: str) -> str:
    """Return a text without what looks like a secret."""
    return _SECRET.sub(lambda found: (found[1] or found[2] or found[3] or found[4]) + "[redacted]", text)
