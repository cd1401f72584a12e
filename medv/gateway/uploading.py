"""Uploads over HTTP: who may publish an image sends what the repository lacks, and has it checked and committed.

The order is as for everything else: who asks, how much, what he may; only then is a body read. Bodies are short, and
few are in memory at a time. Checks run one after the other in a thread of their own; the server is the only writer of
uploads, and the repository's lock keeps it apart from others that publish. FORMAT.md, "Uploads", has the protocol.

Browsers show certificates and Kerberos tickets by themselves, so that a page of somebody else could make them send
something here: every request carries a header that no page can add, and none from a page is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from medv.files import Receive, Scope, Send
from medv.gateway.access import Principal, Role
from medv.gateway.application import Exchange, Gateway
from medv.gateway.proxy import value
from medv.gateway.schemes import Presented
from medv.gateway.sending import Gone, Sender
from medv.gateway.trouble import Refused
from medv.objects import Kind, identify
from medv.ranges import BadPath, Headers
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
from trimtransfer.repository.uploads import PIECE, Upload, Uploads, UploadTooLarge
from trimtransfer.store import DirectoryStore
from trimtransfer.watch import Watch

PREFIX: Final = "/_medv/uploads"
_LOG: Final = logging.getLogger("medv.server")
_PATH: Final = re.compile(
    rb"/_medv/uploads(?:/(?P<id>[0-9a-f]{32})"
    rb"(?:/(?P<what>lacking|commit|files|packs/(?P<pack>[0-9a-f]{64})"
    rb"|files/(?P<disk>[0-9]{1,3})/(?P<file>[a-z0-9][a-z0-9._-]{0,79})))?)?"
)
_OFFSET: Final = re.compile(rb"offset=([0-9]{1,15})")
_MAX_JSON: Final = 64 << 10
_LEAST_RATE: Final = 16 << 10
"""Bytes per second that a body must come with, beyond its first time."""
_LOCK_PATIENCE: Final = 60.0
"""Seconds for which a commit waits for another program that writes to the repository."""
_SLOTS: Final = 16
"""Bodies that are in memory at a time."""
_SLOTS_EACH: Final = 8
"""The same, of one publisher."""

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


@dataclass(frozen=True, slots=True)
class _Request:
    """A request whose sender is known: what it is about."""

    principal: Principal
    method: str
    id: str
    what: str
    pack: bytes
    disk: int
    file: str
    offset: int
    body: bytes = b""


class Uploading:
    """The ASGI application below ``PREFIX``. ``keys`` sign where the repository is signed. Close it."""

    def __init__(self, gateway: Gateway, uploads: Uploads, *, keys: Keys | None = None) -> None:
        self._gateway, self._uploads, self._keys = gateway, uploads, keys
        self._store = DirectoryStore(gateway.root)
        self._slots = asyncio.Semaphore(_SLOTS)
        self._bodies = Counter[str]()
        self._worker = ThreadPoolExecutor(1, "uploads")
        self._works: dict[str, _Work] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        uploads.clear_temporary()

    def __repr__(self) -> str:
        return f"Uploading({self._store.url!r})"

    def close(self) -> None:
        """End checks that run; they begin anew when they are asked for again."""
        self._stop.set()
        self._worker.shutdown(cancel_futures=True)

    def refresh(self) -> None:
        """Delete uploads that nobody goes on with."""
        self._uploads.expire()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        gateway = self._gateway
        exchange = gateway.exchange(scope)
        sender = gateway.sender(scope, send, exchange)
        try:
            await self._admit(exchange, scope, receive, sender)
        except Gone as gone:
            exchange.reason = str(gone)
        finally:
            gateway.note(exchange, scope, sender, event="upload")

    async def _admit(self, exchange: Exchange, scope: Scope, receive: Receive, sender: Sender) -> None:
        """Find out who asks, how much, and whether he may publish anything; then read the body."""
        gateway, length = self._gateway, 0
        try:
            length = _length(scope["headers"])
            found = _parse(scope)
            exchange.name = tuple(scope["raw_path"].decode("ascii").strip("/").split("/"))
            proven = await gateway.door.authenticator.prove(_presented(exchange, scope), time.time())
        except (BadPath, Refused) as error:
            await self._drain(receive, length, sender)
            await gateway.refuse_identity(exchange, sender, error)
            return
        exchange.principal = proven.principal
        exchange.headers += proven.headers
        if wait := gateway.enter(exchange):
            await self._drain(receive, length, sender)
            await gateway.later(exchange, sender, wait)
            return
        try:
            decision = gateway.door.access.anything(exchange.principal, Role.PUBLISH)
            exchange.reason = decision.reason
            if length > PIECE or not decision.allowed:
                await self._drain(receive, length, sender)
                await (self._too_long(sender, exchange) if decision.allowed else self._denied(sender, exchange))
                return
            if self._bodies[exchange.client] >= _SLOTS_EACH:
                await self._drain(receive, length, sender)
                await gateway.later(exchange, sender, 1.0)
                return
            async with self._slot(exchange.client):
                body = await self._body(receive, length, sender)
                request = _Request(exchange.principal, scope["method"], *found, body)
                await self._serve(request, exchange, sender)
        finally:
            gateway.limits.leave(exchange.client)

    async def _serve(self, request: _Request, exchange: Exchange, sender: Sender) -> None:
        lines: Headers = []
        try:
            status, values = await asyncio.to_thread(self._answer, request)
        except PermissionError as error:
            exchange.reason = str(error)
            await self._denied(sender, exchange)
            return
        except Locked as error:
            status, values, lines = 503, _told("locked", error), [(b"retry-after", b"1")]
        except TrimTransferError as error:
            status, values = _status(error), _told(_kind(error), error)
        if isinstance(values, dict) and "message" in values:
            exchange.reason = str(values["message"])[:300]
        await self._send(sender, exchange, status, values, lines)

    # ---- bodies

    @contextlib.asynccontextmanager
    async def _slot(self, client: str) -> AsyncIterator[None]:
        self._bodies[client] += 1
        try:
            async with self._slots:
                yield
        finally:
            self._bodies[client] -= 1
            if not self._bodies[client]:
                del self._bodies[client]

    async def _body(self, receive: Receive, length: int, sender: Sender) -> bytes:
        data = bytearray()
        limits = self._gateway.settings.limits
        try:
            async with asyncio.timeout(limits.body_timeout + length / _LEAST_RATE):
                more = True
                while more:
                    async with asyncio.timeout(limits.body_timeout):
                        message = await receive()
                    if message["type"] != "http.request":
                        raise Gone("client went")
                    data += message.get("body", b"")
                    more = message.get("more_body", False)
        except TimeoutError:
            await sender.break_off("slow body")
            raise Gone("slow body") from None
        if len(data) != length:
            raise Gone("client went")
        return bytes(data)

    async def _drain(self, receive: Receive, length: int, sender: Sender) -> None:
        """Read a body that is of no use, if it is not long, so that the client reads the answer."""
        if not 0 < length <= PIECE:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._gateway.settings.limits.body_timeout):
                while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                    pass

    # ---- answers

    async def _send(
        self, sender: Sender, exchange: Exchange, status: int, values: dict[str, Any] | bytes, lines: Headers
    ) -> None:
        plain = isinstance(values, bytes)
        body = values if isinstance(values, bytes) else json.dumps(values).encode() + b"\n"
        headers = [
            (b"content-type", b"application/octet-stream" if plain else b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        start = {"type": "http.response.start", "status": status, "headers": headers + exchange.headers + lines}
        await sender(start)
        await sender({"type": "http.response.body", "body": body})

    async def _too_long(self, sender: Sender, exchange: Exchange) -> None:
        values = {"error": "limit", "message": f"a body of more than {PIECE:,} bytes"}
        await self._send(sender, exchange, 413, values, [(b"connection", b"close")])

    async def _denied(self, sender: Sender, exchange: Exchange) -> None:
        """Refuse: whoever proves nothing is asked who he is."""
        authenticator = self._gateway.door.authenticator
        if not exchange.principal.authenticated and authenticator.schemes:
            await self._gateway.refuse(exchange, sender, 401, "credentials are needed", authenticator.challenges())
            return
        message = "these credentials give no right to publish this"
        await self._send(sender, exchange, 403, {"error": "denied", "message": message}, [])

    # ---- in threads

    def _answer(self, request: _Request) -> Answer:
        """Do what is asked for; raises what that raises, ``PermissionError`` where it may not be done."""
        if not request.id:
            return self._begin(request) if request.method == "POST" else _no_method()
        upload = self._uploads.open(request.id, _owner(request.principal))
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

    def _begin(self, request: _Request) -> Answer:
        fields = Fields.parse("upload", request.body, _MAX_JSON)
        image, version = fields.text("image"), fields.text("version")
        self._require(request.principal, image)
        check_name_free(self._store, image, version)
        self._signing(image)  # refuses what could not be signed in the end
        upload = self._uploads.begin(_owner(request.principal), image, version)
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

    def _tell(self, request: _Request, upload: Upload) -> Answer:
        work = self._works.get(upload.id)
        facts = {"state": "open", **(work.to_dict() if work is not None else {}), **upload.to_dict()}
        return 200, facts | (self._signing(upload.image) if facts["state"] == "open" else {})

    def _delete(self, request: _Request, upload: Upload) -> Answer:
        with upload.held(alone=True):
            upload.delete()
        return 200, {}

    def _lacking(self, request: _Request, upload: Upload) -> Answer:
        body = request.body
        if len(body) % DIGEST_SIZE:
            raise FormatError("request", "body", f"digests of {DIGEST_SIZE} bytes", f"{len(body)} bytes")
        digests = (body[at : at + DIGEST_SIZE] for at in range(0, len(body), DIGEST_SIZE))
        return 200, b"".join(upload.lacking(digests, self._may(request.principal, upload.image)))

    def _put_pack(self, request: _Request, upload: Upload) -> Answer:
        with upload.held(alone=False):
            _check_open(upload)
            upload.put_pack(request.pack, request.body)
        return 200, {}

    def _put_file(self, request: _Request, upload: Upload) -> Answer:
        with upload.held(alone=True):
            _check_open(upload)
            return 200, {"length": upload.put_file(request.disk, request.file, request.offset, request.body)}

    def _clear(self, request: _Request, upload: Upload) -> Answer:
        with upload.held(alone=True):
            if upload.outcome().get("state") != "committed":
                upload.clear_files()
        self._works.pop(upload.id, None)
        return 200, {}

    def _commit(self, request: _Request, upload: Upload) -> Answer:
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
            work.failed = _told(_kind(error), error)
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
            upload.end({"state": "refused", **_told("outrun", error), "newest": error.newest}, drop=False)
        except TrimTransferError as error:
            upload.end({"state": "refused", **_told(_kind(error), error)}, drop=False)

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
        decision = self._gateway.door.access.image(principal, Role.PUBLISH, image)
        if not decision.allowed:
            raise PermissionError(decision.reason)

    def _may(self, principal: Principal, image: str) -> Callable[[str], bool]:
        """Return what tells whether an upload of this publisher may refer to an object of the repository: he could read
        it, so he could send it."""
        access, index = self._gateway.door.access, self._gateway.door.index
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


def _owner(principal: Principal) -> str:
    """Return whose an upload is."""
    kind = "right" if principal.grants else "user" if principal.user else "computer"
    return f"{kind}:{principal.name}"


def _presented(exchange: Exchange, scope: Scope) -> Presented:
    told = exchange.told
    return Presented(
        authorization=value(scope["headers"], b"authorization"),
        path="/" + "/".join(exchange.name),
        certificate=told.certificate,
        address=told.address,
        connection=None if told.trusted else scope.get("extensions", {}).get("medv.connection"),
    )


def _length(headers: Headers) -> int:
    """Return the length of a body; ``BadPath`` where there is a doubt about it, or the request is a browser's."""
    names = [name for name, _ in headers]
    if b"transfer-encoding" in names or names.count(b"content-length") > 1 or names.count(b"authorization") > 1:
        raise BadPath("a body without a length, or two sets of credentials")
    if value(headers, b"x-medv-upload") != "1" or b"origin" in names or b"sec-fetch-site" in names:
        raise BadPath("a browser's request, or not one of this protocol")
    text = value(headers, b"content-length") or "0"
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise BadPath("a length that is none")
    return int(text)


def _parse(scope: Scope) -> tuple[str, str, bytes, int, str, int]:
    """Return what a path and a query name; ``BadPath``."""
    found, query = _PATH.fullmatch(scope["raw_path"]), scope["query_string"]
    offset = _OFFSET.fullmatch(query) if query else None
    if found is None or (query and offset is None):
        raise BadPath("not a path of uploads")
    id, what, pack, disk, file = (
        (found[name] or b"").decode("ascii") for name in ("id", "what", "pack", "disk", "file")
    )
    return id, what, bytes.fromhex(pack), int(disk or 0), file, int(offset[1]) if offset else 0


def _check_open(upload: Upload) -> None:
    if upload.outcome():
        raise TargetRefused(f"upload of {upload.image} {upload.version}", "has ended already")


def _no_method() -> Answer:
    return 405, {"error": "method", "message": "method not allowed"}


def _told(kind: str, error: Exception) -> dict[str, Any]:
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


def _kind(error: TrimTransferError) -> str:
    return next((kind for known, (kind, _) in _KINDS.items() if isinstance(error, known)), "refused")


def _status(error: TrimTransferError) -> int:
    return next((status for known, (_, status) in _KINDS.items() if isinstance(error, known)), 409)
