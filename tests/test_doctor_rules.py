"""What the doctor decides from what was seen: tables of facts, and that no answer can make it fail."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from caches import only_ipv4
from hypothesis import given
from hypothesis import strategies as st
from servers import MISSING_NGINX, Authority, Nginx, has_nginx

from medv.commands.doctor import _request, _told
from medv.doctor import answers, caching, ranges, samples, wire
from medv.doctor.ailments import AILMENTS, find
from medv.doctor.examination import examine
from medv.doctor.examples import FILES, example
from medv.doctor.finding import SERVERS, Finding, Report, Severity, in_order
from medv.doctor.interview import Interview
from medv.doctor.servers import is_cached, on_the_way, recognise
from trimtransfer.errors import FetchError
from trimtransfer.fetch.approach import Approach
from trimtransfer.fetch.probe import Probe
from trimtransfer.fetch.retry import Cause
from trimtransfer.fetch.seen import AddressSeen, Certificate, Hop, Seen, TlsSeen

URL = "https://images.example.org/packs/x.bin"


@pytest.fixture(autouse=True)
def plain_names(monkeypatch: pytest.MonkeyPatch) -> None:
    only_ipv4(monkeypatch)


def test_the_table_is_complete() -> None:
    for code, known in AILMENTS.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", code)
        assert known.why.endswith("."), code
        assert known.do or known.severity is Severity.NOTE, code
        assert known.exit_code in (4, 5, 6, 8), code
        assert set(known.remedies()) <= set(SERVERS)
    assert {code for code, known in AILMENTS.items() if known.nginx and known.squid} >= {"head-stale", "range-mixed"}


# ---- no answer makes it fail

HEADERS = (
    "age", "cache-control", "content-encoding", "content-length", "content-range", "content-type", "date", "etag",
    "last-modified", "location", "retry-after", "server", "set-cookie", "vary", "via", "www-authenticate", "x-cache",
    "connection",
)  # fmt: skip
VALUES = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["", ",", "=", "max-age=", "max-age=" + "9" * 40, "bytes 0-15/16", "bytes 0-0/*", "9" * 300, "W/", "\u0661",
         "Thu, 01 Jan 9999 00:00:00 -9999", "Mon, 32 Foo 2026 99:99:99 GMT", "Basic realm=", "text/html", "gzip"]
    ),
)  # fmt: skip
SEEN = st.builds(
    Seen,
    name=st.just("packs/x.bin"),
    url=st.just(URL),
    asked=st.one_of(
        st.none(), st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 20)).map(lambda pair: (pair[0], sum(pair)))
    ),
    status=st.one_of(st.none(), st.sampled_from([200, 206, 304, 416]), st.integers(100, 999)),
    headers=st.dictionaries(st.sampled_from(HEADERS), VALUES, max_size=8),
    body=st.one_of(st.binary(max_size=40), st.just(b"<html><title>" + b"x" * 200 + b"</title>")),
    ended=st.booleans(),
    cause=st.one_of(st.none(), st.sampled_from(list(Cause))),
    problem=st.text(max_size=20),
    hops=st.one_of(st.just(()), st.just((Hop(302, URL, "http://other/x", True),))),
    protocol=st.sampled_from(["HTTP/1.0", "HTTP/1.1", "HTTP/2"]),
    opened=st.booleans(),
    seconds=st.floats(0, 100),
    at=st.floats(0, 4e9),
)  # fmt: skip


@given(SEEN, SEEN, st.integers(0, 1 << 41), st.binary(max_size=20), st.booleans())
def test_whatever_a_server_says(one: Seen, other: Seen, total: int, right: bytes, yes: bool) -> None:
    found = [
        *answers.judge_answer(one), *answers.judge_body(one), *answers.judge_head(one), *answers.judge_listing(one),
        *answers.judge_missing(one, admitted=yes), *answers.judge_long_name(one, admitted=yes),
        *answers.judge_private(one, other),
        *answers.judge_blocked(one, kind="bin", names=("bin",)), *answers.judge_openness(one),
        *ranges.judge_range(one, total, right), *ranges.judge_whole(one, total, right),
        *caching.judge_mutable(one), *caching.judge_lasting(one, credentials=yes), *caching.judge_same(one, other),
        *caching.judge_condition(one), *caching.judge_fresh(one, other), *caching.judge_keeping(one, other),
        *caching.judge_way(one), *caching.judge_missing_again(one), *wire.judge_clock(one),
        *wire.judge_connection([one, other]),
        *wire.judge_redirects(one, credentials=yes), *wire.judge_speed([one, other]),
        *wire.judge_addresses([AddressSeen("1", one), AddressSeen("2", other)]),
    ]  # fmt: skip
    if one.asked is not None:
        found += ranges.judge_beyond(one)
    report = Report(url=URL, findings=in_order(found), servers=recognise(one.headers))
    assert len({one.code for one in report.findings}) == len(report.findings)
    assert report.exit_code in (0, 4, 5, 6, 8)
    assert (report.exit_code == 0) == (report.count(Severity.ERROR) == 0)
    assert _told(report).count("\n") < 2000
    assert _request(one)
    severities = [list(Severity).index(known.severity) for known in report.findings]
    assert severities == sorted(severities)


@given(st.text(max_size=100))
def test_cache_control_is_read(value: str) -> None:
    told = caching.directives({"cache-control": value})
    assert told is not None
    assert caching.keeping(told) >= 0


# ---- tables

CACHE_CONTROL = [
    ("no-cache", 0), ("No-Cache, max-age=60", 0), ("max-age=60", 60), ("public,max-age=10, S-MaxAge=99", 99),
    ('max-age="30"', 30), ("max-age=-1", 0), ("private, max-age=5", 0), ("no-store", 0), ("", 0),
    ('no-cache="set-cookie", max-age=7', 0), ("immutable", 0),
]  # fmt: skip


@pytest.mark.parametrize(("value", "seconds"), CACHE_CONTROL)
def test_how_long_caches_keep(value: str, seconds: int) -> None:
    told = caching.directives({"cache-control": value})
    assert told is not None
    assert caching.keeping(told) == seconds


RECOGNISED = [
    ({"server": "nginx/1.22.1"}, ("nginx",)),
    ({"server": "Microsoft-IIS/10.0", "x-powered-by": "ASP.NET"}, ("iis",)),
    ({"server": "AmazonS3", "via": "1.1 abc.cloudfront.net (CloudFront)"}, ("s3",)),
    ({"server": "nginx", "via": "1.1 cache (squid/5.7)", "x-cache": "MISS from cache"}, ("nginx", "squid")),
    ({"server": "MinIO"}, ("s3",)),
    ({"server": "cloudflare", "cf-ray": "1"}, ("cloudflare",)),
    ({"server": "Apache/2.4"}, ("apache",)),
    ({}, ()),
]


@pytest.mark.parametrize(("headers", "names"), RECOGNISED)
def test_servers_are_recognised(headers: dict[str, str], names: tuple[str, ...]) -> None:
    assert recognise(headers) == names


CACHED = [
    ({}, None), ({"age": "0"}, False), ({"age": "12"}, True), ({"x-cache": "MISS from a"}, False),
    ({"x-cache": "HIT from a"}, True), ({"x-cache": "Hit from cloudfront"}, True),
    ({"cf-cache-status": "DYNAMIC"}, False),
    ({"x-cache-status": "HIT"}, True), ({"age": "x"}, False),
]  # fmt: skip


@pytest.mark.parametrize(("headers", "cached"), CACHED)
def test_hits_and_misses(headers: dict[str, str], cached: bool | None) -> None:
    assert is_cached(headers) is cached
    assert bool(on_the_way(headers)) == (cached is not None)


def found_codes(found: object) -> list[str]:
    return [one.code for one in found if isinstance(one, Finding)]  # type: ignore[attr-defined]


LEAF = Certificate(("images.example.org",), "CN=images", "CN=Intermediate", 2e9)
ROOT = Certificate((), "CN=Root", "CN=Root", 3e9)
TLS = [
    (TlsSeen("TLSv1.3", (LEAF, ROOT)), []),
    (TlsSeen("TLSv1.3", ()), []),
    (TlsSeen("TLSv1.3", (LEAF,), 20, "unable to get local issuer certificate"), ["tls-chain"]),
    (TlsSeen("TLSv1.3", (LEAF, ROOT), 20, "unable to get local issuer certificate"), ["tls-authority"]),
    (TlsSeen("TLSv1.3", (ROOT,), 18, "self-signed certificate"), ["tls-authority"]),
    (TlsSeen("TLSv1.3", (LEAF, ROOT), 19, "self-signed certificate in chain"), ["tls-authority"]),
    (TlsSeen("TLSv1.3", (LEAF,), 10, "certificate has expired"), ["tls-expired"]),
    (TlsSeen("TLSv1.3", (), 10, "certificate has expired"), ["tls-expired"]),
    (TlsSeen("TLSv1.3", (LEAF,), 9, "not yet valid"), ["tls-expired"]),
    (TlsSeen("TLSv1.3", (LEAF,), 62, "Hostname mismatch"), ["tls-name"]),
    (TlsSeen("TLSv1.3", (LEAF,), 23, "certificate revoked"), ["tls-certificate"]),
    (TlsSeen("", (), -1, "handshake failure"), ["tls-handshake"]),
]


@pytest.mark.parametrize(("tls", "expected"), TLS)
def test_certificates(tls: TlsSeen, expected: list[str]) -> None:
    assert found_codes(wire.judge_tls(tls, "here", now=1.8e9)) == expected


def test_a_certificate_is_warned_of_a_month_ahead() -> None:
    for days, expected in ((31, []), (29, ["tls-expiring"]), (0.1, ["tls-expiring"])):
        tls = TlsSeen("TLSv1.3", (Certificate((), "", "", 1e9 + days * wire.DAY),))
        assert found_codes(wire.judge_tls(tls, "here", now=1e9)) == expected


def range_seen(start: int, stop: int, **changes: object) -> Seen:
    given = {"status": 206, "body": bytes(stop - start), "ended": True, **changes}
    return Seen("x", URL, (start, stop), **given)  # type: ignore[arg-type]


def test_large_ranges() -> None:
    edge, total = 1 << 32, (1 << 32) + 100
    right = {"content-range": f"bytes {edge - 8}-{edge + 7}/{total}"}
    assert found_codes(ranges.judge_range(range_seen(edge - 8, edge + 8, headers=right), total, bytes(16))) == []
    wrapped = {"content-range": f"bytes 0-7/{total}"}
    for changes in ({"headers": wrapped}, {"status": 416}, {"headers": {"content-range": "bytes -8-7/100"}}):
        found = found_codes(ranges.judge_range(range_seen(edge - 8, edge + 8, **changes), total))
        assert found == ["range-large"], changes
    mixed = range_seen(edge - 8, edge + 8, headers=right, body=b"x" * 16)
    assert found_codes(ranges.judge_range(mixed, total, bytes(16))) == ["range-large"]
    (ignored,) = ranges.judge_range(range_seen(edge - 8, edge + 8, status=200), total)
    assert (ignored.code, ignored.severity) == ("range-ignored", Severity.ERROR)


def test_what_large_files_are_asked_for() -> None:
    assert samples.edges(1 << 31) == []
    assert samples.edges(3 << 30) == [((1 << 31) - 8, (1 << 31) + 8), ((3 << 30) - 16, 3 << 30)]
    assert len(samples.edges(5 << 30)) == 3
    assert all(
        0 <= start < stop <= total for total in (3 << 30, (1 << 32) + 16) for start, stop in samples.edges(total)
    )


def test_limits_of_size() -> None:
    for status in (413, 502, 504):
        assert "size-limit" in found_codes(ranges.judge_whole(Seen("x", URL, status=status), 3_900_000))
    assert found_codes(ranges.judge_whole(Seen("x", URL, status=413), 4000)) == []


def test_clocks() -> None:
    date = {"date": "Sun, 22 Nov 2026 12:00:00 GMT"}
    noon = 1_795_348_800.0
    cases = [(0.0, None), (100, None), (-100, None), (200, "warning"), (-200, "warning"), (2 * 86_400, "error")]
    for off, severity in cases:
        found = list(wire.judge_clock(Seen("x", URL, status=200, headers=date, at=noon + off)))
        assert [one.severity.value for one in found] == ([] if severity is None else [severity])
    kept = {**date, "age": "3600"}
    assert not list(wire.judge_clock(Seen("x", URL, status=200, headers=kept, at=noon + 3600))), "a copy of a cache"


def test_the_gravest_of_each_sort_is_kept() -> None:
    found = in_order(
        [find("speed", "a"), find("cut", "b"), find("cut", "c"), find("speed", "d", severity=Severity.ERROR)]
    )
    assert [(one.code, one.seen) for one in found] == [("speed", "d"), ("cut", "b")]


# ---- examples


@pytest.mark.parametrize("server", FILES)
def test_examples_are_told_by_the_command(server: str) -> None:
    from click.testing import CliRunner

    from medv.cli import medv_repo

    done = CliRunner().invoke(medv_repo, ["doctor", "--example", server])
    assert done.exit_code == 0
    assert done.output == example(server)


def test_what_iis_is_told() -> None:
    root = ElementTree.fromstring(example("iis"))
    web = root.find("system.webServer")
    assert web is not None
    kinds = {entry.get("fileExtension") for entry in web.iterfind("staticContent/mimeMap")}
    assert kinds == {".bin", ".json"}
    compression = web.find("urlCompression")
    assert compression is not None
    assert set(compression.attrib.values()) == {"false"}
    hidden = web.find("security/requestFiltering/hiddenSegments")
    assert hidden is not None
    assert [(one.tag, one.get("segment")) for one in hidden] == [("remove", "bin"), ("add", ".trimtransfer")]
    mutable = web.find("staticContent/clientCache")
    assert mutable is not None
    assert mutable.get("cacheControlMode") == "DisableCache"
    (packs,) = root.iterfind("location")
    assert packs.get("path") == "packs"


# ---- the command, and real files above 4 GiB


@pytest.mark.net
@pytest.mark.skipif(not has_nginx(), reason=MISSING_NGINX)
def test_real_ranges_above_4_GiB(tmp_path: Path, authority: Authority) -> None:
    root = tmp_path / "root"
    root.mkdir()
    total = (5 << 30) + 77
    with open(root / "x.bin", "wb") as file:
        file.truncate(total)
        for start, _ in samples.edges(total):
            file.seek(start)
            file.write(b"0123456789abcdef")
    with (
        Nginx(root, tmp_path, authority) as nginx,
        Probe(Approach(nginx.url, ca_cert=authority.file), budget=1000) as probe,
    ):
        looked = Interview(probe)
        for start, stop in samples.edges(total):
            looked.piece("x.bin", start, stop, total, b"0123456789abcdef")
        assert looked.findings == []
        assert probe.left == 1000 - 48


@pytest.mark.net
@pytest.mark.skipif(not has_nginx(), reason=MISSING_NGINX)
def test_http_where_tls_is_wanted(tmp_path: Path, authority: Authority) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with Nginx(root, tmp_path) as nginx:
        report = examine(nginx.url.replace("http:", "https:"), "disk", ca_cert=authority.file)
    assert [one.code for one in report.findings if one.severity is Severity.ERROR] == ["not-tls"]


def test_what_cannot_be_meant(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from medv.cli import medv_repo

    for arguments in ([], ["ftp://x/", "disk"], ["http://x/", "UPPER"], ["http://x/", "--example", "nginx"]):
        assert CliRunner().invoke(medv_repo, ["doctor", *arguments]).exit_code == 2, arguments
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(FetchError, match=r"ca\.pem"):
        examine("https://localhost/", "disk", ca_cert=str(tmp_path / "ca.pem"))
