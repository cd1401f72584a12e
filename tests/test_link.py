"""Metered connections: what NetworkManager's programs say, programs that hang or are not there, and what follows."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from servers import Nginx
from syncing import make_images, publish_all

from trimtransfer.cli.main import main
from trimtransfer.fetch.link import is_metered, parse_busctl, parse_nmcli

WIFI = """GENERAL.STATE:100 (connected)
GENERAL.METERED:{wifi}

GENERAL.STATE:30 (disconnected)
GENERAL.METERED:{other}

GENERAL.STATE:10 (unmanaged)
GENERAL.METERED:unknown
"""
"""As ``nmcli -t -f GENERAL.STATE,GENERAL.METERED device show`` of NetworkManager 1.42 prints it."""


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower() in ("http_proxy", "https_proxy", "all_proxy") or name.startswith("MEDV_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("text", "metered"),
    [
        ("u 0\n", None), ("u 1\n", True), ("u 2", False), ("u 3", True), ("u 4", False), ("u 5", None), ("", None),
        ("s 1", None), ("u one", None), ("u \u0661", None), ("u -1", None), ("u 1 2", None), ("u " + "9" * 5000, None),
    ],
)  # fmt: skip
def test_what_busctl_says(text: str, metered: bool | None) -> None:
    assert parse_busctl(text) is metered


@pytest.mark.parametrize(
    ("wifi", "other", "metered"),
    [
        ("yes", "no", True), ("yes (guessed)", "no", True), ("no (guessed)", "yes", False), ("unknown", "yes", None),
        ("no", "unknown", False), ("", "", None),
    ],
)  # fmt: skip
def test_what_nmcli_says(wifi: str, other: str, metered: bool | None) -> None:
    assert parse_nmcli(WIFI.format(wifi=wifi, other=other)) is metered
    both = WIFI.format(wifi="no", other="no") + WIFI.format(wifi="yes", other="no")
    assert parse_nmcli(both) is True, "one that is metered is enough"


@given(st.text(max_size=200))
def test_any_text_says_something_or_nothing(text: str) -> None:
    assert parse_busctl(text) in (True, False, None)
    assert parse_nmcli("GENERAL.STATE:100\n" + text) in (True, False, None)


class Programs:
    """A folder of programs that stand first, or alone, in the search path."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        folder.mkdir()
        monkeypatch.setenv("PATH", str(folder))

    def add(self, name: str, script: str) -> None:
        """Add a program."""
        path = self._folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    return Programs(tmp_path / "programs", monkeypatch)


def test_programs_are_asked_in_turn(programs: Programs) -> None:
    assert is_metered() is None, "neither is there"
    programs.add("nmcli", "/bin/echo GENERAL.STATE:100; /bin/echo GENERAL.METERED:yes")
    assert is_metered() is True
    programs.add("busctl", "exit 1")
    assert is_metered() is True
    programs.add("busctl", "/bin/echo u 2")
    assert is_metered() is False
    programs.add("busctl", "/bin/echo u 0")
    assert is_metered() is None, "it was there and does not know"
    programs.add("nmcli", "exit 8")
    programs.add("busctl", "echo u 1 >&2; exit 1")
    assert is_metered() is None


def test_a_program_that_hangs_is_left(programs: Programs) -> None:
    programs.add("busctl", "exec /bin/sleep 60")
    begun = time.monotonic()
    assert is_metered() is None
    assert time.monotonic() - begun < 20


def test_without_a_bus_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real programs, where they are installed, and a bus that is not there."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    assert is_metered() is None


