"""Roles of a repository's signed metadata, the names of their files, and how long these may be.

Pure, and loads nothing heavy: whoever only asks whether a repository is signed pays nothing. FORMAT.md, "Trust".
"""

from __future__ import annotations

import re
from typing import Final

from trimtransfer.names import check_name

ROOT: Final = "root"
TARGETS: Final = "targets"
SNAPSHOT: Final = "snapshot"
TIMESTAMP: Final = "timestamp"
TOP_ROLES: Final = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
OFFLINE_ROLES: Final = (ROOT, TARGETS)
"""Roles whose keys belong on machines without a network, or in a safe."""
PUBLISHER: Final = "publisher"
"""What the keys of all image roles are called together."""
_IMAGE: Final = "image-"
MAX_LENGTH: Final = {ROOT: 512_000, TIMESTAMP: 16_384, SNAPSHOT: 2_000_000, TARGETS: 5_000_000}
"""Longest file of each role in bytes; image roles are as targets. The limits of python-tuf, whose clients read them."""
MAX_ROTATIONS: Final = 256
"""Most roots that a client takes in one run: the limit of python-tuf."""
MAX_VERSION: Final = 1 << 31
"""Numbers of files rise by one at a time, so an honest one is far below; one above is a fast-forward attack."""
MAX_JUMP: Final = 1 << 20
"""Most by which the number of a timestamp rises between two syncs: a century of renewals each hour."""
DAYS: Final = {ROOT: 730, TARGETS: 365, PUBLISHER: 365, SNAPSHOT: 30, TIMESTAMP: 7}
"""For how many days files are signed, unless a root says otherwise."""
REPOSITORY: Final = re.compile(r"[0-9a-f]{16}")
"""The id of a repository."""


def role_of(image: str) -> str:
    """Return the name of the role that signs what versions an image has."""
    return f"{_IMAGE}{check_name('image', image)}"


def image_of(role: str) -> str | None:
    """Return the image of a role; None for a role of another kind."""
    return role.removeprefix(_IMAGE) if role.startswith(_IMAGE) else None


def max_length(role: str) -> int:
    """Return the longest file of a role in bytes."""
    return MAX_LENGTH.get(role, MAX_LENGTH[TARGETS])


def metadata_name(role: str, version: int | None = None) -> str:
    """Return the store name of a role's file; only that of the timestamp has no number."""
    return f"metadata/{role}.json" if version is None else f"metadata/{version}.{role}.json"


def image_paths(image: str) -> list[str]:
    """Return the patterns (of :mod:`fnmatch`, part by part) of the names that an image's role may speak for: files of
    its versions, and of their further disks."""
    check_name("image", image)
    return [f"images/{image}{disk}/*/*" for disk in ("", ".disk[1-9]", ".disk[1-9][0-9]")]
