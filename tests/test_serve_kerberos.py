"""Kerberos from end to end: a real domain controller of Samba, its users and computers, the server alone and behind
nginx, medv-sync with the tickets of each; and what must not count."""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from caches import only_ipv4
from click.testing import CliRunner
from domain import REALM, Begun, Domain, missing, missing_client, prolong, shift_clock
from gateways import QUICK, Front, Serving, Tenants, tenants
from realm import REALM as MIT
from realm import Realm
from realm import missing as missing_realm
from servers import HOST, MISSING_NGINX, Authority, BadServer, Fault, Request, has_nginx
from test_serve_access import ROUTES
from test_serve_sync import is_published

from medv.cli import medv_repo, medv_sync
from medv.gateway.trouble import ConfigError
from trimtransfer.errors import AccessDenied, FetchError
from trimtransfer.fetch.credentials import Credential
from trimtransfer.fetch.http import HttpStore
from trimtransfer.fetch.retry import FetchOptions

pytestmark = [pytest.mark.slow, pytest.mark.net]

RULES = f"""
{QUICK}
[[rule]]
images = ["alpha"]
computers = ["pc1@{REALM}"]
groups = ["alphas"]
[[rule]]
images = ["beta"]
users = ["bob@{REALM}"]
groups = ["betas"]
[proxy]
addresses = ["127.0.0.1"]
"""
AUTHENTICATED = '[[rule]]\nimages = ["alpha"]\nanyone = "authenticated"\n'
DCE_STYLE = 0x1000
"""Three messages instead of two, of which the client sends the last."""


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Domain]:
    if lacking := missing():
        pytest.skip(lacking)
    with Domain(tmp_path_factory.mktemp("domain")) as domain, pytest.MonkeyPatch.context() as patch:
        for name, value in domain.environment.items():
            patch.setenv(name, value)
        yield domain


@pytest.fixture(scope="module")
def ending(domain: Domain) -> tuple[str, str, float]:
    """Two caches whose tickets end before this module does, one with a ticket for the server alone; and when."""
    caches = domain.login("alice", life="20s"), domain.login("alice", life="20s", service="HTTP/localhost")
    return *caches, time.monotonic() + 21


@dataclass(frozen=True)
class House:
    """A server, its repository and domain; ``proxied`` if nginx is in front."""

    tenants: Tenants
    url: str
    serving: Serving
    domain: Domain
    client: httpx.Client
    ca_cert: str
    caches: dict[str, str]
    proxied: bool

    def cache(self, who: str) -> str:
        """Return somebody's tickets."""
        if who not in self.caches:
            self.caches[who] = self.domain.login(who)
        return self.caches[who]

    def ask(self, name: str, authorization: str = "", **headers: str) -> httpx.Response:
        """Send one request."""
        shown = {"Authorization": authorization} if authorization else {}
        return self.client.get(f"{self.url}/{name}", headers={**shown, **headers})


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Tenants:
    return tenants(tmp_path_factory.mktemp("tenants"), np.random.default_rng(7))


@pytest.fixture(scope="module", params=["embedded", "auth-request", "accel"])
def house(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    authority: Authority,
    repository: Tenants,
    domain: Domain,
    ending: tuple[str, str, float],
) -> Iterator[House]:
    top, kind = tmp_path_factory.mktemp("kerberos"), request.param
    names = [f'"{name}={domain.sids[name]}"' for name in ("alphas", "betas")]
    text = RULES + f'[kerberos]\nkeytab = "{domain.keytab("http")}"\ngroups = [{", ".join(names)}]\n'
    text += f'[tokens]\nfile = "{top}/tokens.json"\n'
    context = ssl.create_default_context(cafile=authority.file)
    with httpx.Client(verify=context, trust_env=False, timeout=60) as client:
        made = lambda url, serving: House(  # noqa: E731
            repository, url, serving, domain, client, authority.file, {}, kind != "embedded"
        )
        if kind == "embedded":
            text = text.replace('addresses = ["127.0.0.1"]', "")
            with Serving(repository.root, top, text, authority=authority) as serving:
                yield made(serving.url.replace("127.0.0.1", HOST), serving)
            return
        if not has_nginx():
            pytest.skip(MISSING_NGINX)
        if kind == "accel":
            text = text.replace('addresses = ["127.0.0.1"]', 'addresses = ["127.0.0.1"]\naccel = "/medv-objects/"')
        with Serving(repository.root, top, text) as serving:
            upstream = f"127.0.0.1:{serving.port}"
            with Front(kind, repository.root, top, authority, upstream=upstream) as front:
                yield made(front.url, serving)


