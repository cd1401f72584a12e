"""Signed metadata: the attack matrix, against a repository in memory whose clock can be set.

| attack | test |
|---|---|
| MI1 a bit flipped anywhere | test_any_flipped_bit_is_refused |
| MI2 truncated, extended, empty, endless | test_other_lengths_are_refused, test_endless_data_stop_at_the_limit |
| MI3 signatures missing, by unknown, revoked or duplicate keys | test_signatures_that_do_not_count |
| MI4 signature over a part, or another encoding | test_one_encoding_only |
| MI5 algorithm changed | test_another_algorithm |
| MI6 rollback | test_rollback |
| MI7 freeze, clocks | test_freeze, test_clocks |
| MI8 mix and match | test_mix_and_match, test_files_are_named_by_digest (test_trust_sync.py) |
| MI9 fast-forward | test_fast_forward_and_recovery |
| MI10 chain of roots | test_chain_of_roots, test_a_gap_in_the_chain |
| MI11, MI12 tables, counts | test_format_table.py, test_format_manifest.py, test_format_pack.py (hostile cases) |
| MI13 names | test_names_of_other_files, test_format_manifest.py |
| MI14 JSON | test_strict_json, test_unknown_fields_and_newer_formats |
| MI15 another image or tenant | test_another_image, test_another_tenant |
| MI16 an online key is compromised | test_online_keys_cannot_name_content |

What python-tuf's own client must refuse, too, is shown to it (:func:`oracle`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from signedsim import DAY, REPOSITORY, START, Client, Simulator
from tuf.api.exceptions import DownloadHTTPError, RepositoryError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from trimtransfer.errors import FormatError, NotFound, Untrusted
from trimtransfer.names import manifest_name
from trimtransfer.trust.chain import Chain
from trimtransfer.trust.client import vouch
from trimtransfer.trust.documents import instant
from trimtransfer.trust.imagerole import ImageRole
from trimtransfer.trust.layout import PUBLISHER, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, metadata_name, role_of
from trimtransfer.trust.options import Trusting
from trimtransfer.trust.signing import PrivateKey, signed_file
from trimtransfer.trust.strict import encode, parse, read_json

DESK = role_of("desk")
FILES = (ROOT, TIMESTAMP, SNAPSHOT, TARGETS, DESK)


class Fetcher(FetcherInterface):
    """The simulator as python-tuf's client reads it."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator

    def _fetch(self, url: str) -> Any:
        name = "metadata/" + url.rpartition("/metadata/")[2] if "/metadata/" in url else url.partition("//sim/")[2]
        if name not in self.simulator.objects:
            raise DownloadHTTPError("not there", 404)
        yield self.simulator.objects[name]


def oracle(simulator: Simulator, folder: Path, version: str, *, now: float | None = None) -> bytes:
    """Let python-tuf's client find a version's manifest; return it, or raise what it raises."""
    (folder / "targets").mkdir(parents=True, exist_ok=True)
    (folder / "metadata").mkdir(exist_ok=True)
    config = UpdaterConfig(prefix_targets_with_hash=False)
    updater = Updater(
        str(folder / "metadata"), "http://sim/metadata/", str(folder / "targets"), "http://sim/",
        Fetcher(simulator), config, bootstrap=simulator.objects[metadata_name(ROOT, 1)],
    )  # fmt: skip
    updater._trusted_set.reference_time = instant(now if now is not None else simulator.now)
    info = updater.get_targetinfo(manifest_name("desk", version))
    if info is None:
        raise RepositoryError("not a target")
    return Path(updater.download_target(info)).read_bytes()


@pytest.fixture
def simulator() -> Simulator:
    return Simulator()


@pytest.fixture
def client(simulator: Simulator, tmp_path: Path) -> Client:
    return Client(simulator, tmp_path / "client")


def refused(client: Client, attack: str, **options: Any) -> Untrusted:
    """Return the refusal of a sync, which names the attack; what was believed before stays as it was."""
    with pytest.raises(Untrusted) as caught:
        client.sync(**options)
    assert attack in caught.value.attack, caught.value
    assert "stays as it is" in str(caught.value)
    return caught.value


