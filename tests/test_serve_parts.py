"""The parts of the server that decide: rules, signatures, tokens, settings, limits, packs and their images."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sqlite3
import string
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from gateways import packs_of, tenants
from hypothesis import given, settings
from hypothesis import strategies as st

from medv.gateway import signedurls
from medv.gateway.access import ANONYMOUS, Access, Principal, Role, Rule, Scope, check_pattern, matches
from medv.gateway.certificates import Mapping, from_escaped, read
from medv.gateway.examples import configuration, nginx_configuration
from medv.gateway.journal import redact
from medv.gateway.limits import Allowance, Limits, client_of
from medv.gateway.packindex import PackIndex
from medv.gateway.settings import Settings, load
from medv.gateway.signedurls import BadSignature, Permit, check, secure_link, sign
from medv.gateway.tokens import BadToken, TokenFile
from medv.gateway.trouble import ConfigError, Refused
from medv.objects import Kind, cache_control, identify, lasts
from trimtransfer.errors import AccessDenied, NotFound
from trimtransfer.fetch.credentials import Credential
from trimtransfer.fetch.credentials import load as load_credentials
from trimtransfer.fetch.http import HttpStore
from trimtransfer.repository.deltas import add_deltas
from trimtransfer.repository.publish import publish

# ---- rules


def test_rules() -> None:
    rules = [
        Rule(("win*",), groups=frozenset(("engineers",))),
        Rule(("win10",), users=frozenset(("ci",)), role=Role.PUBLISH),
        Rule(("free",), anyone="anonymous"),
        Rule(("lobby",), anyone="authenticated"),
        Rule(("pc*",), computers=frozenset(("pc1",))),
    ]
    access = Access(rules)
    engineer = Principal("token", user="eve", groups=frozenset(("engineers",)))
    ci, computer = Principal("token", user="ci"), Principal("certificate", computer="pc1")
    assert access.image(engineer, Role.READ, "win11").allowed
    assert not access.image(engineer, Role.PUBLISH, "win11").allowed
    assert access.image(ci, Role.READ, "win10").allowed, "who may publish may read"
    assert access.image(ci, Role.PUBLISH, "win10").allowed
    assert not access.image(ci, Role.READ, "win11").allowed
    assert access.image(computer, Role.READ, "pc-image").allowed
    for principal in (engineer, ci, computer):
        assert access.image(principal, Role.READ, "lobby").allowed
        assert access.image(principal, Role.READ, "free").public
        assert access.anything(principal, Role.READ).allowed
    assert not access.image(ANONYMOUS, Role.READ, "lobby").allowed
    assert access.image(ANONYMOUS, Role.READ, "free").public
    assert not access.everything(engineer, Role.READ).allowed
    assert not Access([]).anything(engineer, Role.READ).allowed
    assert access.any_of(ci, Role.READ, ["win11", "win10"]).allowed
    assert not access.any_of(ci, Role.READ, []).allowed
    # A user without a name, or without groups, is nobody that a rule speaks of.
    assert not Access([Rule(("*",), users=frozenset(("",)))]).image(Principal("token"), Role.READ, "x").allowed


def test_scopes_narrow_and_grants_stand_for_themselves() -> None:
    access = Access([Rule(("*",), users=frozenset(("ci",)), role=Role.ADMIN), Rule(("free",), anyone="anonymous")])
    narrow = Principal("token", user="ci", scope=Scope(("win*",), Role.READ))
    assert access.image(narrow, Role.READ, "win10").allowed
    assert not access.image(narrow, Role.PUBLISH, "win10").allowed
    assert not access.image(narrow, Role.READ, "mac").allowed
    assert access.image(narrow, Role.READ, "free").allowed, "what everybody may read, he may"
    assert not access.everything(narrow, Role.READ).allowed
    bearer = Principal("signed url", user="ci", scope=Scope(("win10",)), grants=True)
    assert access.image(bearer, Role.READ, "win10").allowed
    assert not access.image(bearer, Role.READ, "mac").allowed, "its label gives it no rights of a user"
    assert not access.anything(bearer, Role.PUBLISH).allowed
    other = Access([Rule(("lobby",), anyone="authenticated")])
    assert not other.image(bearer, Role.READ, "lobby").allowed


@given(st.text("ab*", min_size=1, max_size=12), st.text("ab", max_size=12))
def test_patterns(pattern: str, name: str) -> None:
    from fnmatch import fnmatchcase

    assert matches(pattern, name) == fnmatchcase(name, pattern)


@pytest.mark.parametrize("pattern", ["", "A", "a?", "[a]", "a/b", "*" * 5, "a" * 81, "a\n", ".*\\"])
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        check_pattern(pattern)


# ---- names


def test_what_names_stand_for() -> None:
    digest = "ab" + "0" * 62
    pack = identify(("packs", "ab", f"{digest}.bin"))
    assert pack is not None
    assert (pack.kind, pack.pack.hex()) == (Kind.PACK, digest)
    wrong = f"packs/ac/{digest}.bin packs/ab/{digest} packs/{digest}.bin packs images/x images/con/head.json"
    for name in (wrong + " images/X/head.json other/x").split():
        assert identify(tuple(name.split("/"))) is None
    for name, image in (("7.image-win10.json", "win10"), ("12.image-a.image-b.json", "a.image-b")):
        role = identify(("metadata", name))
        assert role is not None
        assert (role.kind, role.image) == (Kind.IMAGE, image)
    for name in ("timestamp.json", "7.snapshot.json", "image-win10.json", "7.image-.json", "7.image-win10.json.old"):
        common = identify(("metadata", name))
        assert common is not None
        assert common.kind is Kind.METADATA
    disk = identify(("images", "x.disk3", "1", "manifest.bin"))
    assert disk is not None
    assert disk.image == "x"
    assert lasts(("packs", "ab", "x"))
    assert lasts(("images", "x", "1", "manifest.bin"))
    for name in (("images", "x", "head.json"), ("images", "x", "1", "from-2.bin"), ("metadata", "manifest.bin")):
        assert not lasts(name)
        assert cache_control(name, public=False) == "private, no-cache"


# ---- signed URLs


KEY, OTHER = b"0" * 64, b"1" * 64
PERMIT = Permit(("win10", "mac*"), 1000, "alice@example.org", "/")


def test_signed_urls() -> None:
    query = sign(PERMIT, KEY)
    assert check(query, "/images/win10/head.json", (OTHER, KEY), 900) == PERMIT
    assert check(query + "&x=1", "/packs/x", (KEY,), 1000 + signedurls.SKEW) == PERMIT
    assert check("", "/", (KEY,), 0) is None
    assert check("expires=1&md5=2", "/", (KEY,), 0) is None
    with pytest.raises(BadSignature) as caught:
        check(query, "/", (KEY,), 1001 + signedurls.SKEW)
    assert caught.value.expired
    for keys in ((OTHER,), ()):
        with pytest.raises(BadSignature) as caught:
            check(query, "/", keys, 900)
        assert not caught.value.expired
    narrow = sign(Permit(("*",), 1000, prefix="/images/win10/"), KEY)
    assert check(narrow, "/images/win10/head.json", (KEY,), 0)
    with pytest.raises(BadSignature, match="another path"):
        check(narrow, "/images/win1/head.json", (KEY,), 0)
    with pytest.raises(ValueError, match="at least 32"):
        sign(PERMIT, b"short")
    assert sign(PERMIT, KEY) == "medv=1~1000~win10,mac*~alice@example.org~/~NDAIQjKbzW5P4XInaEesMl0wcQ9cFWxwpOB9jhYU9FE"


@given(st.data())
@settings(max_examples=300)
def test_no_change_of_a_signature_counts(data: st.DataObject) -> None:
    query = sign(PERMIT, KEY)
    at = data.draw(st.integers(len("medv="), len(query) - 1))
    changed = query[:at] + data.draw(st.sampled_from(string.printable)) + query[at + data.draw(st.integers(0, 1)) :]
    try:
        found = check(changed, "/", (KEY,), 0)
    except BadSignature:
        return
    assert found == PERMIT, "another spelling of the same"


@given(st.text(max_size=60))
def test_no_query_is_trouble(query: str) -> None:
    for text in (query, "medv=" + query):
        with contextlib.suppress(BadSignature):
            assert check(text, "/", (KEY,), 0) is None


def test_secure_link_is_what_nginx_computes() -> None:
    """`printf "1000 win10 s3cret" | openssl md5 -binary | openssl base64 | tr +/ -_ | tr -d =`, as its manual says."""
    assert secure_link(1000, "win10", "s3cret") == "expires=1000&image=win10&md5=qTlkK_1kSEO21do9DhXIlw"


# ---- tokens


def test_tokens(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "tokens.json")
    assert file.list() == []
    secret, entry = file.create(user="alice", groups=("a", "b"))
    scoped, _ = file.create(images=("win*",), role="publish", expires=1000.0, note="for the branch")
    assert (os.stat(file.path).st_mode & 0o777) == 0o600
    text = file.path.read_text()
    assert secret.split("_", 2)[2] not in text
    assert scoped.split("_", 2)[2] not in text
    other = TokenFile(file.path)
    other.refresh()
    principal = other.check(secret, 0)
    assert (principal.user, principal.groups, principal.grants) == ("alice", frozenset("ab"), False)
    assert other.check(scoped, 999).scope == Scope(("win*",), Role.PUBLISH)
    with pytest.raises(BadToken) as caught:
        other.check(scoped, 1000)
    assert caught.value.expired
    for wrong in ("", "medv_", secret[:-1], secret + "a", secret[:-1] + ("a" if secret[-1] != "a" else "b"),
                  secret.replace(entry.id, "a" * 12), secret.upper(), "Bearer " + secret):  # fmt: skip
        with pytest.raises(BadToken) as caught:
            other.check(wrong, 0)
        assert not caught.value.expired
    file.revoke(entry.id)
    other.refresh()
    with pytest.raises(BadToken):
        other.check(secret, 0)
    with pytest.raises(NotFound):
        file.revoke(entry.id)
    for nobody in (
        {},
        {"groups": ("a",), "images": ("x",)},
        {"user": "a\nb"},
        {"images": ("[",)},
        {"user": "x", "role": "king"},
    ):
        with pytest.raises(ValueError, match=r"."):
            file.create(**nobody)


def test_tokens_made_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    def make() -> None:
        for _ in range(5):
            TokenFile(tmp_path / "t.json").create(user="x")

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(TokenFile(tmp_path / "t.json").list()) == 20


@given(st.binary(max_size=60) | st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["format", "tokens", "id", "hash", "created", "user"]), inner, max_size=5)).map(lambda one: json.dumps(one).encode()))  # fmt: skip  # noqa: E501
@settings(max_examples=60)
def test_a_damaged_file_of_tokens_lets_nobody_in(data: bytes) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as directory:
        path = Path(directory) / "tokens.json"
        path.write_bytes(data)
        with contextlib.suppress(ConfigError):
            assert TokenFile(path).list() == []


# ---- certificates


def test_mappings_and_certificates_that_are_none() -> None:
    facts = {"cn": ("alice",), "dns": ("PC1.example.org", "other"), "subject": ("CN=alice",)}
    assert Mapping("cn", "*", user="{}").holder(facts, 1.0) == Principal("certificate", user="alice", expires=1.0)
    found = Mapping("dns", "*.example.org", computer="{}", groups=("pcs",)).holder(facts, 1.0)
    assert found is not None
    assert (found.computer, found.groups) == ("PC1", frozenset(("pcs",)))
    assert Mapping("dns", "*.example.com", computer="{}").holder(facts, 1.0) is None
    assert Mapping("email", "*", user="{}").holder(facts, 1.0) is None
    assert Mapping("cn", "al", user="x").holder(facts, 1.0) is None
    for nothing in (b"", b"\x30\x00", b"x" * 100, bytes(40_000)):
        with pytest.raises(Refused):
            read(nothing)
    for text in ("", "-----BEGIN CERTIFICATE-----", "%", "a" * 70_000):
        with pytest.raises(Refused):
            from_escaped(text)


# ---- settings


def test_the_example_is_the_defaults() -> None:
    assert load(configuration()) == load("") == Settings()


def test_precedence() -> None:
    text = '[limits]\nrate = 1\nburst = 2\n[tokens]\nfile = "a"\n'
    environment = {
        "MEDV_SERVE_LIMITS_BURST": "3",
        "MEDV_SERVE_TOKENS_FILE": "b",
        "MEDV_SERVE_PROXY_ADDRESSES": "10.0.0.1, unix",
    }
    found = load(text, environment=environment, options={"tokens.file": "c", "server.listen": None})
    assert (found.limits.rate, found.limits.burst, found.tokens.file) == (1.0, 3, "c")
    assert found.proxy.addresses == ("10.0.0.1", "unix")
    assert found.server.listen == Settings().server.listen


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[limts]", ["limts", "did you mean limits?"]),
        ("[limits]\nrat = 1", ["limits.rat", "did you mean rate?"]),
        ("[limits]\nconnections = 0", ["limits.connections", "above 0"]),
        ('[limits]\nrate = "x"', ["limits.rate", "number"]),
        ("[server]\nlisten = 1", ["server.listen", "quotes"]),
        ("[[rule]]\nimages = []", ["[[rule]] 1.images", "is missing"]),
        ('[[rule]]\nimages = ["x"]', ["[[rule]] 1", "nobody"]),
        ('[[rule]]\nimages = ["X"]\nusers = ["a"]', ["images", "pattern"]),
        ('[[rule]]\nimages = ["x"]\nusers = ["a"]\nrole = "king"', ["role", "read, publish, admin"]),
        ('[[rule]]\nimages = ["x"]\nanyone = "anonymous"\nrole = "admin"', ["role", "everybody"]),
        ('[[rule]]\nimages = ["x"]\nanyone = "all"', ["anyone", "authenticated"]),
        ("[rule]\nx = 1", ["rule", "two brackets"]),
        ('[tls]\ncert = "x"', ["tls", "cert and key"]),
        ('[oidc]\nissuer = "x"', ["oidc", "audience"]),
        ('[oidc]\nissuer = "x"\naudience = "y"\nalgorithms = ["HS256"]', ["oidc.algorithms", "HS256"]),
        ('[kerberos]\nservice = "host"', ["kerberos.service", "HTTP@"]),
        ('[kerberos]\ngroups = ["engineers"]', ["kerberos.groups", "S-1-5-21"]),
        ('[kerberos]\ngroups = ["S-1-5-21-1-2=S-1-5-21-1-1"]', ["kerberos.groups"]),
        ('[proxy]\naddresses = ["x"]', ["proxy.addresses"]),
        ("[[certificate]]\n", ["[[certificate]] 1", "nobody"]),
        ("x = [", ["TOML"]),
    ],
)
def test_what_is_wrong_with_a_configuration(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text, name="serve.toml")
    assert caught.value.exit_code == 2
    for word in ("serve.toml", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ['a"b', "a$b", "a;b", "a{b"])
def test_a_path_that_nginx_would_read_otherwise_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="nginx"):
        nginx_configuration("accel", tmp_path / name)


# ---- limits


def test_what_kerberos_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is an extra: who asks for Kerberos without it is told how to get it, and nobody else needs it."""
    from medv.gateway.acceptor import Acceptor

    monkeypatch.setitem(sys.modules, "gssapi", None)
    with pytest.raises(ConfigError, match=r"trimtransfer\[kerberos\]"):
        Acceptor(str(tmp_path / "keytab"), "HTTP")
    with pytest.raises(AccessDenied, match=r"trimtransfer\[kerberos\].*libkrb5-dev"):
        HttpStore("https://localhost/", credential=Credential(kerberos=True))
    with pytest.raises(AccessDenied, match="unencrypted"):
        HttpStore("http://images.example.org/", credential=Credential(kerberos=True))
    HttpStore("https://localhost/").close()