def name_of(house: House, route: str) -> str:
    """Return the name of the object of a route."""
    name = ROUTES[route][0]
    if name == "DELTA":
        return house.tenants.delta
    return house.tenants.packs[name.split()[1]] if name.startswith("PACK") else name


# ---- who may have what


@pytest.mark.parametrize(("right", "tenant"), [("alice", "bob"), ("PC1$", "PC2$")], ids=["users", "computers"])
def test_every_route(house: House, right: str, tenant: str) -> None:
    """By group, nested; by user; by computer; and a computer by its group."""
    for route, (_, status_right, status_tenant) in ROUTES.items():
        name = name_of(house, route)
        nobody = house.ask(name, Range="bytes=0-99")
        assert nobody.status_code == 401, route
        assert "negotiate" in nobody.headers["www-authenticate"].lower()
        foreign = house.ask(name, house.domain.token(house.cache(right), "HTTP@other.medv.test"), Range="bytes=0-99")
        assert foreign.status_code == 401, route
        for who, status in ((right, status_right), (tenant, status_tenant), ("carol", None)):
            begun = Begun(house.cache(who))
            answer = house.ask(name, begun.header(), Range="bytes=0-99")
            if status == 200:
                assert answer.status_code == 206, (route, who)
                assert begun.answered(answer.headers["www-authenticate"]), (route, who)
                assert len(answer.content) <= 100
            else:
                assert answer.status_code == (status or (404 if name.startswith("packs/") else 403)), (route, who)


@pytest.mark.parametrize(
    ("shown", "name"), [("ALICE", f"alice@{REALM}"), ("PC1$", f"pc1@{REALM}"), ("PC1", f"pc1@{REALM}")]
)
def test_names_are_the_directorys(house: House, shown: str, name: str) -> None:
    """Whatever a client calls himself: any spelling, and a computer without its dollar, which is no user."""
    answer = house.ask(house.tenants.packs["alpha"], house.domain.token(house.cache(shown)), Range="bytes=0-9")
    assert answer.status_code == 206
    house.serving.wait_for(user=name, how="kerberos")
    assert not house.serving.lines(user=f"{shown}@{REALM}")


# ---- what does not count


def test_tokens_that_do_not_count(house: House) -> None:
    pack, good = house.tenants.packs["alpha"], house.domain.token(house.cache("alice"))
    assert house.ask(pack, good).status_code == 200
    junk = base64.b64encode(b"\x60\x82" + bytes(500)).decode()
    ntlm = base64.b64encode(b"NTLMSSP\0\1\0\0\0" + bytes(40)).decode()
    raw = base64.b64decode(house.domain.token(house.cache("alice")).split()[1])
    damaged = base64.b64encode(raw[:-20] + bytes(20)).decode()
    for shown in (good, "Negotiate", "Negotiate !", f"Negotiate {junk}", f"Negotiate {ntlm}", f"Negotiate {damaged}"):
        answer = house.ask(pack, shown)
        assert answer.status_code == 401, shown[:40]
        assert "negotiate" in answer.headers["www-authenticate"].lower()
        assert len(answer.content) < 2000
    assert house.ask(pack, "Negotiate " + "A" * 60_000).status_code == 401, "as long as tickets may be"
    assert house.ask(pack, "Negotiate " + "A" * 90_000).status_code in (400, 401, 431)
    house.serving.wait_for(reason="kerberos: a token that was shown before (Request is a replay)")


def test_a_decision_is_not_remembered_for_a_token(house: House) -> None:
    """Behind nginx, which remembers others: the same token a second time is refused."""
    token = house.domain.token(house.cache("alice"))
    statuses = [house.ask(house.tenants.packs["alpha"], token, Range="bytes=0-0").status_code for _ in range(3)]
    assert statuses == [206, 401, 401]


def test_a_proof_in_three_messages(house: House) -> None:
    """The server remembers what began, by connection; behind a proxy, whose connections are everybody's, it refuses."""
    pack = house.tenants.packs["alpha"]
    begun = Begun(house.cache("alice"), flags=2 | DCE_STYLE)
    first = house.ask(pack, begun.header())
    assert first.status_code == 401
    if house.proxied:
        house.serving.wait_for(reason="kerberos: wants a second round, which a proxy may hand to another connection")
        return
    begun.answered(first.headers["www-authenticate"])
    last = begun.header()
    with httpx.Client(verify=ssl.create_default_context(cafile=house.ca_cert), trust_env=False) as stranger:
        assert stranger.get(f"{house.url}/{pack}", headers={"Authorization": last}).status_code == 401
    answer = house.ask(pack, last)
    assert answer.status_code == 200
    assert begun.answered(answer.headers["www-authenticate"])
    assert house.ask(pack, last).status_code == 401, "what began has ended"