# ---- as it should be


def test_requests(simulator: Simulator, client: Client) -> None:
    assert client.newest() == "1"
    assert simulator.asked == [simulator.newest(role) for role in (TIMESTAMP, SNAPSHOT, TARGETS, DESK)]
    assert client.newest(pin=False) == "1"
    assert simulator.asked == ["metadata/timestamp.json"]
    simulator.publish("desk", "2")
    assert client.newest(pin=False) == "2"
    assert simulator.asked == [simulator.newest(role) for role in (TIMESTAMP, SNAPSHOT, DESK)]
    simulator.pass_days(3)
    simulator.write_timestamp()
    assert client.newest(pin=False) == "2"
    assert simulator.asked == ["metadata/timestamp.json"]


def test_a_role_says_what_a_head_says(simulator: Simulator, client: Client) -> None:
    simulator.publish("desk", "2")
    role = client.sync().role
    assert [one.version for one in role.versions] == ["1", "2"]
    head = role.head("1")
    assert head is not None
    assert head.manifest_digest == simulator.versions["desk"][0].manifest.digest
    assert (head.signed, role.head("3")) == (REPOSITORY, None)
    with pytest.raises(NotFound, match="image other"):
        client.sync("other")


def test_python_tuf_reads_it(simulator: Simulator, tmp_path: Path) -> None:
    for step in range(3):
        assert oracle(simulator, tmp_path, "1") == b"manifest of desk 1"
        if step == 0:
            simulator.publish("desk", "2")
        else:
            simulator.rotate(*((ROOT, TIMESTAMP) if step == 1 else (SNAPSHOT, TARGETS, PUBLISHER)))
    assert oracle(simulator, tmp_path, "2") == b"manifest of desk 2"
    with pytest.raises(RepositoryError):
        oracle(simulator, tmp_path, "3")


def test_thresholds(tmp_path: Path) -> None:
    simulator = Simulator(thresholds={ROOT: (3, 2), TARGETS: (3, 2), PUBLISHER: (2, 2)})
    client = Client(simulator, tmp_path)
    assert client.newest() == "1"
    keys = simulator.keys[PUBLISHER]
    simulator.write_image("desk")
    simulator.resign(DESK, keys[:1], lambda fields: None)
    simulator.commit()
    refused(client, "forgery")
    with pytest.raises(RepositoryError):
        oracle(simulator, tmp_path / "oracle", "1")
    simulator.resign(DESK, keys, lambda fields: None)
    simulator.commit()
    assert client.newest() == "1"


def test_unsigned_and_first_met(simulator: Simulator, tmp_path: Path) -> None:
    state = tmp_path / "trust"
    ask = {"installed": "", "clock": lambda: START}
    assert vouch(simulator, "place", "desk", Trusting(state=state), **ask) is None
    first = vouch(simulator, "place", "desk", Trusting(state=state, first=True), **ask)
    assert first is not None
    assert vouch(simulator, "place", "desk", Trusting(state=state), **ask) is not None
    assert vouch(simulator, "elsewhere", "desk", Trusting(state=state), **ask) is None
    assert vouch(simulator, "elsewhere", "desk", Trusting(state=state), **{**ask, "installed": REPOSITORY})
    other = Simulator()
    with pytest.raises(Untrusted, match="not the root by which"):
        vouch(other, "third", "desk", Trusting(state=state, first=True), **ask)
    with pytest.raises(Untrusted, match="is gone from"):
        vouch(simulator, "fourth", "desk", Trusting(state=state), **{**ask, "installed": "f" * 16})


def test_once_trusted_never_unsigned(simulator: Simulator, client: Client) -> None:
    client.sync()
    for name in [name for name in simulator.objects if name.startswith("metadata/")]:
        del simulator.objects[name]
    refused(client, "get around", pin=False)
    place = Trusting(state=client.state, unsigned=True)
    assert vouch(simulator, "place", "desk", place, clock=lambda: START) is None


