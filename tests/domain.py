"""A domain for tests: a real domain controller of Samba on a loopback address of its own, its users, their tickets."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

REALM, PASSWORD = "MEDV.TEST", "Passw0rd!1"
_SETUP = Path(__file__).with_name("domain_setup.py")
_PYTHON = "/usr/bin/python3"


def missing() -> str:
    """Return what a domain controller lacks here; empty: nothing."""
    if shutil.which("samba", path=_path()) is None:
        return "samba is not installed (Debian: samba-ad-dc samba-ad-provision python3-samba); CI installs it"
    if os.geteuid() != 0:
        return "a domain controller needs ports below 1024: only root can start one; CI does"
    return missing_client()


def missing_client() -> str:
    """Return what a client of Kerberos lacks here; empty: nothing."""
    if find_spec("gssapi") is None:
        return "gssapi is not installed: pip install 'trimtransfer[kerberos]', which needs libkrb5-dev; CI installs it"
    return "" if shutil.which("kinit") else "kinit is not installed (Debian: krb5-user); CI installs it"


class Domain:
    """A running domain controller; a context manager. ``sids`` are those of groups, ``keytabs`` by account."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        number = os.getpid()
        self.address = f"127.{66 + number % 100}.{number // 100 % 250}.6"
        self.sids: dict[str, str] = {}
        self.environment = {"KRB5_CONFIG": str(folder / "krb5.conf")}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Domain:
        environment = {**os.environ, "TDB_NO_FSYNC": "1", "PATH": _path()}
        environment.pop("PYTHONPATH", None)
        command = [_PYTHON, str(_SETUP), str(self.folder / "dc"), self.address]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        self.sids = json.loads(done.stdout.splitlines()[-1])
        self.configure()
        configuration = str(self.folder / "dc/etc/smb.conf")
        with open(self.folder / "dc/samba.log", "wb") as log:
            self._process = subprocess.Popen(
                ["samba", "-F", "-M", "single", "--no-process-group", "-s", configuration, "--debug-stdout"],
                stdout=log, stderr=log, env=environment,
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "dc/samba.log").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the domain controller."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)

    def configure(self, *, address: str = "", skew: int = 300) -> None:
        """Write krb5.conf."""
        (self.folder / "krb5.conf").write_text(
            f"[libdefaults]\ndefault_realm = {REALM}\ndns_lookup_kdc = false\ndns_canonicalize_hostname = false\n"
            f"rdns = false\nudp_preference_limit = 1\nclockskew = {skew}\n"
            f"[realms]\n{REALM} = {{\nkdc = {address or self.address}\n}}\n"
            f"[domain_realm]\n.medv.test = {REALM}\nlocalhost = {REALM}\n127.0.0.1 = {REALM}\n"
        )

    def keytab(self, name: str) -> str:
        """Return the file of a keytab: http, other, pc1, pc2."""
        return str(self.folder / f"dc/{name}.keytab")

    def login(self, who: str, password: str = PASSWORD, *, life: str = "1h", service: str = "") -> str:
        """Return the cache (as KRB5CCNAME has it) of somebody's tickets, or of the only one for a ``service``."""
        cache = f"FILE:{self.folder}/{who.strip('$')}-{time.monotonic_ns()}"
        self._run(["kinit", "-l", life, *(["-S", service] if service else []), "-c", cache, who], password + "\n")
        return cache

    def ticket_for(self, cache: str, service: str) -> None:
        """Have a ticket for a service put into the cache."""
        self._run(["kvno", "-q", "-c", cache, service])

    def token(self, cache: str, service: str = "HTTP@localhost") -> str:
        """Return the Authorization header of one request."""
        return Begun(cache, service).header()

    def _run(self, command: list[str], text: str = "") -> None:
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment, timeout=120)
        if done.returncode:
            raise OSError(done.stderr)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(5)
            return probe.connect_ex((self.address, 88)) == 0


class Begun:
    """The client's side of one proof, step by step; ``complete`` once the server has proven who it is, too."""

    def __init__(self, cache: str, service: str = "HTTP@localhost", flags: int = 2) -> None:
        import gssapi
        from gssapi import raw

        self._creds = raw.acquire_cred_from({b"ccache": cache.encode()}, usage="initiate").creds
        self._target = raw.import_name(service.encode(), gssapi.NameType.hostbased_service)
        self._options = {"mech": gssapi.OID.from_int_seq("1.3.6.1.5.5.2"), "flags": flags}
        self._context: Any = None
        self.token, self.complete = b"", False
        self.step(None)

    def header(self) -> str:
        """Return the Authorization header of the next request."""
        return "Negotiate " + base64.b64encode(self.token).decode()

    def answered(self, header: str) -> bool:
        """Take an answer's WWW-Authenticate in; tell whether it holds the server's proof."""
        kind, _, token = header.partition(",")[0].partition(" ")
        if kind == "Negotiate" and token:
            self.step(base64.b64decode(token))
        return self.complete

    def step(self, token: bytes | None) -> None:
        """Take a token of the server in."""
        from gssapi import raw

        done = raw.init_sec_context(
            self._target, creds=self._creds, context=self._context, input_token=token, **self._options
        )
        self._context, self.token, self.complete = done.context, done.token or b"", not done.more_steps


def shift_clock(cache: str, seconds: int) -> None:
    """Have whoever uses a cache believe that the KDC's clock, by which he goes, is so many seconds ahead of his own:
    the header of the file holds the difference."""
    path = Path(cache.removeprefix("FILE:"))
    data = bytearray(path.read_bytes())
    version, length, tag, size = struct.unpack_from(">HHHH", data)
    assert (version, length, tag, size) == (0x0504, 12, 1, 8)
    struct.pack_into(">ii", data, 8, seconds, 0)
    path.write_bytes(data)


def prolong(cache: str, seconds: int) -> None:
    """Have whoever uses a cache believe that its tickets last longer; what the KDC has sealed in them stays."""
    shown = subprocess.run(["klist", "-c", cache], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    assert shown.returncode == 0
    path = Path(cache.removeprefix("FILE:"))
    data = path.read_bytes()
    now = int(time.time())
    for end in range(now - 600, now + 600):
        # authtime, starttime, endtime: three times in a row, the first two at most an hour ago.
        at = data.find(struct.pack(">I", end))
        while at >= 8:
            begun = struct.unpack_from(">II", data, at - 8)
            if all(end - 7200 <= one <= end for one in begun):
                data = data[:at] + struct.pack(">I", end + seconds) + data[at + 4 :]
            at = data.find(struct.pack(">I", end), at + 4)
    path.write_bytes(data)


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
