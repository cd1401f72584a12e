"""Which states of places in object stores a directory knows: what others did there, or here, is not undone unasked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, Final

from trimtransfer.bucket.commit import Commit, is_pointer
from trimtransfer.bucket.listing import Listed
from trimtransfer.bucket.store import BucketStore
from trimtransfer.bucket.wire import Wire
from trimtransfer.durable import sync_directory
from trimtransfer.errors import FormatError, NotFound, TargetRefused
from trimtransfer.repository.catalogues import current
from trimtransfer.store import DirectoryStore

_FILE: Final = "bucket.json"


def known_states(store: DirectoryStore, url: str) -> list[str]:
    """Return the ids of the commits, of which a directory knows one to be the newest of a place: that which it last
    pulled or pushed, and one that it was about to push. None: it never met the place."""
    ids, _ = _known(store, url)
    return ids


def note_states(store: DirectoryStore, url: str, ids: list[str], *, same: bool) -> None:
    """Note these ids durably, beside those of other places; and if directory and place are the ``same`` by now, that
    the directory is as it is now."""
    path = store.private(_FILE)
    pointers = _pointers(store) if same else _known(store, url)[1]
    fields: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        fields = dict(json.loads(path.read_bytes()))
    staged = path.with_name(_FILE + ".new")
    with open(staged, "w", encoding="utf-8") as file:
        file.write(json.dumps({**fields, url: {"commits": ids, "pointers": pointers}}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(staged, path)
    sync_directory(path.parent)


def check_push(wire: Wire, store: DirectoryStore, last: Commit | None, there: Mapping[str, Listed]) -> None:
    """Refuse to undo what another working copy has pushed, or what lies there otherwise: ``TargetRefused``."""
    if last is not None:
        if last.id in known_states(store, wire.url):
            return
        raise TargetRefused(
            wire.url,
            "somebody else has published there, or from another directory, since this one was brought up to date; get "
            f"that first (medv-repo pull {wire.url} DIR), publish to {wire.url} directly, or say --replace if what is "
            "there does not count",
        )
    with contextlib.closing(BucketStore(wire.url)) as place:
        if lost := _lacking(place, [name for name in there if is_pointer(name)], store):
            reason = (
                f"it has {lost}, which this directory does not have; name another prefix, or get it first "
                f"(medv-repo pull {wire.url} DIR)"
            )
            raise TargetRefused(wire.url, reason)


def check_pull(wire: Wire, store: DirectoryStore) -> None:
    """Refuse to delete versions that were made here, or come from elsewhere: ``TargetRefused``. What others removed
    there is removed here, too, if the directory was not changed since it was last brought up to date."""
    if _known(store, wire.url)[1] == _pointers(store):
        return
    pointers = [name for name, _ in store.list() if is_pointer(name)]
    with contextlib.closing(BucketStore(wire.url)) as place:
        if lost := _lacking(store, pointers, place):
            reason = f"it has {lost}, which {wire.url} does not have, and which would be deleted here; push it first"
            raise TargetRefused(store.url, f"{reason}, name another directory, or say --replace if it does not count")


def _lacking(store: DirectoryStore, pointers: list[str], other: DirectoryStore) -> str:
    """Return a version of one store that the other does not have as it is; empty if there is none."""
    for name in pointers:
        _, image, *file = name.split("/")
        if file == ["head.json"]:
            there = _versions(other, image)
            for version, digest in _versions(store, image).items():
                if there.get(version) != digest:
                    return f"{image} {version}"
    return ""


def _versions(store: DirectoryStore, image: str) -> dict[str, bytes]:
    """Return the digests of an image's versions; those whose files are there, but nobody refers to, do not count."""
    try:
        return {entry.version: entry.manifest_digest for entry in current(store, image).versions}
    except NotFound:
        return {}


def _known(store: DirectoryStore, url: str) -> tuple[list[str], str]:
    """Return the ids of commits, and a digest of what the directory told readers when it was the same as the place."""
    path = store.private(_FILE)
    try:
        found = json.loads(path.read_bytes()).get(url, {})
        return [str(id) for id in found.get("commits", [])], str(found.get("pointers", ""))
    except FileNotFoundError:
        return [], ""
    except (ValueError, TypeError, AttributeError) as error:
        raise FormatError(str(path), 0, "what this directory knows of object stores", error) from None


def _pointers(store: DirectoryStore) -> str:
    """Return a digest of all that readers start from."""
    hasher = hashlib.sha256()
    for name in sorted(name for name, _ in store.list() if is_pointer(name)):
        data = store.path.joinpath(*name.split("/")).read_bytes()
        hasher.update(f"{name} {hashlib.sha256(data).hexdigest()}\n".encode())
    return hasher.hexdigest()
