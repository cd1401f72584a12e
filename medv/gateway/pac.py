"""What a ticket of Active Directory says of its holder: the account, whether it is a computer's, its groups.

Pure. A bounded reader of the privilege attribute certificate (Microsoft, [MS-PAC] 2.3 to 2.5) and of the one structure
in it that tells this, in NDR (DCE 1.1: RPC, chapter 14). That it is genuine has been checked before, by GSSAPI. Group
identifiers are those of all groups, nested ones too, as the domain controller found them when it made the ticket.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

from trimtransfer.errors import FormatError

_WHAT: Final = "PAC of a ticket"
MAX_PAC: Final = 128 << 10
"""Bytes of the longest PAC that is looked at; tickets end at 64 KiB."""
_LOGON_INFO: Final = 1
_MAX_BUFFERS: Final = 64
_HEADERS: Final = struct.Struct("<BBHI II I")
"""Type serialization: common header, private header; then the pointer to the structure."""
_LOGON: Final = struct.Struct("<48x 6Q 4x IIII 4x 16x 2Q I 8x II 16x 8x II III")
"""KERB_VALIDATION_INFO; of a text or list, length and pointer. ``Q`` is RPC_UNICODE_STRING: length, room, pointer."""
_ARRAY: Final = struct.Struct("<III")
_NUMBER: Final = struct.Struct("<I")
_MOST_PARTS: Final = 15
"""Sub-authorities of a SID."""
_ENABLED: Final = 4
_DENY_ONLY: Final = 16
_DISABLED: Final = 0x1
_COMPUTER: Final = 0x80 | 0x100
"""Workstation or server trust account ([MS-SAMR] 2.2.1.12)."""
_TRUST: Final = 0x40


@dataclass(frozen=True, slots=True)
class Account:
    """An account: its ``name`` as the directory spells it (``PC1$``), its ``sid``, the SIDs of its ``groups``.

    ``computer`` and ``trust`` (of another domain) tell what kind it is, whatever it is called.
    """

    name: str
    sid: str
    groups: frozenset[str]
    computer: bool = False
    trust: bool = False
    disabled: bool = False


def read(data: bytes) -> Account:
    """Return the account of a PAC; ``FormatError``."""
    if len(data) > MAX_PAC:
        raise FormatError(_WHAT, 0, f"at most {MAX_PAC:,} bytes", f"{len(data):,}")
    return _account(_Cursor(_logon_info(data)))


def _logon_info(data: bytes) -> bytes:
    """Return the buffer that describes the account."""
    count, version = struct.unpack_from("<II", data) if len(data) >= 8 else (0, -1)
    if version != 0 or not 0 < count <= _MAX_BUFFERS or len(data) < 8 + 16 * count:
        raise FormatError(_WHAT, 0, "version 0 and a list of buffers", data[:8].hex())
    for kind, size, offset in struct.iter_unpack("<IIQ", data[8 : 8 + 16 * count]):
        if kind == _LOGON_INFO:
            if offset > len(data) or size > len(data) - offset:
                raise FormatError(_WHAT, "the list of buffers", "a buffer within it", f"{size} bytes at {offset}")
            return data[offset : offset + size]
    raise FormatError(_WHAT, "the list of buffers", "a buffer of logon information", "none")


class _Cursor:
    """Reads on through NDR, where every field of 4 bytes lies at a multiple of 4."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, shape: struct.Struct) -> tuple[Any, ...]:
        """Take fields."""
        self.at = -(-self.at // 4) * 4
        if shape.size > len(self.data) - self.at:
            raise FormatError(_WHAT, self.at, f"{shape.size} more bytes", f"{max(0, len(self.data) - self.at)}")
        found = shape.unpack_from(self.data, self.at)
        self.at += shape.size
        return found

    def number(self) -> int:
        """Take one number."""
        return int(self.take(_NUMBER)[0])

    def counted(self, expected: int, size: int) -> None:
        """Take the count of an array of ``size`` bytes each, which must be the expected one and fit in what is left."""
        at, found = self.at, self.number()
        if found != expected or expected * size > len(self.data) - self.at:
            raise FormatError(_WHAT, at, f"an array of {expected}, and its elements", f"{found}")

    def text(self, described: int) -> str:
        """Return the text that a RPC_UNICODE_STRING describes, nothing where it points nowhere."""
        length, pointer = described & 0xFFFF, described >> 32
        if not pointer:
            return ""
        at = self.at
        room, offset, count = self.take(_ARRAY)
        size = 2 * count
        if offset or count > room or size != length or size > len(self.data) - self.at:
            raise FormatError(_WHAT, at, f"a text of {length} bytes", f"{size} at {offset}")
        raw = self.data[self.at : self.at + size]
        self.at += size
        try:
            return raw.decode("utf-16-le")
        except UnicodeDecodeError:
            raise FormatError(_WHAT, at, "UTF-16", raw[:40].hex()) from None

    def members(self, pointer: int, count: int) -> list[tuple[int, int]]:
        """Return pairs of a relative identifier, or a pointer, and attributes."""
        if not pointer:
            return []
        self.counted(count, 8)
        start, self.at = self.at, self.at + 8 * count
        return list(struct.iter_unpack("<II", self.data[start : self.at]))

    def sid(self) -> str:
        """Return a SID, as it is written."""
        at = self.at
        count = self.number()
        if count > _MOST_PARTS:
            raise FormatError(_WHAT, at, f"a SID of at most {_MOST_PARTS} parts", count)
        revision, known, high, low, parts = self.take(struct.Struct(f">BBHI{4 * count}s"))
        if revision != 1 or known != count:
            raise FormatError(_WHAT, at, f"a SID of {count} parts", f"revision {revision}, {known} parts")
        return "-".join(map(str, ("S", 1, high << 32 | low, *struct.unpack(f"<{count}I", parts))))


def _account(cursor: _Cursor) -> Account:
    version, endian, length, _, _, _, pointer = cursor.take(_HEADERS)
    if (version, endian, length) != (1, 0x10, 8) or not pointer:
        raise FormatError(_WHAT, 0, "NDR, little-endian", f"{version}, {endian:#x}, {length}, {pointer}")
    (
        name, full, script, profile, home, drive, rid, primary, group_count, groups, server, domain, domain_id, kind, _,
        extra_count, extras, resource_domain, resource_count, resources,
    ) = cursor.take(_LOGON)  # fmt: skip
    account = cursor.text(name)
    for described in (full, script, profile, home, drive):
        cursor.text(described)
    relative = cursor.members(groups, group_count)
    cursor.text(server)
    cursor.text(domain)
    if not account or not domain_id:
        raise FormatError(_WHAT, "logon information", "an account of a domain", "none")
    own = cursor.sid()
    found = {f"{own}-{primary}", *_sids(own, relative)}
    outside = cursor.members(extras, extra_count)
    for target, attributes in outside:
        sid = cursor.sid() if target else ""
        if sid and attributes & _ENABLED and not attributes & _DENY_ONLY:
            found.add(sid)
    resource = cursor.sid() if resource_domain else ""
    found.update(_sids(resource, cursor.members(resources, resource_count)) if resource else ())
    return Account(
        account,
        f"{own}-{rid}",
        frozenset(found),
        computer=bool(kind & _COMPUTER),
        trust=bool(kind & _TRUST),
        disabled=bool(kind & _DISABLED),
    )


def _sids(domain: str, members: list[tuple[int, int]]) -> list[str]:
    usable = (rid for rid, attributes in members if attributes & _ENABLED and not attributes & _DENY_ONLY)
    return [f"{domain}-{rid}" for rid in usable]