@pytest.mark.parametrize(
    ("own", "found"),
    [
        (Credential(), Credential(kerberos=True, keytab="/k", principal="p")),
        (Credential(kerberos=True), Credential(kerberos=True)),
        (Credential(token_file="/t"), Credential(token_file="/t")),
        (Credential(client_cert="/c"), Credential(kerberos=True, keytab="/k", principal="p", client_cert="/c")),
    ],
)
def test_the_command_line_wins_over_the_file_of_credentials(own: Credential, found: Credential, tmp_path: Path) -> None:
    file = tmp_path / "credentials.toml"
    file.write_text('["https://x"]\nkerberos = true\nkeytab = "/k"\nprincipal = "p"\n')
    known = load_credentials(file, own)
    assert known.of("https://x/images", own=True) == found
    for wrong in ('kerberos = "yes"', 'principal = "p"', 'kerberos = true\ntoken_file = "t"', "keytab = 1"):
        file.write_text(f'["https://x"]\n{wrong}\n')
        with pytest.raises(AccessDenied, match="no file of credentials"):
            load_credentials(file)


def test_limits_of_one_client() -> None:
    limits = Limits(Allowance(concurrent=2, requests=10, burst=3, bytes=1000))
    assert [limits.enter("a", 0.0) for _ in range(3)] == [0.0, 0.0, 1.0]
    limits.leave("a")
    assert limits.enter("a", 0.0) == 0.0
    limits.leave("a")
    limits.leave("a")
    assert limits.enter("a", 0.0) == pytest.approx(0.1)
    assert limits.enter("b", 0.0) == 0.0, "others are not concerned"
    assert limits.enter("a", 0.1) == 0.0
    assert limits.spend("c", 1000, 0.0) == 0.0
    assert limits.spend("c", 500, 0.0) == pytest.approx(0.5)
    assert limits.spend("c", 500, 1.0) == pytest.approx(0.0, abs=1e-9)


