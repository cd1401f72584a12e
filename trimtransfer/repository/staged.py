"""What is known of signed metadata without reading it: which files there are, and a timestamp that is staged.

Loads nothing heavy: commands on repositories that are not signed come by here.
"""

from __future__ import annotations

import json
import os
from typing import Final

from trimtransfer.durable import sync_directory
from trimtransfer.store import DirectoryStore
from trimtransfer.trust.layout import MAX_LENGTH, ROOT, SNAPSHOT, TIMESTAMP, metadata_name

STAGED: Final = "timestamp.json"
"""File in the private directory: the timestamp that a commit will put in place."""


def metadata_numbers(store: DirectoryStore, role: str) -> list[int]:
    """Return the numbers of a role's files that there are."""
    names = (name.rpartition("/")[2].split(".", 1) for name, _ in store.list("metadata"))
    return sorted(int(name[0]) for name in names if name[-1] == f"{role}.json" and name[0].isdecimal())


def is_signed(store: DirectoryStore) -> bool:
    """Tell whether a repository has signed metadata."""
    return bool(metadata_numbers(store, ROOT))


def stage_timestamp(store: DirectoryStore, data: bytes) -> None:
    """Keep a timestamp in private, durably."""
    path = store.private(STAGED)
    temporary = path.with_name(STAGED + ".new")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def finish(store: DirectoryStore) -> bool:
    """Put the staged timestamp in place; return whether there was one."""
    path = store.private(STAGED)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return False
    store.put(metadata_name(TIMESTAMP), data)
    path.unlink()
    return True


def discard(store: DirectoryStore) -> None:
    """Delete the staged timestamp, if there is one."""
    store.private(STAGED).unlink(missing_ok=True)


def counts(store: DirectoryStore, names: list[str]) -> bool:
    """Tell whether signed files of these names count already: a root among them is there, or the snapshot among them is
    the one that the timestamp names. (What heads say is for others to look at.)"""
    if any(name.endswith(f".{ROOT}.json") and store.exists(name) for name in names):
        return True
    try:
        fields = json.loads(store.read(metadata_name(TIMESTAMP), limit=MAX_LENGTH[TIMESTAMP]))
        number = fields["signed"]["meta"]["snapshot.json"]["version"]
        return metadata_name(SNAPSHOT, int(number)) in names
    except Exception:  # there is no timestamp, or one that says nothing
        return False