def test_another_root_is_refused(simulator: Simulator, client: Client) -> None:
    client.sync()
    client.pinned.write_bytes(Simulator().objects[metadata_name(ROOT, 1)])
    with pytest.raises(Untrusted, match="trusted here already"):
        client.sync()


# ---- MI1, MI2, MI4, MI14: bytes


@pytest.mark.parametrize("role", FILES)
def test_any_flipped_bit_is_refused(role: str, tmp_path: Path, rnd: random.Random) -> None:
    simulator = Simulator()
    client = Client(simulator, tmp_path)
    client.sync()
    simulator.rotate(ROOT)
    simulator.publish("desk", "2")
    simulator.write_targets()
    simulator.commit()
    name, good = simulator.newest(role), simulator.objects[simulator.newest(role)]
    for bit in range(8 * len(good)):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Untrusted):
            _take(simulator, role, bytes(damaged))
        if rnd.random() < 0.005:
            simulator.objects[name] = bytes(damaged)
            with pytest.raises(Untrusted):
                client.sync(pin=False)
    _take(simulator, role, good)
    simulator.objects[name] = good
    assert client.newest(pin=False) == "2"


def _take(simulator: Simulator, role: str, data: bytes) -> None:
    """Let a chain that has come to a role take these bytes as its file; the steps before are done once."""
    key = id(simulator), role
    if key not in _CHAINS:
        chain = Chain(simulator.objects[metadata_name(ROOT, 1)], simulator.when)
        steps = (
            (ROOT, chain.rotate), (TIMESTAMP, chain.take_timestamp), (SNAPSHOT, chain.take_snapshot),
            (TARGETS, chain.take_targets), (DESK, lambda data: chain.take_image("desk", data)),
        )  # fmt: skip
        for one, step in steps:
            if one == role:
                _CHAINS[key] = step
                break
            step(simulator.objects[simulator.newest(one)])
    _CHAINS[key](data)


_CHAINS: dict[tuple[int, str], Callable[[bytes], object]] = {}


