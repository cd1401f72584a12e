"""What the library logs while a command runs: shown by the command's output, and kept in a file where asked.

Levels follow the options: warnings by default, ``-v`` adds what is decided, ``-vv`` how, with every HTTP request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_OURS: Final = ("trimtransfer", "medv")
_HTTP: Final = "httpx"
_FILE_FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"
COMMAND: Final = logging.getLogger("trimtransfer.command")
"""What the command itself says. With ``extra=HIDDEN`` a record goes to the file alone: it is shown otherwise."""
HIDDEN: Final = {"hidden": True}


class _Shown(logging.Handler):
    """Hands records on to the command's output."""

    def __init__(self, show: Callable[[str, str], None]) -> None:
        super().__init__()
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record as (level in lower case, message)."""
        try:
            if not hasattr(record, "hidden"):
                self._show(record.levelname.lower(), record.getMessage())
        except Exception:
            self.handleError(record)


@contextmanager
def logging_to(show: Callable[[str, str], None], *, verbose: int, file: str | None) -> Iterator[None]:
    """Send what is logged to ``show(level, message)`` and to the end of ``file``; afterwards all is as it was.

    Raises ``OSError`` if the file cannot be opened.
    """
    shown = logging.WARNING if not verbose else logging.INFO if verbose == 1 else logging.DEBUG
    kept = min(shown, logging.INFO) if file is not None else shown
    handlers: list[logging.Handler] = [_Shown(show)]
    handlers[0].setLevel(shown)
    if file is not None:
        handlers.append(logging.FileHandler(file, encoding="utf-8", errors="backslashreplace"))
        handlers[1].setFormatter(logging.Formatter(_FILE_FORMAT))
    levels = dict.fromkeys(_OURS, kept) | {_HTTP: logging.INFO if verbose > 1 else logging.WARNING}
    before = {name: logging.getLogger(name).level for name in levels}
    root = logging.getLogger()
    for handler in handlers:
        root.addHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
