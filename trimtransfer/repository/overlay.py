"""A directory over another store: what is being made lies in the directory, all else is read from the store below.

Whoever publishes to a server has what he made in the directory and the server below; the server has what was uploaded
in the directory and its repository below. To both it looks like a repository in which the new version is already.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from trimtransfer.errors import NotFound
from trimtransfer.store import DirectoryStore, Range, Store


class OverlayStore(DirectoryStore):
    """Objects of the directory ``path``, then of ``below``. Everything is written to the directory, and only what is
    in it can be deleted.

    ``may`` tells for each name whether it may be read from below: else it is not there. Of a store below that is no
    directory nothing can be listed, and packs are taken to be as long as locations say (:meth:`holds`): reading them,
    and the server at a commit, finds out.
    """

    def __init__(
        self, path: str | os.PathLike[str], below: Store, *, may: Callable[[str], bool] = lambda name: True
    ) -> None:
        super().__init__(path)
        self.below, self._may = below, may

    def __repr__(self) -> str:
        return f"OverlayStore({self.url!r}, {self.below!r})"

    def has(self, name: str) -> bool:
        """Tell whether an object is in the directory itself."""
        return super().exists(name)

    def read(self, name: str, *, limit: int) -> bytes:
        """Return a small object whole; longer than ``limit``: ``FormatError``."""
        return super().read(name, limit=limit) if self.has(name) else self._under(name).read(name, limit=limit)

    def read_range(self, wanted: Range) -> bytes:
        """Return exactly the wanted bytes."""
        if self.has(wanted.name):
            return super().read_range(wanted)
        return self._under(wanted.name).read_range(wanted)

    def exists(self, name: str) -> bool:
        """Tell whether the object is in the directory, or in one below."""
        under = isinstance(self.below, DirectoryStore) and self._may(name) and self.below.exists(name)
        return self.has(name) or under

    def size(self, name: str) -> int:
        """Return the object's length in bytes; ``NotFound``, also where only a directory could tell it."""
        if self.has(name) or not isinstance(self.below, DirectoryStore):
            return super().size(name)
        self._under(name)
        return self.below.size(name)

    def holds(self, name: str, length: int) -> bool:
        """Tell whether an object is there, as long as it should be."""
        if not self.has(name) and not isinstance(self.below, DirectoryStore):
            return self._may(name)
        return super().holds(name, length)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield (name, length) of every object of both directories, those of a directory on top first."""
        own = dict(super().list(prefix))
        yield from own.items()
        if isinstance(self.below, DirectoryStore):
            yield from ((name, size) for name, size in self.below.list(prefix) if name not in own and self._may(name))

    def list_own(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield (name, length) of every object of the directory itself."""
        yield from super().list(prefix)

    def _under(self, name: str) -> Store:
        """Return the store below for a name that may be read there; ``NotFound``."""
        self._locate(name)
        if not self._may(name):
            raise NotFound(name, self.url)
        return self.below
