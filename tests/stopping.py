"""Work that is stopped on request, and what it leaves."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any


def stopped_in(phase: str) -> dict[str, Any]:
    """Return the options by which work is cancelled as soon as it is in this phase."""
    cancel = threading.Event()

    def progress(now: str, done: int, total: int) -> None:
        if now == phase:
            cancel.set()

    return {"cancel": cancel, "progress": progress}


def objects_below(root: Path) -> dict[Path, bytes]:
    """Return the objects of a repository that are no JSON."""
    return {path: path.read_bytes() for path in root.rglob("*.bin")}