def test_limits_hold_over_any_second(rnd: random.Random) -> None:
    limits, now, let = Limits(Allowance(concurrent=10**6, requests=20, burst=5)), 0.0, []
    for _ in range(3000):
        now += rnd.expovariate(100)
        if limits.enter("a", now) == 0.0:
            let.append(now)
            limits.leave("a")
    for begin in let:
        assert sum(begin <= one < begin + 1 for one in let) <= 20 + 5 + 1


def test_clients_are_forgotten_but_not_those_at_work() -> None:
    limits = Limits(Allowance(concurrent=1))
    assert limits.enter("busy", 0.0) == 0.0
    for number in range(40_000):
        assert limits.enter(str(number), 0.0) == 0.0
        limits.leave(str(number))
    assert len(limits._clients) <= 16_384
    assert limits.enter("busy", 0.0) > 0


def test_what_an_address_counts_as() -> None:
    assert client_of("10.0.0.1") == "10.0.0.1"
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff") == "2001:db8::/64"
    assert client_of("::ffff:10.0.0.1") == "10.0.0.1"
    assert client_of("unix") == "unix"


# ---- the log


def test_what_looks_like_a_secret_is_taken_out() -> None:
    token = "medv_abcdefghijkl_" + "A" * 43
    jwt = "eyJhbGciOi.eyJzdWIiOiIxMjM0NTY3ODkw.SflKxwRJSMeKKF2QT4"
    ticket = "YIIF2QYGKwYBBQUCoIIFzTCCBcmgDTALBgkqhkiG9xIBAgI="
    text = redact(f"x {token} y {jwt} https://h/p?medv=1~2~3 Authorization: Negotiate {ticket} z")
    for secret in ("A" * 43, "SflKxwRJSMeKKF2QT4", "medv=1", "YIIF2QYG"):
        assert secret not in text
    assert text.endswith(" z")