@pytest.mark.parametrize("role", FILES)
def test_other_lengths_are_refused(role: str, tmp_path: Path) -> None:
    simulator = Simulator()
    client = Client(simulator, tmp_path)
    client.sync()
    simulator.rotate(ROOT, TARGETS)
    simulator.publish("desk", "2")
    name, good = simulator.newest(role), simulator.objects[simulator.newest(role)]
    lengths = {*range(0, len(good), len(good) // 9), len(good) - 1}
    for data in [*(good[:length] for length in lengths), good + b"\n", good + good, b" " + good, good + b"\0" * 70]:
        simulator.objects[name] = data
        with pytest.raises(Untrusted):
            client.sync(pin=False)
    simulator.objects[name] = good
    assert client.newest(pin=False) == "2"


@pytest.mark.parametrize(("role", "limit"), [(TIMESTAMP, 16_384), (ROOT, 512_000), (SNAPSHOT, None), (DESK, None)])
def test_endless_data_stop_at_the_limit(role: str, limit: int | None, tmp_path: Path) -> None:
    simulator = Simulator()
    client = Client(simulator, tmp_path)
    client.sync()
    simulator.rotate(ROOT)
    simulator.publish("desk", "2")
    name = simulator.newest(role)
    limit = limit or len(simulator.objects[name])
    before = sum(len(simulator.objects[simulator.newest(one)]) for one in FILES)
    simulator.objects[name] = b"{" * 9_000_000
    counted = simulator.stats.bytes
    refused(client, "endless data", pin=False)
    assert simulator.stats.bytes - counted <= limit + 1 + before


def test_one_encoding_only(simulator: Simulator, client: Client) -> None:
    data = simulator.objects["metadata/timestamp.json"]
    fields = json.loads(data)
    for other in (
        json.dumps(fields, indent=1).encode(),
        json.dumps({"signed": fields["signed"], "signatures": fields["signatures"]}, separators=(",", ":")).encode(),
        data.replace(b"timestamp", b"t\\u0069mestamp"),
        encode({**fields, "more": 1}),
        encode({**fields, "signatures": [{**fields["signatures"][0], "sig": fields["signatures"][0]["sig"].upper()}]}),
    ):
        simulator.objects["metadata/timestamp.json"] = other
        refused(client, "altered or damaged")


@pytest.mark.parametrize(
    "text",
    [
        b"", b"null", b"[]", b"{", b'{"a":1}x', b'{"a":1,"a":1}', b'{"a":NaN}', b'{"a":1e999}', b'{"a":1.5}', b"\xff{}",
        b'{"a":' + b"9" * 30 + b"}", b'{"a":' + b"9" * 5000 + b"}", b'{"a":' + b"[" * 100_000, b"[" * 20 + b"]" * 20,
        b'{"a":-9223372036854775809}', b'{"signed":{}}', b'{"signatures":[],"signed":[]}',
        b'{"signatures":[{"keyid":"a","sig":"a"},{"keyid":"a","sig":"b"}],"signed":{}}',
        b'{"signatures":{},"signed":{}}', b'{"signatures":[{"keyid":"a"}],"signed":{}}',
    ],
)  # fmt: skip
def test_strict_json(text: bytes) -> None:
    with pytest.raises(FormatError):
        parse(text, "file", limit=1 << 20)


@given(st.binary(max_size=200))
def test_strict_json_of_noise(data: bytes) -> None:
    for reader in (lambda: read_json(data, "file"), lambda: parse(data, "file", limit=100)):
        try:
            reader()
        except FormatError:
            continue


_NESTED = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 64) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(FILES), st.data())
def test_signed_nonsense_is_refused_in_our_words(role: str, data: st.DataObject) -> None:
    """Whoever has the keys may sign anything: it is refused as untrusted, or it is what it says."""
    simulator = _SHARED
    name = simulator.newest(role)
    fields = json.loads(simulator.objects[name])["signed"]
    at: Any = fields
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if not isinstance(at[key], dict | list) or data.draw(st.booleans()):
            at[key] = data.draw(_NESTED)
            break
        at = at[key]
    from trimtransfer.trust.documents import open_document

    try:
        document = open_document(role, encode({"signatures": [], "signed": fields}))
        if role == DESK:
            ImageRole.from_fields(document.fields)
    except (Untrusted, FormatError):
        return


_SHARED = Simulator()


def test_unknown_fields_and_newer_formats(simulator: Simulator, client: Client) -> None:
    simulator.write_timestamp(lambda fields: fields.update({"x-other": {"a": [1, "b"]}}))
    simulator.write_image("desk", lambda fields: fields.update({"x-other": 1, "x-trim-catalogue": {"labels": {}}}))
    simulator.commit()
    assert client.sync().role.catalogue == {"labels": {}}
    simulator.write_image("desk", lambda fields: fields.update({"x-trim-format": 2}))
    simulator.commit()
    assert "Upgrade" in refused(client, "newer repository").remedy
    simulator.write_timestamp(lambda fields: fields.update({"spec_version": "2.0.0"}))
    assert "Upgrade" in refused(client, "newer repository").remedy


# ---- MI3, MI5, MI16: keys


@pytest.mark.parametrize("role", [TIMESTAMP, SNAPSHOT, TARGETS, DESK])
def test_signatures_that_do_not_count(role: str, simulator: Simulator, client: Client, tmp_path: Path) -> None:
    client.sync()
    stranger, before = PrivateKey.generate(), simulator.snapshot_of_everything()
    for keys in ([], [stranger]):
        simulator.objects = dict(before)
        files = dict(simulator.files)
        simulator.resign(role, keys, lambda fields: fields.update(version=fields["version"]))
        if role in (TARGETS, DESK):
            simulator.commit()
        if role == SNAPSHOT:
            simulator.write_timestamp()
        simulator.files = files
        fresh = Client(simulator, tmp_path / f"fresh-{len(keys)}")
        refused(fresh, "forgery")
        with pytest.raises(RepositoryError):
            oracle(simulator, tmp_path / f"oracle-{len(keys)}", "1")


