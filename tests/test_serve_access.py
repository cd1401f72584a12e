"""Every route x {nothing, wrong, expired, another tenant's, the right} credentials of each scheme, by the embedded
server and by nginx in both ways: not one byte to who may not have it, and nothing to be learnt about what exists."""

from __future__ import annotations

import base64
import datetime
import hmac
import json
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gateways import QUICK, Front, Serving, Tenants, tenants
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey
from servers import HOST, MISSING_NGINX, Authority, BadServer, has_nginx

from medv.gateway.access import Role
from medv.gateway.signedurls import Permit, sign
from medv.gateway.tokens import TokenFile

ISSUER = "https://login.example.org/realm"
KEY = b"k" * 40
RULES = f"""
{QUICK}
[[rule]]
images = ["alpha"]
users = ["alice"]
computers = ["pc1.example.org"]
groups = ["alphas"]
[[rule]]
images = ["beta"]
users = ["bob"]
groups = ["betas"]
[[rule]]
images = ["alpha"]
users = ["publisher"]
role = "publish"
[[rule]]
images = ["*"]
users = ["root"]
role = "admin"
[[certificate]]
field = "email"
pattern = "*@example.org"
user = "{{}}"
[[certificate]]
field = "dns"
pattern = "pc1.example.org"
computer = "{{}}"
[proxy]
addresses = ["127.0.0.1"]
remember = 1
"""

# ---- what is asked for: by name of the route, what whoever may read alpha gets, and whoever may read beta

ROUTES = {
    "head": ("images/alpha/head.json", 200, 403),
    "manifest": ("images/alpha/2/manifest.bin", 200, 403),
    "tables": ("images/alpha/1/tables.bin", 200, 403),
    "locations": ("images/alpha/2/locations.bin", 200, 403),
    "delta": ("DELTA", 200, 403),
    "other head": ("images/beta/head.json", 403, 200),
    "pack of alpha": ("PACK alpha", 200, 404),
    "pack of beta": ("PACK beta", 404, 200),
    "pack of both": ("PACK both", 200, 200),
    "pack of nobody": ("packs/00/" + "0" * 64 + ".bin", 404, 404),
    "image of nobody": ("images/gamma/head.json", 403, 403),
    "missing version": ("images/alpha/9/manifest.bin", 404, 403),
    "further disk": ("images/alpha.disk1/1/manifest.bin", 404, 403),
    "metadata": ("metadata/1.root.json", 200, 200),
    "what is signed of alpha": ("metadata/1.image-alpha.json", 200, 403),
    "what is signed of nobody": ("metadata/1.image-gamma.json", 403, 403),
    "profile": ("profiles/office.bin", 403, 403),
}
NEVER = ("nothing", "wrong", "expired")


@dataclass(frozen=True)
class House:
    """All servers of this module, their repository and secrets."""

    tenants: Tenants
    url: str
    authority: Authority
    people: Authority
    strangers: Authority
    tokens: TokenFile
    signing: dict[str, Any]
    serving: Serving
    secrets: list[str]
    clients: dict[tuple[str, str] | None, httpx.Client]
    stack: ExitStack


@pytest.fixture(scope="module", params=["embedded", "auth-request", "accel"])
def house(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, authority: Authority
) -> Iterator[House]:
    top = tmp_path_factory.mktemp("access")
    repository = tenants(top, np.random.default_rng(7))
    people, strangers = Authority(top / "people"), Authority(top / "strangers")
    keys = {"rsa": RSAKey.generate_key(2048, {"kid": "rsa1"}), "ec": ECKey.generate_key("P-256", {"kid": "ec1"})}
    published = KeySet(list(keys.values())).as_dict(private=False)
    tokens = TokenFile(top / "tokens.json")
    clients: dict[tuple[str, str] | None, httpx.Client] = {}
    (top / "url.key").write_bytes(KEY)
    (top / "url.key").chmod(0o600)
    objects = {"jwks.json": json.dumps(published).encode()}
    with BadServer(objects) as provider, ExitStack() as stack:
        text = RULES + (
            f'[tokens]\nfile = "{tokens.path}"\n[signed_urls]\nkey_files = ["{top / "url.key"}"]\n'
            f'[oidc]\nissuer = "{ISSUER}"\naudience = "images"\njwks_url = "{provider.url}/jwks.json"\n'
            'user_claim = "preferred_username"\n'
        )
        made = lambda url, serving: House(  # noqa: E731
            repository, url, authority, people, strangers, tokens, keys, serving, [], clients, stack
        )
        if request.param == "embedded":
            text = text.replace('addresses = ["127.0.0.1"]', "addresses = []")
            with Serving(repository.root, top, text, authority=authority, tls__client_ca=people.file) as serving:
                yield made(serving.url.replace("127.0.0.1", HOST), serving)
            return
        if not has_nginx():
            pytest.skip(MISSING_NGINX)
        if request.param == "accel":
            text = text.replace("remember = 1", 'accel = "/medv-objects/"')
        with Serving(repository.root, top, text) as serving:
            upstream = f"127.0.0.1:{serving.port}"
            with Front(request.param, repository.root, top, authority, upstream=upstream, ca=people.file) as front:
                yield made(front.url, serving)