# ---- packs and images


def test_packs_belong_to_the_images_that_refer_to_them(tmp_path: Path, rng: np.random.Generator) -> None:
    house = tenants(tmp_path, rng)
    index = PackIndex(house.root, tmp_path / "index.sqlite3")
    done = index.refresh()
    assert (done.damaged, done.gone) == (0, 0)
    for whose, expected in (("alpha", {"alpha"}), ("beta", {"beta"}), ("both", {"alpha", "beta"})):
        assert index.images(bytes.fromhex(house.packs[whose][-68:-4])) == expected
    assert index.images(bytes(32)) == frozenset()
    stored = {path.stem for path in (house.root / "packs").glob("*/*.bin")}
    assert index.count() == len(stored), "every pack, those of deltas as well, belongs to an image"
    generation = index.generation
    assert index.refresh().read == 0
    assert index.generation == generation, "nothing changed, nothing is read"

    # A new version: its packs are known once anything that tells of it was asked for.
    source = tmp_path / "new.img"
    source.write_bytes(rng.bytes(500_000))
    publish(house.root, source, image="beta", version="2", level=3, keys=house.keys)
    (new,) = packs_of(house.root, "beta", "2") - packs_of(house.root, "beta", "1")
    assert index.images(bytes.fromhex(new[-68:-4])) == frozenset()
    index.ensure("beta")
    assert index.images(bytes.fromhex(new[-68:-4])) == {"beta"}
    add_deltas(house.root, "alpha", base="1", version="2", level=3, keys=house.keys)
    index.refresh()

    # Another process, and the same file after a restart, know the same; a lost or damaged file is made again.
    for damage in (
        lambda path: None,
        os.unlink,
        lambda path: Path(path).write_bytes(b"SQLite format 3\0" + b"x" * 5000),
    ):
        for suffix in ("-wal", "-shm"):
            Path(f"{tmp_path}/copy.sqlite3{suffix}").unlink(missing_ok=True)
        with sqlite3.connect(tmp_path / "index.sqlite3") as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(tmp_path / "index.sqlite3", tmp_path / "copy.sqlite3")
        damage(tmp_path / "copy.sqlite3")
        again = PackIndex(house.root, tmp_path / "copy.sqlite3")
        again.refresh()
        assert again.images(bytes.fromhex(new[-68:-4])) == {"beta"}
        assert again.count() == index.count()
        again.close()

    # A version that is gone takes its packs along; one whose manifest cannot be read gives nobody any.
    shutil.rmtree(house.root / "images/beta/2")
    index.refresh()
    assert index.images(bytes.fromhex(new[-68:-4])) == frozenset()
    manifest = house.root / "images/beta/1/manifest.bin"
    manifest.write_bytes(manifest.read_bytes()[:-1])
    assert index.refresh().damaged == 1
    assert index.images(bytes.fromhex(house.packs["beta"][-68:-4])) == {"beta"}, "its locations were read before"
    fresh = PackIndex(house.root, tmp_path / "fresh.sqlite3")
    assert fresh.refresh().damaged == 1
    assert fresh.images(bytes.fromhex(house.packs["beta"][-68:-4])) == frozenset()
    assert fresh.images(bytes.fromhex(house.packs["both"][-68:-4])) == {"alpha"}
    fresh.close()
    for image in ("alpha", "beta"):
        shutil.rmtree(house.root / "images" / image)
    index.refresh()
    assert index.count() == 0
    index.close()


