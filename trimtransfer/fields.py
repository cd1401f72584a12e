"""JSON objects of others, read strictly: every field has its type and bounds, and no field occurs twice.

Fields that nobody asks for are ignored, so that later releases can add some.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from trimtransfer.chunk import DIGEST_SIZE, Bytes
from trimtransfer.errors import FormatError

MAX_NUMBER: Final = (1 << 63) - 1
_DIGITS: Final = 19
_HEXADECIMAL: Final = frozenset("0123456789abcdef")


class Fields:
    """The fields of a JSON object; ``what`` it is, for messages. All methods raise ``FormatError``."""

    def __init__(self, what: str, value: object) -> None:
        """Take a parsed value, which must be an object."""
        if not isinstance(value, Mapping):
            raise FormatError(what, 0, "a JSON object", type(value).__name__)
        self.what, self._values = what, value

    @classmethod
    def parse(cls, what: str, data: Bytes, limit: int) -> Fields:
        """Parse the bytes of an object, at most ``limit`` of them."""
        if len(data) > limit:
            raise FormatError(what, 0, f"at most {limit:,} bytes", f"{len(data):,}")
        try:
            value = json.loads(
                bytes(data), object_pairs_hook=_unique, parse_constant=_refuse, parse_int=_whole, parse_float=_refuse
            )
        except (ValueError, RecursionError) as error:
            raise FormatError(what, 0, "a JSON object", str(error)[:80]) from error
        return cls(what, value)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def format(self, known: int) -> None:
        """Refuse an object whose field ``format`` is not the ``known`` one."""
        found = self.number("format")
        if found != known:
            raise FormatError(self.what, "format", f"{known} (a newer one needs a newer program)", found)

    def text(self, name: str, default: str | None = None) -> str:
        """Return a string; ``default`` where it is missing, if there is one."""
        value = self._values.get(name, default)
        if not isinstance(value, str):
            raise FormatError(self.what, name, "a string", repr(value)[:80])
        return value

    def number(self, name: str, limit: int = MAX_NUMBER, default: int | None = None) -> int:
        """Return a whole number from 0 up to ``limit``."""
        value = self._values.get(name, default)
        if type(value) is not int or not 0 <= value <= limit:
            raise FormatError(self.what, name, f"a whole number up to {limit}", repr(value)[:80])
        return value

    def flag(self, name: str) -> bool:
        """Return true or false; missing: false."""
        value = self._values.get(name, False)
        if not isinstance(value, bool):
            raise FormatError(self.what, name, "true or false", repr(value)[:80])
        return value

    def digest(self, name: str) -> bytes:
        """Return a digest, written in lower-case hexadecimal digits."""
        value = self.text(name)
        if len(value) != 2 * DIGEST_SIZE or not set(value) <= _HEXADECIMAL:
            raise FormatError(self.what, name, f"{2 * DIGEST_SIZE} lower-case hexadecimal digits", repr(value)[:80])
        return bytes.fromhex(value)

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """Return a list of at most ``most`` strings; missing: none."""
        return tuple(text for text in self._list(name, most, str))

    def objects(self, name: str, most: int) -> list[Fields]:
        """Return a list of at most ``most`` objects; missing: none."""
        return [Fields(f"{self.what}, {name}", value) for value in self._list(name, most, Mapping)]

    def mapping(self, name: str, most: int) -> dict[str, Fields]:
        """Return the fields of an object of at most ``most`` objects; missing: none."""
        value = self._values.get(name, {})
        if not isinstance(value, Mapping) or len(value) > most:
            raise FormatError(self.what, name, f"an object of at most {most} fields", repr(value)[:80])
        return {key: Fields(f"{self.what}, {name}", one) for key, one in value.items()}

    def _list(self, name: str, most: int, kind: type[Any]) -> list[Any]:
        values = self._values.get(name, [])
        if not isinstance(values, list) or len(values) > most or not all(isinstance(one, kind) for one in values):
            what = "strings" if kind is str else "objects"
            raise FormatError(self.what, name, f"a list of at most {most} {what}", repr(values)[:80])
        return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field occurs twice")
    return fields


def _refuse(text: str) -> None:
    raise ValueError(f"{text[:20]} is no whole number")


def _whole(text: str) -> int:
    if len(text) > _DIGITS + 1:
        raise ValueError(f"{text[:20]}... is too large a number")
    return int(text)
