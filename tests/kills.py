"""Processes that die at a chosen moment: right before one of their changes to the file system."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable
from typing import Any


def changes_until(limit: int, work: Callable[..., Any], *arguments: Any, **options: Any) -> int:
    """Do ``work`` in a process that dies by SIGKILL before its ``limit``-th change (0: never); return how many it made,
    0 if it died."""
    context = multiprocessing.get_context("fork")
    result = context.SimpleQueue()

    def run() -> None:
        counter = operations(limit)
        work(*arguments, **options)
        result.put(counter())

    process = context.Process(target=run)
    process.start()
    process.join()
    if process.exitcode == 0:
        return int(result.get())
    assert process.exitcode == -signal.SIGKILL
    return 0


def some_steps(total: int, rnd: random.Random, most: int) -> list[int]:
    """Return at most so many of the steps from 1 to ``total``, the first and the last five among them."""
    ends = {1, *range(max(1, total - 4), total + 1)}
    others = [step for step in range(1, total + 1) if step not in ends]
    return sorted([*ends, *rnd.sample(others, min(len(others), max(0, most - len(ends))))])


def operations(limit: int) -> Callable[[], int]:
    """Let this process die by SIGKILL right before its ``limit``-th change to the file system; return a counter."""
    count = 0
    lock = threading.Lock()

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            with lock:
                count += 1
                if count == limit:
                    os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        return call

    for name in ("write", "fsync", "replace", "unlink", "mkdir", "ftruncate"):
        setattr(os, name, counted(getattr(os, name)))
    return lambda: count
