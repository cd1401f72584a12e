"""What a command prints: progress, one result, errors; and the exit code.

Progress, warnings and errors go to standard error: rich bars and lines above them on a terminal, plain lines elsewhere,
with ``--json`` one JSON object on each line (``event``: ``progress`` or ``log``). The result goes to standard output,
with ``--json`` as exactly one object, also when the command fails (then it is ``{"error": ...}``).

Exit codes: ``EXIT_CODES``.
"""

from __future__ import annotations

import errno
import functools
import json as json_module
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

import click

from trimtransfer.errors import AccessDenied, NoSpace, TrimTransferError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

P = ParamSpec("P")
R = TypeVar("R")

EXIT_INTERRUPTED: Final = 130
EXIT_CODES: Final = (
    "0 done, 1 another reason, 2 wrong usage, 4 not found, 5 network: may succeed later, 6 damaged data, 7 no space, "
    "8 access denied, 9 in use by another process, 10 more to fetch than allowed, 130 interrupted"
)
_SYSTEM_CODES: Final = {
    errno.ENOSPC: NoSpace.exit_code,
    errno.EDQUOT: NoSpace.exit_code,
    errno.EACCES: AccessDenied.exit_code,
    errno.EPERM: AccessDenied.exit_code,
}
_HELD: Final[ContextVar[list[str] | None]] = ContextVar("held", default=None)
_REDRAW_SECONDS: Final = 0.1
_EVENT_SECONDS: Final = 1.0
_LINE_SECONDS: Final = 5.0


