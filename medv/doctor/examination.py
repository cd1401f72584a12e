"""An examination: what is asked of a repository's server, in which order, and which judge looks at each answer.

It asks as clients do, for what they ask: the head past caches, a manifest, a stored piece by range, a run of frames of
a pack; and what they meet besides: what is not there, what has changed or not, each address alone. It reads at most
``budget`` bytes of bodies, changes nothing, and tries nothing twice.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any, Final
from urllib.parse import urlsplit

from medv.doctor import answers, caching, ranges, samples, wire
from medv.doctor.ailments import find
from medv.doctor.finding import Finding, Report, in_order
from medv.doctor.servers import recognise
from trimtransfer.chunk import object_check, object_digest
from trimtransfer.errors import FormatError, NotFound
from trimtransfer.fetch.probe import Probe, Question
from trimtransfer.fetch.retry import Cause
from trimtransfer.fetch.seen import AddressSeen, Seen
from trimtransfer.head import MAX_HEAD, Head
from trimtransfer.location import Locations
from trimtransfer.manifest import Manifest
from trimtransfer.names import deltas_name, head_name, manifest_name
from trimtransfer.pack import PACK_MAGIC
from trimtransfer.repository.reading import Listed, image_names
from trimtransfer.store import Store

BUDGET: Final = 1 << 20
"""Bytes of bodies that are read at most."""
_MOST_ADDRESSES: Final = 8
_MOST_FAILURES: Final = 3
_PAGE: Final = 16 << 10
"""Bytes that are read of what is no object."""
_TIMESTAMP: Final = "metadata/timestamp.json"
_NO_PACK: Final = f"packs/00/{'0' * 64}.bin"
_LOCK: Final = ".trimtransfer/lock"
_EDGE: Final = 16
_LONGEST: Final = deltas_name("doctor-" + "i" * 57, "0.1_2-" + "v" * 58, "1." + "b" * 62)


class _Enough(Exception):
    """There is no use in asking any further."""


class Examination:
    """One examination of the server that ``probe`` asks. ``source`` is the repository as published, if at hand."""

    def __init__(self, probe: Probe, *, image: str | None, source: Store | None = None) -> None:
        self._probe, self._image, self._source = probe, image, source
        self._findings: list[Finding] = []
        self._answers: list[Seen] = []
        self._row: list[Seen] = []
        self._facts: dict[str, Any] = {}
        self._failures = 0
        self._loose = 0

    def run(self) -> Report:
        """Examine, and report."""
        budget = self._probe.left
        try:
            self._reach()
            self._examine()
        except _Enough:
            pass
        good = [seen for seen in self._answers if seen.status is not None]
        self._add(wire.judge_speed(good))
        servers = tuple(dict.fromkeys(name for seen in good for name in recognise(seen.headers)))
        return Report(
            url=self._probe.site.url,
            findings=in_order(self._findings),
            servers=servers,
            facts=self._facts,
            requests=self._probe.requests + self._loose,
            bytes=budget - self._probe.left,
        )

    # ---- asking

    def _add(self, found: Iterable[Finding]) -> None:
        self._findings.extend(found)

    def _ask(self, name: str, question: Question | None = None, *, judge: bool = True) -> Seen:
        """Ask; with ``judge`` it is for an object that should be there."""
        if self._probe.left <= 0:
            self._add([find("not-examined", f"all after {self._probe.requests} requests")])
            raise _Enough
        seen = self._probe.ask(name, question)
        self._answers.append(seen)
        if judge or seen.cause is not None:
            self._add(answers.judge_answer(seen))
        if judge:
            self._add(answers.judge_body(seen))
            self._add(wire.judge_redirects(seen, credentials=self._probe.has_credentials))
        self._failures += seen.status is None
        if self._failures >= _MOST_FAILURES:
            self._add([find("given-up", f"{self._failures} requests got no answer")])
            raise _Enough
        return seen

    def _piece(self, name: str, start: int, stop: int, total: int, right: bytes | None = None) -> Seen:
        """Ask for a range, and judge it."""
        seen = self._ask(name, Question(start=start, stop=stop, limit=stop - start + 64))
        self._add(ranges.judge_range(seen, total, right))
        return seen

    # ---- the server

    def _reach(self) -> None:
        """Look at the way to the server: proxy, name, every address, TLS."""
        parts = urlsplit(self._probe.site.url)
        host = parts.hostname or ""
        if parts.scheme == "http" and host not in ("localhost", "127.0.0.1", "::1"):
            self._add([find("unencrypted", self._probe.site.url)])
        if (proxy := self._probe.proxy()) is not None:
            self._facts["proxy"] = proxy
            self._add([find("proxy-environment", f"{proxy} is used for {host}")])
            return
        addresses = self._probe.addresses()
        self._facts["addresses"] = addresses
        if not addresses:
            self._add([find("name-unknown", f"{host} has no address")])
            raise _Enough
        name = _TIMESTAMP if self._image is None else head_name(self._image)
        found = []
        for address in addresses[:_MOST_ADDRESSES]:
            question = Question(address=address, fresh=True, limit=_PAGE)
            found.append(AddressSeen(address, self._probe.ask(name, question)))
            if parts.scheme == "https":
                self._look_at_tls(address, host, found[-1].seen)
        self._add(wire.judge_addresses(found))
        if all(one.seen.status is None for one in found):
            judged = [one for known in found for one in wire.judge_failure(known.seen)]
            if not any(one.code.startswith("tls-") for one in self._findings):  # these say it better
                self._add(judged)
            raise _Enough

    def _look_at_tls(self, address: str, host: str, seen: Seen) -> None:
        tls = None if seen.cause in (Cause.NOBODY, Cause.NOT_TLS) else self._probe.look_at_tls(address)
        if tls is None:
            return
        self._facts.setdefault("tls", tls.version)
        if tls.chain and tls.chain[0].not_after is not None:
            self._facts.setdefault("certificate_until", int(tls.chain[0].not_after))
        place = host if host == address else f"{host} ({address})"
        self._add(wire.judge_tls(tls, place, now=time.time()))

    # ---- the objects

    def _examine(self) -> None:
        head = self._head()
        if head is not None and self._manifest(head):
            self._openness()
        self._absent()
        self._metadata()
        self._add(wire.judge_connection(self._row))

    def _choose_image(self) -> None:
        """Choose an image by the repository's directory, or by signed metadata."""
        names: list[str] = []
        if isinstance(self._source, Listed):
            names = image_names(self._source)
        elif (stamp := self._ask(_TIMESTAMP, Question(limit=_PAGE), judge=False)).succeeded:
            name = samples.snapshot_of(stamp.body)
            if name is not None:
                names = samples.images_of(self._ask(name, Question(limit=self._probe.left // 4), judge=False).body)
        self._image = min(names, default=None)

    def _head(self) -> Head | None:
        if self._image is None:
            self._choose_image()
        if self._image is None:
            self._add([find("no-image", "no image was named")])
            return None
        name = head_name(self._image)
        past = self._ask(name, Question(fresh=True, limit=_PAGE))
        self._add(wire.judge_clock(past))
        self._add(caching.judge_way(past))
        if not past.succeeded:
            self._explain_head(past)
            return None
        plain = self._ask(name, Question(limit=_PAGE))
        self._row = [past, plain]
        self._add(caching.judge_mutable(plain))
        self._add(caching.judge_fresh(past, plain))
        self._add(caching.judge_same(past, plain))
        if not self._probe.has_query:
            # Some caches do not heed no-cache: another URL they cannot have.
            other = self._ask(name, Question(query=f"doctor={secrets.token_hex(8)}", limit=_PAGE), judge=False)
            self._add(caching.judge_fresh(other, past))
        self._conditional(plain)
        return self._parse_head(past)

    def _explain_head(self, seen: Seen) -> None:
        """Say why there is no head: is it *.json that is blocked, or is there nothing?"""
        known = self._published()
        if known is not None and seen.status in (403, 404):
            other = self._ask(manifest_name(known.image, known.version), Question(limit=_PAGE), judge=False)
            if other.succeeded:
                self._add(answers.judge_blocked(seen, kind="json", names=(known.image, known.version)))
                return
        if b"404.3" in seen.body:
            self._add(answers.judge_blocked(seen, kind="json", names=(self._image or "",)))
            return
        self._add(answers.judge_head(seen))

    def _parse_head(self, seen: Seen) -> Head | None:
        try:
            head = Head.from_bytes(seen.body)
        except FormatError as error:
            if not answers.is_page(seen) and "content-encoding" not in seen.headers:
                self._add([find("damaged", f"{seen.url}: {error}")])
            return None
        if head.image != self._image:
            self._add([find("damaged", f"{seen.url}: the head of another image, {head.image}")])
            return None
        self._facts |= {"image": head.image, "version": head.version}
        known = self._published()
        if known is not None and known != head:
            told = f"{head.version} (number {head.sequence}) here, {known.version} (number {known.sequence}) published"
            self._add([find("source-differs", f"{seen.url}: {told}")])
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
            self._add(
                caching.judge_condition(self._ask(seen.name, Question(headers=headers, limit=_PAGE), judge=False))
            )

    def _manifest(self, head: Head) -> bool:
        """Look at the newest version's manifest, and by it at a stored piece and a pack; tell whether it came."""
        name, length = manifest_name(head.image, head.version), head.manifest_length
        if length > self._probe.left // 2:
            self._add([find("not-examined", f"the manifest of {length:,} bytes, and all that it leads to")])
            return True
        seen = self._ask(name, Question(fresh=True, limit=length + 64))
        self._row.append(seen)
        if not seen.succeeded:
            self._add(answers.judge_blocked(seen, kind="bin", names=(head.image, head.version)))
            return False
        self._add(caching.judge_lasting(seen, credentials=self._probe.has_credentials))
        self._add(ranges.judge_whole(seen, length))
        data = self._verified(seen, head)
        if data is None:
            return True
        self._known_bytes(seen, data)
        try:
            self._follow(Manifest.from_bytes(data))
        except FormatError as error:
            self._add([find("damaged", f"{seen.url}: {error}")])
        return True

    def _verified(self, seen: Seen, head: Head) -> bytes | None:
        """Return the manifest's bytes if they are the right ones; else say whose fault it is."""
        if object_digest(seen.body) == head.manifest_digest:
            return seen.body
        if answers.is_page(seen) or seen.headers.get("content-encoding", "identity").lower() != "identity":
            return None
        question = Question(query=f"doctor={secrets.token_hex(8)}", fresh=True, limit=head.manifest_length + 64)
        again = self._ask(seen.name, question, judge=False) if not self._probe.has_query else seen
        right = again.succeeded and object_digest(again.body) == head.manifest_digest
        told = f"{seen.url}: its digest is not the one that the head names"
        self._add([find("damaged-in-cache" if right else "damaged", told)])
        return again.body if right else None

    def _known_bytes(self, seen: Seen, data: bytes) -> None:
        """Ask for ranges of an object that came whole and is right, and for the whole again."""
        name, total, middle = seen.name, len(data), len(data) // 2
        for start, stop in ((0, _EDGE), (middle, middle + _EDGE), (total - _EDGE, total)):
            self._piece(name, start, stop, total, data[start:stop])
        beyond = self._ask(name, Question(start=total, stop=total + _EDGE, limit=_PAGE), judge=False)
        self._add(ranges.judge_beyond(beyond))
        if total <= self._probe.left // 4:
            again = self._ask(name, Question(anew=True, limit=total + 64))
            self._add(ranges.judge_whole(again, total, data))
            self._add(caching.judge_same(seen, again))

    def _follow(self, manifest: Manifest) -> None:
        """Look at a stored piece and a pack, as a client does, and at ranges of large files."""
        names = manifest.file_names()
        for file, name in zip(manifest.files, names, strict=True):
            for start, stop in samples.edges(file.length):
                self._piece(name, start, stop, file.length)
        for ref in samples.location_pieces(manifest, limit=self._probe.left // 4):
            total = manifest.files[ref.file].length
            seen = self._piece(names[ref.file], ref.offset, ref.offset + ref.length, total)
            if not _is_whole(seen):
                return
            if object_check(seen.body) != ref.check:
                self._add([find("damaged", f"{seen.url}, {ref.length:,} bytes from {ref.offset:,} on")])
                return
            sample = samples.choose(Locations.from_bytes(seen.body))
            if sample is not None:
                self._pack(sample)
                return
        self._add([find("not-examined", "no pack: the lists of what is in packs are too long")])

    def _pack(self, sample: samples.PackSample) -> None:
        name, total = sample.name, sample.length
        first = self._piece(name, sample.start, sample.stop, total)
        if first.status in (403, 404, 410):
            self._add(answers.judge_blocked(first, kind="bin", names=()))
            return
        self._row.append(first)
        self._add(caching.judge_lasting(first, credentials=self._probe.has_credentials))
        if _is_whole(first) and not sample.is_right(first.body):
            self._add([find("damaged", f"{first.url}, bytes {sample.start:,} to {sample.stop - 1:,}")])
        if sample.stop - sample.start <= self._probe.left // 2:
            second = self._piece(name, sample.start, sample.stop, total)
            self._add(caching.judge_keeping(first, second))
            self._add(caching.judge_same(first, second))
        self._piece(name, 0, _EDGE, total, PACK_MAGIC)
        self._piece(name, total - _EDGE, total, total)
        whole = self._ask(name, Question(limit=_PAGE, narrow=True))
        self._add(ranges.judge_whole(whole, total, PACK_MAGIC))

    def _openness(self) -> None:
        """Ask without credentials, if there are any."""
        if self._probe.has_credentials and self._image is not None:
            with self._probe.without_credentials() as probe:
                seen = probe.ask(head_name(self._image), Question(fresh=True, limit=_PAGE))
                self._loose += probe.requests
                self._probe.left -= len(seen.body)
            self._add(answers.judge_openness(seen))

    def _absent(self) -> None:
        """Ask for what is not there, or should not be shown."""
        missing = self._ask(_NO_PACK, Question(limit=_PAGE), judge=False)
        admitted = bool(self._row)
        self._add(answers.judge_missing(missing, admitted=admitted))
        self._add(caching.judge_missing_again(self._ask(_NO_PACK, Question(limit=_PAGE), judge=False)))
        image, version = self._facts.get("image"), self._facts.get("version")
        if image and version:
            name = deltas_name(image, version, f"doctor-{secrets.token_hex(4)}")
            missing = self._ask(name, Question(fresh=True, limit=_PAGE), judge=False)
            self._add(answers.judge_missing(missing, admitted=admitted))
        long = self._ask(_LONGEST, Question(limit=_PAGE), judge=False)
        self._add(answers.judge_long_name(long, admitted=admitted))
        self._add(answers.judge_listing(self._ask("images/", Question(limit=_PAGE), judge=False)))
        self._add(answers.judge_private(self._ask(_LOCK, Question(limit=_PAGE), judge=False), missing))

    def _metadata(self) -> None:
        """Look at the one file of signed metadata that is replaced, if there is one."""
        past = self._ask(_TIMESTAMP, Question(fresh=True, limit=_PAGE), judge=False)
        if past.succeeded and past.body.startswith(b"{"):
            plain = self._ask(_TIMESTAMP, Question(limit=_PAGE))
            self._add(caching.judge_mutable(plain))
            self._add(caching.judge_fresh(past, plain))


def _is_whole(seen: Seen) -> bool:
    """Tell whether all bytes of a range came, as far as their number goes."""
    start, stop = seen.asked or (0, 0)
    return seen.status == 206 and seen.succeeded and len(seen.body) == stop - start


def examine(
    url: str,
    image: str | None = None,
    *,
    source: Store | None = None,
    ca_cert: str | None = None,
    budget: int = BUDGET,
    patience: float | None = None,
    tell: Callable[[Seen], None] = lambda seen: None,
) -> Report:
    """Examine the server of the repository at ``url`` by one of its images.

    ``source`` is the repository as published: then it is seen whether the server is behind. At most ``budget`` bytes
    are read, each question takes ``patience`` seconds at most. ``tell`` is called with each answer.

    Raises:
        ValueError: the URL is malformed; FormatError: the image's name. FetchError: ``ca_cert`` cannot be read.
    """
    options = {} if patience is None else {"patience": patience}
    with Probe(url, ca_cert=ca_cert, budget=budget, tell=tell, **options) as probe:
        return Examination(probe, image=image, source=source).run()
