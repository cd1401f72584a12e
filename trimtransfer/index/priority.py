"""Idle priority: work that takes the processor and the disk only when nobody else wants them."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from typing import Final

_IOPRIO_SET: Final = {
    "x86_64": 251,
    "i386": 289,
    "i686": 289,
    "aarch64": 30,
    "riscv64": 30,
    "loongarch64": 30,
    "armv7l": 314,
    "ppc64le": 273,
    "s390x": 282,
}
"""Numbers of the system call ioprio_set(2), for which the C library has no function."""
_WHO_PROCESS: Final = 1
_CLASS_IDLE: Final = 3 << 13


def be_idle() -> list[str]:
    """Give the calling thread, and threads that it starts from now on, idle priority; return what could be done.

    That is some of ``"cpu"`` (idle scheduling class, else the lowest nice value) and ``"io"``. There is no way back
    without privileges, so it is for processes that do nothing else.
    """
    return [name for name, done in (("cpu", _idle_cpu()), ("io", _idle_io())) if done]


def _idle_cpu() -> bool:
    with suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        return True
    with suppress(AttributeError, OSError):
        return os.nice(19) > 0
    return False


def _idle_io() -> bool:
    number = _IOPRIO_SET.get(platform.machine())
    if number is None or platform.system() != "Linux":
        return False
    with suppress(AttributeError, OSError):
        return int(ctypes.CDLL(None, use_errno=True).syscall(number, _WHO_PROCESS, 0, _CLASS_IDLE)) == 0
    return False