class Bus:
    """A D-Bus of one service, NetworkManager, whose property ``Metered`` is ``value``; a context manager.

    Only what busctl needs: SASL EXTERNAL, the call Hello, and an answer to every other call (D-Bus specification,
    "Message Protocol").
    """

    def __init__(self, folder: Path, value: int) -> None:
        self.address = f"unix:path={folder}/bus"
        self.asked = b""
        self._value = value
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{folder}/bus")
        self._listener.listen()

    def __enter__(self) -> Bus:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError, struct.error):
            client, _ = self._listener.accept()
            with client, client.makefile("rwb", buffering=0) as stream:
                self._authenticate(stream)
                self._answer(stream, b"s", _text(":1.7"))
                self._answer(stream, b"v", b"\x01u\x00\x00" + struct.pack("<I", self._value))

    def _authenticate(self, stream: Any) -> None:
        assert stream.read(1) == b"\x00"
        while (line := stream.readline()) and line != b"BEGIN\r\n":
            done = b"OK 0123456789abcdef0123456789abcdef"
            words = {b"AUTH EXTERNAL": b"DATA", b"NEGOTIATE_UNIX_FD": b"ERROR"}
            stream.write(words.get(line.strip(), done) + b"\r\n")

    def _answer(self, stream: Any, signature: bytes, body: bytes) -> None:
        head = _exactly(stream, 16)
        length, serial, fields = struct.unpack("<III", head[4:])
        self.asked += _exactly(stream, -(-fields // 8) * 8 + length)
        told = b"\x05\x01u\x00" + struct.pack("<I", serial) + b"\x08\x01g\x00\x01" + signature + b"\x00\x00"
        told += b"\x07\x01s\x00" + _text("org.freedesktop.DBus")
        message = b"l\x02\x01\x01" + struct.pack("<III", len(body), serial, len(told)) + told
        stream.write(message + bytes(-len(message) % 8) + body)


def _text(text: str) -> bytes:
    return struct.pack("<I", len(text)) + text.encode() + b"\x00"


def _exactly(stream: Any, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := stream.read(size - len(data))):
        data += part
    return data


@pytest.mark.skipif(shutil.which("busctl") is None, reason="busctl (systemd) is not installed")
@pytest.mark.parametrize(("value", "metered"), [(0, None), (1, True), (2, False), (3, True), (4, False)])
def test_what_the_real_busctl_hears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: int, metered: bool | None
) -> None:
    with Bus(tmp_path, value) as bus:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
        assert is_metered() is metered
    assert b"org.freedesktop.NetworkManager\x00" in bus.asked
    assert b"Metered\x00" in bus.asked


@pytest.mark.net
def test_a_metered_connection_limits_what_is_fetched(
    nginx: Nginx, tmp_path: Path, rng: np.random.Generator, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(rng)
    publish_all(nginx.root, images)
    programs.add("busctl", "/bin/echo u 1")
    common = ["--ca-cert", str(nginx.ca_cert), "--cache", str(tmp_path / "cache"), "--no-host-index"]

    def sync(name: str, *options: str, **environment: str) -> Result:
        output = str(tmp_path / name)
        return CliRunner().invoke(main, ["sync", nginx.url, "disk", "-o", output, *common, *options], env=environment)

    assert sync("small.img").exit_code == 0, "a small update passes"
    monkeypatch.setattr("trimtransfer.cli.manners.METERED_BYTES", 100_000)
    refused = sync("refused.img")
    assert refused.exit_code == 10
    assert "at most 100,000 bytes are allowed on a metered connection; allow more with --max-bytes" in refused.stderr
    assert not (tmp_path / "refused.img").exists()
    assert sync("allowed.img", "--max-bytes", "50M").exit_code == 0
    assert sync("denied.img", "--metered", "no").exit_code == 0
    assert sync("variable.img", MEDV_METERED="no").exit_code == 0
    programs.add("busctl", "/bin/echo u 4")
    assert sync("free.img").exit_code == 0
    assert sync("said.img", "--metered", "yes").exit_code == 10
    assert sync("wins.img", "--metered", "yes", MEDV_METERED="no").exit_code == 10
    assert (tmp_path / "free.img").read_bytes() == images[-1]


def test_a_local_repository_costs_nothing(tmp_path: Path, rng: np.random.Generator, programs: Programs) -> None:
    images = make_images(rng)
    publish_all(tmp_path / "repository", images)
    programs.add("busctl", f"/bin/echo asked > {tmp_path}/asked; /bin/echo u 1")
    common = ["--cache", str(tmp_path / "cache"), "--no-host-index", "--metered", "yes"]
    output = tmp_path / "disk.img"
    done = CliRunner().invoke(main, ["sync", str(tmp_path / "repository"), "disk", "-o", str(output), *common])
    assert done.exit_code == 0
    assert not (tmp_path / "asked").exists()


@pytest.mark.net
def test_background_from_the_command(nginx: Nginx, tmp_path: Path, rng: np.random.Generator) -> None:
    """It gives way and ends; in a process of its own, for there is no way back from idle priority."""
    images = make_images(rng)
    publish_all(nginx.root, images)
    output = tmp_path / "disk.img"
    command = [sys.executable, "-m", "trimtransfer", "sync", nginx.url, "disk", "-o", str(output), "--no-host-index"]
    command += ["--ca-cert", str(nginx.ca_cert), "--cache", str(tmp_path / "cache"), "--background", "-v", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert output.read_bytes() == images[-1]
    assert "idle priority for: cpu" in done.stderr
    assert "traffic of others is watched at: lo" in done.stderr
    assert '"rate_bytes_per_second": null' not in done.stdout
