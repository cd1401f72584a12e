"""Real servers that run the configurations which are shipped: nginx as the origin, Squid as a branch's cache.

Only names, paths, ports and sizes of caches are others than printed; a name that is not there fails the test.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from servers import Authority, Nginx, free_port

from medv.doctor.examples import example

MISSING_SQUID = "squid is not installed (Debian: apt install squid); CI installs it"
WORDS = {"branch": "origin pass", "client": "client:p@ss"}
"""Names and passwords: ``branch`` at the origin, ``client`` at the cache."""


def has_squid() -> bool:
    """Tell whether Squid can be started here, with the helper that checks passwords."""
    return shutil.which("squid") is not None and Path("/usr/lib/squid/basic_ncsa_auth").exists()


def adapt(text: str, **changes: str) -> str:
    """Return a configuration with texts replaced; each must be there."""
    for number, (old, new) in enumerate((old, new) for old, new in changes.items()):
        assert old in text, (number, old)
        text = text.replace(old, new)
    return text


def password_file(path: Path, name: str) -> None:
    """Write a file of one name, as the examples say."""
    made = subprocess.run(
        ["openssl", "passwd", "-6", "-stdin"], input=WORDS[name], capture_output=True, text=True, check=True
    )
    path.write_text(f"{name}:{made.stdout}")
    path.chmod(0o644)


class Origin(Nginx):
    """nginx with the example's configuration, serving ``root`` to the branch."""

    def _write_config(self) -> None:
        assert self._authority is not None
        chain, key = self._authority.issue()
        password_file(self.work / "passwd", "branch")
        shipped = adapt(
            example("nginx"),
            **{
                "listen 443 ssl;": f"listen 127.0.0.1:{self.port} ssl;",
                "listen [::]:443 ssl;": "",
                "images.example.org;": "localhost;",
                "/etc/nginx/tls/fullchain.pem": chain,
                "/etc/nginx/tls/key.pem": key,
                "/srv/www/images": str(self.root),
                "access_log /var/log/nginx/images.log medv_files;": "",
                "/etc/nginx/images.passwd": str(self.work / "passwd"),
            },
        )
        user = "user root;" if os.geteuid() == 0 else ""
        (self.work / "nginx.conf").write_text(f"""
            daemon off; {user} worker_processes 1; pid {self.work}/nginx.pid; error_log {self.work}/error.log warn;
            events {{ worker_connections 256; }}
            http {{
                client_body_temp_path {self.work}/t1; proxy_temp_path {self.work}/t2;
                fastcgi_temp_path {self.work}/t3; uwsgi_temp_path {self.work}/t4; scgi_temp_path {self.work}/t5;
                log_format counted
                    '$status $body_bytes_sent $request_method $request_uri "$http_range" "$http_user_agent"';
                log_format wire '$bytes_sent $remote_user';
                access_log {self.work}/access.log counted;
                access_log {self.work}/wire.log wire;
                {shipped}
            }}
        """)

    def wire(self) -> tuple[int, set[str]]:
        """Return the bytes of all answers, heads included, and under which names they were asked for."""
        with contextlib.suppress(FileNotFoundError):
            lines = [line.split() for line in (self.work / "wire.log").read_text().splitlines()]
            return sum(int(line[0]) for line in lines), {line[1] for line in lines}
        return 0, set()

    def forget(self) -> None:
        """Empty the access logs."""
        for name in ("access.log", "wire.log"):
            with contextlib.suppress(FileNotFoundError):
                os.truncate(self.work / name, 0)


@dataclass(frozen=True)
class Passed:
    """A line of the cache's log: how it was answered (``TCP_MEM_HIT``), status, and what was asked for."""

    how: str
    status: int
    url: str