@dataclass(frozen=True)
class Ticket:
    """Credentials of a request: headers, a query, a certificate with its key."""

    headers: tuple[tuple[str, str], ...] = ()
    query: str = ""
    certificate: tuple[str, str] | None = None


Issue = Callable[[House, str], Ticket]


def token(house: House, state: str) -> Ticket:
    """A token in a state: ``right`` is alice's, ``tenant`` is bob's."""
    if state == "wrong":
        secret = "medv_" + "a" * 12 + "_" + "b" * 43
    else:
        user = "bob" if state == "tenant" else "alice"
        secret, entry = house.tokens.create(user=user, expires=time.time() + (-5 if state == "expired" else 600))
        time.sleep(0.3)  # until the server has seen it
        assert entry.user == user
    house.secrets.append(secret.split("_", 2)[2])
    return Ticket((("Authorization", f"Bearer {secret}"),))


def scoped_token(house: House, state: str) -> Ticket:
    """A token that is a right in itself, shown as the password of Basic."""
    if state == "wrong":
        return Ticket((("Authorization", "Basic " + base64.b64encode(b"x:medv_wrong").decode()),))
    image = "bet*" if state == "tenant" else "alpha"
    secret, _ = house.tokens.create(images=(image,), expires=time.time() + (-5 if state == "expired" else 600))
    time.sleep(0.3)
    house.secrets.append(secret)
    return Ticket((("Authorization", "Basic " + base64.b64encode(f"any:{secret}".encode()).decode()),))


def access_token(house: House, state: str, **changes: Any) -> Ticket:
    """A JWT of the provider."""
    key = house.signing["rsa"]
    if state == "wrong":
        key = RSAKey.generate_key(2048, {"kid": "rsa1"})
    now = time.time()
    claims = {
        "iss": ISSUER,
        "aud": ["images", "other"],
        "sub": "1234",
        "preferred_username": "somebody",
        "groups": ["betas" if state == "tenant" else "alphas"],
        "exp": int(now) + (-120 if state == "expired" else 600),
        "iat": int(now) - 1000,
        **changes,
    }
    text = jwt.encode({"alg": "RS256", "kid": "rsa1"}, claims, key)
    house.secrets.append(text.rpartition(".")[2])
    return Ticket((("Authorization", f"Bearer {text}"),))


def encoded(values: Any) -> str:
    """Return a part of a JWT."""
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


def signed(house: House, state: str) -> Ticket:
    """A signed URL's query."""
    image = "beta" if state == "tenant" else "alpha"
    key = b"x" * 40 if state == "wrong" else KEY
    query = sign(Permit((image,), int(time.time()) + (-120 if state == "expired" else 600), "test"), key)
    house.secrets.append(query.rpartition("~")[2])
    return Ticket(query=query)


def certificate(house: House, state: str) -> Ticket:
    """A client's certificate: alice's or bob's; ``wrong`` is genuine but nobody's."""
    name = {"tenant": "bob@example.org", "wrong": "alice@example.com"}.get(state, "alice@example.org")
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    options = {"not_after": past, "not_before": past - datetime.timedelta(days=9)} if state == "expired" else {}
    return Ticket(certificate=house.people.issue(name, **options))


SCHEMES: dict[str, Issue] = {
    "token": token,
    "scoped token": scoped_token,
    "oidc": access_token,
    "signed url": signed,
    "certificate": certificate,
}


