"""The doctor and real nginx: lines of its configuration that spoil something are found by what they spoil."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from caches import only_ipv4, password_file
from servers import MISSING_NGINX, Authority, Nginx, free_port, has_nginx
from syncing import make_images, publish_all

from medv.doctor.examination import examine
from medv.doctor.finding import Report, Severity

pytestmark = [pytest.mark.net, pytest.mark.skipif(not has_nginx(), reason=MISSING_NGINX)]
SOUND = """
    location ~ /\\. { return 404; }
    location ~ ^/packs/ { add_header Cache-Control "public, max-age=31536000, immutable"; }
    location ~ (manifest|tables|locations|keys).bin$ { add_header Cache-Control "public, max-age=31536000, immutable"; }
    location / { add_header Cache-Control "public, no-cache"; }
"""


@pytest.fixture(autouse=True)
def plain_names(monkeypatch: pytest.MonkeyPatch) -> None:
    only_ipv4(monkeypatch)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("doctor") / "repository"
    publish_all(root, make_images(np.random.default_rng(6)), small_packs=False)
    return root


def look(repository: Path, folder: Path, authority: Authority, *, server: str, http: str = "") -> Report:
    with Nginx(repository, folder, authority, server=server, http=http) as nginx:
        return examine(nginx.url, "disk", ca_cert=authority.file, patience=5)


def codes(report: Report) -> set[str]:
    return {one.code for one in report.findings if one.severity is not Severity.NOTE}


def test_a_sound_one(repository: Path, tmp_path: Path, authority: Authority) -> None:
    report = look(repository, tmp_path, authority, server=SOUND)
    assert codes(report) == set()
    assert report.servers == ("nginx",)


SPOILT = [
    ("", {"head-undeclared", "private-folder"}),
    (SOUND + "max_ranges 0;", {"range-ignored"}),
    (SOUND + "autoindex on;", set()),
    (SOUND + "keepalive_timeout 0;", {"connection-closed"}),
    (SOUND + "error_page 404 =200 /images/disk/head.json;", {"soft-404"}),
    (SOUND + "error_page 404 @gone; location @gone { return 403; }", {"missing-denied"}),
    (SOUND + "etag off; if_modified_since off;", set()),
    ("location / { expires 1d; } location ~ /\\. { return 404; }", {"head-cached", "lasting-short"}),
    ("location / { add_header Content-Encoding gzip; }", {"compressed", "head-undeclared"}),
    (SOUND + "location ^~ /images/ { deny all; }", {"access-denied"}),
    (SOUND.replace("location ~ ^/packs/", "location ~ \\.bin$ { return 404; } location ~ ^/packs/"), {"bin-blocked"}),
    ("location / { return 301 /elsewhere$request_uri; }", {"redirect-refused"}),
    ("location / { return 302 http://localhost/; }", {"redirect-refused"}),
    ("location / { default_type text/html; return 200 '<html><title>Hi</title></html>'; }", {"web-page", "soft-404"}),
    ("location / { return 444; }", {"no-connection"}),
]  # fmt: skip


@pytest.mark.parametrize(("server", "expected"), SPOILT, ids=range(len(SPOILT)))
def test_what_spoils_it(
    repository: Path, tmp_path: Path, authority: Authority, server: str, expected: set[str]
) -> None:
    found = codes(look(repository, tmp_path, authority, server=server))
    assert expected <= found
    assert found if expected else not found


def test_a_limit_that_is_too_tight(repository: Path, tmp_path: Path, authority: Authority) -> None:
    zone = "limit_req_zone $binary_remote_addr zone=tight:1m rate=10r/m;"
    report = look(repository, tmp_path, authority, http=zone, server=SOUND + "limit_req zone=tight burst=3 nodelay;")
    assert "rate-limited" in codes(report)
    assert report.exit_code == 5


def test_passwords(repository: Path, tmp_path: Path, authority: Authority) -> None:
    password_file(tmp_path / "passwd", "branch")
    closed = SOUND + f'auth_basic "images"; auth_basic_user_file {tmp_path}/passwd;'
    with Nginx(repository, tmp_path, authority, server=closed) as nginx:
        report = examine(nginx.url, "disk", ca_cert=authority.file)
        assert (codes(report), report.exit_code) == ({"access-denied"}, 8)
        assert "it wants Basic" in report.findings[0].seen
        known = nginx.url.replace("://", "://branch:origin%20pass@")
        report = examine(known, "disk", ca_cert=authority.file)
        assert (codes(report), report.exit_code) == (set(), 0)


def test_a_cache_that_hands_out_what_it_has(repository: Path, tmp_path: Path, authority: Authority) -> None:
    """nginx as a cache that keeps everything for an hour, whatever anybody says."""
    root = tmp_path / "repository"
    publish_all(root, make_images(np.random.default_rng(8))[:1], small_packs=False)
    with Nginx(root, tmp_path, server=SOUND) as origin:
        cache = f"proxy_cache_path {tmp_path}/kept keys_zone=kept:1m;"
        server = f"""
            location / {{
                proxy_pass http://127.0.0.1:{origin.port}; proxy_cache kept; proxy_cache_valid any 1h;
                proxy_ignore_headers Cache-Control Expires; add_header X-Cache-Status $upstream_cache_status;
            }}
        """
        (tmp_path / "front").mkdir()
        with Nginx(root, tmp_path / "front", authority, http=cache, server=server) as front:
            assert "head-stale" not in codes(examine(front.url, "disk", ca_cert=authority.file))
            publish_all(root, make_images(np.random.default_rng(8))[1:], image="disk2", small_packs=False)
            head = (root / "images/disk2/head.json").read_bytes().replace(b"disk2", b"disk")
            (root / "images/disk/head.json").write_bytes(head)
            report = examine(front.url, "disk", ca_cert=authority.file)
    assert "head-stale" in codes(report)
    assert "HIT" in next(one.seen for one in report.findings if one.code == "head-stale")


def test_a_proxy_whose_server_is_gone(repository: Path, tmp_path: Path, authority: Authority) -> None:
    server = f"location / {{ proxy_pass http://127.0.0.1:{free_port()}; }}"
    report = look(repository, tmp_path, authority, server=server)
    assert "server-error" in codes(report)
    assert "502 Bad Gateway" in report.findings[0].seen
