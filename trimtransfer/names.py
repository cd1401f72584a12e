"""Names of images and versions, and of the objects that a repository keeps under them.

Nothing is ever escaped: a name that would need it - for a URL, a file system, or Windows - is
refused. FORMAT.md, "Names".
"""

from __future__ import annotations

import re
from typing import Final

from trimtransfer.errors import FormatError

MAX_DISKS: Final = 64
"""Most disks of a version."""
NOTHING: Final = "nothing"
"""The profile of a host that holds nothing: deltas from it serve everybody. None is recorded by that name."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_FURTHER: Final = re.compile(r"(.+)\.disk[1-9][0-9]*")
_RESERVED: Final = frozenset(
    {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(10)), *(f"lpt{n}" for n in range(10))}
)
"""Device names of Windows: reserved with any extension (Microsoft, "Naming Files, Paths, and Namespaces")."""


def check_name(what: str, name: str) -> str:
    """Return ``name`` if it may name a ``what`` (image, version), else raise.

    Raises:
        FormatError: not 1 to 64 of ``a-z 0-9 . _ -`` beginning with a letter or digit, ending in a dot, or a name
            that Windows reserves.
    """
    if not _NAME.fullmatch(name) or name.endswith("."):
        expected = "1 to 64 of a-z, 0-9, '.', '_', '-', the first a letter or digit, the last no dot"
        raise FormatError(f"{what} name", "name", expected, repr(name[:80]))
    if name.split(".", 1)[0] in _RESERVED:
        raise FormatError(f"{what} name", "name", "a name that Windows does not reserve", repr(name))
    return name


def disk_name(image: str, disk: int) -> str:
    """Return the image name under which a disk of a version of several is kept: the image's own for disk 0.

    ``FormatError`` if that becomes too long.
    """
    return check_name("image", f"{image}.disk{disk}" if disk else image)


def further_disk_of(name: str) -> str | None:
    """Return the image that a name belongs to as that of a further disk; None if it is an image's own name."""
    found = _FURTHER.fullmatch(name)
    return found[1] if found else None


def head_name(image: str) -> str:
    """Return the store name of an image's head."""
    return f"images/{check_name('image', image)}/head.json"


def catalogue_name(image: str) -> str:
    """Return the store name of an image's catalogue."""
    return f"images/{check_name('image', image)}/catalogue.json"


def channel_name(image: str, channel: str) -> str:
    """Return the store name of what a channel of an image points to."""
    return f"images/{check_name('image', image)}/channel-{check_name('channel', channel)}.json"


def version_name(image: str, version: str, file: str) -> str:
    """Return the store name of a file of a version."""
    return f"images/{check_name('image', image)}/{check_name('version', version)}/{file}"


def manifest_name(image: str, version: str) -> str:
    """Return the store name of a version's manifest."""
    return version_name(image, version, "manifest.bin")


def tables_name(image: str, version: str) -> str:
    """Return the store name of a version's tables."""
    return version_name(image, version, "tables.bin")


def locations_name(image: str, version: str) -> str:
    """Return the store name of a version's locations."""
    return version_name(image, version, "locations.bin")


def keys_name(image: str, version: str) -> str:
    """Return the store name of a version's key file."""
    return version_name(image, version, "keys.bin")


def deltas_name(image: str, version: str, base: str) -> str:
    """Return the store name of the index of the deltas that make a version out of another, ``base``."""
    return version_name(image, version, f"from-{check_name('version', base)}.bin")


def hosts_name(image: str, version: str) -> str:
    """Return the store name of what tells which host profiles a version has deltas for."""
    return version_name(image, version, "hosts.bin")


def host_delta_name(image: str, version: str, profile: str) -> str:
    """Return the store name of the index of the deltas that make a version out of the files of a host ``profile``."""
    return version_name(image, version, f"host-{check_name('profile', profile)}.bin")


def profile_name(profile: str) -> str:
    """Return the store name of a host profile."""
    return f"profiles/{check_name('profile', profile)}.bin"