def ask(house: House, name: str, ticket: Ticket, method: str = "GET", **headers: str) -> httpx.Response:
    """Send one request; connections are kept, for each certificate its own."""
    if ticket.certificate not in house.clients:
        context = ssl.create_default_context(cafile=house.authority.file)
        if ticket.certificate:
            context.load_cert_chain(*ticket.certificate)
        client = house.stack.enter_context(httpx.Client(verify=context, trust_env=False, timeout=60))
        house.clients[ticket.certificate] = client
    url = f"{house.url}/{name}" + (f"?{ticket.query}" if ticket.query else "")
    return house.clients[ticket.certificate].request(method, url, headers={**dict(ticket.headers), **headers})


def name_of(house: House, route: str) -> str:
    """Return the name of the object of a route."""
    name = ROUTES[route][0]
    if name == "DELTA":
        return house.tenants.delta
    return house.tenants.packs[name.split()[1]] if name.startswith("PACK") else name


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("state", ["nothing", "wrong", "expired", "tenant", "right"])
def test_every_route(house: House, scheme: str, state: str) -> None:
    ticket = Ticket() if state == "nothing" else SCHEMES[scheme](house, state)
    for route, (_, right, tenant) in ROUTES.items():
        name = name_of(house, route)
        try:
            answer = ask(house, name, ticket, Range="bytes=0-99")
        except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError):
            # An expired certificate is refused by TLS itself.
            assert (scheme, state) == ("certificate", "expired")
            continue
        wanted = 401 if state in NEVER else right if state == "right" else tenant
        if (scheme, state) == ("certificate", "expired"):
            wanted = 400  # nginx says it in HTTP
        status = 200 if answer.status_code == 206 else answer.status_code
        assert status == wanted, (route, answer.status_code, answer.text[:200])
        content = (house.tenants.root / name).read_bytes()[:100] if status == 200 else b""
        if status == 200:
            assert answer.content == content
            assert answer.headers["cache-control"].startswith("private")
        else:
            assert len(answer.content) < 600
            assert "etag" not in answer.headers
            assert "last-modified" not in answer.headers


def test_refusals_tell_nothing_about_what_exists(house: House) -> None:
    ticket = token(house, "right")

    def shape(name: str, ticket: Ticket) -> tuple[int, bytes, list[tuple[str, str]]]:
        answer = ask(house, name, ticket)
        volatile = ("date", "x-request-id")
        return (
            answer.status_code,
            answer.content,
            sorted(one for one in answer.headers.items() if one[0] not in volatile),
        )

    packs = [house.tenants.packs["beta"], "packs/00/" + "0" * 64 + ".bin"]
    assert shape(packs[0], ticket) == shape(packs[1], ticket)
    images = [
        "images/beta/head.json",
        "images/beta/1/manifest.bin",
        "images/nothing/head.json",
        "images/beta/1/none.bin",
    ]
    assert len({str(shape(name, ticket)) for name in images}) == 1
    nobody = [name_of(house, route) for route in ROUTES]
    assert len({str(shape(name, Ticket())) for name in nobody}) == 1


def test_refusals_take_as_long_whatever_exists(house: House) -> None:
    """Medians of many requests, taken in turns, of somebody else's pack and of one that is nowhere."""
    ticket = token(house, "right")
    context = ssl.create_default_context(cafile=house.authority.file)
    times: dict[str, list[float]] = {house.tenants.packs["beta"]: [], "packs/00/" + "0" * 64 + ".bin": []}
    with httpx.Client(verify=context, trust_env=False, timeout=30, headers=dict(ticket.headers)) as client:
        for _ in range(60):
            for name, taken in times.items():
                begun = time.perf_counter()
                assert client.get(f"{house.url}/{name}").status_code == 404
                taken.append(time.perf_counter() - begun)
    one, other = (float(np.median(taken)) for taken in times.values())
    assert abs(one - other) < max(0.002, 0.3 * min(one, other)), (one, other)