def test_clocks_that_differ(house: House, tmp_path: Path) -> None:
    cache = house.domain.login("alice")
    house.domain.ticket_for(cache, "HTTP/localhost")
    shift_clock(cache, 1000)
    done = sync(house, "alpha", tmp_path, "--kerberos", KRB5CCNAME=cache)
    assert done.exit_code == AccessDenied.exit_code, done.output
    assert "set it by NTP" in done.output
    assert house.ask(house.tenants.packs["alpha"], house.domain.token(cache)).status_code == 401
    house.serving.wait_for(
        reason="kerberos: the clocks of the client and of this machine differ by more than krb5.conf allows "
        "(clockskew, 5 minutes); set the wrong one by NTP (Clock skew too great)"
    )


# ---- medv-sync


def sync(house: House, image: str, folder: Path, *options: str, url: str = "", **environment: str) -> Any:
    """Run medv-sync; its result."""
    arguments = [url or house.url, image, "-o", str(folder / f"{image}.img"), "--ca-cert", house.ca_cert, "--json"]
    environment = {"XDG_CONFIG_HOME": "/nonexistent", "KRB5CCNAME": "FILE:/nonexistent", **environment}
    return CliRunner().invoke(medv_sync, [*arguments, "--no-host-index", *options], env=environment)


def test_sync_by_ticket_and_by_keytab(house: House, tmp_path: Path) -> None:
    ways: dict[str, tuple[list[str], dict[str, str]]] = {
        "ticket": (["--kerberos"], {"KRB5CCNAME": house.cache("alice")}),
        "keytab": (["--keytab", house.domain.keytab("pc1")], {}),
        "principal": (["--keytab", house.domain.keytab("pc1"), "--principal", "PC1$"], {}),
    }
    for name, (options, environment) in ways.items():
        (tmp_path / name).mkdir()
        done = sync(house, "alpha", tmp_path / name, *options, **environment)
        assert done.exit_code == 0, (name, done.output)
        assert is_published(tmp_path / name / "alpha.img", house.tenants.root, "alpha", "2")
        refused = sync(house, "beta", tmp_path / name, *options, **environment)
        assert refused.exit_code == AccessDenied.exit_code
        assert "no right" in refused.output


