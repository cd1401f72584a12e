"""Several servers of one repository: whoever fails, lags behind or lies, exactly the right bytes arrive."""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from servers import Authority, BadServer, Fault, Nginx, Request, free_port
from syncing import make_images, publish_all
from test_fetch import CALM, QUICK

from trimtransfer.assembly.sync import sync
from trimtransfer.cli.main import main
from trimtransfer.errors import Cancelled, FetchError, FormatError, LimitReached, NotFound
from trimtransfer.fetch.health import Health, HealthMemory, State
from trimtransfer.fetch.manners import Manners
from trimtransfer.fetch.mirrored import MirroredStore, open_servers
from trimtransfer.fetch.throttle import Throttle
from trimtransfer.head import Head, check_mirrors
from trimtransfer.repository.mirrors import read_mirrors, set_mirrors
from trimtransfer.store import DirectoryStore, Range

PACKS = {f"packs/{n:02}/{n:02}.bin": random.Random(n).randbytes(60_000) for n in range(12)}
OBJECTS = {**PACKS, "images/disk/head.json": b"head", "images/disk/1/tables.bin": b"tables" * 1000}
WANTED = [Range(name, start, 20_000, 60_000) for name in PACKS for start in range(0, 60_000, 20_000)]
BIG = [Range(name, 0, 60_000, 60_000, whole=True) for name in PACKS]
NO_CHANCE = 0.0
"""Among equals, the first server is chosen."""
LAST = 0.999


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Receiver:
    """Takes deliveries; tells whether all came, each once and right."""

    def __init__(self) -> None:
        self.got: Counter[Range] = Counter()
        self.lies: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, wanted: Range, data: memoryview) -> None:
        with self._lock:
            self.got[wanted] += 1
            if bytes(data) != OBJECTS[wanted.name][wanted.start : wanted.start + wanted.length]:
                self.lies.add(wanted.name)


Open = Callable[..., MirroredStore]


@pytest.fixture
def servers() -> Iterator[Callable[..., BadServer]]:
    """Starts servers of the objects, or of ``objects``."""
    with ExitStack() as stack:
        yield lambda script=None, objects=OBJECTS, **options: stack.enter_context(BadServer(objects, script, **options))


@pytest.fixture
def opened() -> Iterator[Open]:
    stores: list[MirroredStore] = []

    def opener(primary: BadServer, *mirrors: BadServer | str, chance: float = LAST, **options: Any) -> MirroredStore:
        urls = tuple(mirror if isinstance(mirror, str) else mirror.url for mirror in mirrors)
        defaults = {"options": CALM, "manners": Manners(mirrors=urls), "chance": lambda: chance}
        stores.append(MirroredStore(primary.url, **{**defaults, **options}))
        return stores[-1]

    yield opener
    for store in stores:
        store.close()


def fetch_all(store: MirroredStore, wanted: list[Range] | None = None, *, again: bool = False) -> None:
    """Fetch, and check that all came right, each once."""
    receiver = Receiver()
    ranges = WANTED if wanted is None else wanted
    store.fetch(iter(ranges), receiver, again=again)
    assert (receiver.got, receiver.lies) == (Counter(ranges), set())


def names_asked(server: BadServer) -> set[str]:
    return {request.target.lstrip("/") for request in server.requests}


def always(fault: Fault) -> Callable[[Request, int], Fault]:
    return lambda request, turn: fault


# ---- who is asked for what


def test_packs_come_from_mirrors_and_all_that_decides_from_the_repository(
    servers: Callable[..., BadServer], opened: Open
) -> None:
    primary, mirror = servers(), servers()
    store = opened(primary, mirror)
    assert store.read("images/disk/head.json", limit=100) == b"head"
    tables = Range("images/disk/1/tables.bin", 6, 6, 6000)
    fetch_all(store, [tables, *WANTED])
    assert store.read_range(tables) == b"tables"
    assert names_asked(mirror) == set(PACKS)
    assert names_asked(primary) == set(OBJECTS) - set(PACKS)
    own, other = store.conduct.servers
    assert (own.url, other.url) == (primary.url, mirror.url)
    assert own.bytes + other.bytes == store.stats.bytes
    assert other.bytes == sum(one.length for one in WANTED)