def test_a_refused_request_asks_no_disk_about_the_object(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from medv import files

    asked: list[tuple[str, ...]] = []
    before = files.open_below
    monkeypatch.setattr(files, "open_below", lambda root, name: asked.append(name) or before(root, name))
    ticket = token(house, "right")
    for route in ("other head", "pack of beta", "pack of nobody", "profile"):
        ask(house, name_of(house, route), ticket)
    assert asked == []


def test_methods_paths_and_credentials_that_are_none(house: House) -> None:
    right = token(house, "right")
    pack = house.tenants.packs["alpha"]
    assert ask(house, pack, right, "HEAD").status_code == 200
    assert ask(house, pack, right, "DELETE").status_code == 405
    assert ask(house, pack, Ticket(), "HEAD").status_code == 401
    for authorization in (
        "Bearer",
        "Basic !!!",
        "Digest x",
        "Negotiate YII",
        "medv",
        "Bearer a.b.c",
        "x" * 9000,
    ):
        answer = ask(house, pack, Ticket((("Authorization", authorization),)))
        assert answer.status_code == 401, authorization
        assert answer.headers["www-authenticate"].startswith("Bearer ")
    twice = Ticket((*right.headers, ("authorization", "Bearer x")))
    assert ask(house, pack, twice).status_code in (400, 401)
    holder = Ticket(twice.headers, certificate=certificate(house, "right").certificate)
    assert ask(house, pack, holder).status_code == 400, "what is presented must count, also if something else does"
    assert ask(house, pack, Ticket(query="medv=1~99999999999~alpha~~/~" + "A" * 43)).status_code == 401
    good = signed(house, "right")
    assert ask(house, pack, Ticket(query=good.query + "&" + good.query)).status_code == 401
    for damaged in (
        good.query.replace("alpha", "*"),
        re.sub(r"~\d+~", "~99999999999~", good.query),
        good.query[:-1] + "A",
    ):
        assert damaged == good.query or ask(house, pack, Ticket(query=damaged)).status_code == 401
    # A header wins over a query: what is presented must count.
    assert ask(house, pack, Ticket((("Authorization", "Bearer x"),), good.query)).status_code == 401


def test_access_tokens_that_must_not_count(house: House) -> None:
    pack = house.tenants.packs["alpha"]
    now = int(time.time())
    for changes in (
        {"iss": "https://evil.example.org"},
        {"aud": "other"},
        {"aud": None},
        {"exp": None},
        {"exp": "soon"},
        {"nbf": now + 600},
        {"iat": now + 600},
        {"preferred_username": None},
    ):
        assert ask(house, pack, access_token(house, "right", **changes)).status_code == 401, changes
    assert ask(house, pack, access_token(house, "right", groups="alphas gammas")).status_code == 200
    assert ask(house, pack, access_token(house, "right", exp=now - 30)).status_code == 200, "within the skew of clocks"
    named = access_token(house, "right", preferred_username="x\r\nX-Accel-Expires: 60\r\n\u20ac")
    assert ask(house, pack, named).status_code == 200, "a name that is no header"
    # Signed by what only the provider's public key knows (alg HS256), by nothing, and by another of its kinds of keys.
    claims = {"iss": ISSUER, "aud": "images", "preferred_username": "x", "groups": ["alphas"], "exp": now + 600}
    public = house.signing["rsa"].as_pem(private=False)
    unsigned = ".".join(map(encoded, ({"alg": "HS256", "kid": "rsa1"}, claims)))
    mac = base64.urlsafe_b64encode(hmac.digest(public, unsigned.encode(), "sha256")).decode().rstrip("=")
    forged = f"{unsigned}.{mac}"
    nothing = [encoded(one) for one in ({"alg": "none"}, claims)]
    for text, status in (
        (forged, 401),
        (f"{nothing[0]}.{nothing[1]}.", 401),
        (jwt.encode({"alg": "ES256", "kid": "ec1"}, claims, house.signing["ec"]), 200),
        (jwt.encode({"alg": "ES256", "kid": "unknown"}, claims, house.signing["ec"]), 401),
    ):
        assert ask(house, pack, Ticket((("Authorization", f"Bearer {text}"),))).status_code == status


def test_certificates_of_computers_and_of_strangers(house: House) -> None:
    pack = house.tenants.packs["alpha"]
    assert ask(house, pack, Ticket(certificate=house.people.issue("pc1.example.org"))).status_code == 200
    assert ask(house, pack, Ticket(certificate=house.people.issue("pc2.example.org"))).status_code == 401
    try:
        answer = ask(house, pack, Ticket(certificate=house.strangers.issue("alice@example.org")))
        assert answer.status_code == 400  # nginx says in HTTP what others say in TLS
    except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError):
        pass


