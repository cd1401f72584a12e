"""Repositories with a door: the server of this project in a thread, alone or with a real nginx in front."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from servers import Authority, Nginx, free_port

from medv.gateway.examples import nginx_configuration
from medv.gateway.serving import Copy, Listening, serve
from medv.gateway.settings import load
from trimtransfer.repository.keysetup import Plan, init_keys
from trimtransfer.repository.publish import publish
from trimtransfer.repository.reading import VersionReader
from trimtransfer.repository.signer import Keys
from trimtransfer.store import DirectoryStore

QUICK = "[server]\nrefresh = 0.1\ngrace = 5\n"


@dataclass(frozen=True)
class Tenants:
    """A signed repository of two images, ``alpha`` (two versions, with deltas) and ``beta``, that share some content.

    ``packs`` by who refers to them: alpha alone, beta alone, both.
    """

    root: Path
    packs: dict[str, str]
    delta: str
    keys: Keys


def tenants(directory: Path, rng: np.random.Generator) -> Tenants:
    """Publish it in ``directory``."""
    root = directory / "repository"
    shared, own, other = (rng.bytes(size) for size in (1_500_000, 400_000, 300_000))
    files = {
        ("alpha", "1"): shared + own,
        ("alpha", "2"): shared + own[:200_000] + b"changed" + own[200_000:] + rng.bytes(50_000),
        ("beta", "1"): other + shared,
    }
    source = directory / "source.img"
    for (image, version), data in files.items():
        source.write_bytes(data)
        like = ["alpha"] if image == "beta" else []
        publish(root, source, image=image, version=version, level=3, like=like)
    keys = Keys((directory / "keys",))
    init_keys(str(root), keys=keys, offline=directory / "offline", plan=Plan({}, {}), passphrase=None)
    (root / "profiles").mkdir()
    (root / "profiles/office.bin").write_bytes(b"profile")
    return Tenants(root, _packs(root), "images/alpha/2/from-1.bin", keys)


def packs_of(root: Path, image: str, version: str) -> set[str]:
    """Return the names of the packs that a version's locations name."""
    reader = VersionReader.open(DirectoryStore(root), image, version)
    digests = {pack.digest.hex() for n in reader.used_regions() for part in reader.locations(n) for pack in part.packs}
    return {f"packs/{digest[:2]}/{digest}.bin" for digest in digests}


def _packs(root: Path) -> dict[str, str]:
    alpha, beta = packs_of(root, "alpha", "1") | packs_of(root, "alpha", "2"), packs_of(root, "beta", "1")
    return {"alpha": min(alpha - beta), "beta": min(beta - alpha), "both": min(alpha & beta)}


class Serving:
    """The server in a thread, with the settings of a TOML text; a context manager. ``log`` is the file of its log."""

    def __init__(self, root: Path, work: Path, text: str = "", *, authority: Authority | None = None, **options: Any):
        work.mkdir(parents=True, exist_ok=True)
        self.log = work / f"log-{time.monotonic_ns()}.json"
        given = {
            "server.listen": "127.0.0.1:0",
            "log.file": str(self.log),
            "server.index": str(work / f"index-{time.monotonic_ns()}.sqlite3"),
            **{key.replace("__", "."): value for key, value in options.items()},
        }
        if authority is not None:
            given["tls.cert"], given["tls.key"] = authority.issue()
        self.settings = load(text, options=given)
        self.root = root
        self.copy: Copy | None = None
        self.url = self.metrics = ""
        self.ca_cert = authority.file if authority else None
        self._stop: Callable[[], None] | None = None
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None

    def __enter__(self) -> Serving:
        told: queue.Queue[Listening | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, args=(told,), daemon=True)
        self._thread.start()
        listening = told.get(timeout=60)
        if listening is None:
            assert self._failed is not None
            raise self._failed
        self.url, self.metrics = listening.url, listening.metrics
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.url.rpartition(":")[2])

    def stop(self) -> None:
        """End it, as SIGTERM does, and wait for its end."""
        if self._stop is not None and self._thread is not None:
            self._stop()
            self._thread.join(120)
            assert not self._thread.is_alive()

    def lines(self, **wanted: Any) -> list[dict[str, Any]]:
        """Return the lines of the log that have these values."""
        complete = self.log.read_text().split("\n")[:-1]
        found = [json.loads(line) for line in complete]
        return [line for line in found if all(line.get(key) == value for key, value in wanted.items())]

    def wait_for(self, count: int = 1, **wanted: Any) -> list[dict[str, Any]]:
        """Wait until the log has so many such lines."""
        deadline = time.monotonic() + 20
        while len(found := self.lines(**wanted)) < count:
            assert time.monotonic() < deadline, (wanted, self.log.read_text()[-3000:])
            time.sleep(0.02)
        return found

    def _run(self, told: queue.Queue[Listening | None]) -> None:
        def remember(stop: Callable[[], None]) -> None:
            self._stop = stop

        try:
            serve(self.root, self.settings, copy=self.copy, started=told.put, stop=remember)
        except BaseException as error:
            self._failed = error
            told.put(None)


class Front(Nginx):
    """nginx in front of a server (or alone), with a configuration as this project prints it."""

    def __init__(self, kind: str, root: Path, work: Path, authority: Authority, *, upstream: str = "", ca: str = ""):
        super().__init__(root, work, authority)
        self._kind, self._upstream, self._ca = kind, upstream, ca
        self.secret = ""

    def _write_config(self) -> None:
        assert self._authority is not None
        chain, key = self._authority.issue()
        values = {
            "UPSTREAM": self._upstream or "127.0.0.1:1",
            "LISTEN": f"127.0.0.1:{self.port} ssl",
            "NAME": "localhost",
            "CERTIFICATE": chain,
            "KEY": key,
            "CACHE": str(self.work / "decisions"),
            "LOG": str(self.work / "medv.log"),
            "ERRORS": str(self.work / "errors.log"),
            "SECRET": self.secret,
        }
        printed = nginx_configuration(self._kind, self.root, **values)
        if self._ca:
            printed = printed.replace(
                '    #ssl_client_certificate "/etc/medv/clients-ca.pem";\n    #ssl_verify_client optional;',
                f'    ssl_client_certificate "{self._ca}"; ssl_verify_client optional;',
            )
        temporary = "; ".join(
            f"{one}_temp_path {self.work}/{one}" for one in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.geteuid() == 0 else ""
        (self.work / "nginx.conf").write_text(
            f"daemon off; {user} worker_processes 1; pid {self.work}/nginx.pid; error_log {self.work}/error.log warn;\n"
            f"events {{ worker_connections 512; }}\nhttp {{ {temporary};\n{printed}\n}}\n"
        )


@contextlib.contextmanager
def program(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``medv-repo`` as a process; killed at the end if it still runs."""
    code = "from medv.cli import medv_repo; medv_repo()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(20)


__all__ = ["QUICK", "Front", "Serving", "Tenants", "free_port", "packs_of", "program", "tenants"]