def test_a_key_counts_once(tmp_path: Path) -> None:
    simulator = Simulator(thresholds={TIMESTAMP: (2, 2)})
    client = Client(simulator, tmp_path)
    client.sync()
    fields = json.loads(simulator.objects["metadata/timestamp.json"])
    one = fields["signatures"][0]
    for signatures in ([one], [one, one], [one, {**one, "keyid": fields["signatures"][1]["keyid"]}]):
        simulator.objects["metadata/timestamp.json"] = encode({**fields, "signatures": signatures})
        with pytest.raises(Untrusted):
            client.sync()


def test_one_key_under_two_ids(tmp_path: Path) -> None:
    simulator = Simulator(thresholds={TIMESTAMP: (2, 2)})

    def twice(fields: dict[str, Any]) -> None:
        first, second = fields["roles"][TIMESTAMP]["keyids"]
        fields["keys"][second] = fields["keys"][first]

    simulator.old_root_keys = simulator.keys[ROOT]
    simulator.write_root(twice)
    refused(Client(simulator, tmp_path, root=2), "forgery")


def test_revoked_keys(simulator: Simulator, client: Client, tmp_path: Path) -> None:
    client.sync()
    old = {role: list(keys) for role, keys in simulator.keys.items()}
    simulator.rotate(TIMESTAMP, SNAPSHOT, TARGETS, PUBLISHER)
    assert client.newest() == "1"
    for role in (TIMESTAMP, SNAPSHOT, TARGETS, DESK):
        before, files = simulator.snapshot_of_everything(), dict(simulator.files)
        keys = old[PUBLISHER if role == DESK else role]
        simulator.resign(role, keys, lambda fields: fields.update(version=fields["version"]))
        if role in (TARGETS, DESK):
            simulator.commit()
        if role == SNAPSHOT:
            simulator.write_timestamp()
        refused(Client(simulator, tmp_path / role), "forgery")
        simulator.objects, simulator.files = before, files


@pytest.mark.parametrize("change", [("scheme", "none"), ("keytype", "rsa"), ("scheme", "ecdsa-sha2-nistp256")])
@pytest.mark.parametrize("role", [ROOT, TARGETS])
def test_another_algorithm(change: tuple[str, str], role: str, simulator: Simulator, client: Client) -> None:
    client.sync()

    def weaken(fields: dict[str, Any]) -> None:
        for key in (fields if role == ROOT else fields["delegations"])["keys"].values():
            key[change[0]] = change[1]

    if role == ROOT:
        simulator.old_root_keys = simulator.keys[ROOT]
        simulator.write_root(weaken)
        simulator.write_timestamp()
    else:
        simulator.write_targets()
        simulator.resign(TARGETS, simulator.keys[TARGETS], weaken)
        simulator.commit()
    refused(client, "algorithm")


@pytest.mark.parametrize("stolen", [(TIMESTAMP,), (SNAPSHOT,), (TIMESTAMP, SNAPSHOT), (TIMESTAMP, SNAPSHOT, PUBLISHER)])
def test_online_keys_cannot_name_content(stolen: tuple[str, ...], simulator: Simulator, tmp_path: Path) -> None:
    """Whoever has online keys can say that there is nothing new, never what there is; a publisher's key serves for its
    images alone."""
    evil = PrivateKey.generate()
    mine = {role: simulator.keys[role] if role in stolen else [evil] for role in simulator.keys}
    simulator.versions["other"] = []
    simulator.keys, keys = mine, simulator.keys
    if PUBLISHER not in stolen:
        simulator.publish("desk", "evil")
        refused(Client(simulator, tmp_path), "forgery")
    else:
        simulator.publish("other", "evil")
        with pytest.raises(Untrusted):
            Client(simulator, tmp_path).sync("other")
    assert keys != mine


# ---- MI6 to MI10: time


