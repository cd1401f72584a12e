"""What requests of uploads ask for, done in threads: an upload begins, grows, is checked, and committed.

Checks run one after the other in a thread of their own; the server is the only writer of uploads, and the repository's
lock keeps it apart from others that publish.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from medv.gateway.access import Principal, Role
from medv.gateway.door import Door
from medv.gateway.uploadrequest import UploadRequest
from medv.objects import Kind, identify
from trimtransfer.catalogue import MAX_CHANNELS, MAX_LABELS
from trimtransfer.chunk import DIGEST_SIZE
from trimtransfer.errors import (
    Cancelled,
    FormatError,
    IntegrityError,
    Locked,
    NoSpace,
    NotFound,
    TargetRefused,
    TrimTransferError,
    VersionExists,
)
from trimtransfer.fields import Fields
from trimtransfer.repository.accepting import (
    Outrun,
    check_name_free,
    check_upload,
    commit_upload,
    published,
    settle_commit,
)
from trimtransfer.repository.catalogues import Wishes
from trimtransfer.repository.mirrors import read_mirrors
from trimtransfer.repository.signer import Keys, Signer
from trimtransfer.repository.uploads import Upload, Uploads, UploadTooLarge
from trimtransfer.store import DirectoryStore
from trimtransfer.watch import Watch

_LOG: Final = logging.getLogger("medv.server")
_MAX_JSON: Final = 64 << 10
_LOCK_PATIENCE: Final = 60.0
"""Seconds for which a commit waits for another program that writes to the repository."""

Answer = tuple[int, dict[str, Any] | bytes]


@dataclass(slots=True)
class _Work:
    """A check that waits or runs: what it is at; ``failed``: why it ended undecided, and may be tried again."""

    phase: str = "waiting"
    done: int = 0
    total: int = 0
    failed: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        if self.failed:
            return {"state": "failed", **self.failed}
        return {"state": "checking", "phase": self.phase, "done": self.done, "total": self.total}


class UploadWork:
    """The uploads of a repository, for who may publish what behind ``door``. ``keys`` sign where it is signed."""

    def __init__(self, store: DirectoryStore, door: Door, uploads: Uploads, keys: Keys | None) -> None:
        self._store, self._door, self._uploads, self._keys = store, door, uploads, keys
        self._worker = ThreadPoolExecutor(1, "uploads")
        self._works: dict[str, _Work] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()

    def __repr__(self) -> str:
        return f"UploadWork({self._store.url!r})"

    def close(self) -> None:
        """End checks that run; they begin anew when they are asked for again."""
        self._stop.set()
        self._worker.shutdown(cancel_futures=True)

    def answer(self, request: UploadRequest) -> Answer:
        """Do what is asked for; raises what that raises, ``PermissionError`` where it may not be done."""
        if not request.id:
            return self._begin(request) if request.method == "POST" else _no_method()
        upload = self._uploads.open(request.id, request.owner)
        self._require(request.principal, upload.image)
        route = request.method, request.what.split("/")[0] + ("/" if "/" in request.what else "")
        does = {
            ("GET", ""): self._tell,
            ("DELETE", ""): self._delete,
            ("POST", "lacking"): self._lacking,
            ("PUT", "packs/"): self._put_pack,
            ("PUT", "files/"): self._put_file,
            ("DELETE", "files"): self._clear,
            ("POST", "commit"): self._commit,
        }.get(route)
        return does(request, upload) if does is not None else _no_method()

    def _begin(self, request: UploadRequest) -> Answer:
        fields = Fields.parse("upload", request.body, _MAX_JSON)
        image, version = fields.text("image"), fields.text("version")
        self._require(request.principal, image)
        check_name_free(self._store, image, version)
        self._signing(image)  # refuses what could not be signed in the end
        upload = self._uploads.begin(request.owner, image, version)
        return 201, upload.to_dict()

    def _signing(self, image: str) -> dict[str, Any]:
        """Return what a publisher must know to sign; nothing where the repository is not signed, or its keys are
        here. ``TargetRefused`` where not even snapshot and timestamp can be signed."""
        try:
            Signer.open(self._store, image, self._keys)
            return {}
        except TargetRefused:
            signer = Signer.open(self._store, None, self._keys)
        return {"signed": signer.repository, "mirrors": read_mirrors(self._store)} if signer is not None else {}

    def _tell(self, request: UploadRequest, upload: Upload) -> Answer:
        work = self._works.get(upload.id)
        facts = {"state": "open", **(work.to_dict() if work is not None else {}), **upload.to_dict()}
        return 200, facts | (self._signing(upload.image) if facts["state"] == "open" else {})

    def _delete(self, request: UploadRequest, upload: Upload) -> Answer:
        with upload.held(alone=True):
            upload.delete()
        return 200, {}

    def _lacking(self, request: UploadRequest, upload: Upload) -> Answer:
        body = request.body
        if len(body) % DIGEST_SIZE:
            raise FormatError("request", "body", f"digests of {DIGEST_SIZE} bytes", f"{len(body)} bytes")
        digests = (body[at : at + DIGEST_SIZE] for at in range(0, len(body), DIGEST_SIZE))
        return 200, b"".join(upload.lacking(digests, self._may(request.principal, upload.image)))

    def _put_pack(self, request: UploadRequest, upload: Upload) -> Answer:
        with upload.held(alone=False):
            _check_open(upload)
            upload.put_pack(request.pack, request.body)
        return 200, {}

    def _put_file(self, request: UploadRequest, upload: Upload) -> Answer:
        with upload.held(alone=True):
            _check_open(upload)
            return 200, {"length": upload.put_file(request.disk, request.file, request.offset, request.body)}

    def _clear(self, request: UploadRequest, upload: Upload) -> Answer:
        with upload.held(alone=True):
            if upload.outcome().get("state") != "committed":
                upload.clear_files()
        self._works.pop(upload.id, None)
        return 200, {}

    def _commit(self, request: UploadRequest, upload: Upload) -> Answer:
        fields = Fields.parse("wishes", request.body, _MAX_JSON)
        labels, channels = fields.texts("labels", MAX_LABELS), fields.texts("channels", MAX_CHANNELS)
        wishes, now = Wishes(labels, fields.text("note", ""), channels), fields.number("now", default=int(time.time()))
        with self._lock:
            work = self._works.get(upload.id)
            if not upload.outcome() and (work is None or work.failed):
                self._works[upload.id] = work = _Work()
                self._worker.submit(self._run, upload, request.principal, wishes, now, work)
        return 202, self._tell(request, upload)[1]

    def _run(self, upload: Upload, principal: Principal, wishes: Wishes, now: int, work: _Work) -> None:
        """Check and commit an upload; whatever comes of it is noted."""
        try:
            with upload.held(alone=True):
                if not upload.outcome():
                    self._decide(upload, principal, wishes, now, work)
            self._works.pop(upload.id, None)
        except Cancelled:
            self._works.pop(upload.id, None)
        except (Locked, NoSpace) as error:
            work.failed = told(kind_of(error), error)
        except Exception as error:
            _LOG.exception("an upload of %s %s failed", upload.image, upload.version)
            work.failed = {"error": "internal", "message": f"the server failed: {type(error).__name__}; see its log"}

    def _decide(self, upload: Upload, principal: Principal, wishes: Wishes, now: int, work: _Work) -> None:
        def progress(phase: str, done: int, total: int) -> None:
            work.phase, work.done, work.total = phase, done, total

        try:
            if published(self._store, upload):
                self._patiently(lambda: settle_commit(self._store))
            else:
                may = self._may(principal, upload.image)
                checked = check_upload(self._store, upload, may=may, watch=Watch(progress, self._stop))
                self._patiently(lambda: commit_upload(self._store, upload, checked, wishes, keys=self._keys, now=now))
                _LOG.warning("%s %s was published by %s", upload.image, upload.version, principal.name)
            upload.end({"state": "committed"}, drop=True)
        except (Cancelled, Locked, NoSpace):
            raise
        except Outrun as error:
            upload.end({"state": "refused", **told("outrun", error), "newest": error.newest}, drop=False)
        except TrimTransferError as error:
            upload.end({"state": "refused", **told(kind_of(error), error)}, drop=False)

    def _patiently(self, commit: Callable[[], None]) -> None:
        deadline = time.monotonic() + _LOCK_PATIENCE
        while True:
            try:
                return commit()
            except Locked:
                if time.monotonic() > deadline or self._stop.wait(0.2):
                    raise

    # ---- rights

    def _require(self, principal: Principal, image: str) -> None:
        decision = self._door.access.image(principal, Role.PUBLISH, image)
        if not decision.allowed:
            raise PermissionError(decision.reason)

    def _may(self, principal: Principal, image: str) -> Callable[[str], bool]:
        """Return what tells whether an upload of this publisher may refer to an object of the repository: he could read
        it, so he could send it."""
        access, index = self._door.access, self._door.index
        if access.everything(principal, Role.READ).allowed:
            return lambda name: True
        if index is not None:
            index.ensure(image)

        @lru_cache(maxsize=65_536)
        def may(name: str) -> bool:
            named = identify(tuple(name.split("/")))
            if named is None or index is None:
                return False
            if named.kind is Kind.PACK:
                return access.any_of(principal, Role.READ, sorted(index.images(named.pack))).allowed
            return named.kind is Kind.IMAGE and access.image(principal, Role.READ, named.image).allowed

        return may


def _check_open(upload: Upload) -> None:
    if upload.outcome():
        raise TargetRefused(f"upload of {upload.image} {upload.version}", "has ended already")


def _no_method() -> Answer:
    return 405, {"error": "method", "message": "method not allowed"}


def told(kind: str, error: Exception) -> dict[str, Any]:
    """Return an error as answers have it."""
    return {"error": kind, "message": str(error)}


_KINDS: Final[dict[type[TrimTransferError], tuple[str, int]]] = {
    VersionExists: ("exists", 409),
    UploadTooLarge: ("limit", 413),
    Outrun: ("outrun", 409),
    Locked: ("locked", 503),
    NoSpace: ("space", 507),
    NotFound: ("missing", 404),
    FormatError: ("damaged", 422),
    IntegrityError: ("damaged", 422),
    TargetRefused: ("refused", 409),
}


def kind_of(error: TrimTransferError) -> str:
    """Return what answers call an error."""
    return next((kind for known, (kind, _) in _KINDS.items() if isinstance(error, known)), "refused")


def status_of(error: TrimTransferError) -> int:
    """Return the status of an answer that tells of an error."""
    return next((status for known, (_, status) in _KINDS.items() if isinstance(error, known)), 409)
