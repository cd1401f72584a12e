"""The paths that an index is made of, as they are found."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trimtransfer.index.walk import Skipped
from trimtransfer.localfile import look


@dataclass(frozen=True, slots=True)
class Root:
    """A path to index: without symbolic links, and what it is."""

    path: bytes
    found: os.stat_result


def find_roots(paths: Sequence[str | os.PathLike[str]], skipped: Skipped) -> list[Root]:
    """Look at the paths; those that are not there, or do not answer, are counted and left out."""
    roots = []
    for path in paths:
        try:
            roots.append(Root(*look(path)))
        except OSError:
            skipped.unreadable += 1
    return roots


def without_nested(roots: Sequence[Root]) -> Iterator[Root]:
    """Yield the roots that no other one contains. One on another file system than its container is not contained."""
    kept: list[Root] = []
    for root in sorted(roots, key=lambda root: root.path):
        for other in kept:
            inside = root.path == other.path or root.path.startswith(os.path.join(other.path, b""))
            if inside and root.found.st_dev == other.found.st_dev:
                break
        else:
            kept.append(root)
            yield root