def test_rollback(simulator: Simulator, client: Client, tmp_path: Path) -> None:
    old = simulator.snapshot_of_everything()
    simulator.publish("desk", "2")
    client.sync()
    oracle(simulator, tmp_path, "2")
    kept = simulator.snapshot_of_everything()
    simulator.objects = old
    error = refused(client, "rollback")
    assert "number 1 is offered, number 2 was seen" in str(error)
    assert "--beyond 2" in str(error)
    with pytest.raises(RepositoryError):
        oracle(simulator, tmp_path, "2")
    simulator.objects = kept
    assert client.newest() == "2"


def test_rollback_of_what_a_new_timestamp_names(simulator: Simulator, client: Client) -> None:
    first = dict(simulator.files)
    simulator.publish("desk", "2")
    client.sync()
    simulator.files = first
    simulator.commit()
    assert "number 1 is offered, number 2 was seen" in str(refused(client, "rollback"))
    del simulator.files[DESK]
    simulator.commit()
    refused(client, "rollback")
    simulator.number[SNAPSHOT] = 1
    simulator.write_timestamp()
    refused(client, "rollback")


def test_two_timestamps_of_one_number(simulator: Simulator, client: Client) -> None:
    client.sync()
    simulator.number[TIMESTAMP] -= 1
    simulator.pass_days(0.5)
    simulator.write_timestamp()
    refused(client, "mix-and-match")


def test_freeze(simulator: Simulator, client: Client, tmp_path: Path) -> None:
    client.sync()
    simulator.pass_days(6.5)
    assert any("timestamp is valid until" in text for text in client.sync().warnings)
    simulator.pass_days(1)
    error = refused(client, "freeze")
    assert "medv-repo timestamp" in error.remedy
    with pytest.raises(RepositoryError):
        oracle(simulator, tmp_path, "1")
    simulator.write_timestamp()
    assert client.newest() == "1"
    for days, role in ((24, SNAPSHOT), (340, TARGETS), (365, ROOT)):
        simulator.pass_days(days)
        if role == SNAPSHOT:
            simulator.write_timestamp()
        else:
            simulator.commit()
        assert refused(client, "freeze").what == role
        if role == ROOT:
            break
        if role == TARGETS:
            simulator.write_targets()
            simulator.commit()
            assert refused(client, "freeze").what == DESK
            simulator.write_image("desk")
        simulator.commit()
        assert client.newest() == "1"
    simulator.rotate(ROOT)
    simulator.write_targets()
    simulator.write_image("desk")
    simulator.commit()
    assert client.newest() == "1"


def test_clocks(simulator: Simulator, client: Client, tmp_path: Path) -> None:
    client.sync()
    client.skew = -2 * DAY
    refused(client, "clock that was set back")
    fresh = Client(simulator, tmp_path / "fresh")
    fresh.skew = -2 * DAY
    assert "it was signed on" in str(refused(fresh, "clock that was set back"))
    fresh.skew = -10 * 365 * DAY
    assert "was made after" in str(refused(fresh, "clock that was set back"))
    fresh.skew = 30 * 365 * DAY
    assert "clock is ahead" in refused(fresh, "freeze").attack
    for client_ in (client, fresh):
        client_.skew = -0.5 * DAY
        assert client_.newest() == "1"


@pytest.mark.parametrize("role", [SNAPSHOT, TARGETS, DESK])
def test_mix_and_match(role: str, simulator: Simulator, tmp_path: Path) -> None:
    old = simulator.objects[simulator.newest(role)]
    simulator.publish("desk", "2")
    simulator.write_targets()
    simulator.commit()
    simulator.objects[simulator.newest(role)] = old
    refused(Client(simulator, tmp_path / "client"), "mix-and-match")
    with pytest.raises(RepositoryError):
        oracle(simulator, tmp_path, "2")
    del simulator.objects[simulator.newest(role)]
    refused(Client(simulator, tmp_path / "again"), "mix-and-match")