def test_the_doctor_shows_a_ticket(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    only_ipv4(monkeypatch)
    environment = {"XDG_CONFIG_HOME": "/nonexistent", "KRB5CCNAME": house.cache("alice")}
    arguments = ["doctor", house.url, "alpha", "--kerberos", "--ca-cert", house.ca_cert, "--json"]
    done = CliRunner().invoke(medv_repo, arguments, env=environment)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["facts"]["version"] == "2"


def test_without_a_ticket_that_counts(house: House, tmp_path: Path) -> None:
    none = sync(house, "alpha", tmp_path)
    assert (none.exit_code, "--kerberos" in none.output) == (8, True)
    lacking = sync(house, "alpha", tmp_path, "--kerberos")
    assert (lacking.exit_code, "kinit" in lacking.output) == (8, True), lacking.output
    with pytest.raises(OSError, match="Password incorrect"):
        house.domain.login("alice", "wrong")
    stranger = sync(house, "alpha", tmp_path, "--keytab", house.domain.keytab("pc1"), "--principal", "PC9$")
    assert (stranger.exit_code, "klist -k" in stranger.output) == (8, True), stranger.output
    elsewhere = house.url.replace(HOST, "127.0.0.1")
    wrong = sync(house, "alpha", tmp_path, "--kerberos", url=elsewhere, KRB5CCNAME=house.cache("alice"))
    assert (wrong.exit_code, "setspn" in wrong.output) == (8, True), wrong.output
    token = tmp_path / "token"
    token.write_text("x")
    assert sync(house, "alpha", tmp_path, "--kerberos", "--token-file", str(token)).exit_code == 2
    assert sync(house, "alpha", tmp_path, "--kerberos", url="http://images.medv.test/").exit_code == 8
    assert not (tmp_path / "alpha.img").exists()


# ---- the client and servers that are none


@pytest.fixture
def tickets(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> Domain:
    """The domain, with alice's tickets in the environment."""
    monkeypatch.setenv("KRB5CCNAME", domain.login("alice"))
    return domain


def store(url: str, **options: Any) -> HttpStore:
    """Return a store that shows tickets."""
    return HttpStore(url.replace("127.0.0.1", HOST), credential=Credential(kerberos=True, **options))


def test_a_server_that_proves_nothing_is_not_believed(tickets: Domain) -> None:
    answers = iter(
        ["", "Negotiate", "Negotiate " + base64.b64encode(b"junk" * 20).decode(), "Bearer x, Negotiate AAAA"]
    )

    def script(request: Request, turn: int) -> Fault:
        assert request.get("authorization").startswith("Negotiate ")
        value = next(answers)
        return Fault(status=200, body=b"data", headers={"WWW-Authenticate": value} if value else {})

    with BadServer({}, script) as server:
        client = store(server.url)
        for _ in range(2):
            with pytest.raises(AccessDenied, match="did not prove by Kerberos"):
                client.read("a", limit=10)
        for _ in range(2):
            with pytest.raises(AccessDenied, match="proof does not count"):
                client.read("a", limit=10)
        client.close()


def test_a_server_that_wants_ever_more_is_left(tickets: Domain) -> None:
    """Another one's keytab does not open the ticket; answers that lead nowhere end."""
    from medv.gateway.acceptor import Acceptor
    from medv.gateway.trouble import Refused

    other = Acceptor(tickets.keytab("other"), "HTTP")

    def script(request: Request, turn: int) -> Fault:
        shown = request.get("authorization").split()[1]
        with pytest.raises(Refused) as caught:
            other.step(base64.b64decode(shown))
        token = base64.b64encode(caught.value.token).decode()
        late = {"Date": "Thu, 01 Jan 2026 00:00:00 GMT"}
        return Fault(status=401, body=b"no", headers={"WWW-Authenticate": f"Negotiate {token}".strip(), **late})

    with BadServer({}, script) as server:
        client = store(server.url)
        with pytest.raises(AccessDenied, match="does not accept the ticket") as caught:
            client.read("a", limit=10)
        assert "ahead of the server's" in str(caught.value)
        client.close()
    assert len(server.requests) == 1


def test_tokens_go_to_their_own_origin_only(tickets: Domain) -> None:
    from medv.gateway.acceptor import Acceptor

    acceptor = Acceptor(tickets.keytab("http"), "HTTP")

    def proven(request: Request) -> dict[str, str]:
        done = acceptor.step(base64.b64decode(request.get("authorization").split()[1]))
        return {"WWW-Authenticate": "Negotiate " + base64.b64encode(done.answer).decode()}

    with BadServer({"packs/a": b"data"}) as other:

        def redirect(request: Request, turn: int) -> Fault:
            headers = {"Location": f"{other.url}{request.target}", **proven(request)}
            return Fault(status=302, headers=headers, body=b"")

        with BadServer({}, redirect) as own:
            client = store(own.url)
            assert client.read("packs/a", limit=10) == b"data"
            client.close()
        assert own.requests[0].get("authorization").startswith("Negotiate ")
        assert other.requests[0].get("authorization") is None

        def unproven(request: Request, turn: int) -> Fault:
            return Fault(status=302, headers={"Location": f"{other.url}{request.target}"}, body=b"")

        with BadServer({}, unproven) as own:
            client = store(own.url)
            with pytest.raises(AccessDenied, match="did not prove"):
                client.read("packs/a", limit=10)
            client.close()
        assert len(other.requests) == 1


def test_a_kdc_that_is_away_may_come_back(tickets: Domain) -> None:
    """That is trouble of the network: tried again, and in the end its exit code."""
    tickets.configure(address="127.0.0.1:1")
    try:
        with BadServer({"a": b"x"}) as server:
            options = FetchOptions(first_budget=1.0, first_delay=0.1)
            client = HttpStore(
                server.url.replace("127.0.0.1", HOST), credential=Credential(kerberos=True), options=options
            )
            with pytest.raises(FetchError, match="KDC") as caught:
                client.read("a", limit=10)
            assert not isinstance(caught.value, AccessDenied)
            assert client.stats.retries > 0
            client.close()
    finally:
        tickets.configure()


# ---- the keytab


def test_keytabs_that_cannot_be_used(domain: Domain, repository: Tenants, tmp_path: Path) -> None:
    def refused(keytab: str, more: str = "") -> str:
        with pytest.raises(ConfigError) as caught:
            Serving(repository.root, tmp_path, f'[kerberos]\nkeytab = "{keytab}"\n{more}').__enter__()
        assert caught.value.exit_code == 2
        return str(caught.value)

    assert "exportkeytab" in refused(str(tmp_path / "missing"))
    shared = tmp_path / "shared"
    shared.write_bytes(Path(domain.keytab("http")).read_bytes())
    shared.chmod(0o644)
    assert "chmod" in refused(str(shared))
    shared.chmod(0o600)
    assert "klist -k" in refused(str(shared), 'service = "HTTP@images.medv.test"\n')
    assert "klist -k" in refused(domain.keytab("pc1")), "the keys of a computer are no service's"
    shared.write_bytes(b"\5\2junk")
    assert "klist -k" in refused(str(shared))


def test_an_old_keytab_and_its_replacement(domain: Domain, repository: Tenants, tmp_path: Path) -> None:
    """The server with the other service's key refuses and says why; the right keytab is taken up while it runs."""
    keytab = tmp_path / "keytab"
    keytab.write_bytes(Path(domain.keytab("other")).read_bytes())
    keytab.chmod(0o600)
    cache = domain.login("alice")
    text = f'{QUICK}[kerberos]\nkeytab = "{keytab}"\n' + AUTHENTICATED
    with Serving(repository.root, tmp_path, text) as server, httpx.Client(trust_env=False, timeout=30) as client:

        def status(service: str = "HTTP@localhost") -> int:
            headers = {"Authorization": domain.token(cache, service)}
            return client.get(f"{server.url}/images/alpha/head.json", headers=headers).status_code

        assert status() == 401
        (line,) = server.wait_for(status=401)
        assert "than the keytab holds" in line["reason"]
        assert status("HTTP@other.medv.test") == 200
        keytab.write_bytes(Path(domain.keytab("http")).read_bytes())
        assert status() == 200
        keytab.unlink()
        assert status() == 401
        (told,) = server.wait_for(level="error")
        assert "exportkeytab" in told["text"]
        assert client.get(f"{server.url}/readyz").status_code == 503


def test_a_ticket_that_has_ended(
    domain: Domain, repository: Tenants, ending: tuple[str, str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends while this module runs. The client says so; one that lies about it is refused by the server."""
    login, cache, end = ending
    text = f'{QUICK}[kerberos]\nkeytab = "{domain.keytab("http")}"\n' + AUTHENTICATED
    with Serving(repository.root, tmp_path, text) as server, httpx.Client(trust_env=False, timeout=30) as client:

        def status() -> int:
            headers = {"Authorization": domain.token(cache)}
            return client.get(f"{server.url}/images/alpha/head.json", headers=headers).status_code

        time.sleep(max(0.0, end - time.monotonic()))
        domain.configure(skew=5)
        try:
            monkeypatch.setenv("KRB5CCNAME", login)
            mine = store(server.url)
            with pytest.raises(AccessDenied, match="kinit"):
                mine.read("images/alpha/head.json", limit=1000)
            mine.close()
            prolong(cache, 3600)
            time.sleep(6)
            assert status() == 401
            (line, *_) = server.wait_for(status=401)
            assert "expired" in line["reason"]
        finally:
            domain.configure()


# ---- another KDC


def test_a_kdc_of_another_kind(repository: Tenants, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of MIT's, names are the principals'; without being told so, the server refuses its tickets and says why."""
    if lacking := missing_realm() or missing_client():
        pytest.skip(lacking)
    rule = f'[[rule]]\nimages = ["alpha"]\nusers = ["alice@{MIT}"]\ncomputers = ["pc1.mit.test@{MIT}"]\n'
    with Realm(tmp_path) as realm, httpx.Client(trust_env=False, timeout=30) as client:
        for name, value in realm.environment.items():
            monkeypatch.setenv(name, value)
        kerberos = f'{QUICK}[kerberos]\nkeytab = "{realm.keytab("http")}"\n'
        for text, status in ((kerberos + rule, 401), (kerberos + "pac = false\n" + rule, 200)):
            with Serving(repository.root, tmp_path / "work", text) as server:
                for who in ("alice", "pc1"):
                    headers = {"Authorization": Begun(realm.cache(who)).header()}
                    url = f"{server.url}/images/alpha/head.json"
                    assert client.get(url, headers=headers).status_code == status, who
                    assert client.get(url.replace("alpha", "beta"), headers=headers).status_code == 401, "a replay"
                if status == 401:
                    assert "pac = false" in server.wait_for(status=401)[0]["reason"]
                else:
                    server.wait_for(user=f"alice@{MIT}")
                    server.wait_for(user=f"pc1.mit.test@{MIT}")
