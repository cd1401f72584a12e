"""What every server of ours answers, asked by a library or with bytes that no library would send."""

from __future__ import annotations

import socket
import ssl
from urllib.parse import urlsplit

import httpx


def exchange(url: str, ca_cert: str, request: bytes) -> bytes:
    """Send bytes to a server; return what comes back until it closes the connection."""
    parts, trusted = urlsplit(url), ssl.create_default_context(cafile=ca_cert)
    host, port = parts.hostname or "", parts.port or 443
    with (
        socket.create_connection((host, port), timeout=30) as plain,
        trusted.wrap_socket(plain, server_hostname=host) as connection,
    ):
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def check_whole(answer: httpx.Response, data: bytes) -> None:
    """Check the answer to a GET of an object."""
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert not {"content-encoding", "content-range", "server-timing"} & set(answer.headers)


def check_part(answer: httpx.Response, data: bytes, first: int, last: int) -> None:
    """Check the answer to a request for a range of an object."""
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(data)}"
    assert answer.headers["content-length"] == str(last - first + 1)
    assert answer.content == data[first : last + 1]


def check_outside(answer: httpx.Response, data: bytes) -> None:
    """Check the answer to a request for a range that an object does not have."""
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(data)}"