class Output:
    """One command's output. Use it as a context manager; its methods may be called from any thread."""

    def __init__(
        self,
        *,
        json: bool = False,
        quiet: bool = False,
        verbose: int = 0,
        progress: bool = True,
        log_file: str | None = None,
    ) -> None:
        self.json, self.quiet, self.verbose, self.log_file = json, quiet, verbose, log_file
        self._show = progress and not quiet
        self._lock = threading.RLock()  # rich may print what it catches while it draws
        self._stack = ExitStack()
        self._started = time.monotonic()
        self._shown: dict[str, float] = {}
        self._finished: dict[str, int] = {}
        self._counts: dict[str, dict[str, int]] = {}
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Output:
        from trimtransfer.cli.log import logging_to

        self._stack.enter_context(logging_to(self._write_log, verbose=self.verbose, file=self.log_file))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop_progress()
        self._stack.close()

    def progress(self, phase: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` bytes of ``phase`` are done (``total`` 0: unknown)."""
        if not self._show:
            return
        bars = not self.json and sys.stderr.isatty()
        interval = _REDRAW_SECONDS if bars else _EVENT_SECONDS if self.json else _LINE_SECONDS
        now = time.monotonic()
        with self._lock:
            last = self._shown.get(phase)
            ended = total > 0 and done >= total
            if ended and self._finished.get(phase) == total:
                return
            if last is not None and now - last < interval and not ended:
                return
            self._shown[phase] = now
            self._finished[phase] = total if ended else -1
            if bars:
                self._draw(phase, done, total)
            elif self.json:
                counts = self._counts.get(phase, {})
                self._write_event("progress", phase=phase, done=done, total=total, **counts)
            elif done:
                self._write_line(phase, done, total)

    def count(self, phase: str, **counts: int) -> None:
        """Set what is shown beside a phase's bytes from now on, such as ``files=1200``."""
        self._counts[phase] = counts

    def say(self, text: str) -> None:
        """Print a line for people: to standard output, not with ``--json`` or ``--quiet``."""
        if not self.json and not self.quiet:
            self.stop_progress()  # or its bars would be drawn over the text
            click.echo(text)

    def detail(self, text: str) -> None:
        """Tell the curious (``-v``)."""
        self._log("info", text)

    def warn(self, text: str) -> None:
        """Print a warning, whatever the options say."""
        self._log("warning", text)

    def result(self, values: Mapping[str, Any], text: str) -> None:
        """Print the command's result: ``values`` as one JSON object, or ``text`` (not with ``--quiet``)."""
        self.stop_progress()
        self._log("info", text, shown=False)
        if self.json:
            _print_result(json_module.dumps(values, sort_keys=False))
        elif not self.quiet:
            _print_result(text)

    def fail(self, error: BaseException, message: str, exit_code: int) -> None:
        """Print an error: one line to standard error, and with ``--json`` an object to standard output."""
        self.stop_progress()
        if self.json:
            facts = {"type": type(error).__name__, "message": message, "exit_code": exit_code}
            click.echo(json_module.dumps({"error": facts}))
        self._log("error", message)

    def stop_progress(self) -> None:
        """Take the progress bars off the terminal's live area; harmless when there are none."""
        with self._lock:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None
                self._tasks.clear()

    def _log(self, level: str, text: str, *, shown: bool = True) -> None:
        from trimtransfer.cli.log import COMMAND, HIDDEN

        getattr(COMMAND, level)("%s", text, extra=None if shown else HIDDEN)

    def _write_log(self, level: str, text: str) -> None:
        """Show what was logged, on a line of its own."""
        line = f"{level}: {text}" if level in ("warning", "error", "critical") else text
        with self._lock:
            if self.json:
                self._write_event("log", level=level, message=text)
            elif self._bars is not None:
                self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                click.echo(line, err=True)

    def _draw(self, phase: str, done: int, total: int) -> None:
        if self._bars is None:
            self._bars = _start_bars()
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=None)
        text = f"{phase:<8}{self._counted(phase).lstrip(',')}"
        self._bars.update(self._tasks[phase], completed=done, total=total or None, description=text)

    def _write_event(self, event: str, **facts: Any) -> None:
        seconds = round(time.monotonic() - self._started, 1)
        click.echo(json_module.dumps({"event": event, **facts, "seconds": seconds}), err=True)

    def _write_line(self, phase: str, done: int, total: int) -> None:
        share = f" of {size_text(total)} ({100 * done // total} %)" if total else ""
        click.echo(f"{phase}: {size_text(done)}{share}{self._counted(phase)}", err=True)

    def _counted(self, phase: str) -> str:
        return "".join(f", {count:,} {name}" for name, count in self._counts.get(phase, {}).items())


@contextmanager
def results_held() -> Iterator[None]:
    """Print results only after a clean end of this context: what they tell is not so before."""
    held: list[str] = []
    token = _HELD.set(held)
    try:
        yield
    finally:
        _HELD.reset(token)
    for text in held:
        click.echo(text)


def _print_result(text: str) -> None:
    held = _HELD.get()
    if held is None:
        click.echo(text)
    else:
        held.append(text)


def output_options(function: Callable[Concatenate[Output, P], R]) -> Callable[P, R]:
    """Decorate a click command: adds ``--json -q -v --no-progress --log-file`` and passes an :class:`Output` first.

    Errors of this package, ``OSError`` and Ctrl-C become one line and the documented exit code; any other exception is
    a bug and passes, with its traceback.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object; progress as JSON lines on stderr.")
    @click.option("-q", "--quiet", is_flag=True, help="Print errors and warnings only.")
    @click.option("-v", "--verbose", count=True, help="Say what is decided; -vv: and every request.")
    @click.option("--no-progress", is_flag=True, help="Show no progress.")
    @click.option("--log-file", metavar="FILE", callback=_appendable, help="Add warnings, errors and results to FILE.")
    @functools.wraps(function)
    def run(
        *args: Any, as_json: bool, quiet: bool, verbose: int, no_progress: bool, log_file: str | None, **options: Any
    ) -> R:
        output = Output(json=as_json, quiet=quiet, verbose=verbose, progress=not no_progress, log_file=log_file)
        with output:
            try:
                return function(output, *args, **options)
            except BrokenPipeError:
                raise  # nobody reads the output any more: click ends quietly
            except (TrimTransferError, OSError, KeyboardInterrupt) as error:
                message, exit_code = _explain(error)
                output.fail(error, message, exit_code)
                if verbose > 1:
                    raise
                raise SystemExit(exit_code) from None

    return run  # type: ignore[return-value]  # click adds the options that P lacks


def _appendable(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse, as wrong usage, a file that cannot be written to."""
    if value is not None:
        try:
            with open(value, "a"):
                pass
        except OSError as error:
            raise click.BadParameter(f"{value}: {error.strerror}", context, parameter) from None
    return value


def size_text(size: float) -> str:
    """Return a size in bytes for people: ``999 B``, ``1.4 MiB``."""
    if size < 1024:
        return f"{int(size)} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.2f} TiB"


def count_text(count: int, noun: str) -> str:
    """Return a number with its noun: ``1 chunk``, ``2,000 chunks``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _explain(error: BaseException) -> tuple[str, int]:
    """Return one line for ``error`` and its exit code."""
    if isinstance(error, TrimTransferError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command again to continue", EXIT_INTERRUPTED
    if isinstance(error, OSError):
        path = os.fsdecode(error.filename) + ": " if isinstance(error.filename, str | bytes) else ""
        return f"{path}{error.strerror or error}", _SYSTEM_CODES.get(error.errno or 0, 1)
    return str(error), 1


def _start_bars() -> Progress:
    from rich import progress
    from rich.console import Console

    bars = progress.Progress(
        progress.TextColumn("{task.description:<8}"),
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        redirect_stdout=False,  # a result is no part of what standard error shows
    )
    bars.start()
    return bars
