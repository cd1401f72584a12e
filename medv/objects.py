"""What the names of a repository's objects mean to whoever serves them: which image they belong to, how long they last.

Pure. FORMAT.md, "Names", says what there is; whatever else is asked for is nothing that a client could want.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from trimtransfer.errors import FormatError
from trimtransfer.names import check_name, further_disk_of

LASTING: Final = frozenset(("manifest.bin", "tables.bin", "locations.bin", "keys.bin"))
"""Files of a version that are written once and never changed."""
YEAR: Final = 31_536_000
"""Seconds that what never changes may be kept by caches (the most that they honour)."""
_ROLE: Final = re.compile(r"[0-9]+\.image-(.+)\.json")
"""Signed metadata of one image."""
_PACK: Final = re.compile(r"([0-9a-f]{2})[0-9a-f]{62}\.bin")


class Kind(Enum):
    """What an object is to the rules of access; the value is the first part of its name."""

    IMAGE = "images"
    PACK = "packs"
    METADATA = "metadata"
    PROFILE = "profiles"


@dataclass(frozen=True, slots=True)
class Named:
    """An object by its name: of what ``kind`` it is, the ``image`` it belongs to (for images), its ``pack`` digest."""

    kind: Kind
    image: str = ""
    pack: bytes = b""


def identify(name: tuple[str, ...]) -> Named | None:
    """Return what a name of several parts stands for; None if a repository holds nothing of such a name."""
    if len(name) < 2:
        return None
    if name[0] == "packs":
        found = _PACK.fullmatch(name[-1]) if len(name) == 3 else None
        return Named(Kind.PACK, pack=bytes.fromhex(name[2][:64])) if found and found[1] == name[1] else None
    if name[0] == "images":
        return Named(Kind.IMAGE, image=owner_of(name[1])) if len(name) >= 3 and _is_name(name[1]) else None
    if name[0] == "metadata":
        role = _ROLE.fullmatch(name[-1]) if len(name) == 2 else None
        return Named(Kind.IMAGE, image=role[1]) if role and _is_name(role[1]) else Named(Kind.METADATA)
    return Named(Kind.PROFILE) if name[0] == "profiles" else None


def owner_of(image: str) -> str:
    """Return the image whose rules hold for a folder of images: the further disks of a version belong to its first."""
    return further_disk_of(image) or image


def lasts(name: tuple[str, ...]) -> bool:
    """Tell whether an object never changes once it is there."""
    return name[0] == "packs" or (name[0] == "images" and len(name) == 4 and name[-1] in LASTING)


def cache_control(name: tuple[str, ...], *, public: bool = True) -> str:
    """Return the ``Cache-Control`` of an object: what may be replaced is asked for again each time.

    ``public``: everybody may have it. Else caches that serve others must not keep it.
    """
    if lasts(name):
        return f"{'public' if public else 'private'}, max-age={YEAR}, immutable"
    return "no-cache" if public else "private, no-cache"


def _is_name(image: str) -> bool:
    try:
        check_name("image", image)
    except FormatError:
        return False
    return True
