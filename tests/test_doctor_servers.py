"""The doctor and bad servers: each fault that shows from outside is found, by its name."""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caches import only_ipv4
from servers import BadServer, Fault, Request
from syncing import make_images, publish_all

from medv.doctor.ailments import AILMENTS
from medv.doctor.examination import examine
from medv.doctor.finding import Report, Severity
from trimtransfer.chunk import object_digest
from trimtransfer.repository.mirrors import set_mirrors
from trimtransfer.store import DirectoryStore

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
Change = Callable[[Request, Fault, bytes | None], Fault | None]
LASTING = re.compile(r"/packs/|/(?:manifest|tables|locations|keys)\.bin$")
PAGE = b"<!DOCTYPE html><html><head><title>Please log in</title></head></html>"
IIS = b"<html><head><title>IIS 10.0 Detailed Error - 404.3 - Not Found</title></head></html>"


@pytest.fixture(autouse=True)
def plain_names(monkeypatch: pytest.MonkeyPatch) -> None:
    only_ipv4(monkeypatch)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("doctor") / "repository"
    publish_all(root, make_images(np.random.default_rng(5)), small_packs=False)
    return root


def objects_in(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".trimtransfer" not in path.parts
    }


def sound(request: Request, data: bytes | None) -> Fault:
    """What a server without faults answers."""
    headers: dict[str, str | None] = {"Date": formatdate(usegmt=True)}
    if data is None:
        return Fault(headers=headers)
    lasting = LASTING.search(request.target.partition("?")[0])
    headers["ETag"] = f'"{object_digest(data).hex()[:16]}"'
    headers["Cache-Control"] = "public, max-age=31536000, immutable" if lasting else "public, no-cache"
    if request.get("if-none-match") == headers["ETag"]:
        return Fault(status=304, headers=headers, body=b"")
    return Fault(headers=headers)


def serving(objects: dict[str, bytes], change: Change, **options: Any) -> BadServer:
    """Return a server that answers right, but for what ``change`` makes of an answer."""

    def script(request: Request, turn: int) -> Fault:
        data = objects.get(request.target.partition("?")[0].lstrip("/"))
        good = sound(request, data)
        return change(request, good, data) or good

    return BadServer(objects, script, **options)


def look(root: Path, change: Change, *, credentials: str = "", image: str | None = "disk", **options: Any) -> Report:
    options = {"patience": 5.0, **options}
    with serving(objects_in(root), change) as server:
        return examine(server.url.replace("://", f"://{credentials}"), image, **options)


def codes(report: Report, *severities: Severity) -> set[str]:
    return {one.code for one in report.findings if not severities or one.severity in severities}


def test_a_sound_server(repository: Path) -> None:
    report = look(repository, lambda request, good, data: None, source=DirectoryStore(repository))
    assert codes(report) == {"speed"}, report.findings
    assert report.exit_code == 0
    assert report.requests < 40
    assert report.bytes < 1 << 20
    assert (report.facts["image"], report.facts["version"]) == ("disk", "2")


# ---- one fault each


