"""References: another file that a container's content depends on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reference:
    """A file that is named in a container: its ``name`` as written there, the ``format`` it must have.

    ``identity``: what the file must carry (a VHD's unique id), empty where the format has nothing of the kind.
    """

    name: str
    format: str
    identity: bytes = b""
