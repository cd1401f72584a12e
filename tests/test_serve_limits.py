"""Slow, greedy and vanishing clients of the embedded server; its end; its log, metrics and health."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gateways import QUICK, Serving, free_port, program
from servers import Authority, wait_for_port

PACK = "packs/ab/ab" + "0" * 62 + ".bin"
DATA = os.urandom(1 << 20) * 24
OPEN = QUICK + '[[rule]]\nimages = ["*"]\nanyone = "anonymous"\n'
STRICT = OPEN + (
    "[limits]\nheader_timeout = 0.7\nbody_timeout = 0.7\nsend_timeout = 0.7\nhandshake_timeout = 0.7\n"
    "connections = 12\nconnections_per_client = 8\nkeep_alive = 2\n"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("limits") / "repository"
    (root / PACK).parent.mkdir(parents=True)
    (root / PACK).write_bytes(DATA)
    (root / "images/x").mkdir(parents=True)
    (root / "images/x/head.json").write_bytes(b"{}")
    return root


@pytest.fixture
def strict(root: Path, tmp_path: Path) -> Iterator[Serving]:
    with Serving(root, tmp_path, STRICT) as server:
        yield server


def connect(server: Serving, request: bytes = b"", *, buffer: int = 0) -> socket.socket:
    """Open a connection and send something."""
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(request)
    return connection


def drain(connection: socket.socket) -> bytes:
    """Read to the end, or to the reset."""
    found = b""
    try:
        while piece := connection.recv(1 << 20):
            found += piece
    except ConnectionError:
        pass
    return found


def cuts(server: Serving) -> str:
    """Return the lines of the metrics about connections that were cut."""
    with httpx.Client(trust_env=False, timeout=30) as client:
        text = client.get(server.metrics).text
    return "\n".join(line for line in text.splitlines() if line.startswith("medv_cut"))


GET = b"GET /" + PACK.encode() + b" HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "],
    ids=["nothing", "half a line", "half a head"],
)
def test_whoever_does_not_end_his_request_is_cut_off(strict: Serving, sent: bytes) -> None:
    with connect(strict, sent) as connection:
        begun = time.monotonic()
        assert drain(connection) == b""
        assert time.monotonic() - begun < 20


def test_a_drip_of_header_lines_makes_no_difference(strict: Serving) -> None:
    with connect(strict, b"GET / HTTP/1.1\r\n") as connection:
        ended = threading.Event()

        def drip() -> None:
            while not ended.is_set():
                try:
                    connection.sendall(b"X: y\r\n")
                except OSError:
                    return
                ended.wait(0.1)

        thread = threading.Thread(target=drip)
        thread.start()
        assert drain(connection) == b""
        ended.set()
        thread.join()


def test_a_body_that_nobody_asked_for_is_not_waited_for(strict: Serving) -> None:
    with connect(strict, GET + b"Content-Length: 1000000\r\n\r\nabc") as connection:
        answer = drain(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    with connect(strict, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n") as connection:
        assert drain(connection).startswith(b"HTTP/1.1 40")


def test_who_does_not_take_his_answer_is_cut_off(root: Path, tmp_path: Path) -> None:
    with (
        Serving(root, tmp_path, STRICT, metrics__listen=f"127.0.0.1:{free_port()}") as server,
        connect(server, GET + b"\r\n", buffer=8192) as connection,
    ):
        connection.recv(1000)
        (line,) = server.wait_for(reason="slow reader")
        assert line["bytes"] < len(DATA)
        assert line["status"] == 200
        assert len(drain(connection)) < len(DATA)
        assert 'cause="slow reader"' in cuts(server)


def test_the_last_bytes_of_an_answer_are_not_waited_for_either(root: Path, tmp_path: Path) -> None:
    """An answer that is shorter than what the server hands over at once."""
    with (
        Serving(root, tmp_path, STRICT, metrics__listen=f"127.0.0.1:{free_port()}") as server,
        connect(server, b"", buffer=4096) as connection,
    ):
        # So many that neither side's kernel can hold them.
        connection.sendall((GET + b"Range: bytes=0-262143\r\n\r\n") * 40)
        deadline = time.monotonic() + 30
        while 'cause="slow reader"' not in cuts(server):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_slow_reader_who_takes_something_is_not_cut_off(strict: Serving) -> None:
    with connect(strict, GET + b"Range: bytes=0-3999999\r\nConnection: close\r\n\r\n", buffer=65536) as connection:
        found = b""
        while piece := connection.recv(200_000):
            found += piece
            time.sleep(0.03)
    assert found.endswith(DATA[:4_000_000])


def test_connections_of_one_client_are_limited(strict: Serving) -> None:
    taken = [connect(strict) for _ in range(8)]
    with connect(strict, GET + b"\r\n") as one_more:
        assert drain(one_more).startswith(b"HTTP/1.1 503 ")
    for connection in taken:
        connection.close()
    deadline = time.monotonic() + 20
    while True:
        with connect(strict, b"GET /images/x/head.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") as again:
            if drain(again).startswith(b"HTTP/1.1 200 "):
                return
        assert time.monotonic() < deadline


def test_requests_of_one_client_are_limited(root: Path, tmp_path: Path) -> None:
    text = OPEN + "[limits]\nrate = 0.1\nburst = 10\n"
    with Serving(root, tmp_path, text) as server, httpx.Client(trust_env=False, timeout=30) as client:
        answers = [client.get(server.url + "/images/x/head.json") for _ in range(14)]
    assert [one.status_code for one in answers[:10]] == [200] * 10
    later = [one for one in answers if one.status_code == 429]
    assert later
    assert all(int(one.headers["retry-after"]) >= 1 for one in later)
    assert server.lines(status=429)


def test_guessing_at_the_metrics_is_limited(root: Path, tmp_path: Path) -> None:
    text = OPEN + "[limits]\nrate = 2\nburst = 4\n"
    with Serving(root, tmp_path, text) as server, httpx.Client(trust_env=False, timeout=30) as client:
        guess = {"Authorization": "Bearer medv_" + "a" * 12 + "_" + "b" * 43}
        found = [client.get(server.url + "/metrics", headers=guess).status_code for _ in range(8)]
    assert found[:4] == [404] * 4
    assert 429 in found


def test_bytes_of_one_client_are_limited(root: Path, tmp_path: Path) -> None:
    text = OPEN + "[limits]\nbytes_per_second = 1000000\n"
    with Serving(root, tmp_path, text) as server, httpx.Client(trust_env=False, timeout=60) as client:
        begun = time.monotonic()
        assert len(client.get(server.url + "/" + PACK, headers={"Range": "bytes=0-3999999"}).content) == 4_000_000
        assert time.monotonic() - begun > 2.0


def test_a_pack_that_shrinks_while_it_is_sent_breaks_the_transfer(root: Path, tmp_path: Path) -> None:
    victim = root / "packs/cd" / ("cd" + "0" * 62 + ".bin")
    victim.parent.mkdir(exist_ok=True)
    victim.write_bytes(DATA)
    with Serving(root, tmp_path, OPEN) as server, httpx.Client(trust_env=False, timeout=30) as client:
        url = f"{server.url}/packs/cd/{victim.name}"
        with client.stream("GET", url) as answer:
            os.truncate(victim, 4096)
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                answer.read()
        assert len(client.get(url).content) == 4096
        assert server.wait_for(status=200, object=f"packs/cd/{victim.name}")


# ---- the end


def test_a_stop_lets_answers_end(root: Path, tmp_path: Path) -> None:
    text = OPEN.replace("grace = 5", "grace = 60")
    with Serving(root, tmp_path, text) as server, connect(server, GET + b"\r\n", buffer=65536) as connection:
        found = connection.recv(1000)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        time.sleep(0.3)
        found += drain(connection)
        stopping.join()
        assert found.endswith(DATA[-1000:])
        assert len(found) > len(DATA)
        with pytest.raises(ConnectionError):
            connect(server)


def test_a_stop_cuts_what_does_not_end(root: Path, tmp_path: Path) -> None:
    text = OPEN.replace("grace = 5", "grace = 1") + "[limits]\nsend_timeout = 60\n"
    with Serving(root, tmp_path, text) as server, connect(server, GET + b"\r\n", buffer=4096) as connection:
        connection.recv(1000)
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 30
        assert len(drain(connection)) < len(DATA)
        assert server.lines(event="stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program_ends_in_order(root: Path, tmp_path: Path, number: int) -> None:
    port = free_port()
    with program("serve", str(root), "--listen", f"127.0.0.1:{port}", "--json") as process:
        wait_for_port(port)
        with httpx.Client(trust_env=False, timeout=60) as client:
            assert client.get(f"http://127.0.0.1:{port}/readyz").json() == {"status": "ready"}
            assert client.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
        process.send_signal(number)
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert json.loads(out) == {"stopped": True}
    assert "NO ACCESS CONTROL" in errors
    assert '"event": "stopped"' in errors


def test_beyond_this_machine_nothing_is_open_by_accident(root: Path) -> None:
    with program("serve", str(root), "--listen", f"0.0.0.0:{free_port()}") as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "every image" in errors
    assert "--anonymous" in errors


def test_a_unix_socket_left_behind_is_no_obstacle(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "serve.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with Serving(root, tmp_path, OPEN, server__listen=f"unix:{path}") as server:
        assert server.url == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, timeout=30) as client:
            assert client.get("http://x/images/x/head.json").status_code == 200
        with (
            pytest.raises(OSError, match="cannot listen"),
            Serving(root, tmp_path, OPEN, server__listen=f"unix:{path}"),
        ):
            pass


# ---- log, metrics, health


def test_the_log_tells_what_happened(root: Path, tmp_path: Path) -> None:
    with Serving(root, tmp_path, OPEN) as server, httpx.Client(trust_env=False, timeout=30) as client:
        answer = client.get(f"{server.url}/{PACK}?medv=s3cret", headers={"Range": "bytes=0-99"})
        assert answer.status_code == 206, "nobody signs here: the query means nothing"
    (line,) = server.lines(event="request")
    assert line["id"] == answer.headers["x-request-id"]
    assert (line["client"], line["method"], line["object"], line["range"]) == ("127.0.0.1", "GET", PACK, "bytes=0-99")
    assert line["seconds"] >= 0
    assert "s3cret" not in server.log.read_text()


def test_metrics_and_readiness(root: Path, tmp_path: Path) -> None:
    with (
        Serving(root, tmp_path, OPEN, metrics__listen=f"127.0.0.1:{free_port()}") as server,
        httpx.Client(trust_env=False, timeout=30) as client,
    ):
        client.get(f"{server.url}/{PACK}", headers={"Range": "bytes=0-99"})
        text = client.get(server.metrics).text
        assert 'medv_requests_total{kind="packs",status="206"} 1.0' in text
        assert "medv_sent_bytes_total 100.0" in text
        assert client.get(server.metrics.replace("/metrics", "/other")).status_code == 404
        assert client.get(server.url + "/metrics").status_code == 404
        (root / "images").rename(root / "away")
        try:
            server.wait_for(level="error")
            assert client.get(server.url + "/readyz").status_code == 503
        finally:
            (root / "away").rename(root / "images")
        deadline = time.monotonic() + 20
        while client.get(server.url + "/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_renewed_certificate_is_taken_up(root: Path, tmp_path: Path, authority: Authority) -> None:
    import shutil
    import ssl

    with Serving(root, tmp_path, OPEN, authority=authority) as server:

        def serial() -> str:
            context = ssl.create_default_context(cafile=authority.file)
            with (
                socket.create_connection(("127.0.0.1", server.port), 20) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as connection,
            ):
                found = connection.getpeercert()
                assert found is not None
                return str(found["serialNumber"])

        before = serial()
        chain, key = authority.issue()
        for new, old in ((chain, server.settings.tls.cert), (key, server.settings.tls.key)):
            shutil.copy(new, old + ".new")
        os.replace(server.settings.tls.key + ".new", server.settings.tls.key)
        os.replace(server.settings.tls.cert + ".new", server.settings.tls.cert)
        deadline = time.monotonic() + 20
        while serial() == before:
            assert time.monotonic() < deadline
            time.sleep(0.1)