def test_headers_of_a_proxy_count_from_the_proxy_alone(house: House) -> None:
    """Whoever is not the proxy cannot say for it who he is, nor what is asked about."""
    forged = (
        ("X-Original-URI", "/metadata/1.root.json"),
        ("X-Client-Verify", "SUCCESS"),
        ("X-Client-Cert", Path(house.people.issue("alice@example.org")[0]).read_text().replace("\n", "%0A")),
        ("X-Medv-User", "alice"),
        ("X-Real-IP", "127.0.0.1"),
        ("X-Accel-Redirect", "/medv-objects/images/beta/head.json"),
    )
    pack = house.tenants.packs["beta"]
    text = house.serving.settings
    if house.url == house.serving.url.replace("127.0.0.1", HOST):
        # This client has the proxy's address: only its lack of a secret keeps it apart.
        with (
            Serving(
                house.tenants.root,
                house.serving.log.parent,
                RULES.replace('"127.0.0.1"', '"127.0.0.2"') + f'[tokens]\nfile = "{house.tokens.path}"\n',
            ) as other,
            httpx.Client(trust_env=False) as client,
        ):
            for name in (pack, "_medv/authorise"):
                status = client.get(f"{other.url}/{name}", headers=list(forged)).status_code
                assert status == (401 if name == pack else 404)
    else:
        assert ask(house, pack, Ticket(forged)).status_code == 401
        assert ask(house, "_medv/authorise", Ticket(forged)).status_code == 404
    assert text.rules


def test_roles(house: House) -> None:
    secret, _ = house.tokens.create(user="publisher")
    admin, _ = house.tokens.create(user="root")
    narrow, _ = house.tokens.create(user="root", images=("alpha",))
    time.sleep(0.3)
    tickets = {name: Ticket((("Authorization", f"Bearer {one}"),)) for name, one in
               {"publisher": secret, "root": admin, "narrow": narrow}.items()}  # fmt: skip
    assert ask(house, "profiles/office.bin", tickets["publisher"]).status_code == 200
    assert ask(house, house.tenants.packs["alpha"], tickets["publisher"]).status_code == 200
    assert ask(house, house.tenants.packs["beta"], tickets["publisher"]).status_code == 404
    assert ask(house, house.tenants.packs["beta"], tickets["root"]).status_code == 200
    assert ask(house, house.tenants.packs["beta"], tickets["narrow"]).status_code == 404
    assert ask(house, house.tenants.packs["alpha"], tickets["narrow"]).status_code == 200
    assert Role.of("admin") > Role.of("publish") > Role.READ
    direct = house.serving
    context = ssl.create_default_context(cafile=house.authority.file)
    with httpx.Client(trust_env=False, verify=context) as client:
        url = direct.url.replace("127.0.0.1", HOST) + "/metrics"
        assert client.get(url).status_code == 404
        assert client.get(url, headers=dict(tickets["publisher"].headers)).status_code == 404
        text = client.get(url, headers=dict(tickets["root"].headers)).text
    assert "medv_requests_total{" in text


def test_a_revoked_token_counts_no_more(house: House) -> None:
    secret, entry = house.tokens.create(user="alice")
    ticket = Ticket((("Authorization", f"Bearer {secret}"),))
    time.sleep(0.3)
    pack = house.tenants.packs["alpha"]
    assert ask(house, pack, ticket).status_code == 200
    house.tokens.revoke(entry.id)
    deadline = time.monotonic() + 5
    while ask(house, pack, ticket).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert ask(house, pack, ticket).status_code == 401


def test_no_secret_is_in_the_log(house: House) -> None:
    """After all the tests above; also of what was put into the wrong place."""
    secret, _ = house.tokens.create(user="alice")
    house.secrets.append(secret)
    logs = "".join(log.read_text() for log in house.serving.log.parent.glob("nginx-*/*.log"))
    ask(house, f"images/alpha/{secret}", Ticket((("Authorization", f"Bearer {secret}"),), f"token={secret}"))
    ask(house, f"images/alpha/head.json%3Fmedv={secret}", Ticket())
    ask(house, "images/alpha/head.json", Ticket(query=f"a={secret}"))
    time.sleep(0.3)
    logs += house.serving.log.read_text()
    assert len(house.secrets) > 10
    for one in house.secrets:
        text = one.split("_", 2)[2] if one.startswith("medv_") else one
        assert text not in logs, "a secret is in the log"