def test_without_mirrors_there_is_one_server(servers: Callable[..., BadServer], opened: Open) -> None:
    primary = servers()
    fetch_all(opened(primary))
    fetch_all(opened(primary, primary.url + "/"))
    assert len(primary.requests) == 2 * len(WANTED)


def test_TR13_no_credentials_for_others(servers: Callable[..., BadServer], opened: Open) -> None:
    """Credentials go to the server in whose URL they are; what one server sets, no other gets."""
    cookie = always(Fault(headers={"Set-Cookie": "secret=1; Path=/"}))
    primary, mirror, third = servers(cookie), servers(cookie), servers()
    ours = primary.url.replace("//", "//me:mine@")
    theirs = mirror.url.replace("//", "//you:yours@")
    manners = Manners(mirrors=(theirs, third.url))
    for chance in (NO_CHANCE, 0.5, LAST):
        store = MirroredStore(ours, options=CALM, manners=manners, chance=lambda chance=chance: chance)  # type: ignore[misc]
        fetch_all(store)
        assert "mine" not in str(store.conduct) + repr(store)
        assert "yours" not in str(store.conduct) + repr(store)
        store.close()
    sent = [{request.get("authorization") for request in server.requests} for server in (primary, mirror, third)]
    assert sent == [{"Basic bWU6bWluZQ=="}, {"Basic eW91OnlvdXJz"}, {None}]
    for server in (primary, mirror, third):
        assert len(server.requests) == len(WANTED)
        assert all(request.get("cookie") is None for request in server.requests)


# ---- TR12: failing, stale, lying


BROKEN = {
    "gone": None,
    "500": Fault(status=500),
    "403": Fault(status=403),
    "503": Fault(status=503, headers={"Retry-After": "3600"}),
    "reset": Fault(reset=True),
    "cut": Fault(cut=1000),
    "silent": Fault(stall=-1),
    "stalls": Fault(stall=1000),
    "wrong-range": Fault(shift=1),
    "login-page": Fault(status=200, ignore_range=True, body=b"<html>", headers={"Content-Type": "text/html"}),
    "compressed": Fault(headers={"Content-Encoding": "gzip"}),
    "redirect-loop": Fault(status=302, headers={"Location": "/packs/00/00.bin"}),
}


