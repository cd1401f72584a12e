"""What tickets of Active Directory say of their holders: golden ones of a domain controller, changed and hostile ones;
and whom the server takes them for."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medv.gateway.acceptor import Client
from medv.gateway.access import Principal
from medv.gateway.kerberos import KerberosScheme
from medv.gateway.pac import MAX_PAC, Account, read
from medv.gateway.settings import Kerberos, group_names
from medv.gateway.trouble import ConfigError, Refused
from trimtransfer.errors import FormatError

GOLDEN = Path(__file__).parent / "golden"
USER, COMPUTER = ((GOLDEN / f"pac-{name}.bin").read_bytes() for name in ("user", "computer"))
DOMAIN = "S-1-5-21-2338711695-295691528-2339568161"
SERVICE = "HTTP/localhost@MEDV.TEST"


def logon_info(pac: bytes) -> tuple[int, int]:
    """Return start and end of the buffer that describes the account."""
    (count,) = struct.unpack_from("<I", pac)
    for kind, size, offset in struct.iter_unpack("<IIQ", pac[8 : 8 + 16 * count]):
        if kind == 1:
            return offset, offset + size
    raise AssertionError("none")


def changed(pac: bytes, at: int, value: bytes) -> bytes:
    """Return a PAC with other bytes in its logon information."""
    start, _ = logon_info(pac)
    return pac[: start + at] + value + pac[start + at + len(value) :]


def renamed(pac: bytes, old: str, new: str) -> bytes:
    """Return a PAC of an account of another name, as long as the old one."""
    before, after = old.encode("utf-16-le"), new.encode("utf-16-le")
    assert len(before) == len(after)
    assert before in pac
    return pac.replace(before, after)


KIND_AT = 20 + 48 + 48 + 4 + 16 + 4 + 16 + 16 + 4 + 8
"""Of the account's kind (UserAccountControl), behind 20 bytes of headers."""


def test_golden_tickets() -> None:
    groups = {f"{DOMAIN}-513", f"{DOMAIN}-1110", f"{DOMAIN}-1111", "S-1-18-1"}
    assert read(USER) == Account("alice", f"{DOMAIN}-1103", frozenset(groups))
    assert read(COMPUTER) == Account("PC1$", f"{DOMAIN}-1108", frozenset({f"{DOMAIN}-515", "S-1-18-1"}), computer=True)


def test_groups_that_do_not_count() -> None:
    """Neither those that are not enabled, nor those that only deny."""
    start, end = logon_info(USER)
    member = struct.pack("<II", 1110, 7)
    at = USER.index(member, start, end) - start
    for attributes in (0, 3, 4 | 16):
        assert f"{DOMAIN}-1110" not in read(changed(USER, at + 4, struct.pack("<I", attributes))).groups
    assert f"{DOMAIN}-1110" in read(changed(USER, at + 4, struct.pack("<I", 4))).groups


def test_kinds_of_accounts() -> None:
    found = {}
    for kind in (0x10, 0x11, 0x40, 0x80, 0x100):
        account = read(changed(USER, KIND_AT, struct.pack("<I", kind)))
        found[kind] = account.computer, account.trust, account.disabled
    assert found == {
        0x10: (False, False, False),
        0x11: (False, False, True),
        0x40: (False, True, False),
        0x80: (True, False, False),
        0x100: (True, False, False),
    }


@given(st.data())
def test_no_bytes_are_trouble(data: st.DataObject) -> None:
    """A PAC that was cut or changed is one, or raises the error of the project."""
    pac = bytearray(data.draw(st.sampled_from([USER, COMPUTER])))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(pac) - 4))
        pac[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4) | st.just(b"\xff\xff\xff\xff"))
    cut = data.draw(st.integers(0, len(pac)) | st.just(len(pac)))
    try:
        account = read(bytes(pac[:cut]))
    except FormatError:
        return
    assert account.name
    assert len(account.groups) <= MAX_PAC / 8


@given(st.binary(max_size=600))
def test_any_bytes_are_no_pac(data: bytes) -> None:
    with pytest.raises(FormatError, match="PAC"):
        read(data)


def test_sizes_that_lie() -> None:
    for number, at in (("groups", 20 + 48 + 48 + 4 + 8), ("sids", KIND_AT + 4 + 4 + 16 + 8)):
        with pytest.raises(FormatError):
            read(changed(USER, at, struct.pack("<I", 0x7FFFFFFF)))
        assert number
    with pytest.raises(FormatError, match="at most"):
        read(bytes(MAX_PAC + 1))
    with pytest.raises(FormatError, match="logon information"):
        read(struct.pack("<IIIIQ", 1, 0, 6, 0, 24))
    with pytest.raises(FormatError, match="within it"):
        read(struct.pack("<IIIIQ", 1, 0, 1, 100, 24))


