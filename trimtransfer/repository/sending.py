"""Publishing to a server: a version is made in a folder of this machine, over what the server has, and then sent.

All work is done here: cutting, packs, tables, deltas. The folder stays until the server has published the version, and
remembers which upload it is sent as; so whatever was interrupted goes on where it was, and nothing is sent twice. Of
what others published meanwhile the server tells at the commit, at the latest; then the version is made anew, over that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from trimtransfer.chunk import DIGEST_SIZE
from trimtransfer.durable import sync_directory
from trimtransfer.errors import FetchError, FormatError, NotFound, TargetRefused, TrimTransferError, VersionExists
from trimtransfer.fetch.courier import Courier, Reply
from trimtransfer.head import check_mirrors
from trimtransfer.names import manifest_name, version_name
from trimtransfer.repository.answers import fields_of, meaning, refusal
from trimtransfer.repository.catalogues import Wishes
from trimtransfer.repository.intent import repository_lock
from trimtransfer.repository.kept import KeptPacks
from trimtransfer.repository.overlay import OverlayStore
from trimtransfer.repository.publication import PublishReport
from trimtransfer.repository.publish import publish
from trimtransfer.repository.reading import MAX_MANIFEST, read_head
from trimtransfer.repository.signer import Keys
from trimtransfer.repository.uploads import PIECE, ROLE
from trimtransfer.store import PRIVATE, DirectoryStore, Store
from trimtransfer.watch import Progress, Watch

UPLOADS: Final = "_medv/uploads"
_STATE: Final = "sending.json"
_BATCH: Final = PIECE // DIGEST_SIZE
_ASK_SECONDS: Final = 0.5
"""Between two questions how far the server is."""
_PATIENCE: Final = 3600.0
"""Seconds without any progress of the server's check after which it is given up."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be published: the ``disks``' files as a ``version`` of ``image``, with further ``options`` of
    :func:`trimtransfer.repository.publish.publish`, and what it is to be called."""

    image: str
    version: str
    disks: tuple[Path, ...]
    options: dict[str, Any]
    labels: tuple[str, ...] = ()
    note: str = ""
    channels: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Return what changes when anything of it does, the files included; of devices at every call."""
        facts: list[Any] = [self.image, self.version, sorted((key, repr(one)) for key, one in self.options.items())]
        for path in self.disks:
            found = os.stat(path)
            moment = time.time_ns() if stat.S_ISBLK(found.st_mode) else found.st_mtime_ns
            facts += [os.fspath(path.resolve()), found.st_ino, found.st_size, moment]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class SendReport:
    """What was published and sent: ``packs`` of ``pack_bytes`` were made, of which the server lacked ``sent_packs``;
    ``sent_bytes`` in this run, metadata and repetitions included. ``resumed``: an earlier run had begun it."""

    url: str
    image: str
    version: str
    packs: int
    pack_bytes: int
    sent_packs: int
    sent_bytes: int
    metadata_bytes: int
    resumed: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def send_version(
    remote: Store,
    courier: Courier,
    folder: Path,
    wanted: Wanted,
    *,
    keys: Keys | None = None,
    made: Callable[[PublishReport], None] = lambda report: None,
    connections: int = 4,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> SendReport:
    """Publish to the server that ``remote`` reads from and ``courier`` sends to; ``folder`` is for what is made.

    Beside the folder, in ``kept``, packs of this server stay: see :mod:`trimtransfer.repository.kept`.

    ``made`` is told what was made, if that is done in this run. Where the repository is signed, and its server has not
    the publisher's key, ``keys`` sign.

    Raises:
        VersionExists, TargetRefused: it is there already; somebody else published meanwhile, or the server refuses.
        AccessDenied, FetchError: no right to it; the network. NotFound: no such parent. FormatError: damaged. NoSpace:
        here or there. Locked: somebody else is at it, here or there. Cancelled: as asked. The same call goes on.
    """
    watch = Watch(progress, cancel, "stopped; the same command goes on where it was")
    kept = KeptPacks(folder.parent / "kept", remote)
    store = OverlayStore(folder, kept)
    with repository_lock(DirectoryStore(store.path.with_name(store.path.name + "-lock")), f"sending to {courier.url}"):
        report = _Sending(store, courier, wanted, watch, connections, keys or Keys()).run(made)
        kept.keep(store, [name for name, _ in store.list_own("packs")])
        kept.prune()
        shutil.rmtree(store.path, ignore_errors=True)
        return report


class _Sending:
    """One run. Its state is a file in the folder: the upload's id; of what is made, fingerprint and base."""

    def __init__(
        self, store: OverlayStore, courier: Courier, wanted: Wanted, watch: Watch, connections: int, keys: Keys
    ) -> None:
        self._store, self._courier, self._wanted, self._watch = store, courier, wanted, watch
        self._connections, self._keys, self._started = connections, keys, time.monotonic()
        self._state = self._load()
        self.resumed = bool(self._state.get("upload"))

    def run(self, made: Callable[[PublishReport], None]) -> SendReport:
        facts = self._find_upload()
        if facts.get("state") == "committed" and self._state.get("made") != self._wanted.fingerprint():
            self._forget()
            raise VersionExists(self._wanted.image, self._wanted.version)  # it was made of other files
        if facts.get("state") != "committed":
            self._make(made)
            self._sign(fields_of(self._expect(self._courier.send("GET", self._name()))))
            if not self._state.get("cleared"):
                self._clear()
            packs = self._packs()
            sent = self._send_packs(packs)
            metadata = self._send_files()
            self._commit()
        else:
            packs, sent, metadata = self._packs(), 0, 0
        report = SendReport(
            url=self._courier.url,
            image=self._wanted.image,
            version=self._wanted.version,
            packs=len(packs),
            pack_bytes=sum(packs.values()),
            sent_packs=sent,
            sent_bytes=self._courier.sent,
            metadata_bytes=metadata,
            resumed=self.resumed,
            seconds=round(time.monotonic() - self._started, 3),
        )
        self._forget()
        return report

    # ---- the upload

    def _find_upload(self) -> dict[str, Any]:
        """Return what the server knows of the upload that an earlier run began; else begin one."""
        if self._state.get("upload"):
            reply = self._courier.send("GET", self._name())
            if reply.status == 200:
                return fields_of(reply)
            if reply.status != 404:
                raise self._error(reply)
            self.resumed = False
        body = json.dumps({"image": self._wanted.image, "version": self._wanted.version}).encode()
        reply = self._courier.send("POST", UPLOADS, body)
        if reply.status == 404:
            raise TargetRefused(self._courier.url, "takes no uploads: [upload] enabled = true, in its configuration")
        if reply.status == 409 and self._is_there():
            return {"state": "committed"}
        if reply.status != 201:
            raise self._error(reply)
        facts = fields_of(reply)
        self._save(upload=str(facts["upload"]), cleared=True)
        return facts

    def _is_there(self) -> bool:
        """Tell whether the server has published what was made here: then its answer was lost."""
        name = manifest_name(self._wanted.image, self._wanted.version)
        with contextlib.suppress(TrimTransferError):
            own = self._store.read(name, limit=MAX_MANIFEST) if self._store.has(name) else b""
            return bool(own) and own == self._store.below.read(name, limit=len(own))
        return False

    def _name(self, *parts: str) -> str:
        return "/".join((UPLOADS, self._state["upload"], *parts))

    # ---- what is made

    def _make(self, made: Callable[[PublishReport], None]) -> None:
        """Make the version, unless it is there, of the same files, over what is the newest still."""
        newest = self._newest()
        fingerprint = self._wanted.fingerprint()
        if (self._state.get("made"), self._state.get("newest")) == (fingerprint, newest):
            return
        self._save(made="")
        for name in ("images", "packs"):
            shutil.rmtree(self._store.path / name, ignore_errors=True)
        first, *disks = self._wanted.disks
        report = publish(
            self._store,
            first,
            disks=disks,
            image=self._wanted.image,
            version=self._wanted.version,
            progress=self._watch.progress,
            cancel=self._watch.cancel,
            **self._wanted.options,
        )
        made(report)
        self._save(made=fingerprint, newest=newest, cleared=False, now=int(time.time()))

    def _sign(self, facts: dict[str, Any]) -> None:
        """Sign the version, where that is for its publisher to do; what was signed before stays if it is the same."""
        if not facts.get("signed"):
            return
        from trimtransfer.repository.rolesigning import signed_role

        wanted, name = self._wanted, version_name(self._wanted.image, self._wanted.version, ROLE)
        wishes = Wishes(wanted.labels, wanted.note, wanted.channels)
        repository, mirrors, now = str(facts["signed"]), facts.get("mirrors", []), int(self._state["now"])
        if not isinstance(mirrors, list) or not all(isinstance(one, str) for one in mirrors):
            raise FormatError("answer of the server", "mirrors", "a list of URLs", repr(mirrors)[:80])
        options: dict[str, Any] = {"keys": self._keys, "repository": repository, "mirrors": check_mirrors(mirrors)}
        data = signed_role(self._store, wanted.image, wanted.version, wishes, now, **options)
        if not self._store.has(name) or self._store.read(name, limit=len(data) + 1) != data:
            self._save(cleared=False)
            self._store.put(name, data)

    def _newest(self) -> str:
        try:
            head = read_head(self._store.below, self._wanted.image)
        except NotFound:
            return ""
        return f"{head.sequence} {head.manifest_digest.hex()}"

    def _packs(self) -> dict[str, int]:
        return dict(self._store.list_own("packs"))

    # ---- sending

    def _send_packs(self, packs: dict[str, int]) -> int:
        """Send the packs that the server asks for; return how many."""
        lacking = self._lacking(packs)
        total, done, lock = sum(packs[name] for name in lacking), 0, threading.Lock()
        self._watch.report("send", 0, total)

        def send(name: str) -> None:
            nonlocal done
            self._watch.check()
            data = (self._store.path / name).read_bytes()
            self._expect(self._courier.send("PUT", self._name("packs", _digest(name)), data))
            with lock:
                done += len(data)
                self._watch.report("send", done, total)

        with ThreadPoolExecutor(self._connections, "send") as pool:
            jobs = [pool.submit(send, name) for name in lacking]
            try:
                for job in jobs:
                    job.result()
            finally:
                for job in jobs:
                    job.cancel()
        return len(lacking)

    def _lacking(self, packs: dict[str, int]) -> list[str]:
        names = {_digest(name): name for name in packs}
        digests, found = list(names), list[str]()
        for at in range(0, len(digests), _BATCH):
            body = bytes.fromhex("".join(digests[at : at + _BATCH]))
            answer = self._expect(self._courier.send("POST", self._name("lacking"), body)).body
            found += [answer[begin : begin + DIGEST_SIZE].hex() for begin in range(0, len(answer), DIGEST_SIZE)]
        if not set(found) <= names.keys():
            raise FormatError("answer of the server", 0, "packs that it was asked about", "others")
        return [names[digest] for digest in found]

    def _send_files(self) -> int:
        """Send the version's files, from where they end on the server; return their length."""
        files = self._files()
        there = fields_of(self._expect(self._courier.send("GET", self._name()))).get("files", {})
        if any(there.get(key, 0) > length for key, (_, length) in files.items()) or not there.keys() <= files.keys():
            self._clear()
            there = {}
        for key, (path, length) in files.items():
            with open(path, "rb") as file:
                at = file.seek(int(there.get(key, 0)))
                while data := file.read(PIECE):
                    self._watch.report("send metadata", at, length)
                    self._put(key, at, data)
                    at += len(data)
        return sum(length for _, length in files.values())

    def _put(self, key: str, offset: int, data: bytes) -> None:
        reply = self._courier.send("PUT", self._name("files", key), data, query=f"offset={offset}")
        if reply.status == 422:
            self._clear()  # what is there is of another making, or was torn: the next run sends it anew
        self._expect(reply)

    def _clear(self) -> None:
        self._expect(self._courier.send("DELETE", self._name("files")))
        self._save(cleared=True)

    def _files(self) -> dict[str, tuple[Path, int]]:
        """Return the version's files, in the order in which they are sent: path and length, by disk and name."""
        found = {}
        for name, length in self._store.list_own("images"):
            parts = name.split("/")
            if len(parts) == 4:
                disk = parts[1].removeprefix(self._wanted.image).removeprefix(".disk") or "0"
                found[f"{disk}/{parts[3]}"] = self._store.path / name, length
        return found

    def _commit(self) -> None:
        """Ask for the commit, and wait for what becomes of it."""
        wishes = {"labels": self._wanted.labels, "note": self._wanted.note, "channels": self._wanted.channels}
        body = json.dumps({**wishes, "now": self._state["now"]}).encode()
        facts = fields_of(self._expect(self._courier.send("POST", self._name("commit"), body)))
        moved, last = time.monotonic(), facts
        while facts.get("state") in ("open", "checking"):
            self._watch.report("check", int(facts.get("done", 0)), int(facts.get("total", 0)))
            if facts != last:
                moved, last = time.monotonic(), facts
            if time.monotonic() - moved > _PATIENCE:
                raise FetchError(self._courier.url, "the server checks what was sent, and gets nowhere", retryable=True)
            time.sleep(_ASK_SECONDS)
            again = facts["state"] == "open"  # it was started anew
            method, name = ("POST", self._name("commit")) if again else ("GET", self._name())
            facts = fields_of(self._expect(self._courier.send(method, name, body if again else b"")))
        if facts.get("state") != "committed":
            self._refused(facts)

    def _refused(self, facts: dict[str, Any]) -> None:
        """Raise what the server's decision means. What was sent stays there; files are sent anew."""
        if facts.get("state") == "refused":
            self._save(made="" if facts.get("error") in ("outrun", "damaged", "missing") else self._state["made"])
            self._save(cleared=False)
        raise meaning(facts, self._courier.url, self._wanted.image, self._wanted.version)

    # ---- answers

    def _expect(self, reply: Reply) -> Reply:
        if reply.status not in (200, 201, 202):
            raise self._error(reply)
        return reply

    def _error(self, reply: Reply) -> TrimTransferError:
        return refusal(reply, self._courier.url, self._wanted.image, self._wanted.version)

    # ---- state

    def _load(self) -> dict[str, Any]:
        try:
            found = json.loads((self._store.path / PRIVATE / _STATE).read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        known = isinstance(found, dict) and found.get("url") == self._courier.url
        return found if known else {}

    def _save(self, **values: Any) -> None:
        self._state |= {"url": self._courier.url, **values}
        path = self._store.private(_STATE)
        with open(path.with_name(_STATE + ".new"), "wb") as file:
            file.write(json.dumps(self._state).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(path.with_name(_STATE + ".new"), path)
        sync_directory(path.parent)

    def _forget(self) -> None:
        """Take the upload away: it is published."""
        with contextlib.suppress(TrimTransferError):  # the server forgets it by itself
            self._courier.send("DELETE", self._name())
        self._save(upload="")


def _digest(name: str) -> str:
    """Return the digest, in hexadecimal digits, of the pack of this name."""
    return Path(name).stem
