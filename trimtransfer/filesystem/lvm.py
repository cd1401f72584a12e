"""The logical volumes of LVM2 that lie in one piece on one physical volume.

Only volume groups of linear volumes are read. Any other kind of segment (a snapshot, a thin pool, a mirror, a cache)
may read blocks behind the back of the file system that has them free, so it spoils the whole group.

Source: the on-disk structures of LVM2 (lib/format_text/layout.h) and its metadata, which is text.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.volume import Volume

WHAT: Final = "LVM2 metadata"
_SECTOR: Final = 512
_LABEL: Final = struct.Struct("<8sQII8s")
_AREA: Final = struct.Struct("<QQ")
_AREA_HEAD: Final = struct.Struct("<I16sIQQ")
_LOCATION: Final = struct.Struct("<QQII")
_AREA_MARK: Final = b" LVM2 x[5A%r0N*>"
_SEED: Final = 0xF597A6CF
_MAX_TEXT: Final = 16 << 20
_MAX_DEPTH: Final = 16
_MAX_AREAS: Final = 16
_MOST: Final = 1 << 40
_T = TypeVar("_T")
_TOKEN: Final = re.compile(
    rb'\s+|#[^\n]*|("(?:[^"\\]|\\.)*")|(-?\d+)(?![\w.])|([A-Za-z0-9_.+-]+)|([={}\[\],])|(.)', re.S
)


@dataclass(frozen=True, slots=True)
class Logical:
    """A logical volume: where it starts in the physical one, and its length, in bytes; or why it cannot be read."""

    name: str
    start: int = 0
    length: int = 0
    problem: str = ""


def logical_volumes(volume: Volume) -> list[Logical]:
    """Return the logical volumes that a physical volume has all or parts of, in its order.

    Raises:
        FormatError: its label or metadata break a rule, or have something that is not known here.
    """
    identity, areas = _label(volume)
    groups = [values for values in _parse(_text(volume, areas)).values() if isinstance(values, dict)]
    if len(groups) != 1:
        raise FormatError(WHAT, volume.start, "one volume group", len(groups))
    group = groups[0]
    own = {
        name: values
        for name, values in _sections(group, "physical_volumes")
        if _value(values, "id", bytes).replace(b"-", b"") == identity
    }
    if len(own) != 1:
        raise FormatError(WHAT, volume.start, "this physical volume in its group", len(own))
    ((name, values),) = own.items()
    grid = _number(values, "pe_start"), _number(group, "extent_size")
    found = [
        logical
        for title, settings in _sections(group, "logical_volumes")
        if (logical := _logical(title, settings, name.encode(), grid)) is not None
    ]
    found.sort(key=lambda one: one.start)
    ends = [0, *(one.start + one.length for one in found)]
    if any(one.start < end for one, end in zip(found, ends, strict=False)) or ends[-1] > volume.length:
        raise FormatError(WHAT, volume.start, "volumes one after the other", "others")
    return found


def _logical(name: str, settings: dict[str, Any], own: bytes, grid: tuple[int, int]) -> Logical | None:
    """Return a logical volume if any of it lies on the physical volume ``own``."""
    if b"VISIBLE" not in _value(settings, "status", list):
        raise FormatError(WHAT, name, "volumes of their own", "a part of another")
    pieces = [
        _segment(name, _value(settings, f"segment{number}", dict))
        for number in range(1, min(_number(settings, "segment_count"), len(settings)) + 1)
    ]
    if all(place != own for _, place, _, _ in pieces):
        return None
    at, expected = pieces[0][2], 0
    for start, place, first, count in pieces:
        if place != own or first != at + expected or start != expected or not count:
            return Logical(name, problem="it does not lie in one piece")
        expected += count
    pe_start, extent = grid
    return Logical(name, (pe_start + at * extent) * _SECTOR, expected * extent * _SECTOR)


def _segment(name: str, segment: dict[str, Any]) -> tuple[int, bytes, int, int]:
    """Return first extent in the logical volume, physical volume, first extent in that, and number of extents."""
    kind = _value(segment, "type", bytes)
    if kind != b"striped" or _number(segment, "stripe_count") != 1:
        raise FormatError(WHAT, name, "linear volumes only", kind.decode(errors="replace"))
    stripes = _value(segment, "stripes", list)
    if len(stripes) != 2 or not isinstance(stripes[0], bytes) or not isinstance(stripes[1], int):
        raise FormatError(WHAT, name, "the place of a segment", stripes[:2])
    place, first = stripes
    if not 0 <= first < _MOST:
        raise FormatError(WHAT, name, "the place of a segment", first)
    return _number(segment, "start_extent"), place, first, _number(segment, "extent_count")


def _label(volume: Volume) -> tuple[bytes, list[tuple[int, int]]]:
    """Return the identity of a physical volume, and (offset, length) of its metadata areas."""
    data = volume.bytes(WHAT, _SECTOR, _SECTOR)
    mark, _, check, offset, kind = _LABEL.unpack_from(data)
    if (mark, kind) != (b"LABELONE", b"LVM2 001") or check != _check(data[20:]) or offset > _SECTOR - 64:
        raise FormatError(WHAT, volume.start + _SECTOR, "a label", data[:32])
    areas: list[tuple[int, int]] = []
    at = offset + 40
    lists = 0
    while lists < 2 and at + _AREA.size <= _SECTOR:
        start, length = _AREA.unpack_from(data, at)
        at += _AREA.size
        if not start:
            lists += 1
        elif lists == 1:
            areas.append((start, length))
    if lists < 2 or not 0 < len(areas) <= _MAX_AREAS:
        raise FormatError(WHAT, volume.start + _SECTOR, "metadata areas", len(areas))
    return data[offset : offset + 32], areas


def _text(volume: Volume, areas: list[tuple[int, int]]) -> bytes:
    """Return the current metadata; all areas must have the same."""
    texts = {_area(volume, start, length) for start, length in areas}
    if len(texts) != 1:
        raise FormatError(WHAT, volume.start, "areas that agree", f"{len(texts)} versions")
    return texts.pop()


def _area(volume: Volume, start: int, length: int) -> bytes:
    head = volume.bytes(WHAT, start, _SECTOR)
    check, mark, version, own, size = _AREA_HEAD.unpack_from(head)
    offset, text_length, text_check, flags = _LOCATION.unpack_from(head, _AREA_HEAD.size)
    good = mark == _AREA_MARK and version == 1 and own == start and size == length and check == _check(head[4:])
    good &= flags == 0 and _SECTOR <= offset < length and 0 < text_length <= min(_MAX_TEXT, length - _SECTOR)
    if not good:
        raise FormatError(WHAT, volume.start + start, "a metadata area", head[:64])
    first = min(text_length, length - offset)  # a ring: the rest follows the head
    text = volume.bytes(WHAT, start + offset, first) + volume.bytes(WHAT, start + _SECTOR, text_length - first)
    if _check(text) != text_check:
        raise FormatError(WHAT, volume.start + start, f"text with checksum {text_check:#x}", hex(_check(text)))
    return text.rstrip(b"\0")


def _check(data: bytes) -> int:
    """Return LVM2's checksum: CRC-32 with a start of its own, and not inverted."""
    return zlib.crc32(data, _SEED ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def _parse(text: bytes) -> dict[str, Any]:
    """Return the sections and values of a text: names to bytes, numbers, lists of them, or sections."""
    root: dict[str, Any] = {}
    sections, name = [root], ""
    values: list[Any] | None = None
    for match in _TOKEN.finditer(text):
        string, number, word, sign = match.group(1, 2, 3, 4)
        if match.group(5) is not None:
            raise FormatError(WHAT, match.start(), "text of LVM2", match.group(5))
        if string is not None or number is not None:
            value = string[1:-1] if string is not None else int(number[:20])
            if values is None:
                sections[-1][name] = value
            else:
                values.append(value)
        elif word is not None:
            name = word.decode()
        elif sign == b"{":
            inner: dict[str, Any] = {}
            sections[-1][name] = inner
            sections.append(inner)
        elif sign == b"}":
            sections.pop()
        elif sign == b"[":
            values = sections[-1][name] = []
        elif sign == b"]":
            values = None
        if not 0 < len(sections) <= _MAX_DEPTH:
            raise FormatError(WHAT, match.start(), "sections within each other", len(sections))
    return root


def _sections(settings: dict[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the sections within a section, which may be missing."""
    found = settings.get(name, {})
    if not isinstance(found, dict):
        raise FormatError(WHAT, name, "a section", found)
    return [(title, values) for title, values in found.items() if isinstance(values, dict)]


def _value(settings: dict[str, Any], name: str, kind: type[_T]) -> _T:
    found = settings.get(name)
    if not isinstance(found, kind):
        raise FormatError(WHAT, name, kind.__name__, found)
    return found


def _number(settings: dict[str, Any], name: str) -> int:
    found = _value(settings, name, int)
    if not 0 <= found < _MOST:
        raise FormatError(WHAT, name, "a possible number", found)
    return found
