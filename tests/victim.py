"""A process that runs syncs in forked children and lets them die at a chosen call that changes files.

Reads one JSON object per line (see ``syncing.Victim``), answers with one. Everything is imported before the forks, so a
child costs milliseconds. Windows are one region long, so that small images have several.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import httpx  # noqa: F401  (imported before the forks)

from trimtransfer.assembly import journal, redo, sync, windows
from trimtransfer.fetch import mirrored, retry

CHANGING = (
    "pwrite",
    "write",
    "fsync",
    "fdatasync",
    "ftruncate",
    "replace",
    "rename",
    "unlink",
    "mkdir",
    "chmod",
    "utime",
)
SECTOR = 512


class Shim:
    """Counts the calls that change files, and dies or fails at one of them; remembers what no fsync has secured."""

    def __init__(self, kill_at: int | None, cut: int | None, fail: tuple[int, int, bool] | None) -> None:
        self.calls = 0
        self._kill_at, self._cut = kill_at, cut
        self._fail_at, self._errno, self._for_good = fail or (None, 0, False)
        self._lock = threading.RLock()
        self._real = {name: getattr(os, name) for name in CHANGING}
        self._unsynced: list[tuple[int, int, int, bytes]] = []  # descriptor, inode, offset, what was there

    def install(self) -> None:
        for name in CHANGING:
            setattr(os, name, self._wrap(name))
        os.pwritev = lambda descriptor, buffers, offset: os.pwrite(descriptor, b"".join(buffers), offset)

    def _wrap(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(*arguments: Any, **options: Any) -> Any:
            if name == "write" and arguments[0] <= 2:
                return real(*arguments, **options)
            with self._lock:
                if self.calls == self._kill_at:
                    self._die(name, arguments)
                self.calls += 1
                if self._fails():
                    raise OSError(self._errno, os.strerror(self._errno))
                if self._cut is not None:
                    self._remember(name, arguments)
                if name in ("fsync", "fdatasync"):
                    return None  # a kill does not need the disk, and a power cut is what this class says it is
                return real(*arguments, **options)

        return call

    def _fails(self) -> bool:
        if self._fail_at is None:
            return False
        number = self.calls - 1
        return number == self._fail_at or (self._for_good and number > self._fail_at)

    def _remember(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name in ("pwrite", "write"):
            descriptor, data = arguments[0], arguments[1]
            offset = arguments[2] if name == "pwrite" else os.lseek(descriptor, 0, os.SEEK_CUR)
            self._keep(descriptor, offset, len(data))
        elif name in ("fsync", "fdatasync"):
            inode = os.fstat(arguments[0]).st_ino
            self._unsynced = [entry for entry in self._unsynced if entry[1] != inode]

    def _keep(self, descriptor: int, offset: int, length: int) -> None:
        try:
            before = os.pread(descriptor, length, offset)
        except OSError:
            return  # a pipe, or open for writing only
        before += bytes(length - len(before))
        self._unsynced.append((os.dup(descriptor), os.fstat(descriptor).st_ino, offset, before))

    def _die(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name in ("pwrite", "write") and len(arguments[1]) > 1:
            # A kill may fall into the middle of a write.
            half = memoryview(arguments[1])[: len(arguments[1]) // 2]
            if self._cut is not None:
                self._remember(name, arguments)
            self._real[name](arguments[0], half, *arguments[2:])
        if self._cut is not None:
            self._power_cut(random.Random(self._cut))
        os.kill(os.getpid(), signal.SIGKILL)

    def _power_cut(self, rnd: random.Random) -> None:
        """Undo some unsynced writes, whole or from a sector on, the latest first."""
        for descriptor, _, offset, before in reversed(self._unsynced):
            fate = rnd.random()
            if fate < 0.3:
                continue
            start = rnd.randrange(0, len(before) + 1, SECTOR) if fate < 0.6 else 0
            # Sectors are those of the file: the first border at or after the start.
            start = min(len(before), start + -(offset + start) % SECTOR if start else 0)
            self._real["pwrite"](descriptor, before[start:], offset + start)


def quick_store(url: str, **options: Any) -> Any:
    """Open a store that loses no time with retries."""
    patience = retry.FetchOptions(stall=5, first_delay=0.01, max_delay=0.05)
    return mirrored.open_servers(url, options=patience, **options)


def child(order: dict[str, Any], answer: int) -> None:
    """Run one sync and write its result."""
    shim = Shim(order["kill_at"], order["cut"], order["fail"])
    shim.install()
    if order["quick"]:
        sync.open_store = quick_store
    windows.WINDOW_REGIONS = 1
    if order["boot"] is not None:
        boot = bytes.fromhex(order["boot"])
        journal.boot_id = redo.boot_id = lambda: boot
    result: dict[str, Any] = {}
    try:
        report = sync.sync(*order["arguments"], **order["options"])
        result["result"] = report.to_dict()
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
    result["calls"] = shim.calls
    with os.fdopen(answer, "w") as file:
        json.dump(result, file)
    os._exit(0)


def main() -> None:
    """Serve orders until standard input ends."""
    for line in sys.stdin:
        order = json.loads(line)
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            child(order, write_end)
        os.close(write_end)
        with os.fdopen(read_end) as file:
            text = file.read()
        _, status = os.waitpid(pid, 0)
        answer = json.loads(text) if text else {}
        answer["status"] = os.waitstatus_to_exitcode(status)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