def test_numbers_that_do_not_fit(simulator: Simulator, tmp_path: Path) -> None:
    simulator.resign(DESK, simulator.keys[PUBLISHER], lambda fields: fields.update(version=5))
    simulator.objects[metadata_name(DESK, 1)] = simulator.files[DESK][1]
    simulator.files[DESK] = 1, simulator.files[DESK][1]
    simulator.commit()
    refused(Client(simulator, tmp_path), "mix-and-match")


@pytest.mark.parametrize("number", [(1 << 63) - 1, (1 << 31) + 1, (1 << 21)])
def test_fast_forward_and_recovery(number: int, simulator: Simulator, client: Client) -> None:
    client.sync()
    simulator.number[TIMESTAMP] = number - 1
    simulator.write_timestamp()
    assert "rotate" in refused(client, "fast-forward").remedy
    simulator.number[TIMESTAMP] = 2000
    simulator.number[SNAPSHOT] = 1999
    simulator.commit()
    assert client.newest() == "1"  # no client can tell that from honest numbers
    simulator.number.update({TIMESTAMP: 2, SNAPSHOT: 2})
    simulator.commit()
    refused(client, "rollback")
    simulator.number.update({TIMESTAMP: 2, SNAPSHOT: 2})
    simulator.rotate(TIMESTAMP, SNAPSHOT)
    assert client.newest() == "1"
    assert client.newest(pin=False) == "1"
    assert simulator.asked == ["metadata/timestamp.json"]


def test_chain_of_roots(simulator: Simulator, client: Client, tmp_path: Path) -> None:
    client.sync()
    for _ in range(4):
        simulator.rotate(ROOT, TIMESTAMP)
    assert client.newest() == "1"
    assert [name for name in simulator.asked if "root" in name] == [metadata_name(ROOT, n) for n in range(2, 7)]
    assert client.newest() == "1"
    assert Client(simulator, tmp_path / "late", root=3).newest() == "1"
    client.pinned.write_bytes(simulator.objects[metadata_name(ROOT, 4)])
    assert client.newest() == "1"


def test_a_gap_in_the_chain(simulator: Simulator, client: Client, tmp_path: Path) -> None:
    for _ in range(3):
        simulator.rotate(ROOT)
    whole = simulator.snapshot_of_everything()
    simulator.objects[metadata_name(ROOT, 3)] = whole[metadata_name(ROOT, 4)]
    refused(client, "chain of roots")
    kept = {path.name for path in next(client.state.glob("*/")).iterdir()}
    assert {"1.root.json", "2.root.json"} <= kept
    assert "3.root.json" not in kept
    del simulator.objects[metadata_name(ROOT, 3)]
    refused(client, "chain of roots")
    assert oracle(simulator, tmp_path, "1")  # which takes a root that is withheld for one that there is not
    simulator.objects = whole
    assert client.newest() == "1"


@pytest.mark.parametrize("who", ["stranger", "old alone", "new alone"])
def test_a_root_by_the_wrong_signers(who: str, simulator: Simulator, client: Client, tmp_path: Path) -> None:
    client.sync()
    old = list(simulator.keys[ROOT])
    simulator.rotate(ROOT)
    keys = {"stranger": [PrivateKey.generate()], "old alone": old, "new alone": simulator.keys[ROOT]}[who]
    name = metadata_name(ROOT, 2)
    simulator.objects[name] = signed_file(json.loads(simulator.objects[name])["signed"], keys)
    refused(client, "forgery")
    with pytest.raises(RepositoryError):
        oracle(simulator, tmp_path, "1")


