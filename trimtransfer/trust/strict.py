"""Strict reading of signed JSON: one form for one meaning, within bounds.

What is not exactly as a signer writes it is refused: fields twice, numbers that are none or huge, deep nesting, any
byte before, between or after. So a file that is accepted has not one bit that could be another.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import numpy as np

from trimtransfer.errors import FormatError

_DEEPEST: Final = 16
"""Levels of nesting; those of ours have at most 8."""
_LARGEST: Final = (1 << 63) - 1
_HEX: Final = re.compile(r"[0-9a-f]+")
_OPENING: Final = np.frombuffer(b"[{", dtype=np.uint8)
_CLOSING: Final = np.frombuffer(b"]}", dtype=np.uint8)


def parse(data: bytes, what: str, *, limit: int) -> dict[str, Any]:
    """Return the fields of a signed file: ``signatures`` and ``signed``, nothing else.

    Raises:
        FormatError: anything that is not the one form in which it is written.
    """
    if len(data) > limit:
        raise FormatError(what, limit, f"at most {limit:,} bytes", f"{len(data):,}")
    fields = read_json(data, what)
    if encode(fields) != data:
        raise FormatError(what, 0, "JSON in its one form", "another one of the same meaning")
    if fields.keys() != {"signatures", "signed"} or not isinstance(fields["signed"], dict):
        raise FormatError(what, 0, "signatures and what is signed", ", ".join(sorted(fields))[:80])
    _check_signatures(fields["signatures"], what)
    return fields


def read_json(data: bytes, what: str) -> dict[str, Any]:
    """Return a JSON object: no field twice, whole numbers below 2^63 only, nested at most 16 deep; ``FormatError``."""
    if _depth(data) > _DEEPEST:
        raise FormatError(what, 0, f"at most {_DEEPEST} levels", "more")
    try:
        fields = json.loads(
            data.decode("ascii"),
            object_pairs_hook=_unique,
            parse_constant=_no_number,
            parse_float=_no_number,
            parse_int=_number,
        )
    except (ValueError, RecursionError) as error:
        raise FormatError(what, 0, "a JSON object", str(error)[:80]) from error
    if not isinstance(fields, dict):
        raise FormatError(what, 0, "a JSON object", type(fields).__name__)
    return fields


def encode(fields: dict[str, Any]) -> bytes:
    """Return the one form in which fields are written."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")


def _check_signatures(signatures: Any, what: str) -> None:
    """Refuse signatures that are not two strings in lower-case hexadecimal digits, and two by one key."""
    good = isinstance(signatures, list) and all(
        isinstance(one, dict) and one.keys() == {"keyid", "sig"} and all(map(_is_hex, one.values()))
        for one in signatures
    )
    if not good:
        raise FormatError(what, "signatures", "key id and signature in hexadecimal digits, each", "something else")
    if len({one["keyid"] for one in signatures}) != len(signatures):
        raise FormatError(what, "signatures", "one of each key", "two of the same key")


def _is_hex(value: Any) -> bool:
    return isinstance(value, str) and _HEX.fullmatch(value) is not None


def _depth(data: bytes) -> int:
    """Return how deep brackets are nested at most, those in strings included."""
    found = np.frombuffer(data, dtype=np.uint8)
    steps = np.isin(found, _OPENING).astype(np.int8) - np.isin(found, _CLOSING).astype(np.int8)
    return int(np.cumsum(steps[steps != 0], dtype=np.int64).max(initial=0))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field occurs twice")
    return fields


def _no_number(text: str) -> None:
    raise ValueError(f"{text[:20]} is no whole number")


def _number(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > _LARGEST:
        raise ValueError(f"{text[:20]}... is too large a number")
    return int(text)