@pytest.mark.parametrize("fault", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("after", [0, 5])
def test_TR12_a_mirror_that_fails_never_ends_a_run(
    servers: Callable[..., BadServer], opened: Open, fault: Fault | None, after: int
) -> None:
    """From the start, and in the middle: what it did not deliver comes from the others, nothing comes twice."""
    primary = servers()
    bad = servers(lambda request, turn: fault if turn >= after else None) if fault else None
    url = bad.url if bad else f"http://localhost:{free_port()}"
    store = opened(primary, url, options=QUICK)
    fetch_all(store)
    assert store.conduct.servers[1].failures >= 1
    asked = len(bad.requests) if bad else 0
    fetch_all(store)
    assert bad is None or len(bad.requests) == asked, "it rests"


def test_TR12_a_mirror_that_lags_behind_serves_what_it_has(servers: Callable[..., BadServer], opened: Open) -> None:
    old = dict(list(PACKS.items())[:8])
    primary, stale = servers(), servers(objects=old)
    store = opened(primary, stale, connections=1)
    fetch_all(store)
    own, mirror = store.conduct.servers
    assert mirror.bytes >= sum(map(len, old.values()))
    assert (mirror.failures, mirror.damaged) == (0, 0)
    missing = Counter(request.target.lstrip("/") for request in stale.requests if request.target[1:] not in old)
    fetch_all(store)
    again = Counter(request.target.lstrip("/") for request in stale.requests if request.target[1:] not in old)
    assert again == missing, "it is not asked again for what it lacks"
    assert own.bytes >= sum(map(len, PACKS.values())) - mirror.bytes


def test_a_mirror_that_has_nothing_is_soon_left_alone(servers: Callable[..., BadServer], opened: Open) -> None:
    primary, empty = servers(), servers(objects={})
    store = opened(primary, empty)
    fetch_all(store)
    asked = len(empty.requests)
    assert 4 <= asked <= len(WANTED)
    fetch_all(store)
    assert len(empty.requests) == asked


def test_the_repository_lacks_a_pack_that_a_mirror_has(servers: Callable[..., BadServer], opened: Open) -> None:
    name = next(iter(PACKS))
    primary, mirror = servers(objects={key: data for key, data in OBJECTS.items() if key != name}), servers()
    fetch_all(opened(primary, mirror, chance=NO_CHANCE))
    with pytest.raises(NotFound, match=name):
        fetch_all(opened(primary, servers(objects={})))


def lie(request: Request, turn: int) -> Fault:
    """Deliver other bytes of the right length."""
    return Fault(mask=0x55)


@pytest.mark.parametrize("wanted", [WANTED, BIG], ids=["ranges", "whole"])
def test_TR12_a_mirror_that_lies_is_found_out(
    servers: Callable[..., BadServer], opened: Open, wanted: list[Range], tmp_path: Path
) -> None:
    """The caller finds the damage and asks again: the repository's own server, and the liar never more."""
    primary, liar = servers(), servers(lie)
    store = opened(primary, liar, memory=tmp_path / "mirrors.json")
    receiver = Receiver()
    store.fetch(wanted, receiver)
    assert receiver.lies == set(PACKS)
    parts = [Range(one.name, one.start + 10, 100, one.total) for one in wanted]
    fetch_all(store, parts, again=True)
    assert all(request.get("cache-control") == "no-cache" for request in primary.requests)
    asked = len(liar.requests)
    fetch_all(store)
    assert len(liar.requests) == asked
    own, other = store.conduct.servers
    assert (own.damaged, other.damaged) == (0, len(parts))
    store.close()
    known = HealthMemory(tmp_path / "mirrors.json")[liar.url]
    assert known.rests_until - known.failed == 86400


def test_damage_of_the_repository_itself_is_asked_of_mirrors(servers: Callable[..., BadServer], opened: Open) -> None:
    primary, mirror = servers(lie), servers()
    store = opened(primary, mirror, chance=NO_CHANCE)
    receiver = Receiver()
    store.fetch(WANTED[:4], receiver)
    assert receiver.lies
    fetch_all(store, WANTED[:4], again=True)
    assert store.conduct.servers[0].damaged == 4
    store = opened(primary, chance=NO_CHANCE)
    store.fetch(WANTED[:4], receiver)
    store.fetch(WANTED[:4], receiver, again=True)


def test_all_fail(servers: Callable[..., BadServer], opened: Open) -> None:
    """In the end it is the repository's own server that the error names, after its usual patience."""
    primary, mirror = servers(always(Fault(status=500))), servers(always(Fault(status=500)))
    store = opened(primary, mirror, options=replace(QUICK, attempts=5))
    with pytest.raises(FetchError, match=f"localhost:{primary.port}"):
        fetch_all(store)
    assert len(primary.requests) > len(mirror.requests) > 0


def test_nobody_rests_because_this_machine_is_offline(servers: Callable[..., BadServer], tmp_path: Path) -> None:
    urls = [f"http://localhost:{free_port()}" for _ in range(2)]
    options = replace(QUICK, attempts=2, first_budget=0.2)
    store = MirroredStore(
        urls[0], manners=Manners(mirrors=(urls[1],)), memory=tmp_path / "mirrors.json", options=options
    )  # fmt: skip
    with pytest.raises(FetchError, match=urls[0]):
        fetch_all(store)
    store.close()
    assert not (tmp_path / "mirrors.json").exists()


def test_beside_mirrors_the_repository_is_waited_for_as_ever(servers: Callable[..., BadServer], opened: Open) -> None:
    """Packs are not waited for where others have them; what only the repository says is."""
    trouble = [True]
    primary = servers(lambda request, turn: Fault(status=500) if trouble[0] or turn < 25 else None)
    store = opened(primary, servers(), chance=NO_CHANCE, options=replace(QUICK, attempts=30))
    fetch_all(store)
    assert len(primary.requests) < 25
    trouble[0] = False
    assert store.read("images/disk/head.json", limit=100) == b"head"
    assert len(primary.requests) == 26


def test_damage_while_the_repository_is_away(servers: Callable[..., BadServer]) -> None:
    """A liar and an honest mirror, and nobody else: the honest one is asked in the end."""
    away = [False]
    primary = servers(lambda request, turn: Fault(status=500) if away[0] else None)
    liar, honest = servers(lie), servers()
    chances = iter([0.5] + 100 * [LAST])
    manners = Manners(mirrors=(liar.url, honest.url))
    store = MirroredStore(primary.url, manners=manners, options=QUICK, chance=lambda: next(chances))
    receiver = Receiver()
    store.fetch(WANTED[:4], receiver)
    assert receiver.lies
    away[0] = True
    fetch_all(store, WANTED[:4], again=True)
    assert [server.damaged for server in store.conduct.servers] == [0, 4, 0]
    store.close()


def test_errors_of_the_caller_are_the_callers(servers: Callable[..., BadServer], opened: Open) -> None:
    """Even one that looks like a server's: it ends the call, and no server is blamed."""
    store = opened(servers(), servers())
    for error in (ValueError("mine"), FetchError("u", "mine"), NotFound("mine", "u"), OSError("mine")):

        def deliver(wanted: Range, data: memoryview, error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error), match="mine"):
            store.fetch(WANTED, deliver)
    assert [server.failures for server in store.conduct.servers] == [0, 0]