def test_further_disks_belong_to_their_image(tmp_path: Path, rng: np.random.Generator) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(rng.bytes(200_000))
    publish(tmp_path / "r", tmp_path / "a", disks=[tmp_path / "b"], image="pc", version="1", level=3)
    index = PackIndex(tmp_path / "r", tmp_path / "index.sqlite3")
    index.ensure("pc")
    for path in (tmp_path / "r/packs").glob("*/*.bin"):
        assert index.images(bytes.fromhex(path.stem)) == {"pc"}
    index.close()


def test_a_new_version_costs_what_is_new_in_it(tmp_path: Path, rng: np.random.Generator) -> None:
    """Pieces of locations that an earlier version has already are not read again."""
    data = bytearray(rng.bytes(9 << 20))
    source, index = tmp_path / "image", PackIndex(tmp_path / "r", tmp_path / "index.sqlite3")
    read: list[int] = []
    for version in ("1", "2", "3"):
        source.write_bytes(data)
        publish(tmp_path / "r", source, image="x", version=version, level=1, deltas=False)
        before = index.store.stats.bytes
        index.refresh()
        read.append(index.store.stats.bytes - before)
        data[:100] = rng.bytes(100)
    assert read[1] < 20_000
    assert read[2] < 20_000
    time.sleep(0)
    index.close()
