"""Walking a tree of directories: paths in a fixed order, without recursion, each directory once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.contents import MAX_FILES, check_count

_MAX_DEPTH = 4096
"""Directories within each other; with names of 255 bytes a path then has about 1 MB."""


def walk(root: int, children: Callable[[int], list[tuple[bytes, int]] | None]) -> Iterator[tuple[bytes, int]]:
    """Yield (path, number) of all that lies below ``root`` and is no directory, names of a directory in order.

    ``children`` returns (name, number) of what a directory holds, None if the number is not of a directory.

    Raises:
        FormatError: a directory within itself, or in two places; a name that is none; more than ``MAX_FILES`` names.
    """
    top = children(root)
    if top is None:
        raise FormatError("root directory", f"number {root}", "a directory", "something else")
    entered, names = {root}, len(top)
    stack = [(b"", iter(sorted(top)))]
    while stack:
        prefix, rest = stack[-1]
        entry = next(rest, None)
        if entry is None:
            stack.pop()
            continue
        name, number = entry
        if not name or b"/" in name or b"\0" in name:
            raise FormatError("directory", repr(prefix[-200:]), "a name", repr(name[:255]))
        path = prefix + name
        inner = children(number)
        if inner is None:
            yield path, number
            continue
        if number in entered or len(stack) > _MAX_DEPTH:
            raise FormatError("directory", repr(path[-200:]), "a tree of directories", "one within itself, or twice")
        entered.add(number)
        names += len(inner)
        check_count("names", names, MAX_FILES)
        stack.append((path + b"/", iter(sorted(inner))))