# ---- whom the server takes them for


def taken_for(principal: str, ticket: bytes, **options: object) -> Principal:
    """Return whom a server takes a client for, by his principal and the PAC of his ticket."""
    scheme = KerberosScheme(None, **options)  # type: ignore[arg-type]  # nothing is accepted here
    return scheme._principal(Client(principal, SERVICE, ticket))


def test_names_of_users_and_computers() -> None:
    groups = {f"{DOMAIN}-1110": "engineers"}
    alice = taken_for("ALICE@MEDV.TEST", renamed(USER, "alice", "Alice"), groups=groups)
    assert (alice.user, alice.computer, alice.how) == ("alice@MEDV.TEST", "", "kerberos")
    assert {"engineers", f"{DOMAIN}-1110", f"{DOMAIN}-1111"} <= alice.groups
    computer = taken_for("PC1@MEDV.TEST", COMPUTER)
    assert (computer.user, computer.computer) == ("", "pc1@MEDV.TEST")


def test_accounts_that_are_nobody() -> None:
    as_computer = changed(USER, KIND_AT, struct.pack("<I", 0x80))
    for principal, pac, words in (
        ("alice@MEDV.TEST", as_computer, "as no computer"),
        ("alice@MEDV.TEST", changed(USER, KIND_AT, struct.pack("<I", 0x11)), "no account"),
        ("alice@MEDV.TEST", changed(USER, KIND_AT, struct.pack("<I", 0x40)), "no account"),
        ("alice@MEDV.TEST", renamed(USER, "alice", "al\nce"), "no account"),
        ("alice@MEDV.TEST", renamed(USER, "alice", "al@ce"), "no account"),
        ("alice@MEDV.TEST", b"", "pac = false"),
        ("alice@MEDV.TEST", USER[:300], "PAC"),
        ("alice@EVIL.TEST", USER, "another realm"),
        ("alice", USER, "another realm"),
    ):
        with pytest.raises(Refused) as caught:
            taken_for(principal, pac)
        assert words in caught.value.reason, (principal, caught.value.reason)


def test_a_user_called_as_a_computer_is_a_user() -> None:
    as_user = changed(COMPUTER, KIND_AT, struct.pack("<I", 0x10))
    assert taken_for("PC1$@MEDV.TEST", as_user).user == "pc1$@MEDV.TEST"
    assert taken_for("PC1$@MEDV.TEST", as_user).computer == ""


def test_letters_that_only_look_alike_stay_apart() -> None:
    kelvin = renamed(USER, "alice", "\u212alice")
    assert taken_for("x@MEDV.TEST", kelvin).user == "\u212alice@MEDV.TEST"


def test_realms_and_principals_without_accounts() -> None:
    assert taken_for("alice@EVIL.TEST", USER, realms=["EVIL.TEST"]).user == "alice@EVIL.TEST"
    with pytest.raises(Refused):
        taken_for("alice@MEDV.TEST", USER, realms=["EVIL.TEST"])
    assert taken_for("alice@MEDV.TEST", b"", pac=False).user == "alice@MEDV.TEST"
    assert taken_for("Alice/admin@MEDV.TEST", USER, pac=False).user == "Alice/admin@MEDV.TEST"
    assert taken_for("alice@MEDV.TEST", USER, pac=False).groups == frozenset()
    host = taken_for("host/pc1.medv.test@MEDV.TEST", b"", pac=False)
    assert (host.user, host.computer) == ("", "pc1.medv.test@MEDV.TEST")
    for principal in ("WELLKNOWN/ANONYMOUS@MEDV.TEST", "host/@MEDV.TEST", "a\n@MEDV.TEST", "@MEDV.TEST"):
        with pytest.raises(Refused):
            taken_for(principal, b"", pac=False)


def test_names_for_groups() -> None:
    assert group_names("x", Kerberos(groups=("a=b=S-1-5-21-1-2", "c=S-1-18-1"))) == {
        "S-1-5-21-1-2": "a=b", "S-1-18-1": "c",
    }  # fmt: skip
    for text in ("S-1-5-21-1", "=S-1-5-21-1", "a=S-1", "a=S-1-5-x"):
        with pytest.raises(ConfigError, match="groups"):
            group_names("x", Kerberos(groups=(text,)))