class Squid:
    """Squid with the example's configuration in front of an origin; a context manager.

    ``work`` must be open to Squid's own user. It is slow to start, so one serves many tests.
    """

    def __init__(self, work: Path, origin: Nginx, authority: Authority) -> None:
        self.work, self.port, self.origin = work, 0, origin
        self._authority = authority
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def place(self) -> str:
        """Host and port."""
        return f"localhost:{self.port}"

    @property
    def url(self) -> str:
        """The URL with the client's name and password."""
        return f"https://client:{WORDS['client'].replace(':', '%3A').replace('@', '%40')}@{self.place}"

    def __enter__(self) -> Squid:
        for name in ("cache", "log"):
            (self.work / name).mkdir()
        password_file(self.work / "passwd", "client")
        self._own()
        for attempt in range(5):
            self.port = free_port()
            self._write_config()
            if not attempt:
                made = subprocess.run([*self._command(), "-z"], capture_output=True, text=True, timeout=60, check=False)
                if made.returncode:
                    raise RuntimeError(f"squid -z: {made.stderr[-2000:]}")
            self._process = subprocess.Popen(self._command(), stderr=subprocess.DEVNULL, start_new_session=True)
            if self._is_up():
                return self
            self._stop()
        raise RuntimeError(f"squid does not start: {(self.work / 'log/cache.log').read_text()[-2000:]}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def passed(self) -> list[Passed]:
        """Return the access log, but for the connections that were opened and closed without a question."""
        with contextlib.suppress(FileNotFoundError):
            fields = [line.split() for line in (self.work / "log/access.log").read_text().splitlines()]
            return [Passed(one[3].split("/")[0], int(one[3].split("/")[1]), one[6]) for one in fields if one[5] != "-"]
        return []

    def forget(self) -> None:
        """Empty the access log."""
        os.truncate(self.work / "log/access.log", 0)

    def _command(self) -> list[str]:
        return ["squid", "-N", "-f", str(self.work / "squid.conf")]

    def _write_config(self) -> None:
        chain, key = self._authority.issue()
        for path in (chain, key):
            shutil.copy(path, self.work / Path(path).suffix[1:])
        origin = f"cache_peer localhost parent {self.origin.port} "
        shipped = adapt(
            example("squid"),
            **{
                "https_port 443 ": f"https_port 127.0.0.1:{self.port} ",
                "/etc/squid/tls/fullchain.pem": str(self.work / "pem"),
                "/etc/squid/tls/key.pem": str(self.work / "key"),
                "cache_peer images.example.org parent 443 ": origin,
                "login=branch-7:PASSWORD": f"login=branch:{WORDS['branch'].replace(' ', '%20')} tls-cafile="
                + self._authority.file,
                "/etc/squid/clients.passwd": str(self.work / "passwd"),
                "/var/spool/squid 50000 64 256": f"{self.work}/cache 300 2 4",
                "cache_mem 256 MB": "cache_mem 64 MB",
                "/var/log/squid/": f"{self.work}/log/",
                "coredump_dir /var/spool/squid": f"coredump_dir {self.work}",
                "/run/squid.pid": f"{self.work}/squid.pid",
            },
        )
        (self.work / "squid.conf").write_text(f"{shipped}\nshutdown_lifetime 0 seconds\npinger_enable off\n")
        self._own()

    def _own(self) -> None:
        """Give everything to Squid's own user, which it becomes when root starts it."""
        if os.geteuid() == 0:
            user = pwd.getpwnam("proxy")
            for path in (self.work, *self.work.rglob("*")):
                os.chown(path, user.pw_uid, user.pw_gid)

    def _is_up(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self._process.poll() is None
            time.sleep(0.05)
        return False

    def _stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None


def objects_of(passed: list[Passed], kind: str) -> list[Passed]:
    """Return the lines about objects whose name has a pattern."""
    return [one for one in passed if re.search(kind, one.url)]


def only_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``localhost`` have the address that the servers of the tests listen on, and no other."""
    resolve = socket.getaddrinfo

    def resolve_local(host: Any, *arguments: Any, **options: Any) -> Any:
        return resolve("127.0.0.1" if host == "localhost" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_local)
