"""The server for a repository in a real S3 store: it decides, and the store sends packs, each by a URL of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from gateways import QUICK, Serving, Tenants, tenants
from s3server import MISSING, HarmfulProxy, S3Server, swift_python, use

from medv.gateway.tokens import TokenFile
from trimtransfer.assembly.sync import sync
from trimtransfer.bucket.claim import claimed
from trimtransfer.bucket.mirror import Mirror
from trimtransfer.bucket.pushing import push
from trimtransfer.bucket.wire import Wire
from trimtransfer.fetch.credentials import Credential, Credentials
from trimtransfer.repository.publish import publish
from trimtransfer.repository.published import PublishedImage
from trimtransfer.repository.reading import VersionReader
from trimtransfer.store import DirectoryStore

pytestmark = pytest.mark.skipif(swift_python() is None, reason=MISSING)
PLACE = "s3://images/served"
RULES = f'{QUICK}\n[[rule]]\nimages = ["alpha"]\nusers = ["alice"]\n[[rule]]\nimages = ["beta"]\nusers = ["bob"]\n'


def pushed(directory: Path) -> None:
    with Wire(PLACE) as wire, claimed(wire, "test") as claim:
        push(wire, claim, DirectoryStore(directory))


@pytest.fixture
def served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Serving, Tenants, dict[str, str], HarmfulProxy]]:
    """The server, what it serves, tokens by user, and what the store is asked."""
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    repository = tenants(tmp_path, np.random.default_rng(5))
    tokens = TokenFile(tmp_path / "tokens.json")
    secrets = {user: tokens.create(user=user)[0] for user in ("alice", "bob")}
    with S3Server(tmp_path / "s3") as server, HarmfulProxy(server.port) as store:
        use(monkeypatch, server, store.url)
        pushed(repository.root)
        mirror = Mirror(PLACE, every=0.0)
        serving = Serving(mirror.path, tmp_path / "serving", f'{RULES}[tokens]\nfile = "{tokens.path}"\n')
        serving.copy = mirror
        with serving:
            yield serving, repository, secrets, store


def test_it_decides_and_the_store_sends(
    served: tuple[Serving, Tenants, dict[str, str], HarmfulProxy], tmp_path: Path
) -> None:
    serving, repository, secrets, store = served

    def ask(name: str, user: str | None = "alice") -> httpx.Response:
        headers = {"Authorization": f"Bearer {secrets[user]}"} if user else {}
        return httpx.get(f"{serving.url}/{name}", headers=headers)

    pack = repository.packs["alpha"]
    assert ask(pack, None).status_code == 401
    for user, name in (("alice", repository.packs["beta"]), ("bob", pack), ("alice", "packs/00/" + "00" * 32 + ".bin")):
        refused = ask(name, user)
        assert refused.status_code in (403, 404)
        assert "location" not in refused.headers
    led = ask(pack)
    assert (led.status_code, led.headers["cache-control"], led.content) == (307, "no-store", b"")
    location = led.headers["location"]
    assert httpx.get(location).content == (repository.root / pack).read_bytes()
    assert httpx.get(location, headers={"Range": "bytes=5-9"}).content == (repository.root / pack).read_bytes()[5:10]
    # A URL of one pack opens nothing else: no other pack, no list, no writing.
    assert httpx.get(location.replace(pack, repository.packs["beta"])).status_code == 403
    assert httpx.get(location.replace("/served/" + pack, "")).status_code == 403
    assert httpx.put(location, content=b"x").status_code == 403
    head = ask("images/alpha/head.json")
    assert head.content == (repository.root / "images/alpha/head.json").read_bytes()
    assert "Signature" not in serving.log.read_text()

    (tmp_path / "token").write_text(secrets["alice"])
    store.seen.clear()
    credentials = Credentials(Credential(token_file=str(tmp_path / "token")))
    output = tmp_path / "alpha.img"
    sync(serving.url, "alpha", output=output, credentials=credentials)
    published = PublishedImage(VersionReader.open(DirectoryStore(repository.root), "alpha", "2"))
    assert output.read_bytes() == published.read(0, published.size)
    packs = [seen for seen in store.seen if "/packs/" in seen.target]
    assert packs
    assert not any("authorization" in seen.headers for seen in packs)
    assert all("X-Amz-Signature" in urlsplit(seen.target).query for seen in packs)


def test_what_is_published_is_served(
    served: tuple[Serving, Tenants, dict[str, str], HarmfulProxy], tmp_path: Path
) -> None:
    serving, repository, secrets, _ = served
    (tmp_path / "new.img").write_bytes(os.urandom(300_000))
    publish(repository.root, tmp_path / "new.img", image="alpha", version="3", keys=repository.keys)
    pushed(repository.root)
    headers, deadline = {"Authorization": f"Bearer {secrets['alice']}"}, time.monotonic() + 30
    new = (repository.root / "images/alpha/head.json").read_bytes()
    while httpx.get(f"{serving.url}/images/alpha/head.json", headers=headers).content != new:
        assert time.monotonic() < deadline
        time.sleep(0.1)
