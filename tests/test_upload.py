"""Publishing to a server: real servers, alone and behind nginx; what is sent, checked, refused and gone on with."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from gateways import QUICK, Front, Serving, free_port, program
from servers import HOST, MISSING_NGINX, Authority, has_nginx, wait_for_port

from medv.cli import medv_repo, medv_sync
from medv.gateway.tokens import TokenFile
from trimtransfer.errors import Cancelled, FormatError, TargetRefused, TrimTransferError, Untrusted, VersionExists
from trimtransfer.fetch.courier import Courier
from trimtransfer.fetch.credentials import Credential
from trimtransfer.fetch.http import FetchOptions, HttpStore
from trimtransfer.repository.accepting import check_upload, commit_upload
from trimtransfer.repository.audit import audit
from trimtransfer.repository.catalogues import Wishes
from trimtransfer.repository.keysetup import Plan, init_keys
from trimtransfer.repository.overlay import OverlayStore
from trimtransfer.repository.publish import publish
from trimtransfer.repository.published import PublishedImage
from trimtransfer.repository.reading import VersionReader
from trimtransfer.repository.rolesigning import signed_role
from trimtransfer.repository.sending import SendReport, Wanted, send_version
from trimtransfer.repository.signed import SignedMetadata
from trimtransfer.repository.signer import Keys
from trimtransfer.repository.uploads import UploadLimits, Uploads
from trimtransfer.store import DirectoryStore

RULES = (
    QUICK
    + """