def test_too_many_roots(simulator: Simulator, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtransfer.trust.client.MAX_ROTATIONS", 3)
    for _ in range(4):
        simulator.rotate(TIMESTAMP)
    assert "more than 3" in str(refused(client, "chain of roots"))
    assert client.newest() == "1"  # each run goes on where the one before stopped


# ---- MI13, MI15: names


def test_another_image(tmp_path: Path) -> None:
    """Whoever has the online keys passes one image's role off as another's: one publisher signed both."""
    simulator = Simulator("desk", "other")
    simulator.files[DESK] = 1, simulator.files[role_of("other")][1]
    simulator.objects[metadata_name(DESK, 1)] = simulator.files[DESK][1]
    simulator.commit()
    refused(Client(simulator, tmp_path), "one image or tenant")


def test_another_tenant(tmp_path: Path) -> None:
    """Two repositories with the same keys: what is signed for the one does not count in the other."""
    one = Simulator()
    client = Client(one, tmp_path)
    client.sync()
    one.repository = "f" * 16
    one.write_timestamp()
    refused(client, "one image or tenant")
    one.repository = REPOSITORY
    one.write_timestamp()
    for write in (lambda: one.write_image("desk"), one.write_targets):
        one.repository = "f" * 16
        write()
        one.repository = REPOSITORY
        one.commit()
        refused(client, "one image or tenant")
        write()
        one.commit()
        assert client.newest() == "1"


@pytest.mark.parametrize(
    "name",
    ["images/other/1/manifest.bin", "images/desk/../manifest.bin", "images/desk.diskette/1/manifest.bin", "packs/a/b/c",
     "images/desk.disk0/1/manifest.bin", "images/desk.disk64x/1/manifest.bin", "images/desk/CON/manifest.bin", "x", "",
     "images/desk/1/manifest.bin/x", "images\\desk\\1\\manifest.bin", "images/desk/1/" + "x" * 10_000],
)  # fmt: skip
def test_names_of_other_files(name: str, simulator: Simulator, client: Client) -> None:
    def add(fields: dict[str, Any]) -> None:
        fields["targets"][name] = next(iter(fields["targets"].values()))

    simulator.write_image("desk", add)
    simulator.commit()
    refused(client, "altered")


# ---- bundles: what was taken along, where nobody can be asked


def test_offline(simulator: Simulator, client: Client) -> None:
    simulator.pass_days(20)
    found = client.sync(offline=True)
    assert [one.version for one in found.role.versions] == ["1"]
    assert any("timestamp was valid until" in text for text in found.warnings)
    assert not list(client.state.glob("*/timestamp.json"))
    simulator.pass_days(400)
    assert refused(client, "freeze", offline=True).what == TARGETS


def test_offline_nothing_that_was_withdrawn(simulator: Simulator, client: Client) -> None:
    old = simulator.snapshot_of_everything()
    simulator.publish("desk", "2")
    client.sync()
    newer = simulator.snapshot_of_everything()
    simulator.objects = old
    assert [one.version for one in client.sync(offline=True).role.versions] == ["1"]
    simulator.objects = newer
    simulator.versions["desk"] = simulator.versions["desk"][1:]
    simulator.write_image("desk")
    simulator.commit()
    client.sync()
    simulator.objects = old
    assert client.sync(offline=True).role.versions == ()
    simulator.rotate(PUBLISHER)
    client.sync()
    simulator.objects = newer
    refused(client, "forgery", offline=True)


def test_offline_bits(simulator: Simulator, client: Client, rnd: random.Random) -> None:
    for role in (TIMESTAMP, SNAPSHOT, TARGETS, DESK):
        name, good = simulator.newest(role), simulator.objects[simulator.newest(role)]
        for bit in rnd.sample(range(8 * len(good)), 20):
            damaged = bytearray(good)
            damaged[bit // 8] ^= 1 << bit % 8
            simulator.objects[name] = bytes(damaged)
            with pytest.raises(Untrusted):
                client.sync(offline=True)
        simulator.objects[name] = good


def test_size_of_a_thousand_versions(simulator: Simulator, client: Client) -> None:
    for number in range(2, 1001):
        simulator.versions["desk"].append(_next_of(simulator, f"2026-{number:04}"))
    simulator.write_image("desk")
    simulator.commit()
    before = simulator.stats.bytes
    assert client.newest() == "2026-1000"
    assert simulator.stats.bytes - before < 600_000


def _next_of(simulator: Simulator, version: str) -> Any:
    from dataclasses import replace

    last = simulator.versions["desk"][-1]
    return replace(last, version=version, parent=last.version, sequence=last.sequence + 1)
