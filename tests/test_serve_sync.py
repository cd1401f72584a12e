"""medv-sync against repositories with a door: by token, certificate and signed URL, through the embedded server and
nginx; and credentials that go nowhere else."""

from __future__ import annotations

import json
import os
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from caches import only_ipv4
from click.testing import CliRunner
from gateways import QUICK, Front, Serving, Tenants, packs_of, tenants
from servers import HOST, MISSING_NGINX, Authority, BadServer, Fault, Request, free_port, has_nginx

from medv.cli import medv_repo, medv_sync
from medv.gateway.signedurls import Permit, add_query, sign
from medv.gateway.tokens import TokenFile
from trimtransfer.errors import AccessDenied
from trimtransfer.fetch.credentials import Credential, Credentials, load
from trimtransfer.fetch.http import HttpStore
from trimtransfer.repository.publish import publish
from trimtransfer.repository.reading import VersionReader
from trimtransfer.store import DirectoryStore

RULES = (
    QUICK
    + """
[[rule]]
images = ["alpha"]
users = ["alice"]
[[certificate]]
field = "email"
pattern = "*@example.org"
user = "{}"
"""
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Tenants:
    return tenants(tmp_path_factory.mktemp("synced"), np.random.default_rng(11))


class House:
    """A server with its secrets, and where clients find it."""

    def __init__(self, url: str, serving: Serving, tokens: TokenFile, people: Authority) -> None:
        self.url, self.serving, self.tokens, self.people = url, serving, tokens, people
        self.key = b"k" * 64


@pytest.fixture(params=["embedded", "auth-request", "accel"])
def house(request: pytest.FixtureRequest, repository: Tenants, tmp_path: Path, authority: Authority) -> Iterator[House]:
    people, tokens = Authority(tmp_path / "people"), TokenFile(tmp_path / "tokens.json")
    (tmp_path / "url.key").write_bytes(b"k" * 64)
    (tmp_path / "url.key").chmod(0o600)
    text = RULES + f'[tokens]\nfile = "{tokens.path}"\n[signed_urls]\nkey_files = ["{tmp_path / "url.key"}"]\n'
    if request.param == "embedded":
        with Serving(repository.root, tmp_path, text, authority=authority, tls__client_ca=people.file) as serving:
            yield House(serving.url.replace("127.0.0.1", HOST), serving, tokens, people)
        return
    if not has_nginx():
        pytest.skip(MISSING_NGINX)
    text += '[proxy]\naddresses = ["127.0.0.1"]\n' + ('accel = "/medv-objects/"\n' if request.param == "accel" else "")
    with Serving(repository.root, tmp_path, text) as serving:
        upstream = f"127.0.0.1:{serving.port}"
        with Front(request.param, repository.root, tmp_path, authority, upstream=upstream, ca=people.file) as front:
            yield House(front.url, serving, tokens, people)


def sync(*arguments: str, **environment: str) -> Any:
    """Run medv-sync; its result."""
    # Colours and progress have no place here; the configuration of whoever runs the tests neither.
    environment = {"XDG_CONFIG_HOME": "/nonexistent", **environment}
    return CliRunner().invoke(medv_sync, [*arguments, "--json", "--no-host-index"], env=environment)


def is_published(path: Path, root: Path, image: str, version: str) -> bool:
    """Tell whether a file is a published version."""
    from trimtransfer.repository.published import PublishedImage

    published = PublishedImage(VersionReader.open(DirectoryStore(root), image, version))
    return path.read_bytes() == published.read(0, published.size)


def doctor(*arguments: str, **environment: str) -> Any:
    """Run medv-repo doctor; its result."""
    environment = {"XDG_CONFIG_HOME": "/nonexistent", **environment}
    return CliRunner().invoke(medv_repo, ["doctor", *arguments, "--json"], env=environment)


def test_the_doctor_shows_what_clients_show(
    house: House, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_ipv4(monkeypatch)
    (tmp_path / "token").write_text(house.tokens.create(user="alice")[0])
    (tmp_path / "wrong").write_text("mt1_nobody_knows_this_token")
    chain, key = house.people.issue("alice@example.org")
    query = sign(Permit(("alpha",), int(time.time()) + 600), house.key)
    time.sleep(0.4)
    ways = {
        "token": [house.url, "--token-file", str(tmp_path / "token")],
        "certificate": [house.url, "--client-cert", chain, "--client-key", key],
        "signed": [add_query(house.url + "/", query)],
    }
    for name, (url, *options) in ways.items():
        done = doctor(url, "alpha", *options, "--ca-cert", authority.file)
        found = json.loads(done.stdout)
        wrong = [one["code"] for one in found["findings"] if one["severity"] != "note"]
        assert (done.exit_code, wrong) == (0, []), name
        assert found["facts"]["version"] == "2", name
    for options in ([], ["--token-file", str(tmp_path / "wrong")]):
        done = doctor(house.url, "alpha", *options, "--ca-cert", authority.file)
        assert done.exit_code == AccessDenied.exit_code
        assert "access-denied" in [one["code"] for one in json.loads(done.stdout)["findings"]]


def test_sync_by_every_scheme(house: House, repository: Tenants, tmp_path: Path, authority: Authority) -> None:
    secret, _ = house.tokens.create(user="alice")
    token_file = tmp_path / "token"
    token_file.write_text(secret + "\n")
    chain, key = house.people.issue("alice@example.org")
    query = sign(Permit(("alpha",), int(time.time()) + 600), house.key)
    time.sleep(0.4)
    ways = {
        "token": [house.url, "--token-file", str(token_file)],
        "certificate": [house.url, "--client-cert", chain, "--client-key", key],
        "signed": [add_query(house.url + "/", query)],
    }
    log = tmp_path / "client.log"
    for name, (url, *options) in ways.items():
        output = tmp_path / f"{name}.img"
        common = [
            "-o",
            str(output),
            "--ca-cert",
            authority.file,
            "--log-file",
            str(log),
            "-vv",
            "--cache",
            str(tmp_path / "c"),
        ]
        for version in ("1", "2"):
            done = sync(url, "alpha", *options, *common, "--version", version)
            assert done.exit_code == 0, (name, done.output)
            assert is_published(output, repository.root, "alpha", version)
        assert house.serving.lines(how={"token": "token", "certificate": "certificate", "signed": "signed url"}[name])
        refused = sync(url, "beta", *options, "-o", str(tmp_path / "beta.img"), "--ca-cert", authority.file)
        assert refused.exit_code == AccessDenied.exit_code, refused.output
        assert "no right" in refused.output
        for text in (done.output, refused.output, log.read_text(), house.serving.log.read_text()):
            for hidden in (secret.split("_", 2)[2], query.rpartition("~")[2]):
                assert hidden not in text


def test_without_credentials_and_with_wrong_ones(house: House, tmp_path: Path, authority: Authority) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("medv_" + "a" * 12 + "_" + "b" * 43)
    expired = sign(Permit(("alpha",), int(time.time()) - 600), house.key)
    for url, options, word in (
        (house.url, [], "wants credentials"),
        (house.url, ["--token-file", str(wrong)], "wants credentials"),
        (add_query(house.url, expired), [], "have expired"),
    ):
        done = sync(url, "alpha", *options, "-o", str(tmp_path / "x.img"), "--ca-cert", authority.file)
        assert done.exit_code == 8
        assert word in done.output
        assert not (tmp_path / "x.img").exists()
    empty = tmp_path / "empty"
    empty.write_text("\n")
    for url, file in ((house.url, empty), ("http://images.example.org", wrong)):
        done = sync(url, "alpha", "--token-file", str(file), "-o", str(tmp_path / "x.img"))
        assert done.exit_code == 8
        assert ("holds no token" if file == empty else "unencrypted") in done.output
    done = sync(house.url, "alpha", "--client-key", str(wrong), "-o", str(tmp_path / "x.img"))
    assert done.exit_code == 2
    done = sync(house.url, "alpha", "--client-cert", str(wrong), "-o", str(tmp_path / "x.img"))
    assert done.exit_code == 8
    assert "cannot be used" in done.output


def test_a_token_that_ends_midway_leaves_what_can_be_gone_on_from(tmp_path: Path, rng: np.random.Generator) -> None:
    """It is revoked once a pack has been delivered; with a new one the same command fetches only the rest."""
    root, source, output = tmp_path / "repository", tmp_path / "source.img", tmp_path / "image.img"
    source.write_bytes(rng.bytes(15 << 20))
    publish(root, source, image="alpha", version="1", level=1)
    tokens, token_file = TokenFile(tmp_path / "tokens.json"), tmp_path / "token"
    secret, entry = tokens.create(user="alice")
    token_file.write_text(secret)
    text = RULES + f'[tokens]\nfile = "{tokens.path}"\n[limits]\nbytes_per_second = 3000000\n'
    with Serving(root, tmp_path, text, metrics__listen=f"127.0.0.1:{free_port()}") as server:
        arguments = [server.url, "alpha", "-o", str(output), "--token-file", str(token_file), "--connections", "1"]

        def revoke() -> None:
            with httpx.Client(trust_env=False, timeout=60) as client:
                while 'medv_requests_total{kind="packs"' not in client.get(server.metrics).text:
                    time.sleep(0.02)
            tokens.revoke(entry.id)

        thread = threading.Thread(target=revoke)
        thread.start()
        ended = sync(*arguments)
        thread.join()
        assert ended.exit_code == 8, ended.output
        assert "access denied" in ended.output
        assert not output.exists()
        again, _ = tokens.create(user="alice")
        token_file.write_text(again)
        time.sleep(1)
        done = sync(*arguments)
    assert done.exit_code == 0, done.output
    assert output.read_bytes() == source.read_bytes()
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["resumed_bytes"] > 0
    assert report["network"]["bytes"] < 14 << 20


def test_a_renewed_token_is_taken_up_in_the_middle_of_a_run(tmp_path: Path) -> None:
    """The token in the file changes while the old one stops counting: the client reads it again and goes on."""
    file = tmp_path / "token"
    file.write_text("first")

    def script(request: Request, turn: int) -> Fault | None:
        if turn == 1:
            file.write_text("second")
        wanted = "Bearer first" if turn < 1 else "Bearer second"
        return None if request.get("authorization") == wanted else Fault(status=401, body=b"no")

    with BadServer({"a": b"12", "b": b"34"}, script) as server:
        store = HttpStore(server.url, credential=Credential(token_file=str(file)))
        assert [store.read(name, limit=10) for name in ("a", "b", "a")] == [b"12", b"34", b"12"]
        store.close()
        file.write_text("third")
        store = HttpStore(server.url, credential=Credential(token_file=str(file)))
        with pytest.raises(AccessDenied, match="wants credentials"):
            store.read("a", limit=10)
        store.close()
    assert len(server.requests) == 5, "asked again once, when there was something new to show, and never else"


def test_credentials_go_to_their_own_origin_only(tmp_path: Path, authority: Authority) -> None:
    """Not along redirects, not to mirrors; a mirror that is known gets its own."""
    (tmp_path / "token").write_text("secret")
    (tmp_path / "other").write_text("different")
    with BadServer({"packs/a": b"data"}) as other, BadServer({}) as mirror:

        def redirect(request: Request, turn: int) -> Fault:
            return Fault(status=302, headers={"Location": f"{other.url}{request.target}"}, body=b"")

        with BadServer({}, redirect) as own:
            store = HttpStore(own.url, credential=Credential(token_file=str(tmp_path / "token")))
            assert store.read("packs/a", limit=10) == b"data"
            store.close()
        assert own.requests[0].get("authorization") == "Bearer secret"
        assert other.requests[0].get("authorization") is None
        file = tmp_path / "credentials.toml"
        file.write_text(f'["{mirror.url}"]\ntoken_file = "other"\n')
        known = load(file, Credential(token_file=str(tmp_path / "token")))
        assert known.of(own.url, own=True).token_file == str(tmp_path / "token")
        assert known.of(own.url) == Credential()
        assert known.of(mirror.url + "/images").token_file == str(tmp_path / "other")
        assert known.of(mirror.url, own=True).token_file == str(tmp_path / "token"), "the command line wins"
        assert Credentials().of(mirror.url) == Credential()


def test_a_client_certificate_is_not_shown_to_where_a_redirect_leads(tmp_path: Path, authority: Authority) -> None:
    people = Authority(tmp_path / "people")
    chain, key = people.issue("alice@example.org")
    seen: dict[str, list[bool]] = {"own": [], "other": []}

    def context(name: str) -> ssl.SSLContext:
        made = authority.context()
        made.verify_mode = ssl.CERT_OPTIONAL
        made.load_verify_locations(people.file)
        return made

    with BadServer({"a": b"data"}, tls=_noting(context("other"), seen["other"])) as other:

        def redirect(request: Request, turn: int) -> Fault:
            return Fault(status=302, headers={"Location": f"{other.url}/a"}, body=b"")

        with BadServer({}, redirect, tls=_noting(context("own"), seen["own"])) as own:
            credential = Credential(client_cert=chain, client_key=key, ca_cert=authority.file)
            store = HttpStore(own.url, credential=credential)
            assert store.read("a", limit=10) == b"data"
            store.close()
    assert (seen["own"], seen["other"]) == ([True], [False])


def _noting(context: Any, seen: list[bool]) -> Any:
    """Return a TLS context whose connections note whether a certificate was shown."""

    class Context:
        def wrap_socket(self, sock: Any, **options: Any) -> Any:
            wrapped = context.wrap_socket(sock, **options)
            seen.append(wrapped.getpeercert(binary_form=True) is not None)
            return wrapped

    return Context()


@pytest.mark.parametrize(
    "text",
    ["x = 1", '["ftp://x"]\n', '["https://x/path"]\n', '["https://x"]\ntoken = "a"\n', "[", '["https://x:99999"]'],
)
def test_a_file_of_credentials_that_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "credentials.toml"
    file.write_text(text)
    with pytest.raises(AccessDenied, match="no file of credentials"):
        load(file)


def test_nginx_checks_signed_urls_alone(repository: Tenants, tmp_path: Path, authority: Authority) -> None:
    """As a CDN would: with the URL that `medv-repo sign --secure-link` prints, and none of our programs."""
    if not has_nginx():
        pytest.skip(MISSING_NGINX)
    runner = CliRunner()
    key = tmp_path / "url.key"
    assert runner.invoke(medv_repo, ["sign", "--new-key", str(key)]).exit_code == 0
    assert key.stat().st_mode & 0o777 == 0o600
    front = Front("secure-link", repository.root, tmp_path, authority)
    front.secret = key.read_text().strip()

    def signed(*options: str) -> str:
        done = runner.invoke(medv_repo, ["sign", front.url, "--key", str(key), "--secure-link", *options])
        assert done.exit_code == 0, done.output
        return done.stdout.strip()

    with front:
        url = signed("--image", "alpha", "--expires", "10m")
        output = tmp_path / "alpha.img"
        done = sync(url, "alpha", "-o", str(output), "--ca-cert", authority.file)
        assert done.exit_code == 0, done.output
        assert is_published(output, repository.root, "alpha", "2")
        refused = sync(url, "beta", "-o", str(tmp_path / "beta.img"), "--ca-cert", authority.file)
        assert refused.exit_code == 8
        trusted = ssl.create_default_context(cafile=authority.file)
        with httpx.Client(verify=trusted, trust_env=False, timeout=30) as client:

            def status(name: str, query: str) -> int:
                return client.get(f"{front.url}/{name}?{query}").status_code

            query = url.partition("?")[2]
            assert status("images/alpha/head.json", query) == 200
            assert status("images/alpha.disk1/1/manifest.bin", query) == 404
            assert status("images/alphabet/head.json", query) == 403
            assert status("images/alpha/head.json", "") == 403
            assert status("images/beta/head.json", query.replace("alpha", "beta")) == 403
            assert status("images/alpha/head.json", query.replace("expires=1", "expires=2")) == 403
            assert status(min(packs_of(repository.root, "alpha", "1")), "") == 403
            past = signed("--image", "alpha", "--expires", "1s").partition("?")[2]
            time.sleep(2.2)
            assert status("images/alpha/head.json", past) == 403


def test_commands_of_tokens(tmp_path: Path) -> None:
    runner, file, log = CliRunner(), str(tmp_path / "tokens.json"), tmp_path / "log"
    made = runner.invoke(
        medv_repo, ["token", "create", "--file", file, "--user", "alice", "--expires", "90d", "--log-file", str(log)]
    )
    assert made.exit_code == 0, made.output
    secret = made.stdout.strip()
    assert secret not in log.read_text()
    listed = json.loads(runner.invoke(medv_repo, ["token", "list", "--file", file, "--json"]).stdout)
    (entry,) = listed["tokens"]
    assert entry["user"] == "alice"
    assert entry["id"] in secret
    assert runner.invoke(medv_repo, ["token", "revoke", "--file", file, entry["id"]]).exit_code == 0
    assert runner.invoke(medv_repo, ["token", "revoke", "--file", file, entry["id"]]).exit_code == 4
    assert runner.invoke(medv_repo, ["token", "create", "--file", file]).exit_code == 2
    assert (
        runner.invoke(medv_repo, ["token", "create", "--file", file, "--user", "x", "--expires", "soon"]).exit_code == 2
    )
    for kind in ("auth-request", "accel", "secure-link"):
        printed = runner.invoke(medv_repo, ["serve", str(tmp_path), "--print-nginx", kind])
        assert printed.exit_code == 0
        assert f'root "{tmp_path}";' in printed.stdout
        assert "@" not in printed.stdout.replace("@missing", "")
    assert os.path.isfile(file)
