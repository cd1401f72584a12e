"""Which pieces of a version to look at: few bytes, and of each it is known what is right. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from trimtransfer.chunk import object_check
from trimtransfer.location import Locations
from trimtransfer.manifest import Manifest, StoredRef
from trimtransfer.pack import pack_name

RUN: Final = 128 << 10
"""Most bytes of frames in a row that are asked for at once."""
_EDGES: Final = (1 << 31, 1 << 32)
_SPAN: Final = 16
_ROLE: Final = "image-"
_FILE: Final = re.compile(r"(?:snapshot|image-[a-z0-9][a-z0-9._-]{0,63})\.json")


@dataclass(frozen=True, slots=True)
class PackSample:
    """A pack, and frames in a row within it: bytes ``start`` to ``stop``; ``ends`` and ``checks`` of the frames."""

    name: str
    length: int
    start: int
    stop: int
    ends: tuple[int, ...]
    checks: tuple[bytes, ...]

    def is_right(self, body: bytes) -> bool:
        """Tell whether these are the frames' bytes."""
        starts = (self.start, *self.ends[:-1])
        parts = (body[start - self.start : end - self.start] for start, end in zip(starts, self.ends, strict=True))
        return all(object_check(part) == check for part, check in zip(parts, self.checks, strict=True))


def location_pieces(manifest: Manifest, *, limit: int) -> Iterator[StoredRef]:
    """Yield stored pieces of locations of at most ``limit`` bytes, those of the newest content and long ones first."""
    for name in ("fresh", "rest"):
        lengths = manifest.rows[name]["length"]
        for number in np.argsort(lengths)[::-1]:
            if not 0 < lengths[number] <= limit:
                continue
            row = manifest.rows[name][number]
            yield StoredRef(int(row["file"]), int(row["offset"]), int(row["length"]), row["check"].tobytes())


def choose(locations: Locations) -> PackSample | None:
    """Return a run of whole frames in the longest pack: from its middle on, as far as ``RUN`` reaches.

    None if there are no frames.
    """
    frames = locations.frames
    if not len(frames):
        return None
    used = np.unique(frames["pack"]).tolist()
    number = max(used, key=lambda pack: locations.packs[pack].length)
    here = np.sort(frames[frames["pack"] == number], order="offset")
    first = len(here) // 2
    start = end = int(here["offset"][first])
    ends: list[int] = []
    checks: list[bytes] = []
    for frame in here[first:]:
        if int(frame["offset"]) != end or (ends and end + int(frame["stored"]) - start > RUN):
            break
        end += int(frame["stored"])
        ends.append(end)
        checks.append(frame["check"].tobytes())
    ref = locations.packs[number]
    return PackSample(pack_name(ref.digest), ref.length, start, end, tuple(ends), tuple(checks))


def images_of(snapshot: bytes) -> list[str]:
    """Return the names of images that a snapshot of signed metadata tells of, not checked."""
    return [name[len(_ROLE) : -len(".json")] for name in _meta(snapshot) if name.startswith(_ROLE)]


def snapshot_of(timestamp: bytes) -> str | None:
    """Return the store name of the snapshot that a timestamp tells of, not checked; None if it tells of none."""
    number = _meta(timestamp).get("snapshot.json", {}).get("version")
    return f"metadata/{number}.snapshot.json" if type(number) is int and number > 0 else None


def _meta(data: bytes) -> dict[str, dict[str, Any]]:
    """Return what a file of signed metadata says of others."""
    try:
        found = json.loads(data)["signed"]["meta"]
        return {str(name): told for name, told in found.items() if isinstance(told, dict) and _FILE.fullmatch(name)}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}


def edges(total: int) -> list[tuple[int, int]]:
    """Return the ranges of a large object that 32-bit numbers fail at: over 2 and 4 GiB, and at its end."""
    found = [(edge - _SPAN // 2, edge + _SPAN // 2) for edge in _EDGES if edge + _SPAN <= total]
    return [*found, (total - _SPAN, total)] if found else []
