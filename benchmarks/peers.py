"""Other programs that bring disk images over a network, driven the way their manuals say; and this project's commands.

Every program has the same three duties: publish a version into its own part of the web server's directory, get ready
(what a client has from earlier, not counted), and fetch. A program that is not on PATH is left out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from measure import SEARCH_PATH, Cost, Failed, Nginx, Traffic, await_port, free_ports, run

SETTLE_SECONDS = 2.5
"""A file is believed to be unchanged only when its last change lies two seconds back; a user's image is older."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a client wants and has: the image ``wanted``, the image that is here already, files of the host or not;
    ``profile``: the publisher knows these files; ``solid``: it has solid units (helps to this project only)."""

    name: str
    wanted: str
    local: str | None = None
    host: bool = False
    profile: bool = False
    solid: bool = False


CASES = (
    Case("update in place", "new", "old"),
    Case("application installed", "installed", "new"),
    Case("rebuilt image", "rebuilt", "old"),
    Case("first download", "old"),
    Case("first download with host files", "old", host=True),
    Case("first download with a profile of the host", "old", host=True, profile=True),
    Case("first download from solid units", "old", solid=True),
    Case("first download with host files from solid units", "old", host=True, solid=True),
    Case("unchanged", "installed", "installed"),
)


@dataclass(slots=True)
class Lab:
    """Where the benchmark happens: images by name, the host's files (a tree, and as one tar file), server, scratch;
    how this project publishes."""

    images: dict[str, Path]
    host_tree: Path
    host_tar: Path
    server: Nginx
    served: Path
    scratch: Path
    timeout: float
    level: int
    deltas: bool = True
    trim: bool = False

    def run(self, *command: str | Path) -> Cost:
        """Run a program; it trusts the server's certificate."""
        names = ("SSL_CERT_FILE", "CURL_CA_BUNDLE")
        trusted = {**dict.fromkeys(names, str(self.server.ca_file)), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        log = self.scratch / "output.txt"
        return run(command, log=log, environment=trusted, timeout=self.timeout)

    def output(self) -> str:
        """Return what the last program printed."""
        return (self.scratch / "output.txt").read_text(errors="replace")


class Peer(ABC):
    """One program. ``programs`` must be on PATH; ``cases`` are the names of the cases that it has an answer to."""

    name: ClassVar[str]
    programs: ClassVar[tuple[str, ...]]
    tls: ClassVar[bool] = True
    cases: ClassVar[tuple[str, ...]] = tuple(case.name for case in CASES if not case.solid)
    version_command: ClassVar[tuple[str, ...]]

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.server_cpu_seconds = 0.0
        self.folder = lab.served / type(self).__name__.lower()
        self.url = f"{lab.server.tls_url if self.tls else lab.server.url}/{self.folder.name}"
        self.folder.mkdir(exist_ok=True)

    @property
    def trims(self) -> bool:
        """Whether it publishes free blocks as zeros."""
        return False

    @classmethod
    def missing(cls) -> list[str]:
        """Return the programs that are not on PATH."""
        return [name for name in cls.programs if shutil.which(name, path=SEARCH_PATH) is None]

    @classmethod
    def version(cls) -> str:
        """Return what the program says about itself, first line."""
        environment = {**os.environ, "PATH": SEARCH_PATH}
        done = subprocess.run(cls.version_command, capture_output=True, text=True, env=environment)
        lines = (done.stdout or done.stderr).strip().splitlines()
        return lines[0] if lines and done.returncode == 0 else "unknown"

    @abstractmethod
    def publish(self, image: str, parent: str | None) -> Cost:
        """Publish an image; ``parent`` is the one it came from."""

    def prepare(self, case: Case, output: Path) -> None:  # noqa: B027 - many have nothing to prepare
        """Put in place what the client has from earlier."""

    @abstractmethod
    def fetch(self, case: Case, output: Path) -> Cost:
        """Fetch the wanted image to ``output``."""

    def traffic(self) -> Traffic:
        """Return what was fetched since the last call."""
        return self.lab.server.traffic()

    def seeds(self, case: Case) -> list[Path]:
        """Return the local files that may hold wanted data, the host's files as one tar file."""
        return [self.lab.images[case.local]] if case.local else [self.lab.host_tar] if case.host else []


class Trimtransfer(Peer):
    """This project: ``medv-repo publish`` and ``medv-sync``."""

    name = "medv-sync"
    programs = ()
    cases = tuple(case.name for case in CASES)
    _commands = Path(sys.executable).parent

    @classmethod
    def version(cls) -> str:
        """Return the version of the installed package."""
        from importlib.metadata import version

        return version("trimtransfer")

    @property
    def trims(self) -> bool:
        """As asked for."""
        return self.lab.trim

    def publish(self, image: str, parent: str | None) -> Cost:
        """Publish into the repository of the image's line; the rebuilt image follows the old one in one of its own."""
        cost = self.lab.run(
            self._commands / "medv-repo", "publish", self.folder / ("again" if image == "rebuilt" else "disk"),
            self.lab.images[image], "--image", "disk", "--version", image, "--level", str(self.lab.level), "--quiet",
            "--delta" if self.lab.deltas else "--no-delta", *(["--trim"] if self.trims else []),
        )  # fmt: skip
        for line in ("again", "hosted", "solid") if image == "old" else ():
            shutil.copytree(self.folder / "disk", self.folder / line, copy_function=os.link)
        return cost

    def _publish_profile(self) -> None:
        """Make the deltas from the host's files, once, in a repository of their own."""
        hosted = self.folder / "hosted"
        if not (hosted / "profiles").exists():
            self.lab.run(self._commands / "medv-repo", "profile", hosted, "host", self.lab.host_tree, "--quiet")
            self.lab.run(
                self._commands / "medv-repo", "delta", hosted, "--image", "disk", "--profile", "host", "--level",
                str(self.lab.level), "--quiet",
            )  # fmt: skip

    def _publish_solid(self) -> None:
        """Make the solid units of the first image, once, in a repository of their own."""
        solid = self.folder / "solid"
        if not (solid / "images/disk/old/hosts.bin").exists():
            cost = self.lab.run(self._commands / "medv-repo", "delta", solid, "--image", "disk", "--solid", "--quiet")
            print(f"{self.name}: solid units in {cost.cpu_seconds:.0f} CPU-seconds", file=sys.stderr, flush=True)

    def prepare(self, case: Case, output: Path) -> None:
        """Sync the image that the client has already, or make the index of the host's files."""
        if case.local:
            self._run("sync", case.local, case, output)
            time.sleep(SETTLE_SECONDS)
        if case.profile:
            self._publish_profile()
        if case.solid:
            self._publish_solid()
        if case.host:
            self._run("plan", case.wanted, case, output)

    def fetch(self, case: Case, output: Path) -> Cost:
        """Sync the wanted version."""
        return self._run("sync", case.wanted, case, output)

    def _run(self, command: str, version: str, case: Case, output: Path) -> Cost:
        line = "hosted" if case.profile else "solid" if case.solid else "again" if case.wanted == "rebuilt" else "disk"
        seeds = ["--seed", str(self.lab.host_tree)] if case.host else []
        newest = version == ("rebuilt" if line == "again" else "installed")
        return self.lab.run(
            self._commands / "medv-sync", command, f"{self.url}/{line}", "disk", "-o", output, "--no-host-index",
            "--cache", output.parent / "cache", "--json", *([] if newest else ["--version", version]), *seeds,
        )  # fmt: skip


class Desync(Peer):
    """desync: a chunk store and an index for each version; a seed needs its index, kept from the last time."""

    name = "desync"
    programs = ("desync",)
    version_command = ("desync", "--version")

    def publish(self, image: str, parent: str | None) -> Cost:
        """Chunk the image into the store."""
        store = self.folder / "store"
        store.mkdir(exist_ok=True)
        return self.lab.run("desync", "make", "-s", store, self.folder / f"{image}.caibx", self.lab.images[image])

    def prepare(self, case: Case, output: Path) -> None:
        """Make the index of the host's files."""
        if case.host and not (index := self._index(self.lab.host_tar)).exists():
            self.lab.run("desync", "make", index, self.lab.host_tar)

    def fetch(self, case: Case, output: Path) -> Cost:
        """Extract with the seeds."""
        seeds = [part for seed in self.seeds(case) for part in ("--seed", f"{self._index(seed)}:{seed}")]
        index = f"{self.url}/{case.wanted}.caibx"
        return self.lab.run("desync", "extract", "-s", f"{self.url}/store", *seeds, index, output)

    def _index(self, seed: Path) -> Path:
        return (self.lab.scratch if seed == self.lab.host_tar else self.folder) / f"{seed.stem}.caibx"


class Bita(Peer):
    """bita: one compressed archive for each version, fetched in ranges."""

    name = "bita"
    programs = ("bita",)
    version_command = ("bita", "--version")

    def publish(self, image: str, parent: str | None) -> Cost:
        """Compress the image."""
        return self.lab.run("bita", "compress", "-i", self.lab.images[image], self.folder / f"{image}.cba")

    def fetch(self, case: Case, output: Path) -> Cost:
        """Clone with the seeds."""
        seeds = [part for seed in self.seeds(case) for part in ("--seed", str(seed))]
        return self.lab.run("bita", "clone", *seeds, f"{self.url}/{case.wanted}.cba", output)


class Casync(Peer):
    """casync: the original chunk store; its client cannot be told which certificate to trust, so without TLS."""

    name = "casync"
    programs = ("casync",)
    tls = False
    cases = ("update in place", "application installed", "rebuilt image", "first download")
    version_command = ("casync", "--version")

    def publish(self, image: str, parent: str | None) -> Cost:
        """Chunk the image into the store."""
        store = f"--store={self.folder / 'store.castr'}"
        return self.lab.run("casync", "make", store, self.folder / f"{image}.caibx", self.lab.images[image])

    def fetch(self, case: Case, output: Path) -> Cost:
        """Extract with the seeds."""
        seeds = [f"--seed={seed}" for seed in self.seeds(case)]
        index = f"{self.url}/{case.wanted}.caibx"
        return self.lab.run("casync", "extract", f"--store={self.url}/store.castr", *seeds, index, output)


class Zsync(Peer):
    """zsync: a list of block sums beside the uncompressed image; knows no TLS."""

    name = "zsync"
    programs = ("zsync", "zsyncmake")
    tls = False
    version_command = ("zsync", "-V")

    def publish(self, image: str, parent: str | None) -> Cost:
        """Copy the image and make its list."""
        copied = self.lab.run("cp", "--sparse=always", self.lab.images[image], self.folder / f"{image}.img")
        made = self.lab.run(
            "zsyncmake", "-u", f"{image}.img", "-o", self.folder / f"{image}.zsync", self.folder / f"{image}.img"
        )
        return copied + made

    def fetch(self, case: Case, output: Path) -> Cost:
        """Download with the seeds."""
        seeds = [part for seed in self.seeds(case) for part in ("-i", str(seed))]
        return self.lab.run("zsync", *seeds, "-o", output, f"{self.url}/{case.wanted}.zsync")


class ZstdPatch(Peer):
    """zstd: one patch for each pair of versions (--patch-from), or the whole image; fetched with curl."""

    name = "zstd -19"
    programs = ("zstd", "curl")
    cases = ("update in place", "application installed", "rebuilt image", "first download")
    version_command = ("zstd", "--version")

    def publish(self, image: str, parent: str | None) -> Cost:
        """Compress the image against its parent."""
        base = [f"--patch-from={self.lab.images[parent]}"] if parent else []
        target = self.folder / f"{image}.zst"
        return self.lab.run("zstd", "-q", "-19", "-T1", "--long=31", *base, self.lab.images[image], "-o", target)

    def fetch(self, case: Case, output: Path) -> Cost:
        """Download and decompress."""
        base = [f"--patch-from={self.lab.images[case.local]}"] if case.local else []
        stored = output.with_suffix(".zst")
        loaded = self.lab.run("curl", "-sSf", "-o", stored, f"{self.url}/{case.wanted}.zst")
        return loaded + self.lab.run("zstd", "-q", "-d", "--long=31", *base, stored, "-o", output)


class Xdelta(Peer):
    """xdelta3: one patch for each pair of versions, fetched with curl."""

    name = "xdelta3"
    programs = ("xdelta3", "curl")
    cases = ("update in place", "application installed", "rebuilt image")
    version_command = ("xdelta3", "-V")

    def publish(self, image: str, parent: str | None) -> Cost:
        """Make the patch from the parent."""
        if not parent:
            return Cost(0, 0, 0)
        base = self.lab.images[parent]
        return self.lab.run(
            "xdelta3", "-e", "-B", str(_window(base)), "-s", base, self.lab.images[image], self.folder / f"{image}.xd3"
        )

    def fetch(self, case: Case, output: Path) -> Cost:
        """Download and apply."""
        assert case.local is not None
        stored, base = output.with_suffix(".xd3"), self.lab.images[case.local]
        loaded = self.lab.run("curl", "-sSf", "-o", stored, f"{self.url}/{case.wanted}.xd3")
        return loaded + self.lab.run("xdelta3", "-d", "-B", str(_window(base)), "-s", base, stored, output)


class Hdiffpatch(Peer):
    """HDiffPatch: one patch for each pair of versions, compressed by zstd -19, fetched with curl. Its search of blocks
    (-s): the one by suffix array (-m) needs nine times an image of 2 GiB in memory."""

    name = "HDiffPatch"
    programs = ("hdiffz", "hpatchz", "zstd", "curl")
    cases = ("update in place", "application installed", "rebuilt image")
    version_command = ("hdiffz", "-v")

    def publish(self, image: str, parent: str | None) -> Cost:
        """Make the patch from the parent."""
        if not parent:
            return Cost(0, 0, 0)
        images, patch = self.lab.images, self.lab.scratch / f"{image}.hdiff"
        made = self.lab.run("hdiffz", "-s-64", "-p-1", "-d", "-f", images[parent], images[image], patch)
        stored = self.folder / f"{image}.hdiff.zst"
        made += self.lab.run("zstd", "-q", "-19", "-T1", "--long=31", patch, "-o", stored)
        patch.unlink()
        return made

    def fetch(self, case: Case, output: Path) -> Cost:
        """Download, decompress and apply."""
        assert case.local is not None
        stored, patch = output.with_suffix(".zst"), output.with_suffix(".hdiff")
        cost = self.lab.run("curl", "-sSf", "-o", stored, f"{self.url}/{case.wanted}.hdiff.zst")
        cost += self.lab.run("zstd", "-q", "-d", "--long=31", stored, "-o", patch)
        return cost + self.lab.run("hpatchz", self.lab.images[case.local], patch, output)


class Rsync(Peer):
    """rsync to its own server program, compressed with zstd: no web server, and work on the server for each client."""

    name = "rsync"
    programs = ("rsync",)
    tls = False
    cases = ("update in place", "application installed", "rebuilt image", "first download")
    version_command = ("rsync", "--version")

    def publish(self, image: str, parent: str | None) -> Cost:
        """Nothing is made."""
        return Cost(0, 0, 0)

    def prepare(self, case: Case, output: Path) -> None:
        """Copy the image that the client has."""
        if case.local:
            self.lab.run("cp", "--sparse=always", self.lab.images[case.local], output)

    def fetch(self, case: Case, output: Path) -> Cost:
        """Fetch from an rsync server that is started for it; what came is counted by the client."""
        port = self._start_server(self.lab.images[case.wanted].parent)
        source = f"rsync://127.0.0.1:{port}/images/{self.lab.images[case.wanted].name}"
        options = ("--no-whole-file", "--compress", "--compress-choice=zstd", "--ignore-times", "--stats")
        try:
            cost = self.lab.run("rsync", *options, source, output)
            received = re.search(r"Total bytes received: ([0-9,]+)", self.lab.output())
            self._received = int(received.group(1).replace(",", "")) if received else 0
            return cost
        finally:
            self._server.terminate()
            _, _, usage = os.wait4(self._server.pid, 0)
            self.server_cpu_seconds = usage.ru_utime + usage.ru_stime

    def traffic(self) -> Traffic:
        """Return what the client counted."""
        return Traffic(1, self._received, self._received)

    def _start_server(self, folder: Path) -> int:
        configuration = self.lab.scratch / "rsyncd.conf"
        configuration.write_text(f"use chroot = no\n[images]\npath = {folder}\nread only = yes\nuid = {os.getuid()}\n")
        (port,) = free_ports(1)
        command = ["rsync", "--daemon", "--no-detach", f"--config={configuration}", f"--port={port}"]
        self._server = subprocess.Popen([*command, "--address=127.0.0.1"], stdin=subprocess.DEVNULL)
        await_port(port)
        return port


def _window(base: Path) -> int:
    return min(max(base.stat().st_size, 1 << 20), (1 << 31) - 1)


PEERS: tuple[type[Peer], ...] = (Trimtransfer, Desync, Bita, Casync, Zsync, Rsync, ZstdPatch, Xdelta, Hdiffpatch)
__all__ = ["CASES", "PEERS", "Case", "Failed", "Lab", "Peer"]