def test_cancelling_and_limits_end_all(servers: Callable[..., BadServer], opened: Open) -> None:
    cancel = threading.Event()
    store = opened(servers(), servers(), cancel=cancel)
    with pytest.raises(Cancelled):
        store.fetch(WANTED * 10, lambda wanted, data: cancel.set())
    store = opened(servers(), servers(), throttle=Throttle(allowance=500_000))
    with pytest.raises(LimitReached, match="500,000"):
        fetch_all(store)
    assert store.stats.bytes < 700_000


# ---- memory


def test_health_outlives_the_process(servers: Callable[..., BadServer], tmp_path: Path, opened: Open) -> None:
    """A mirror that failed is left alone at first, then tried with one range, then trusted again."""
    now = [1_800_000_000.0]
    broken = [True]
    primary = servers()
    mirror = servers(lambda request, turn: Fault(status=500) if broken[0] else None)
    options: dict[str, Any] = {"memory": tmp_path / "mirrors.json", "wall": lambda: now[0], "options": QUICK}
    with_mirror = Manners(mirrors=(mirror.url,))

    def run() -> int:
        """Fetch all; return how many requests the mirror got."""
        before = len(mirror.requests)
        store = MirroredStore(primary.url, manners=with_mirror, chance=lambda: LAST, **options)
        fetch_all(store)
        store.close()
        return len(mirror.requests) - before

    assert run() > 0
    assert run() == 0
    assert HealthMemory(tmp_path / "mirrors.json")[mirror.url].state(now[0]) is State.RESTING
    now[0] += 61
    broken[0] = False
    store = MirroredStore(primary.url, manners=with_mirror, chance=lambda: LAST, **options)
    receiver = Receiver()
    store.fetch(WANTED[:1], receiver)
    assert HealthMemory(tmp_path / "mirrors.json")[mirror.url].state(now[0]) is State.PROBE
    store.close()
    assert HealthMemory(tmp_path / "mirrors.json")[mirror.url].state(now[0]) is State.WELL
    assert run() == len(WANTED)


def test_a_probe_is_one_range(servers: Callable[..., BadServer], tmp_path: Path) -> None:
    primary, mirror = servers(), servers(always(Fault(status=500)))
    memory = HealthMemory(tmp_path / "mirrors.json")
    memory[mirror.url] = memory[mirror.url].failing(now=1000)
    memory.save()
    store = MirroredStore(
        primary.url, manners=Manners(mirrors=(mirror.url,)), memory=tmp_path / "mirrors.json",
        wall=lambda: 2000.0, chance=lambda: LAST, options=QUICK,
    )  # fmt: skip
    fetch_all(store)
    assert len({request.target for request in mirror.requests}) == 1
    store.close()


# ---- whom the repository offers


def test_offered_mirrors(servers: Callable[..., BadServer], opened: Open, authority: Authority) -> None:
    primary, mirror = servers(), servers()
    store = opened(primary)
    store.offer((mirror.url, primary.url))
    fetch_all(store)
    assert len(mirror.requests) == len(WANTED)
    store = opened(primary, manners=Manners(offered_mirrors=False))
    store.offer((mirror.url,))
    fetch_all(store)
    assert len(mirror.requests) == len(WANTED)
    encrypted = servers(tls=authority.context())
    store = opened(encrypted, ca_cert=authority.file)
    store.offer((mirror.url,))
    fetch_all(store)
    assert len(mirror.requests) == len(WANTED), "no way around TLS"


