"""Which host profiles a version has deltas for: the one small object that a client with host files asks for first.

For each profile it has what tells whether its deltas will serve this machine: a sample of the chunks that its files
should hold, how long the index is, and what its deltas save. FORMAT.md, "Hosts of a version".

Invariant: constructed values are valid.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtransfer.chunk import CHECK_SIZE, MAX_CHUNK_SIZE, Bytes, object_check
from trimtransfer.errors import FormatError
from trimtransfer.names import check_name

MAGIC: Final = b"TrimHost"
FORMAT: Final = 1
MAX_OFFERS: Final = 32
"""Most profiles of a version: a client asks its own index for the samples of all of them."""
MAX_SAMPLE: Final = 32
"""Most chunks of a sample: with 32 the share that it shows is right within a tenth, mostly."""
MAX_LENGTH: Final = 1 << 27
"""Limit of what is stated of an index: above any that there can be (:data:`trimtransfer.hostdelta.MAX_HOST_DELTA`)."""
_HEADER: Final = struct.Struct("<8sHH")
_FACTS: Final = struct.Struct("<IQQB")
SAMPLE: Final = np.dtype([("prefix", "<u8"), ("length", "<u4")])
"""A chunk of a sample: the first eight bytes of its digest as a number, its length."""
MAX_HOSTS: Final = _HEADER.size + MAX_OFFERS * (65 + _FACTS.size + MAX_SAMPLE * SAMPLE.itemsize) + CHECK_SIZE
"""Longest such object in bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """What a version has for hosts of one ``profile``.

    ``length`` of the index in bytes; ``stored`` bytes of units that make what takes ``plain`` in plain frames on such a
    host; ``sample`` (dtype ``SAMPLE``) of the chunks that files of such a host hold.
    """

    profile: str
    length: int
    plain: int
    stored: int
    sample: NDArray[np.void]

    @property
    def needs_nothing(self) -> bool:
        """Whether its deltas start from nothing that a host would have to hold."""
        return not len(self.sample)

    def to_bytes(self) -> bytes:
        """Return its bytes; ``FormatError`` for a value that is out of its range."""
        _check(self)
        name = self.profile.encode("ascii")
        facts = _FACTS.pack(self.length, self.plain, self.stored, len(self.sample))
        return b"".join((bytes([len(name)]), name, facts, self.sample.astype(SAMPLE).tobytes()))


def encode_hosts(offers: list[Offer]) -> bytes:
    """Return the object of a version; ``FormatError`` for more profiles than there may be, or one of them twice."""
    _check_all(offers)
    body = b"".join((_HEADER.pack(MAGIC, FORMAT, len(offers)), *(offer.to_bytes() for offer in offers)))
    return body + object_check(body)


def parse_hosts(data: Bytes) -> list[Offer]:
    """Return what a version offers.

    Raises:
        FormatError: anything but a valid object of this format.
    """
    view = memoryview(data)
    if not _HEADER.size + CHECK_SIZE <= len(view) <= MAX_HOSTS:
        raise _wrong(0, f"{_HEADER.size + CHECK_SIZE} to {MAX_HOSTS} bytes", len(view))
    magic, version, count = _HEADER.unpack_from(view)
    if (magic, version) != (MAGIC, FORMAT):
        raise _wrong(0, f"format {FORMAT} (a newer one needs a newer program)", (magic, version))
    end = len(view) - CHECK_SIZE
    if object_check(view[:end]) != bytes(view[end:]):
        raise _wrong(end, "the check of what is before", "another one")
    at, offers = _HEADER.size, []
    for _ in range(count):
        offer, at = _parse(view[:end], at)
        offers.append(offer)
    if at != end:
        raise _wrong(at, f"{count} profiles and nothing else", f"{end - at} bytes more")
    _check_all(offers)
    return offers


def _parse(view: memoryview, at: int) -> tuple[Offer, int]:
    """Return the profile at byte ``at``, and where it ends."""
    facts = at + 1 + (view[at] if at < len(view) else 0)
    if facts + _FACTS.size > len(view):
        raise _wrong(at, "a profile", "the end")
    length, plain, stored, count = _FACTS.unpack_from(view, facts)
    first = facts + _FACTS.size
    if first + count * SAMPLE.itemsize > len(view):
        raise _wrong(first, f"{count} chunks of a sample", "the end")
    try:
        name = bytes(view[at + 1 : facts]).decode("ascii")
    except UnicodeDecodeError as error:
        raise _wrong(at + 1, "the name of a profile", bytes(view[at + 1 : facts])) from error
    offer = Offer(name, length, plain, stored, np.frombuffer(view, SAMPLE, count, first))
    _check(offer)
    return offer, first + count * SAMPLE.itemsize


def _check(offer: Offer) -> None:
    check_name("profile", offer.profile)
    if not 0 < offer.length <= MAX_LENGTH or max(offer.plain, offer.stored) >= 1 << 63:
        raise _wrong(0, f"an index of at most {MAX_LENGTH} bytes, and sums below 2^63", offer.length)
    lengths = offer.sample["length"]
    if len(lengths) > MAX_SAMPLE or ((lengths == 0) | (lengths > MAX_CHUNK_SIZE)).any():
        raise _wrong(0, f"at most {MAX_SAMPLE} chunks of 1 to {MAX_CHUNK_SIZE} bytes", "others")


def _check_all(offers: list[Offer]) -> None:
    if len(offers) > MAX_OFFERS or len({offer.profile for offer in offers}) != len(offers):
        raise _wrong(10, f"at most {MAX_OFFERS} profiles, each once", len(offers))


def _wrong(where: int, expected: str, got: object) -> FormatError:
    return FormatError("hosts of a version", where, expected, got)
