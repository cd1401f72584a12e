"""Examining what a head leads to: a manifest, a stored piece, a pack, whole and by ranges, as clients ask for them; and
the same piece of the pack on the mirrors that the head names.
"""

from __future__ import annotations

import secrets
from itertools import islice
from typing import Final

from medv.doctor import answers, caching, ranges, samples
from medv.doctor.ailments import find
from medv.doctor.interview import PAGE, Interview, is_whole
from trimtransfer.chunk import object_check, object_digest
from trimtransfer.errors import FormatError, TrimTransferError
from trimtransfer.fetch.probe import Question
from trimtransfer.fetch.seen import Seen
from trimtransfer.head import Head
from trimtransfer.location import Locations
from trimtransfer.manifest import Manifest
from trimtransfer.names import manifest_name
from trimtransfer.pack import PACK_MAGIC

_EDGE: Final = 16
_MOST_PIECES: Final = 3


class ContentExamination:
    """Examines the content of one version in the course of an interview."""

    def __init__(self, interview: Interview) -> None:
        self._talk = interview

    def examine(self, head: Head) -> None:
        """Look at the newest version's manifest, and by it at a stored piece and a pack."""
        name, length = manifest_name(head.image, head.version), head.manifest_length
        if length > self._talk.probe.left // 2:
            self._talk.add([find("not-examined", f"the manifest of {length:,} bytes, and all that it leads to")])
            return
        seen = self._talk.ask(name, Question(fresh=True, limit=length + 64))
        self._talk.row.append(seen)
        if not seen.succeeded:
            self._talk.add(answers.judge_blocked(seen, kind="bin", names=(head.image, head.version)))
            return
        self._talk.add(caching.judge_lasting(seen, credentials=self._talk.probe.has_credentials))
        self._talk.add(ranges.judge_whole(seen, length))
        data = self._verified(seen, head)
        if data is None:
            return
        self._known_bytes(seen, data)
        try:
            self._follow(head, Manifest.from_bytes(data))
        except FormatError as error:
            self._talk.add([find("damaged", f"{seen.url}: {error}")])

    def _verified(self, seen: Seen, head: Head) -> bytes | None:
        """Return the manifest's bytes if they are the right ones; else say whose fault it is."""
        if object_digest(seen.body) == head.manifest_digest:
            return seen.body
        if answers.is_page(seen) or seen.headers.get("content-encoding", "identity").lower() != "identity":
            return None
        question = Question(query=f"doctor={secrets.token_hex(8)}", fresh=True, limit=head.manifest_length + 64)
        again = self._talk.ask(seen.name, question, judge=False) if not self._talk.probe.has_query else seen
        right = again.succeeded and object_digest(again.body) == head.manifest_digest
        told = f"{seen.url}: its digest is not the one that the head names"
        self._talk.add([find("damaged-in-cache" if right else "damaged", told)])
        return again.body if right else None

    def _known_bytes(self, seen: Seen, data: bytes) -> None:
        """Ask for ranges of an object that came whole and is right, and for the whole again."""
        name, total, middle = seen.name, len(data), len(data) // 2
        for start, stop in ((0, _EDGE), (middle, middle + _EDGE), (total - _EDGE, total)):
            self._talk.piece(name, start, stop, total, data[start:stop])
        beyond = self._talk.ask(name, Question(start=total, stop=total + _EDGE, limit=PAGE), judge=False)
        self._talk.add(ranges.judge_beyond(beyond))
        if total <= self._talk.probe.left // 4:
            again = self._talk.ask(name, Question(anew=True, limit=total + 64))
            self._talk.add(ranges.judge_whole(again, total, data))
            self._talk.add(caching.judge_same(seen, again))

    def _follow(self, head: Head, manifest: Manifest) -> None:
        """Look at a stored piece and a pack, as a client does, and at ranges of large files."""
        names = manifest.file_names()
        longest, name = max(
            ((file.length, name) for file, name in zip(manifest.files, names, strict=True)), default=(0, "")
        )
        for start, stop in samples.edges(longest):
            self._talk.piece(name, start, stop, longest)
        for ref in islice(samples.location_pieces(manifest, limit=self._talk.probe.left // 4), _MOST_PIECES):
            total = manifest.files[ref.file].length
            seen = self._talk.piece(names[ref.file], ref.offset, ref.offset + ref.length, total)
            if not is_whole(seen):
                return
            if object_check(seen.body) != ref.check:
                self._talk.add([find("damaged", f"{seen.url}, {ref.length:,} bytes from {ref.offset:,} on")])
                return
            sample = samples.choose(Locations.from_bytes(seen.body))
            if sample is not None:
                self._pack(sample)
                self._mirrors(head, sample)
                return
        self._talk.add([find("not-examined", "no pack: what was looked at names none")])

    def _pack(self, sample: samples.PackSample) -> None:
        name, total = sample.name, sample.length
        first = self._talk.piece(name, sample.start, sample.stop, total)
        if first.status in (403, 404, 410):
            self._talk.add(answers.judge_blocked(first, kind="bin", names=()))
            return
        self._talk.row.append(first)
        self._talk.add(caching.judge_lasting(first, credentials=self._talk.probe.has_credentials))
        if is_whole(first) and not sample.is_right(first.body):
            self._talk.add([find("damaged", f"{first.url}, bytes {sample.start:,} to {sample.stop - 1:,}")])
        if sample.stop - sample.start <= self._talk.probe.left // 2:
            second = self._talk.piece(name, sample.start, sample.stop, total)
            self._talk.add(caching.judge_keeping(first, second))
            self._talk.add(caching.judge_same(first, second))
        self._talk.piece(name, 0, _EDGE, total, PACK_MAGIC)
        self._talk.piece(name, total - _EDGE, total, total)
        whole = self._talk.ask(name, Question(limit=PAGE, narrow=True))
        self._talk.add(ranges.judge_whole(whole, total, PACK_MAGIC))

    def _mirrors(self, head: Head, sample: samples.PackSample) -> None:
        """Ask each mirror for the same frames."""
        question = Question(start=sample.start, stop=sample.stop, limit=sample.stop - sample.start + 64)
        for url in head.mirrors:
            if self._talk.probe.site.url.startswith("https:") and url.startswith("http:"):
                self._talk.add([find("mirror-fails", f"{url}: not https")])
                continue
            try:
                with self._talk.probe.elsewhere(url) as probe:
                    seen = probe.ask(sample.name, question)
                    self._talk.probe.charge(probe)
            except TrimTransferError as error:
                self._talk.add([find("mirror-fails", f"{url}: {error}")])
                continue
            if not is_whole(seen) or not sample.is_right(seen.body):
                came = seen.problem or f"HTTP {seen.status}" + ("" if seen.status != 206 else ", but other bytes")
                self._talk.add([find("mirror-fails", f"{seen.url}: {came}")])