[upload]
enabled = true
keep_free_gigabytes = 0.01
[[rule]]
images = ["alpha*"]
users = ["alice"]
role = "publish"
[[rule]]
images = ["alpha*"]
users = ["rob"]
role = "read"
[[rule]]
images = ["beta"]
users = ["bob"]
role = "publish"
"""
)


class House:
    """A server that takes uploads, its repository and tokens."""

    def __init__(self, url: str, root: Path, serving: Serving, tokens: TokenFile, work: Path, ca: str) -> None:
        self.url, self.root, self.serving, self.tokens, self.work, self.ca = url, root, serving, tokens, work, ca

    def token(self, name: str, **facts: Any) -> str:
        """Return a file with a token."""
        path = self.work / f"{name}.token"
        if not path.exists():
            path.write_text(self.tokens.create(**(facts or {"user": name}))[0])
            time_passes()
        return str(path)

    def publish(self, file: Path, image: str, version: str, *options: str, who: str = "alice") -> Any:
        """Run medv-repo publish against the server."""
        given = ["--image", image, "--version", version, "--level", "3", "--ca-cert", self.ca, "--json"]
        given += ["--token-file", self.token(who), "--staging", str(self.work / f"staging-{who}-{image}-{version}")]
        environment = {"XDG_CONFIG_HOME": "/nonexistent", "XDG_CACHE_HOME": str(self.work / "cache")}
        return CliRunner().invoke(medv_repo, ["publish", self.url, str(file), *given, *options], env=environment)

    def content(self, image: str, version: str) -> bytes:
        """Return the content of a version of the repository."""
        there = PublishedImage(VersionReader.open(DirectoryStore(self.root), image, version))
        return there.read(0, there.size)


def time_passes() -> None:
    """Wait until the server has read its tokens again."""
    time.sleep(0.4)


def image(rng: random.Random, path: Path, base: bytes = b"") -> bytes:
    """Write an image with some new content."""
    data = base[:1_000_000] + rng.randbytes(300_000) + base[1_000_000:] if base else rng.randbytes(3_000_000)
    path.write_bytes(data)
    return data


@pytest.fixture
def root(tmp_path: Path, rnd: random.Random) -> Path:
    image(rnd, tmp_path / "beta.img")
    publish(tmp_path / "repository", tmp_path / "beta.img", image="beta", version="1", level=3)
    return tmp_path / "repository"


@pytest.fixture(params=["embedded", "auth-request", "accel"])
def house(request: pytest.FixtureRequest, root: Path, tmp_path: Path, authority: Authority) -> Iterator[House]:
    tokens = TokenFile(tmp_path / "tokens.json")
    text = RULES + f'[tokens]\nfile = "{tokens.path}"\n'
    assert authority.file
    if request.param == "embedded":
        with Serving(root, tmp_path, text, authority=authority) as serving:
            url = serving.url.replace("127.0.0.1", HOST)
            yield House(url, root, serving, tokens, tmp_path, authority.file)
        return
    if not has_nginx():
        pytest.skip(MISSING_NGINX)
    text += '[proxy]\naddresses = ["127.0.0.1"]\n' + ('accel = "/medv-objects/"\n' if request.param == "accel" else "")
    with Serving(root, tmp_path, text) as serving:
        upstream = f"127.0.0.1:{serving.port}"
        with Front(request.param, root, tmp_path, authority, upstream=upstream) as front:
            yield House(front.url, root, serving, tokens, tmp_path, authority.file)


def facts(done: Any) -> dict[str, Any]:
    """Return the result of a command that succeeded."""
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_versions_are_published(house: House, tmp_path: Path, rnd: random.Random) -> None:
    path = tmp_path / "alpha.img"
    first = image(rnd, path)
    done = facts(house.publish(path, "alpha", "1", "--label", "dec", "--note", "first", "--channel", "test"))
    assert done["sent_packs"] == done["packs"] >= 1
    second = image(rnd, path, first)
    done = facts(house.publish(path, "alpha", "2", "--solid"))
    assert done["made"]["deltas"]
    assert done["sent_bytes"] < 1_500_000 + 3_500_000, "what the server has is sent again"
    assert (house.content("alpha", "1"), house.content("alpha", "2")) == (first, second)
    report = audit(DirectoryStore(house.root))
    assert report.damage == ()
    assert report.unreferenced == ()
    assert not list((house.root / ".trimtransfer/uploads").iterdir())
    catalogue = json.loads((house.root / "images/alpha/catalogue.json").read_bytes())
    assert (catalogue["versions"][0]["labels"], catalogue["channels"][0]["version"]) == (["dec"], "1")


def test_the_others_are_told(house: House, tmp_path: Path, rnd: random.Random) -> None:
    """What the server refuses, with the exit codes of the README."""
    path = tmp_path / "alpha.img"
    image(rnd, path)
    facts(house.publish(path, "alpha", "1"))
    again = house.publish(path, "alpha", "1", "--staging", str(tmp_path / "elsewhere"))
    assert (again.exit_code, "published already" in again.output) == (1, True)
    for who in ("rob", "bob"):
        refused = house.publish(path, "alpha", "2", who=who)
        assert (refused.exit_code, "no right" in refused.output) == (8, True), refused.output
    (tmp_path / "mallory.token").write_text("medv_aaaaaaaaaaaa_" + "x" * 43)
    refused = house.publish(path, "alpha", "2", who="mallory")
    assert refused.exit_code == 8
    assert house.publish(path, "alpha", "2", "--profile", "office").exit_code == 2
    assert not list((house.root / ".trimtransfer/uploads").iterdir())


@pytest.fixture
def plain(root: Path, tmp_path: Path) -> Iterator[House]:
    """A server alone, over HTTP on loopback."""
    tokens = TokenFile(tmp_path / "tokens.json")
    text = RULES.replace("enabled = true", "enabled = true\nper_user = 50") + f'[tokens]\nfile = "{tokens.path}"\n'
    with Serving(root, tmp_path, text + "[limits]\nbody_timeout = 1.5\n") as serving:
        yield House(serving.url, root, serving, tokens, tmp_path, "")


def ask(house: House, method: str, path: str, token: str = "", **options: Any) -> httpx.Response:
    """Send one request."""
    headers = {"X-Medv-Upload": "1", **options.pop("headers", {})}
    if token:
        headers["Authorization"] = f"Bearer {Path(house.token(token)).read_text()}"
    return httpx.request(method, house.url + path, headers=headers, timeout=30, **options)


def begin(house: House, who: str = "alice", name: str = "alpha") -> str:
    """Begin an upload; return its path."""
    reply = ask(house, "POST", "/_medv/uploads", who, json={"image": name, "version": "9"})
    assert reply.status_code == 201, reply.text
    return f"/_medv/uploads/{reply.json()['upload']}"


def test_every_route_asks_who_and_what(plain: House) -> None:
    """No byte, and no word on what there is, for anybody but the publisher who began."""
    own = begin(plain)
    plain.token("old", user="alice", expires=time.time() - 100)
    plain.token("reader", images=("alpha",), role="read")
    plain.token("scoped", user="alice", images=("alpha2",), role="publish")
    plain.token("al", user="al", groups=())
    (plain.work / "wrong.token").write_text("medv_aaaaaaaaaaaa_" + "x" * 43)
    time_passes()
    digest = "00" * 32
    routes = [
        ("POST", "", b'{"image": "alpha", "version": "8"}'),
        ("GET", own, b""),
        ("POST", f"{own}/lacking", bytes.fromhex(digest)),
        ("PUT", f"{own}/packs/{digest}", b"TrimPack"),
        ("PUT", f"{own}/files/0/tables.bin?offset=0", b"abc"),
        ("DELETE", f"{own}/files", b""),
        ("POST", f"{own}/commit", b"{}"),
        ("DELETE", own, b""),
    ]
    statuses = {"": 401, "wrong": 401, "old": 401, "rob": 403, "bob": 403, "reader": 403, "scoped": 403, "al": 403}
    for method, path, body in routes:
        for who, status in statuses.items():
            found = ask(plain, method, path or "/_medv/uploads", who, content=body)
            # Another publisher's upload is one that there is none of.
            assert found.status_code in ((status, 404) if path and status == 403 else (status,)), (method, path, who)
            assert ("www-authenticate" in found.headers) == (status == 401)
            assert "alpha" not in found.text
    assert ask(plain, "GET", own, "alice").json()["files"] == {}
    other = begin(plain, "bob", "beta")
    assert ask(plain, "GET", other, "alice").status_code == 404
    assert ask(plain, "DELETE", own, "alice").status_code == 200
    assert ask(plain, "GET", own, "alice").status_code == 404


def test_rights_that_end_end_an_upload(plain: House) -> None:
    own = begin(plain)
    plain.tokens.revoke(plain.tokens.list()[0].id)
    time_passes()
    assert ask(plain, "GET", own, "alice").status_code == 401


def test_requests_that_are_none(plain: House) -> None:
    own = begin(plain)
    for headers in ({"Origin": "https://evil.example"}, {"X-Medv-Upload": ""}, {"Sec-Fetch-Site": "cross-site"}):
        assert ask(plain, "DELETE", own, "alice", headers=headers).status_code == 400
    for path in (
        f"{own}/files/0/..%2f..%2fhead.json",
        f"{own}/files/0/../../x",
        f"{own}/packs/zz",
        f"{own}/x",
        "/_medv/uploads/../../etc/passwd",
        f"{own}/",
        f"{own}/files/0/tables.bin?offset=-1",
        f"{own}/files/0/tables.bin?x=1",
    ):
        assert ask(plain, "PUT", path, "alice", content=b"x").status_code in (400, 404, 405), path
    assert ask(plain, "PUT", f"{own}/files/0/head.json", "alice", content=b"x").status_code == 422
    assert ask(plain, "PUT", f"{own}/files/77777/tables.bin", "alice", content=b"x").status_code == 400
    assert ask(plain, "PUT", f"{own}/files/777/tables.bin", "alice", content=b"x").status_code == 422
    assert ask(plain, "PUT", f"{own}/files/0/tables.bin", "alice", content=bytes(4_000_001)).status_code == 413
    assert ask(plain, "PUT", f"{own}/packs/{'0' * 64}", "alice", content=bytes(100)).status_code == 422
    assert ask(plain, "POST", f"{own}/lacking", "alice", content=bytes(33)).status_code == 422
    assert ask(plain, "PATCH", own, "alice").status_code == 405
    for body in (b"", b"[]", b"{", b'{"image": "../x", "version": "1"}', b'{"image": 1}', b"[" * 100_000):
        assert ask(plain, "POST", "/_medv/uploads", "alice", content=body).status_code in (403, 422), body
    assert ask(plain, "POST", f"{own}/commit", "alice", content=b'{"labels": 1}').status_code == 422
    reply = ask(plain, "PUT", f"{own}/files/0/tables.bin", "alice", content=iter([b"chunked"]))
    assert reply.status_code == 400
    assert ask(plain, "GET", "/.trimtransfer/uploads", "alice").status_code == 400
    assert ask(plain, "GET", own, "alice").json()["files"] == {}


def test_slow_bodies_are_cut(plain: House) -> None:
    own, token = begin(plain), Path(plain.token("alice")).read_text()
    head = (
        f"PUT {own}/files/0/tables.bin HTTP/1.1\r\nHost: x\r\nX-Medv-Upload: 1\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Length: 100000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", plain.serving.port)) as slow:
        slow.sendall(head.encode() + b"a")
        slow.settimeout(20)
        started = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(100) == b""
        assert time.monotonic() - started < 10
    assert ask(plain, "GET", own, "alice").json()["files"] == {}
    plain.serving.wait_for(reason="slow body")


def test_uploads_are_off_unless_they_are_asked_for(root: Path, tmp_path: Path) -> None:
    tokens = TokenFile(tmp_path / "tokens.json")
    text = RULES.replace("enabled = true", "") + f'[tokens]\nfile = "{tokens.path}"\n'
    with Serving(root, tmp_path, text) as serving:
        house = House(serving.url, root, serving, tokens, tmp_path, "")
        (tmp_path / "alpha.img").write_bytes(b"content")
        reply = ask(house, "POST", "/_medv/uploads", "alice", json={"image": "alpha", "version": "1"})
        assert reply.status_code in (400, 404)
        wanted = Wanted("alpha", "1", (tmp_path / "alpha.img",), {"level": 1})
        with pytest.raises(TrimTransferError):
            send(house, wanted, tmp_path / "staging")


def send(house: House, wanted: Wanted, folder: Path, who: str = "alice", **options: Any) -> SendReport:
    """Publish by the library."""
    credential = Credential(token_file=house.token(who))
    remote, courier = HttpStore(house.url, credential=credential), Courier(house.url, credential=credential)
    try:
        return send_version(remote, courier, folder, wanted, **options)
    finally:
        courier.close()
        remote.close()


def test_two_publishers_at_once(plain: House, tmp_path: Path, rnd: random.Random) -> None:
    """One wins, the other is told; run again, it builds on what won and sends only what is new."""
    base = image(rnd, tmp_path / "base.img")
    send(plain, Wanted("alpha", "1", (tmp_path / "base.img",), {"level": 1}), tmp_path / "first")
    wanted, outcomes = {}, dict[str, object]()
    for version in ("2a", "2b", "2c"):
        image(rnd, tmp_path / f"{version}.img", base)
        wanted[version] = Wanted("alpha", version, (tmp_path / f"{version}.img",), {"level": 1})

    def run(version: str) -> None:
        try:
            outcomes[version] = send(plain, wanted[version], tmp_path / f"staging-{version}")
        except TrimTransferError as error:
            outcomes[version] = error

    threads = [threading.Thread(target=run, args=(version,)) for version in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [version for version, one in outcomes.items() if isinstance(one, SendReport)]
    lost = [version for version, one in outcomes.items() if isinstance(one, TargetRefused) and "came first" in str(one)]
    assert len(won) >= 1, outcomes
    assert len(won) + len(lost) == 3, outcomes
    assert audit(DirectoryStore(plain.root)).damage == ()
    for version in lost:
        report = send(plain, wanted[version], tmp_path / f"staging-{version}")
        assert report.resumed
        assert report.sent_bytes < 2_000_000  # some of what is known is stored again, to keep downloads compact
    for version in wanted:
        assert plain.content("alpha", version) == (tmp_path / f"{version}.img").read_bytes()
    report = audit(DirectoryStore(plain.root))
    assert (report.damage, report.unreferenced) == ((), ())


def test_a_cut_publisher_goes_on(plain: House, tmp_path: Path, rnd: random.Random) -> None:
    """Stopped after each pack: what was uploaded is not sent again, what was made is not made again."""
    path = tmp_path / "large.img"
    path.write_bytes(rnd.randbytes(20_000_000))
    wanted, sent, runs, made = Wanted("alpha", "1", (path,), {"level": 1}), 0, 0, list[object]()
    done = False
    while not done:
        runs += 1
        cancel = threading.Event()

        def stop(phase: str, done: int, total: int, cancel: threading.Event = cancel) -> None:
            if phase == "send" and done:
                cancel.set()

        last = runs == 4
        credential = Credential(token_file=plain.token("alice"))
        remote, courier = HttpStore(plain.url, credential=credential), Courier(plain.url, credential=credential)
        try:
            send_version(
                remote, courier, tmp_path / "staging", wanted, made=made.append, connections=1,
                progress=None if last else stop, cancel=cancel,
            )  # fmt: skip
            done = True
        except Cancelled:
            pass
        sent += courier.sent
        courier.close()
        remote.close()
    assert runs == 4
    assert len(made) == 1
    assert 20_000_000 < sent < 20_500_000
    assert plain.content("alpha", "1") == path.read_bytes()


def test_killed_servers_and_publishers(root: Path, tmp_path: Path, rnd: random.Random) -> None:
    """Either is killed again and again; the version appears whole, and little is sent twice."""
    path, tokens, port = tmp_path / "large.img", TokenFile(tmp_path / "tokens.json"), free_port()
    path.write_bytes(rnd.randbytes(24_000_000))
    config = tmp_path / "serve.toml"
    config.write_text(RULES + f'[tokens]\nfile = "{tokens.path}"\n')
    (tmp_path / "token").write_text(tokens.create(user="alice")[0])
    serve = ("serve", str(root), "--config", str(config), "--listen", f"127.0.0.1:{port}")
    command = (
        "publish", f"http://127.0.0.1:{port}/", str(path), "--image", "alpha", "--version", "1", "--level", "1",
        "--staging", str(tmp_path / "staging"), "--token-file", str(tmp_path / "token"), "--json",
    )  # fmt: skip
    environment = {"XDG_CONFIG_HOME": "/nonexistent", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(program(*serve, **environment))
        killed = 0
        for turn in range(12):
            wait_for_port(port)
            with program(*command, **environment) as publisher:
                deadline = time.monotonic() + (0.7 + rnd.random() * (0.5 + turn / 5) if turn < 11 else 120)
                while publisher.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.02)
                    if turn % 2 and time.monotonic() > deadline - 0.3:
                        server.kill()  # the publisher waits for the next one
                        server.wait()
                        killed, deadline = killed + 1, deadline + 3
                        server = stack.enter_context(program(*serve, **environment))
                if publisher.poll() is not None:
                    output, errors = publisher.communicate()
                    if publisher.returncode == 5 and turn < 11:
                        continue  # the server that was killed was not back in time; the same command goes on
                    assert publisher.returncode == 0, (output, errors)
                    break
                publisher.kill()
                killed += 1
        assert killed
        assert (root / "images/alpha/head.json").exists()
        house = House("", root, None, tokens, tmp_path, "")  # type: ignore[arg-type]
        assert house.content("alpha", "1") == path.read_bytes()
        assert audit(DirectoryStore(root)).damage == ()


@pytest.mark.parametrize("where", ["publisher", "server"])
def test_signed_repositories(root: Path, tmp_path: Path, rnd: random.Random, where: str) -> None:
    """The publisher signs, and the server adds snapshot and timestamp; or the server has all keys of publishing."""
    all_keys, online, own = tmp_path / "keys", tmp_path / "online", tmp_path / "own"
    first = image(rnd, tmp_path / "alpha.img")
    publish(root, tmp_path / "alpha.img", image="alpha", version="1", level=1)
    init_keys(str(root), keys=Keys((all_keys,)), offline=tmp_path / "offline", plan=Plan({}, {}), passphrase=None)
    for folder in (online, own):
        shutil.copytree(all_keys, folder)
    for path in (*online.glob("publisher*"), *own.glob("snapshot*"), *own.glob("timestamp*")):
        path.unlink()
    used = online if where == "publisher" else all_keys
    text = RULES.replace("enabled = true", f'enabled = true\nkeys = ["{used}"]')
    tokens = TokenFile(tmp_path / "tokens.json")
    second = image(rnd, tmp_path / "alpha.img", first)
    wanted = Wanted("alpha", "2", (tmp_path / "alpha.img",), {"level": 1}, labels=("dec",), channels=("live",))
    with Serving(root, tmp_path, text + f'[tokens]\nfile = "{tokens.path}"\n') as serving:
        house = House(serving.url, root, serving, tokens, tmp_path, "")
        if where == "publisher":
            with pytest.raises(TargetRefused, match="--keys"):
                send(house, wanted, tmp_path / "staging", keys=Keys((tmp_path / "none",)))
        send(house, wanted, tmp_path / "staging", keys=Keys((own if where == "publisher" else tmp_path / "none",)))
        assert house.content("alpha", "2") == second
        (tmp_path / "alpha.img").write_bytes(second + b"3")
        wanted = Wanted("alpha", "3", (tmp_path / "alpha.img",), {"level": 1}, note="third")
        send(house, wanted, tmp_path / "staging", keys=Keys((own if where == "publisher" else tmp_path / "none",)))
        report = audit(DirectoryStore(root))
        assert (report.damage, report.unreferenced) == ((), ())
        token = house.token("rob")
        environment = {"XDG_CONFIG_HOME": "/nonexistent", "XDG_STATE_HOME": str(tmp_path / "state")}
        command = [house.url, "alpha", "-o", str(tmp_path / "synced.img"), "--token-file", token, "--channel", "live"]
        command += ["--root", str(all_keys / "root.json"), "--no-host-index"]
        done = CliRunner().invoke(medv_sync, command, env=environment)
        assert done.exit_code == 0, done.output
        assert (tmp_path / "synced.img").read_bytes() == second


def test_what_a_publisher_signs_must_be_what_there_is(root: Path, tmp_path: Path, rnd: random.Random) -> None:
    """A role of somebody without the key, or that says more than the version, is refused; so is a stale one."""
    keys = Keys((tmp_path / "keys",))
    image(rnd, tmp_path / "alpha.img")
    publish(root, tmp_path / "alpha.img", image="alpha", version="1", level=1)
    made = OverlayStore(tmp_path / "made", DirectoryStore(root))
    publish(made, tmp_path / "alpha.img", image="alpha", version="2", level=1, flat=True)
    init_keys(str(root), keys=keys, offline=tmp_path / "offline", plan=Plan({}, {}), passphrase=None)
    store, now = DirectoryStore(root), int(time.time())
    repository = SignedMetadata.open(store).repository  # type: ignore[union-attr]
    wishes = Wishes(("dec",))
    role = signed_role(made, "alpha", "2", wishes, now, keys=keys, repository=repository)
    more = signed_role(made, "alpha", "2", Wishes(("other",)), now, keys=keys, repository=repository)
    forged = json.loads(role)
    forged["signatures"][0]["sig"] = "00" * 64
    upload = Uploads(store, UploadLimits(free=0)).begin("user:alice", "alpha", "2")
    for name, _ in made.list_own("packs"):
        upload.put_pack(bytes.fromhex(Path(name).stem), (made.path / name).read_bytes())
    for name, _ in made.list_own("images"):
        if name.count("/") == 3:
            upload.put_file(0, Path(name).name, 0, (made.path / name).read_bytes())
    checked = check_upload(store, upload, may=lambda name: True)
    before = sorted(store.list())
    for wrong in (more, json.dumps(forged).encode(), b"{}", role[:-30]):
        (upload.tree().path / "images/alpha/2/role.json").write_bytes(wrong)
        with pytest.raises((TargetRefused, Untrusted)):
            commit_upload(store, upload, checked, wishes, keys=keys, now=now)
        assert sorted(store.list()) == before
    (upload.tree().path / "images/alpha/2/role.json").write_bytes(role)
    with pytest.raises(FormatError, match="now"):
        commit_upload(store, upload, checked, wishes, keys=keys, now=now - 90 * 86_400)
    commit_upload(store, upload, checked, wishes, keys=keys, now=now)
    assert audit(store).damage == ()


class Cutter:
    """A way to a server on which connections break, by a reset, after a random number of bytes; a context manager."""

    def __init__(self, port: int, rng: random.Random, most: int) -> None:
        self._target, self._rng, self._most = port, rng, most
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cuts = 0

    def __enter__(self) -> Cutter:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                left = [self._rng.randrange(self._most)]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(*pair, left), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, left: list[int]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                left[0] -= len(data)
                if left[0] < 0:
                    self.cuts += 1
                    break
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.shutdown(socket.SHUT_RDWR)
                one.close()


def test_connections_that_break(plain: House, tmp_path: Path, rnd: random.Random) -> None:
    path = tmp_path / "large.img"
    path.write_bytes(rnd.randbytes(20_000_000))
    wanted = Wanted("alpha", "1", (path,), {"level": 1})
    with Cutter(plain.serving.port, rnd, 12_000_000) as cutter:
        url = f"http://127.0.0.1:{cutter.port}"
        credential = Credential(token_file=plain.token("alice"))
        options = FetchOptions(first_delay=0.05, max_delay=0.2)
        remote = HttpStore(url, credential=credential, options=options)
        courier = Courier(url, credential=credential, options=options)
        send_version(remote, courier, tmp_path / "staging", wanted)
        courier.close()
        remote.close()
        assert cutter.cuts
    assert plain.content("alpha", "1") == path.read_bytes()
    assert audit(DirectoryStore(plain.root)).damage == ()


def test_by_certificate(root: Path, tmp_path: Path, rnd: random.Random, authority: Authority) -> None:
    """Who shows a certificate may publish; a browser that shows it by itself may not."""
    people = Authority(tmp_path / "people")
    chain, key = people.issue("alice@example.org")
    text = RULES + '[[certificate]]\nfield = "email"\npattern = "*@example.org"\nuser = "{}"\n'
    data = image(rnd, tmp_path / "alpha.img")
    with Serving(root, tmp_path, text, authority=authority, tls__client_ca=people.file) as serving:
        url = serving.url.replace("127.0.0.1", HOST)
        context = ssl.create_default_context(cafile=authority.file)
        context.load_cert_chain(chain, key)
        body = {"image": "alpha", "version": "1"}
        forged = httpx.post(
            f"{url}/_medv/uploads", json=body, verify=context, headers={"Origin": "https://evil.example"}
        )
        assert forged.status_code == 400
        command = ["publish", url, str(tmp_path / "alpha.img"), "--image", "alpha", "--version", "1", "--level", "1"]
        command += ["--client-cert", chain, "--client-key", key, "--ca-cert", str(authority.file), "--json"]
        environment = {"XDG_CONFIG_HOME": "/nonexistent", "XDG_CACHE_HOME": str(tmp_path / "cache")}
        facts(CliRunner().invoke(medv_repo, command, env=environment))
    there = PublishedImage(VersionReader.open(DirectoryStore(root), "alpha", "1"))
    assert there.read(0, there.size) == data
    assert not list((tmp_path / "cache/medv/sending").glob("*/alpha-1"))


def test_what_was_sent_is_not_fetched_again(plain: House, tmp_path: Path, rnd: random.Random) -> None:
    """Deltas are made of the version before, which this machine has sent; another one fetches it once, in whole packs.
    What is damaged meanwhile is fetched again."""
    path, read = tmp_path / "alpha.img", list[int]()
    data = b"".join(rnd.randbytes(9) * 40 for _ in range(20_000))
    for version, folder in (("1", "one"), ("2", "one"), ("3", "other"), ("4", "other")):
        data = data[:3_000_000] + rnd.randbytes(5000) + data[3_000_000:]
        path.write_bytes(data)
        if version == "4":
            kept = sorted((tmp_path / "other/kept/packs").glob("*/*.bin"))
            assert kept
            for one in kept:
                one.write_bytes(one.read_bytes()[:-9] + b"x" * 9)
        credential = Credential(token_file=plain.token("alice"))
        remote, courier = HttpStore(plain.url, credential=credential), Courier(plain.url, credential=credential)
        send_version(remote, courier, tmp_path / folder / version, Wanted("alpha", version, (path,), {"level": 3}))
        read.append(remote.stats.bytes)
        courier.close()
        remote.close()
        assert plain.content("alpha", version) == data
        assert not (tmp_path / folder / version).exists()
    packs = sum(one.stat().st_size for one in (plain.root / "packs").glob("*/*.bin"))
    assert read[0] < 1000
    assert read[1] < 50_000
    assert 50_000 < read[2] < packs + 50_000
    assert 50_000 < read[3] < packs + 50_000
    assert audit(DirectoryStore(plain.root)).damage == ()


def test_a_lost_answer(plain: House, tmp_path: Path, rnd: random.Random) -> None:
    """Killed right after the commit, the same command says that it is done; with another file, that it is not."""
    path = tmp_path / "alpha.img"
    image(rnd, path)
    wanted = Wanted("alpha", "1", (path,), {"level": 1})

    class Dead(Exception):
        """The process dies."""

    def die(phase: str, done: int, total: int) -> None:
        if phase == "check" and "alpha" in {one.name for one in (plain.root / "images").iterdir()}:
            raise Dead

    with contextlib.suppress(Dead):
        send(plain, wanted, tmp_path / "staging", progress=die)
    deadline = time.monotonic() + 20
    while not (plain.root / "images/alpha/catalogue.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    if (tmp_path / "staging").exists():
        report = send(plain, wanted, tmp_path / "staging")
        assert (report.resumed, report.sent_packs) == (True, 0)
    image(rnd, path)
    with pytest.raises(VersionExists):
        send(plain, Wanted("alpha", "1", (path,), {"level": 1}), tmp_path / "staging")