@pytest.mark.parametrize(
    "urls",
    [
        ["ftp://host/"], ["https://me:pass@host/"], ["https://host/?key=1"], ["https://host/#x"], ["https:///x"], [""],
        ["https://host/" + "x" * 100], ["https://h/ x"], ["https://h/\u00e9"], [f"https://h{n}/" for n in range(5)],
    ],
)  # fmt: skip
def test_what_cannot_be_a_mirror_is_refused(urls: list[str]) -> None:
    with pytest.raises(FormatError, match="mirrors"):
        check_mirrors(urls)


def test_heads_carry_mirrors() -> None:
    urls = tuple(f"https://{'m' * 78}.example.org/{n}" for n in range(4))
    head = Head("a" * 64, "v" * 64, (1 << 63) - 1, bytes(32), 1 << 29, bytes(32), 1 << 46, mirrors=urls)
    assert Head.from_bytes(head.to_bytes()) == head
    fields = json.loads(head.to_bytes())
    for bad in ("https://h", {"x": 1}, [1], [None], ["nonsense"], [[]], None, False):
        with pytest.raises(FormatError):
            Head.from_bytes(json.dumps({**fields, "mirrors": bad}).encode())


def test_the_repository_names_mirrors(tmp_path: Path, rng: np.random.Generator) -> None:
    """Every head names them, those of later versions, too; taken back they are gone."""
    repository = tmp_path / "repository"
    images = make_images(rng)
    publish_all(repository, images[:1])
    publish_all(repository, images[:1], image="other")
    runner = CliRunner()
    done = runner.invoke(main, ["repo", "mirrors", str(repository), "https://a/x/", "http://b"])
    assert done.exit_code == 0, done.output
    store = DirectoryStore(repository)
    assert read_mirrors(store) == ("https://a/x", "http://b")

    def named(image: str) -> tuple[str, ...]:
        return Head.from_bytes((repository / "images" / image / "head.json").read_bytes()).mirrors

    assert named("disk") == named("other") == ("https://a/x", "http://b")
    assert "https://a/x" in runner.invoke(main, ["repo", "mirrors", str(repository)]).output
    publish_all(repository, images[1:], image="third")
    assert named("third") == ("https://a/x", "http://b")
    done = runner.invoke(main, ["repo", "mirrors", str(repository), "ftp://x"])
    assert done.exit_code == 2
    assert "'ftp://x' cannot be named: URL must be http:// or https://" in done.output
    done = runner.invoke(main, ["repo", "mirrors", str(repository), "--none", "--json"])
    assert json.loads(done.output) == {"mirrors": [], "images": 3}
    assert named("disk") == ()
    assert runner.invoke(main, ["repo", "verify", str(repository)]).exit_code == 0


