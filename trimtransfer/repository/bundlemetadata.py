"""The signed metadata that a bundle takes along, so that whoever has it offline can check it.

They are copied as they are: nothing is believed here, and what is wrong with them is seen by whoever uses the bundle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from trimtransfer.errors import AccessDenied, FormatError, NotFound
from trimtransfer.store import Store
from trimtransfer.trust.layout import (
    MAX_ROTATIONS,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    max_length,
    metadata_name,
    role_of,
)
from trimtransfer.trust.strict import read_json


def signed_files(store: Store, images: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield names and bytes of what vouches for some images: all roots, timestamp, snapshot, targets, and their roles.

    Raises:
        NotFound: the repository has none. FormatError: they are damaged.
    """
    for number in range(1, MAX_ROTATIONS + 1):
        try:
            yield _read(store, ROOT, number)
        except (NotFound, AccessDenied):  # some stores deny what is not there
            break
    name, data = _read(store, TIMESTAMP, None)
    yield name, data
    snapshot = _meta(data, name).get("snapshot.json", {}).get("version")
    name, data = _read(store, SNAPSHOT, _number(snapshot, name))
    yield name, data
    meta = _meta(data, name)
    for role in (TARGETS, *map(role_of, images)):
        if role == TARGETS or f"{role}.json" in meta:
            yield _read(store, role, _number(meta.get(f"{role}.json", {}).get("version"), name))


def _read(store: Store, role: str, number: int | None) -> tuple[str, bytes]:
    name = metadata_name(role, number)
    return name, store.read(name, limit=max_length(role))


def _meta(data: bytes, what: str) -> dict[str, Any]:
    signed = read_json(data, what).get("signed")
    meta = signed.get("meta") if isinstance(signed, dict) else None
    if not isinstance(meta, dict) or not all(isinstance(one, dict) for one in meta.values()):
        raise FormatError(what, "meta", "the files that it names", "something else")
    return meta


def _number(value: Any, what: str) -> int:
    if type(value) is not int or value < 1:
        raise FormatError(what, "meta", "a number of a file", repr(value)[:40])
    return value