def add(**headers: str | None) -> Change:
    """Set header lines (``_`` for ``-``) of whatever is there."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request, good, data: replace(good, headers={**good.headers, **named}) if data is not None else None


def on(pattern: str, **changes: Any) -> Change:
    """Answer otherwise for objects whose target has a pattern; ``headers`` are added."""

    def change(request: Request, good: Fault, data: bytes | None) -> Fault | None:
        if not re.search(pattern, request.target):
            return None
        return replace(good, **{**changes, "headers": {**good.headers, **changes.get("headers", {})}})

    return change


def on_ranges(change: Change) -> Change:
    return lambda request, good, data: change(request, good, data) if request.range and data is not None else None


def missing(**changes: Any) -> Change:
    """Answer otherwise for what is not there."""
    return lambda request, good, data: replace(good, **changes) if data is None else None


def head_only(pattern: str, **headers: str | None) -> Change:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return on(pattern, headers=named)


def shortened(request: Request, good: Fault, data: bytes | None) -> Fault | None:
    if not request.range or data is None or request.range[1] - request.range[0] < 4096:
        return None
    first = request.range[0]
    told = {"Content-Range": f"bytes {first}-{first + 2047}/{len(data)}"}
    return replace(good, body=data[first : first + 2048], headers={**good.headers, **told})


def compressed(request: Request, good: Fault, data: bytes | None) -> Fault | None:
    if data is None:
        return None
    return replace(good, status=200, body=gzip.compress(data), headers={**good.headers, "Content-Encoding": "gzip"})


def stale(request: Request, good: Fault, data: bytes | None) -> Fault | None:
    """A cache that obeys ``no-cache``, and without it hands out an old head."""
    if not request.target.endswith("head.json") or request.get("cache-control") or request.get("if-none-match"):
        return None
    return replace(good, body=b"{}", headers={**good.headers, "Age": "7200", "Via": "1.1 old (squid/5.7)"})


def stubborn(request: Request, good: Fault, data: bytes | None) -> Fault | None:
    """A cache that obeys nothing: only another URL gets the new head. (Here: an equal one with a space at its end.)"""
    if "head.json?" not in request.target or data is None:
        return None
    return replace(good, body=data + b" ")


def changing(request: Request, good: Fault, data: bytes | None) -> Fault | None:
    return replace(good, headers={**good.headers, "ETag": f'"{time.monotonic_ns()}"'}) if data is not None else None


def masked_unless_asked_otherwise(request: Request, good: Fault, data: bytes | None) -> Fault | None:
    if "manifest.bin" not in request.target or "?" in request.target or request.range:
        return None
    return replace(good, mask=1)


def in_days(days: float) -> str:
    return formatdate(time.time() + days * 86_400, usegmt=True)


def beyond_as_whole(request: Request, good: Fault, data: bytes | None) -> Fault | None:
    if data is None or not request.range or request.range[0] < len(data):
        return None
    return replace(good, status=200, body=data, headers={**good.headers, "Content-Range": None})


def of_old(request: Request, good: Fault, data: bytes | None) -> Fault | None:
    """HTTP/1.0, with ranges all the same."""
    status, body, told = (404, b"", "") if data is None else (200, data, "")
    if data is not None and request.range:
        first, last = request.range
        status, body, told = 206, data[first : last + 1], f"Content-Range: bytes {first}-{last}/{len(data)}\r\n"
        status = 206 if body else 416
    told += "".join(f"{name}: {value}\r\n" for name, value in good.headers.items())
    return Fault(raw=f"HTTP/1.0 {status} X\r\nContent-Length: {len(body)}\r\n{told}\r\n".encode() + body)


def always_200(request: Request, good: Fault, data: bytes | None) -> Fault | None:
    return replace(good, status=200, body=data) if good.status == 304 else None


WHOLE_PACK = r"^/packs/(?!00)"
ONE_FAULT: list[tuple[str, Severity, Change]] = [
    ("range-ignored", WARNING, on(".", ignore_range=True)),
    ("range-wrong", ERROR, on_ranges(on(".", shift=1))),
    ("range-wrong", ERROR, on_ranges(add(Content_Range=None))),
    ("range-wrong", ERROR, on_ranges(add(Content_Range="bytes 0-15/99"))),
    ("range-wrong", WARNING, on_ranges(on(".", longer=5))),
    ("range-mixed", ERROR, on_ranges(on(r"\.bin", mask=1))),
    ("damaged", ERROR, on_ranges(on(WHOLE_PACK, mask=1))),
    ("damaged", ERROR, on_ranges(on("locations", mask=1))),
    ("damaged", ERROR, on("manifest", mask=1)),
    ("damaged", ERROR, on("head.json", body=b'{"format": 1}')),
    ("damaged", ERROR, on("head.json", body=b"\xff" * 500)),
    ("damaged-in-cache", ERROR, masked_unless_asked_otherwise),
    ("range-short", WARNING, shortened),
    ("cut", ERROR, on("manifest", cut=100)),
    ("cut", ERROR, on("head", cut=100, reset=True)),
    ("stalled", ERROR, on("manifest", stall=10)),
    ("stalled", ERROR, on("head", drip=0.3)),
    ("compressed", ERROR, compressed),
    ("compressed", ERROR, on(r"\.bin$", headers={"Content-Encoding": "br"})),
    ("text-type", NOTE, add(Content_Type="text/plain; charset=utf-8")),
    ("web-page", ERROR, on(".", status=200, body=PAGE, headers={"Content-Type": "text/html"})),
    ("web-page", ERROR, on("manifest", status=200, body=PAGE)),
    ("head-missing", ERROR, on("head.json", status=404, body=b"")),
    ("bin-blocked", ERROR, on(r"\.bin$", status=404, body=IIS, headers={"Server": "Microsoft-IIS/10.0"})),
    ("bin-blocked", ERROR, on(WHOLE_PACK, status=404, body=b"")),
    ("json-blocked", ERROR, on(r"\.json", status=404, body=IIS, headers={"Server": "Microsoft-IIS/10.0"})),
    ("access-denied", ERROR, on(".", status=401, body=b"", headers={"WWW-Authenticate": "Negotiate"})),
    ("access-denied", ERROR, on(".", status=403, body=b"")),
    ("proxy-denied", ERROR, on(".", status=407, body=b"")),
    ("rate-limited", ERROR, on(".", status=429, body=b"", headers={"Retry-After": "7"})),
    ("rate-limited", ERROR, on("packs", status=503, body=b"")),
    ("server-error", ERROR, on(".", status=502, body=PAGE)),
    ("refused", ERROR, on(".", status=405, body=b"")),
    ("redirect-refused", ERROR, on(".", status=302, headers={"Location": "/again"})),
    ("redirect-refused", ERROR, on(".", status=302, headers={"Location": "ftp://x/"})),
    ("redirect-refused", ERROR, on(".", status=302)),
    ("redirect", NOTE, on(r"/disk/head\.json$", status=301, headers={"Location": "/images/disk/head.json?x"})),
    ("connection-closed", WARNING, on(".", headers={"Connection": "close"})),
    ("old-http", WARNING, of_old),
    ("clock-skew", WARNING, on(".", headers={"Date": in_days(0.1)})),
    ("clock-skew", ERROR, on(".", headers={"Date": in_days(-400)})),
    ("no-date", NOTE, on(".", headers={"Date": None})),
    ("no-date", NOTE, on(".", headers={"Date": "yesterday"})),
    ("soft-404", WARNING, missing(status=200, body=PAGE)),
    ("missing-denied", WARNING, missing(status=403, body=b"")),
    ("missing-odd", ERROR, missing(status=500, body=b"")),
    ("missing-odd", WARNING, missing(status=451, body=b"")),
    ("long-name-refused", WARNING, on("iiii", status=414, body=b"")),
    ("listing", NOTE, on("^/images/$", status=200, body=b"<html><title>Index of /images/</title></html>")),
    ("private-folder", WARNING, on("trimtransfer/lock", status=200, body=b"")),
    ("head-stale", ERROR, stale),
    ("head-stale", ERROR, stubborn),
    ("head-undeclared", WARNING, head_only(r"\.json", Cache_Control=None)),
    ("head-undeclared", WARNING, head_only(r"\.json", Cache_Control="public")),
    ("head-cached", WARNING, head_only(r"\.json", Cache_Control="max-age=60")),
    ("head-cached", ERROR, head_only(r"\.json", Cache_Control="public, max-age=0, s-maxage=86400")),
    ("lasting-undeclared", NOTE, head_only(r"\.bin", Cache_Control=None)),
    ("lasting-short", WARNING, head_only(r"\.bin", Cache_Control="max-age=60")),
    ("lasting-forbidden", WARNING, head_only(r"\.bin", Cache_Control="private, max-age=31536000")),
    ("no-validator", WARNING, add(ETag=None)),
    ("weak-validator", NOTE, add(ETag='W/"1"')),
    ("validator-changes", WARNING, changing),
    ("unconditional", NOTE, always_200),
    ("vary", WARNING, add(Vary="Accept-Encoding, Cookie")),
    ("cookie", WARNING, add(Set_Cookie="session=1; path=/")),
    ("not-kept", WARNING, add(X_Cache="MISS from branch", Via="1.1 branch (squid/5.7)")),
    ("missing-kept", WARNING, missing(headers={"Age": "3", "X-Cache": "HIT from here"})),
    ("cache-seen", NOTE, add(X_Cache="HIT from branch", Age="5")),
    ("whole-wrong", ERROR, on(WHOLE_PACK + "(?!.*x)", body=b"TrimPack" + bytes(500))),
    ("no-length", NOTE, on(r"\.bin", chunked=True)),
    ("range-beyond", NOTE, beyond_as_whole),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "severity", "change"), ONE_FAULT, ids=[f"{n}-{code}" for n, (code, *_) in enumerate(ONE_FAULT)]
)
def test_one_fault(repository: Path, code: str, severity: Severity, change: Change) -> None:
    report = look(repository, change, patience=3)
    found = {one.code: one for one in report.findings}
    assert code in found, list(found)
    assert found[code].severity is severity
    assert found[code].seen
    assert (report.exit_code != 0) == (ERROR in {one.severity for one in report.findings})
    if severity is ERROR:
        errors = [one for one in report.findings if one.severity is ERROR]
        assert report.exit_code in {one.ailment.exit_code for one in errors}
    else:
        assert report.exit_code == 0, codes(report, ERROR)


OTHERWISE = {
    "proxy-environment", "unencrypted", "name-unknown", "no-connection", "address-silent", "address-differs", "not-tls",
    "tls-handshake", "tls-expired", "tls-name", "tls-chain", "tls-authority", "tls-expiring", "redirect-elsewhere",
    "speed", "not-examined", "given-up", "open-despite-credentials", "no-image", "name-blocked", "source-differs",
    "not-public", "range-large", "size-limit", "mirror-fails",
}  # fmt: skip
"""What tests below, and in other files, are about."""


def test_every_ailment_has_a_test() -> None:
    assert {code for code, *_ in ONE_FAULT} | OTHERWISE == AILMENTS.keys() - {"tls-certificate"}


def test_exit_codes(repository: Path) -> None:
    cases = {4: on(".", status=404), 6: on("manifest", mask=1), 8: on(".", status=403), 5: on("manifest", cut=1)}
    for exit_code, change in cases.items():
        assert look(repository, change).exit_code == exit_code


def test_the_command(repository: Path) -> None:
    from click.testing import CliRunner

    from medv.cli import medv_repo

    with serving(objects_in(repository), lambda *_: None) as server:
        done = CliRunner().invoke(medv_repo, ["doctor", server.url, "disk", "--source", str(repository), "-v"])
        assert done.exit_code == 0, done.output
        assert "Sound: 0 errors, 0 warnings" in done.output
        assert done.output.count("GET http") == len(server.requests)
    with serving(objects_in(repository), on(r"\.bin", headers={"Server": "nginx/1.22"}, mask=1)) as server:
        arguments = ["doctor", server.url.replace("://", "://user:secret@"), "disk"]
        told = CliRunner().invoke(medv_repo, arguments)
        assert told.exit_code == 6
        assert "ERROR damaged: " in told.output
        assert "nginx: " in told.output
        assert "iis: " not in told.output, "remedies for the server that was recognised"
        assert "secret" not in told.output
        done = CliRunner().invoke(medv_repo, [*arguments, "--json", "--no-progress"])
        facts = json.loads(done.stdout)
        assert done.exit_code == 6
        assert not facts["sound"]
        assert facts["servers"] == ["nginx"]
        assert facts["findings"][0]["code"] == "damaged"
        assert set(facts["findings"][0]) == {"code", "severity", "seen", "why", "remedy", "remedies"}
        assert "secret" not in done.output


# ---- credentials, names, sources


def test_credentials_that_are_not_needed(repository: Path) -> None:
    report = look(repository, lambda *_: None, credentials="user:pass@")
    assert codes(report, WARNING) == {"open-despite-credentials"}


def test_credentials_and_caches(repository: Path) -> None:
    def closed(request: Request, good: Fault, data: bytes | None) -> Fault | None:
        if not request.get("authorization"):
            return replace(good, status=401, body=b"")
        return head_only(r"\.bin", Cache_Control="max-age=31536000")(request, good, data)

    report = look(repository, closed, credentials="user:pass@")
    assert codes(report) == {"not-public", "speed"}


def test_schemes_are_told(repository: Path) -> None:
    header = {"WWW-Authenticate": 'Negotiate, Bearer realm="x, y", scope="a b", Basic realm="z"'}
    report = look(repository, on(".", status=401, headers=header))
    assert "it wants Negotiate, Bearer, Basic" in report.findings[0].seen


def test_credentials_lost_by_a_redirect(repository: Path) -> None:
    def closed(request: Request, good: Fault, data: bytes | None) -> Fault | None:
        return None if request.get("authorization") else replace(good, status=401, body=b"")

    with serving(objects_in(repository), closed, address="127.0.0.2") as target:

        def away(request: Request, good: Fault, data: bytes | None) -> Fault | None:
            return replace(good, status=302, headers={"Location": f"http://127.0.0.2:{target.port}{request.target}"})

        report = look(repository, away, credentials="user:pass@")
    assert codes(report, ERROR) == {"access-denied", "redirect-elsewhere"}


def test_a_portal(repository: Path) -> None:
    with BadServer({}, lambda request, turn: Fault(status=200, body=PAGE), address="127.0.0.2") as portal:
        to_portal = on(".", status=302, headers={"Location": f"http://127.0.0.2:{portal.port}/login"})
        report = look(repository, to_portal)
    assert "web-page" in codes(report, ERROR)
    assert '"Please log in"' in next(one.seen for one in report.findings if one.code == "web-page")


def test_without_an_image(repository: Path) -> None:
    report = look(repository, lambda *_: None, image=None)
    assert codes(report) == {"no-image"}


def test_an_image_is_found_by_the_source_or_by_signed_metadata(repository: Path) -> None:
    report = look(repository, lambda *_: None, image=None, source=DirectoryStore(repository))
    assert report.facts["image"] == "disk"
    meta = {"timestamp.json": {"snapshot.json": {"version": 7}}, "7.snapshot.json": {"image-disk.json": {"version": 2}}}
    signed = {
        f"metadata/{name}": json.dumps({"signatures": [], "signed": {"meta": {"targets.json": {}, **told}}}).encode()
        for name, told in meta.items()
    }
    with serving({**objects_in(repository), **signed}, lambda *_: None) as server:
        report = examine(server.url)
    assert (report.facts["image"], codes(report)) == ("disk", {"speed"})
    for broken in (b"{", b"[]", b'{"signed": {"meta": {"snapshot.json": {"version": "../x"}}}}'):
        with serving(
            {**objects_in(repository), **signed, "metadata/timestamp.json": broken}, lambda *_: None
        ) as server:
            assert "no-image" in codes(examine(server.url))


def test_nothing_of_a_server_reaches_the_terminal_raw(repository: Path) -> None:
    page = b"<html><title>\x1b[31mred\x07</title>"
    report = look(repository, on(".", status=502, body=page, headers={"Server": "nginx"}))
    assert "?[31mred?" in report.findings[0].seen


def test_mirrors(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    publish_all(root, make_images(np.random.default_rng(5)), small_packs=False)
    objects = objects_in(root)
    lying = on("packs/", mask=1)
    with (
        serving(objects, lambda *_: None) as good,
        serving({}, lambda *_: None) as empty,
        serving(objects, lying) as bad,
    ):
        for servers, expected in (((good,), 0), ((good, empty), 1), ((bad,), 1)):
            set_mirrors(root, [server.url for server in servers])
            report = look(root, lambda *_: None, credentials="user:pass@", budget=4 << 20)
            found = [one.seen for one in report.findings if one.code == "mirror-fails"]
            assert len(found) == expected
            assert report.exit_code == 0
            if found:
                assert servers[-1].url in found[0]
        assert all(request.get("authorization") is None for request in good.requests)


def test_a_name_that_iis_hides(tmp_path: Path) -> None:
    publish_all(tmp_path / "repository", [b"x" * 10_000], image="bin")
    report = look(tmp_path / "repository", on("/bin/1/", status=404, body=IIS), image="bin")
    assert codes(report, ERROR) == {"name-blocked"}
    assert report.exit_code == 4


def test_a_server_that_is_behind_its_source(repository: Path, tmp_path: Path) -> None:
    publish_all(tmp_path / "repository", [b"x" * 10_000])
    report = look(tmp_path / "repository", lambda *_: None, source=DirectoryStore(repository))
    assert codes(report, ERROR) == {"source-differs"}
    assert "1 (number 1) here, 2 (number 2) published" in report.findings[0].seen


def test_json_that_is_blocked_is_told_from_nothing_by_the_source(repository: Path) -> None:
    blocked = on(r"\.json", status=404, body=b"")
    assert codes(look(repository, blocked), ERROR) == {"head-missing"}
    assert codes(look(repository, blocked, source=DirectoryStore(repository)), ERROR) == {"json-blocked"}


def test_the_budget_holds(repository: Path) -> None:
    report = look(repository, lambda *_: None, budget=2000)
    assert "not-examined" in codes(report)
    assert report.bytes < 2000 + (64 << 10)


@pytest.mark.parametrize(
    "endless", [b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 60_000, b"HTTP/1.1 200 OK\r\nX: ", b"\x00" * 999]
)
def test_answers_without_end(repository: Path, endless: bytes) -> None:
    begun = time.monotonic()
    report = look(repository, on(".", endless=endless), patience=2.0)
    assert report.exit_code != 0
    assert report.bytes <= (1 << 20) + (64 << 10)
    assert time.monotonic() - begun < 40


def test_it_gives_up_where_nothing_answers(repository: Path) -> None:
    begun = time.monotonic()
    report = look(repository, on("(manifest|pack|doctor|ii)", stall=-1), patience=1.0)
    assert {"stalled", "given-up"} <= codes(report)
    assert time.monotonic() - begun < 30


# ---- signed metadata


def test_the_timestamp_of_signed_metadata(repository: Path) -> None:
    objects = {**objects_in(repository), "metadata/timestamp.json": b'{"signed": {}}'}
    with serving(objects, head_only("timestamp", Cache_Control="max-age=7200")) as server:
        report = examine(server.url, "disk")
    assert codes(report, ERROR) == {"head-cached"}


# ---- the way there


def test_names_and_ports(repository: Path) -> None:
    assert codes(examine("http://nothing.invalid/", "disk")) >= {"name-unknown", "unencrypted"}
    with serving({}, lambda *_: None) as server:
        port = server.port
    report = examine(f"http://localhost:{port}", "disk")
    assert (codes(report, ERROR), report.exit_code) == ({"no-connection"}, 5)


def test_a_proxy_of_the_environment(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name)
    with serving({}, lambda *_: None) as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:secret@localhost:{proxy.port}")
        report = examine("http://images.example.org/", "disk")
    found = {one.code: one.seen for one in report.findings}
    assert f"localhost:{proxy.port}" in found["proxy-environment"]
    assert "secret" not in str(report.to_dict())
    assert "head-missing" in found
    assert report.facts["proxy"] == f"http://localhost:{proxy.port}"


@pytest.fixture
def two_addresses(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name with two addresses."""
    import socket

    resolve = socket.getaddrinfo

    def both(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host != "farm.example.org":
            return resolve(host, port, *arguments, **options)
        return [entry for one in ("127.0.0.1", "127.0.0.2") for entry in resolve(one, port, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    return "farm.example.org"


def test_addresses_of_a_farm(repository: Path, two_addresses: str) -> None:
    objects = objects_in(repository)
    with serving(objects, lambda *_: None) as one:
        report = examine(f"http://{two_addresses}:{one.port}", "disk")
        assert "address-silent" in codes(report, WARNING)
        assert report.exit_code == 0
    older = {**objects, "images/disk/head.json": b"{}"}
    for other in (older, objects):
        with (
            serving(objects, lambda *_: None) as one,
            serving(other, lambda *_: None, address="127.0.0.2", port=one.port),
        ):
            report = examine(f"http://{two_addresses}:{one.port}", "disk")
            assert report.facts["addresses"] == ["127.0.0.1", "127.0.0.2"]
            assert codes(report, ERROR) == ({"address-differs"} if other is older else set())


# ---- TLS


def tls_codes(repository: Path, context: Any, ca_cert: str | None) -> set[str]:
    with serving(objects_in(repository), lambda *_: None, tls=context) as server:
        return codes(examine(server.url, "disk", ca_cert=ca_cert, patience=5), ERROR, WARNING)


def test_certificates(repository: Path, authority: Any, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    assert tls_codes(repository, authority.context(), authority.file) == set()
    expired = authority.context(not_after=now - timedelta(days=1))
    assert tls_codes(repository, expired, authority.file) == {"tls-expired"}
    ending = authority.context(not_after=now + timedelta(days=9, hours=1))
    assert tls_codes(repository, ending, authority.file) == {"tls-expiring"}
    assert tls_codes(repository, authority.context("other.example.org"), authority.file) == {"tls-name"}
    assert tls_codes(repository, authority.context(), None) == {"tls-chain"}


def test_an_own_authority_whose_chain_is_sent(repository: Path, tmp_path: Path) -> None:
    import ssl

    import trustme

    root = trustme.CA()
    middle = root.create_child_ca()
    issued = middle.issue_cert("localhost")
    whole, alone, key = tmp_path / "whole.pem", tmp_path / "alone.pem", tmp_path / "key.pem"
    issued.private_key_pem.write_to_path(key)
    issued.cert_chain_pems[0].write_to_path(alone)
    for number, blob in enumerate((*issued.cert_chain_pems, root.cert_pem)):
        blob.write_to_path(whole, append=number > 0)
    root.cert_pem.write_to_path(tmp_path / "root.pem")

    def context(chain: Path) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(chain, key)
        return made

    assert tls_codes(repository, context(whole), None) == {"tls-authority"}
    assert tls_codes(repository, context(alone), str(tmp_path / "root.pem")) == {"tls-chain"}
    assert tls_codes(repository, context(whole), str(tmp_path / "root.pem")) == set()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_speaks_an_old_tls(repository: Path, authority: Any) -> None:
    import ssl

    old = authority.context()
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    assert tls_codes(repository, old, authority.file) == {"tls-handshake"}