def test_a_damaged_list_is_named(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    for data in (b"{}", b"[1]", b"[", b'["x"]', b" " * 5000):
        store.private("mirrors.json").write_bytes(data)
        with pytest.raises(FormatError):
            read_mirrors(store)


# ---- a whole sync


@pytest.mark.net
@pytest.mark.parametrize("favourite", ["good", "stale", "lying", "refusing", "own"])
@pytest.mark.parametrize("offered", [True, False])
def test_a_sync_with_mirrors(
    nginx: Nginx,
    authority: Authority,
    tmp_path: Path,
    rng: np.random.Generator,
    caplog: pytest.LogCaptureFixture,
    favourite: str,
    offered: bool,
) -> None:
    """Whichever server was the best so far: the image is right, and each did what its nature is."""
    images = make_images(rng, pieces=30)
    publish_all(nginx.root, images)
    packs = {str(path.relative_to(nginx.root)): path.read_bytes() for path in sorted(nginx.root.glob("packs/*/*.bin"))}
    assert len(packs) > 4
    with ExitStack() as stack:
        servers = {
            "good": BadServer(packs, tls=authority.context()),
            "stale": BadServer(dict(list(packs.items())[:2]), tls=authority.context()),
            "lying": BadServer(packs, lie, tls=authority.context()),
            "refusing": BadServer(packs, always(Fault(status=403)), tls=authority.context()),
        }
        urls = [stack.enter_context(server).url for server in servers.values()]
        mirrors = dict(zip(servers, urls, strict=True))
        memory = HealthMemory(tmp_path / "cache" / "mirrors.json")
        for name, url in {**mirrors, "own": nginx.url}.items():
            memory[url] = Health().served(1 << (40 if name == favourite else 20), 1, now=time.time())
        memory.save()
        set_mirrors(nginx.root, urls if offered else [])
        manners = Manners(mirrors=() if offered else tuple(urls))
        with caplog.at_level(logging.WARNING):
            report = sync(
                nginx.url, "disk", output=tmp_path / "disk.img", ca_cert=nginx.ca_cert, cache=tmp_path / "cache",
                manners=manners,
            )  # fmt: skip
    assert (tmp_path / "disk.img").read_bytes() == images[-1]
    done = {name: served for served in report.conduct.servers for name in mirrors if served.url == mirrors[name]}
    assert sum(server.bytes for server in report.conduct.servers) == report.network.bytes
    assert {
        "good": done["good"].bytes > report.network.bytes // 2,
        "stale": not done["stale"].damaged and not done["stale"].failures and done["stale"].requests > 0,
        "lying": done["lying"].damaged > 0 and "delivered damaged data" in caplog.text,
        "refusing": done["refusing"].failures == 1 and "HTTP 403" in caplog.text,
        "own": report.conduct.servers[0].bytes > report.network.bytes // 2,
    }[favourite]


@pytest.mark.net
def test_who_asks_for_a_version_learns_of_mirrors_too(nginx: Nginx, tmp_path: Path, rng: np.random.Generator) -> None:
    images = make_images(rng)
    publish_all(nginx.root, images)
    packs = {str(path.relative_to(nginx.root)): path.read_bytes() for path in nginx.root.glob("packs/*/*.bin")}
    options: dict[str, Any] = {"version": "1", "ca_cert": nginx.ca_cert, "cache": tmp_path / "cache"}
    with BadServer(packs) as mirror:
        url = f"https://localhost:{mirror.port}"
        set_mirrors(nginx.root, [url])
        report = sync(nginx.url, "disk", output=tmp_path / "a.img", manners=Manners(), **options)
        assert [server.url for server in report.conduct.servers] == [nginx.url, url]
        manners = Manners(offered_mirrors=False)
        report = sync(nginx.url, "disk", output=tmp_path / "b.img", manners=manners, **options)
        assert [server.url for server in report.conduct.servers] == [nginx.url]
    assert (tmp_path / "a.img").read_bytes() == (tmp_path / "b.img").read_bytes() == images[0]
    (nginx.root / "images/disk/head.json").unlink()
    sync(nginx.url, "disk", output=tmp_path / "c.img", manners=Manners(), **options)
    assert (tmp_path / "c.img").read_bytes() == images[0]


@pytest.mark.net
def test_mirrors_from_the_command(nginx: Nginx, tmp_path: Path, rng: np.random.Generator) -> None:
    images = make_images(rng)
    publish_all(nginx.root, images)
    packs = {str(path.relative_to(nginx.root)): path.read_bytes() for path in nginx.root.glob("packs/*/*.bin")}
    common = ["--ca-cert", str(nginx.ca_cert), "--cache", str(tmp_path / "cache"), "--no-host-index", "--metered", "no"]

    def run(name: str, *options: str, **environment: str) -> str:
        output = ["-o", str(tmp_path / name)]
        done = CliRunner().invoke(main, ["sync", nginx.url, "disk", *output, *common, *options], env=environment)
        assert done.exit_code == 0, done.output
        assert (tmp_path / name).read_bytes() == images[-1]
        return done.stdout

    with BadServer(packs) as one, BadServer(packs) as other:
        text = run("options.img", "--mirror", one.url, "--mirror", other.url)
        assert all(f"from {url}" in text for url in (nginx.url, one.url, other.url))
        found = json.loads(run("variable.img", "--json", MEDV_MIRRORS=f"{one.url} {other.url}/"))["network"]["servers"]
        assert [server["url"] for server in found] == [nginx.url, one.url, other.url]
        wins = json.loads(run("wins.img", "--json", "--mirror", one.url, MEDV_MIRRORS=other.url))["network"]["servers"]
        assert [server["url"] for server in wins] == [nginx.url, one.url]


def test_open_servers_without_manners(servers: Callable[..., BadServer], tmp_path: Path) -> None:
    store = open_servers(servers().url, None, 1e9, tmp_path)
    fetch_all(store)
    assert store.conduct.rate == 1e9
    store.close()
