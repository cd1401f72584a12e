"""Bounded caches: pages of a container's tables, and units that were unpacked."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from trimtransfer.errors import FormatError
from trimtransfer.geometry import Read

_PAGE: Final = 4096
_MAX_PAGES: Final = 1024
"""4 MiB of tables of each file are kept; tables are never held whole, however large the disk is."""
_MAX_UNPACKED: Final = 16 << 20
_LEAST_UNITS: Final = 4


class Pages:
    """Reads small parts of a file of ``size`` bytes through a bounded cache; ``name`` is for messages. Thread-safe."""

    def __init__(self, read: Read, size: int, name: str) -> None:
        self._read, self.size, self.name = read, size, name
        self._pages: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        """Return these bytes.

        Raises:
            FormatError: they are not all within the file.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise FormatError(self.name, offset, f"{length:,} bytes of a table", f"a file of {self.size:,} bytes")
        first, last = offset // _PAGE, (offset + length - 1) // _PAGE
        if last - first >= _MAX_PAGES // 4:
            return self._read(offset, length)
        with self._lock:
            found = [self._pages.get(number) for number in range(first, last + 1)]
            if all(page is not None for page in found):
                for number in range(first, last + 1):
                    self._pages.move_to_end(number)
                data = b"".join(page for page in found if page is not None)
                return data[offset - first * _PAGE :][:length]
        data = self._read(first * _PAGE, (last + 1 - first) * _PAGE)
        with self._lock:
            for number in range(first, last + 1):
                self._pages[number] = data[(number - first) * _PAGE :][:_PAGE]
                self._pages.move_to_end(number)
            while len(self._pages) > _MAX_PAGES:
                self._pages.popitem(last=False)
        return data[offset - first * _PAGE :][:length]


class Unpacked:
    """The units that were unpacked last, 16 MiB of them: content is often asked for in smaller pieces. Thread-safe."""

    def __init__(self, unit: int) -> None:
        self._most = max(_LEAST_UNITS, _MAX_UNPACKED // unit)
        self._units: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, start: int, unpack: Callable[[], bytes]) -> bytes:
        """Return the unit that begins at byte ``start`` of the guest disk; ``unpack`` makes it."""
        with self._lock:
            found = self._units.get(start)
            if found is not None:
                self._units.move_to_end(start)
                return found
        made = unpack()
        with self._lock:
            self._units[start] = made
            while len(self._units) > self._most:
                self._units.popitem(last=False)
        return made
