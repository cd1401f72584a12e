"""An examination: what is asked of a repository's server, in which order, and which judge looks at each answer.

It asks as clients do, for what they ask: the head past caches, a manifest, a stored piece by range, a run of frames of
a pack; and what they meet besides: what is not there, what has changed or not, each address alone. It reads at most
``budget`` bytes of bodies, changes nothing, and tries nothing twice.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from medv.doctor import answers, caching, samples, wire
from medv.doctor.ailments import find
from medv.doctor.content import ContentExamination
from medv.doctor.finding import Report, in_order
from medv.doctor.interview import PAGE, Enough, Interview
from medv.doctor.servers import recognise
from trimtransfer.errors import FormatError, NotFound
from trimtransfer.fetch.approach import Approach
from trimtransfer.fetch.credentials import NOTHING, Credential
from trimtransfer.fetch.probe import Probe, Question
from trimtransfer.fetch.retry import Cause
from trimtransfer.fetch.seen import AddressSeen, Seen
from trimtransfer.head import MAX_HEAD, Head
from trimtransfer.names import deltas_name, head_name, manifest_name
from trimtransfer.repository.reading import Listed, image_names
from trimtransfer.store import Store

BUDGET: Final = 1 << 20
"""Bytes of bodies that are read at most."""
_MOST_ADDRESSES: Final = 8
_TIMESTAMP: Final = "metadata/timestamp.json"
_NO_PACK: Final = f"packs/00/{'0' * 64}.bin"
_LOCK: Final = ".trimtransfer/lock"
_LONGEST: Final = deltas_name("doctor-" + "i" * 57, "0.1_2-" + "v" * 58, "1." + "b" * 62)


class Examination:
    """One examination of the server that ``probe`` asks. ``source`` is the repository as published, if at hand."""

    def __init__(self, probe: Probe, *, image: str | None, source: Store | None = None) -> None:
        self._talk = Interview(probe)
        self._image, self._source = image, source

    def run(self) -> Report:
        """Examine, and report."""
        budget = self._talk.probe.left
        try:
            self._reach()
            self._examine()
        except Enough:
            pass
        good = [seen for seen in self._talk.seen if seen.status is not None]
        self._talk.add(wire.judge_speed(good))
        servers = tuple(dict.fromkeys(name for seen in good for name in recognise(seen.headers)))
        return Report(
            url=self._talk.probe.site.url,
            findings=in_order(self._talk.findings),
            servers=servers,
            facts=self._talk.facts,
            requests=self._talk.probe.requests,
            bytes=budget - self._talk.probe.left,
        )

    # ---- the server

    def _reach(self) -> None:
        """Look at the way to the server: proxy, name, every address, TLS."""
        parts = urlsplit(self._talk.probe.site.url)
        host = parts.hostname or ""
        if parts.scheme == "http" and host not in ("localhost", "127.0.0.1", "::1"):
            self._talk.add([find("unencrypted", self._talk.probe.site.url)])
        if (proxy := self._talk.probe.proxy()) is not None:
            self._talk.facts["proxy"] = proxy
            self._talk.add([find("proxy-environment", f"{proxy} is used for {host}")])
            return
        addresses = self._talk.probe.addresses()
        self._talk.facts["addresses"] = addresses
        if not addresses:
            self._talk.add([find("name-unknown", f"{host} has no address")])
            raise Enough
        name = _TIMESTAMP if self._image is None else head_name(self._image)
        found = []
        for address in addresses[:_MOST_ADDRESSES]:
            question = Question(address=address, fresh=True, limit=PAGE)
            found.append(AddressSeen(address, self._talk.probe.ask(name, question)))
            if parts.scheme == "https":
                self._look_at_tls(address, host, found[-1].seen)
        self._talk.add(wire.judge_addresses(found))
        if all(one.seen.status is None for one in found):
            judged = [one for known in found for one in wire.judge_failure(known.seen)]
            if not any(one.code.startswith("tls-") for one in self._talk.findings):  # these say it better
                self._talk.add(judged)
            raise Enough

    def _look_at_tls(self, address: str, host: str, seen: Seen) -> None:
        tls = None if seen.cause in (Cause.NOBODY, Cause.NOT_TLS) else self._talk.probe.look_at_tls(address)
        if tls is None:
            return
        self._talk.facts.setdefault("tls", tls.version)
        if tls.chain and tls.chain[0].not_after is not None:
            self._talk.facts.setdefault("certificate_until", int(tls.chain[0].not_after))
        place = host if host == address else f"{host} ({address})"
        self._talk.add(wire.judge_tls(tls, place, now=time.time()))

    # ---- the objects

    def _examine(self) -> None:
        head = self._head()
        if head is not None:
            ContentExamination(self._talk).examine(head)
            self._openness()
        self._absent()
        self._metadata()
        self._talk.add(wire.judge_connection(self._talk.row))

    def _choose_image(self) -> None:
        """Choose an image by the repository's directory, or by signed metadata."""
        names: list[str] = []
        if isinstance(self._source, Listed):
            names = image_names(self._source)
        elif (stamp := self._talk.ask(_TIMESTAMP, Question(limit=PAGE), judge=False)).succeeded:
            name = samples.snapshot_of(stamp.body)
            if name is not None:
                question = Question(limit=self._talk.probe.left // 4)
                names = samples.images_of(self._talk.ask(name, question, judge=False).body)
        self._image = min(names, default=None)

    def _head(self) -> Head | None:
        if self._image is None:
            self._choose_image()
        if self._image is None:
            self._talk.add([find("no-image", "no image was named")])
            return None
        name = head_name(self._image)
        past = self._talk.ask(name, Question(fresh=True, limit=PAGE))
        self._talk.add(wire.judge_clock(past))
        self._talk.add(caching.judge_way(past))
        if not past.succeeded:
            self._explain_head(past)
            return None
        plain = self._talk.ask(name, Question(limit=PAGE))
        self._talk.row = [past, plain]
        self._talk.add(caching.judge_mutable(plain))
        self._talk.add(caching.judge_fresh(past, plain))
        self._talk.add(caching.judge_same(past, plain))
        if not self._talk.probe.has_query:
            # Some caches do not heed no-cache: another URL they cannot have.
            other = self._talk.ask(name, Question(query=f"doctor={secrets.token_hex(8)}", limit=PAGE), judge=False)
            self._talk.add(caching.judge_fresh(other, past))
        self._conditional(plain)
        return self._parse_head(past)

    def _explain_head(self, seen: Seen) -> None:
        """Say why there is no head: is it *.json that is blocked, or is there nothing?"""
        known = self._published()
        if known is not None and seen.status in (403, 404):
            other = self._talk.ask(manifest_name(known.image, known.version), Question(limit=PAGE), judge=False)
            if other.succeeded:
                self._talk.add(answers.judge_blocked(seen, kind="json", names=(known.image, known.version)))
                return
        if b"404.3" in seen.body:
            self._talk.add(answers.judge_blocked(seen, kind="json", names=(self._image or "",)))
            return
        self._talk.add(answers.judge_head(seen))

    def _parse_head(self, seen: Seen) -> Head | None:
        try:
            head = Head.from_bytes(seen.body)
        except FormatError as error:
            if not answers.is_page(seen) and "content-encoding" not in seen.headers:
                self._talk.add([find("damaged", f"{seen.url}: {error}")])
            return None
        if head.image != self._image:
            self._talk.add([find("damaged", f"{seen.url}: the head of another image, {head.image}")])
            return None
        self._talk.facts |= {"image": head.image, "version": head.version}
        known = self._published()
        if known is not None and known != head:
            told = f"{head.version} (number {head.sequence}) here, {known.version} (number {known.sequence}) published"
            self._talk.add([find("source-differs", f"{seen.url}: {told}")])
        return head

    def _published(self) -> Head | None:
        """Return the head in the repository as it was published, if that is at hand."""
        if self._source is None or self._image is None:
            return None
        try:
            return Head.from_bytes(self._source.read(head_name(self._image), limit=MAX_HEAD))
        except (NotFound, FormatError):
            return None

    def _conditional(self, seen: Seen) -> None:
        """Ask whether an object has changed."""
        headers = {}
        if "etag" in seen.headers:
            headers["If-None-Match"] = seen.headers["etag"]
        elif "last-modified" in seen.headers:
            headers["If-Modified-Since"] = seen.headers["last-modified"]
        if headers:
            self._talk.add(
                caching.judge_condition(self._talk.ask(seen.name, Question(headers=headers, limit=PAGE), judge=False))
            )

    def _openness(self) -> None:
        """Ask without credentials, if there are any."""
        if self._talk.probe.has_credentials and self._image is not None:
            with self._talk.probe.without_credentials() as probe:
                seen = probe.ask(head_name(self._image), Question(fresh=True, limit=PAGE))
                self._talk.probe.charge(probe)
            self._talk.add(answers.judge_openness(seen))

    def _absent(self) -> None:
        """Ask for what is not there, or should not be shown."""
        missing = self._talk.ask(_NO_PACK, Question(limit=PAGE), judge=False)
        admitted = bool(self._talk.row)
        self._talk.add(answers.judge_missing(missing, admitted=admitted))
        self._talk.add(caching.judge_missing_again(self._talk.ask(_NO_PACK, Question(limit=PAGE), judge=False)))
        image, version = self._talk.facts.get("image"), self._talk.facts.get("version")
        if image and version:
            name = deltas_name(image, version, f"doctor-{secrets.token_hex(4)}")
            missing = self._talk.ask(name, Question(fresh=True, limit=PAGE), judge=False)
            self._talk.add(answers.judge_missing(missing, admitted=admitted))
        long = self._talk.ask(_LONGEST, Question(limit=PAGE), judge=False)
        # Of another image: credentials may well be good for this one alone.
        self._talk.add(answers.judge_long_name(long, admitted=admitted and not self._talk.probe.has_credentials))
        self._talk.add(answers.judge_listing(self._talk.ask("images/", Question(limit=PAGE), judge=False)))
        self._talk.add(answers.judge_private(self._talk.ask(_LOCK, Question(limit=PAGE), judge=False), missing))

    def _metadata(self) -> None:
        """Look at the one file of signed metadata that is replaced, if there is one."""
        past = self._talk.ask(_TIMESTAMP, Question(fresh=True, limit=PAGE), judge=False)
        if past.succeeded and past.body.startswith(b"{"):
            plain = self._talk.ask(_TIMESTAMP, Question(limit=PAGE))
            self._talk.add(caching.judge_mutable(plain))
            self._talk.add(caching.judge_fresh(past, plain))


def examine(
    url: str,
    image: str | None = None,
    *,
    source: Store | None = None,
    ca_cert: str | None = None,
    credential: Credential = NOTHING,
    budget: int = BUDGET,
    patience: float | None = None,
    tell: Callable[[Seen], None] = lambda seen: None,
) -> Report:
    """Examine the server of the repository at ``url`` by one of its images.

    ``credential`` is shown to it. ``source`` is the repository as published: then it is seen whether the server is
    behind. At most ``budget`` bytes
    are read, each question takes ``patience`` seconds at most. ``tell`` is called with each answer.

    Raises:
        ValueError: the URL is malformed; FormatError: the image's name. FetchError, AccessDenied: ``ca_cert`` or
        what is to be shown cannot be read.
    """
    options = {} if patience is None else {"patience": patience}
    approach = Approach(url, ca_cert=ca_cert, credential=credential)
    with Probe(approach, budget=budget, tell=tell, **options) as probe:
        return Examination(probe, image=image, source=source).run()
