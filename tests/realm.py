"""A realm of a KDC that is no Active Directory, for tests: MIT's, on a free port, which needs no privileges."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from servers import free_port

REALM, PASSWORD = "MIT.TEST", "secret"


def missing() -> str:
    """Return what lacks here; empty: nothing."""
    programs = [name for name in ("krb5kdc", "kdb5_util", "kadmin.local") if shutil.which(name, path=_path()) is None]
    names = ", ".join(programs)
    return f"{names}: not installed (Debian: krb5-kdc krb5-admin-server); CI installs it" if programs else ""


class Realm:
    """A running KDC with the user alice, the computer host/pc1.mit.test and the service HTTP/localhost."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "KRB5_CONFIG": str(folder / "krb5.conf"),
            "KRB5_KDC_PROFILE": str(folder / "kdc.conf"),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Realm:
        port = free_port()
        (self.folder / "krb5.conf").write_text(
            f"[libdefaults]\ndefault_realm = {REALM}\ndns_lookup_kdc = false\ndns_canonicalize_hostname = false\n"
            f"udp_preference_limit = 1\n[realms]\n{REALM} = {{\nkdc = 127.0.0.1:{port}\n}}\n"
            f"[domain_realm]\nlocalhost = {REALM}\n"
        )
        (self.folder / "kdc.conf").write_text(
            f"[kdcdefaults]\nkdc_listen = 127.0.0.1:{port}\nkdc_tcp_listen = 127.0.0.1:{port}\n"
            f"[realms]\n{REALM} = {{\ndatabase_name = {self.folder}/principal\nkey_stash_file = {self.folder}/stash\n"
            f"acl_file = {self.folder}/acl\nmax_life = 1h\n}}\n"
        )
        self.run(["kdb5_util", "create", "-s", "-P", "master", "-r", REALM])
        self.run(["kadmin.local", "addprinc", "-pw", PASSWORD, "alice"])
        for name, principal in (("http", "HTTP/localhost"), ("pc1", "host/pc1.mit.test")):
            self.run(["kadmin.local", "addprinc", "-randkey", principal])
            self.run(["kadmin.local", "ktadd", "-k", self.keytab(name), principal])
        self._process = subprocess.Popen(
            ["krb5kdc", "-n"], env=self._environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while not self._login("alice"):
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)

    def keytab(self, name: str) -> str:
        """Return the file of a keytab: http, pc1."""
        return str(self.folder / f"{name}.keytab")

    def cache(self, who: str) -> str:
        """Return the cache of the tickets of alice, or pc1."""
        assert self._login(who)
        return f"FILE:{self.folder}/cc-{who}"

    def run(self, command: list[str], text: str = "") -> None:
        """Run a program of the realm."""
        done = subprocess.run(command, input=text, capture_output=True, text=True, env=self._environment(), timeout=120)
        assert done.returncode == 0, done.stderr

    def _login(self, who: str) -> bool:
        command = ["kinit", "-c", f"FILE:{self.folder}/cc-{who}"]
        command += ["-k", "-t", self.keytab(who), "host/pc1.mit.test"] if who == "pc1" else [who]
        done = subprocess.run(
            command, input=PASSWORD + "\n", capture_output=True, text=True, env=self._environment(), timeout=120
        )
        return done.returncode == 0

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment, "PATH": _path()}


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
