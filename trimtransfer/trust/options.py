"""What a client is told of whom to trust. Loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Trusting:
    """Whom to trust: ``root``, the file of a root that came from the repository's administrators by another way;
    ``state``, the directory of what is trusted already (None: the user's); ``first``: trust a repository that is met
    for the first time as it is; ``unsigned``: use it as if nothing were signed."""

    root: Path | None = None
    state: Path | None = None
    first: bool = False
    unsigned: bool = False


NOBODY: Final = Trusting()
"""Nobody in particular: what was trusted before is."""
