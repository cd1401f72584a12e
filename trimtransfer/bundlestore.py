"""A bundle as a store.

A bundle is one file, or parts of one length (only the last is shorter) that make it when they are put together:
``NAME.001``, ``NAME.002`` and so on. Nothing in it is believed beyond what its directory's rules check: like everything
that comes from a store, what is read is compared with digests by whoever asked for it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from trimtransfer.bundle import HEADER_SIZE, MAGIC, BundleVersion, Directory, Header, Held
from trimtransfer.chunk import object_check
from trimtransfer.errors import FetchError, FormatError, NotFound
from trimtransfer.localfile import look, open_local
from trimtransfer.store import Range, StoreStats, in_threads

MAX_PARTS: Final = 999
_FIRST: Final = re.compile(r"(.+)\.001\Z")
AGAIN: Final = "copy the bundle again, or make it again"
"""The remedy for a bundle that is damaged."""


def part_paths(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files of a bundle: ``path`` itself, or the parts ``path``.001 and so on (``path`` may name the first).

    Empty if there is neither.
    """
    named = Path(path)
    first = _FIRST.fullmatch(named.name)
    stem = named.with_name(first[1]) if first else named
    if not first and named.is_file():
        return [named]
    numbered = [part_path(stem, number) for number in range(1, MAX_PARTS + 1)]
    if not numbered[0].is_file():
        return []
    last = max(number for number, part in enumerate(numbered, 1) if part.is_file())
    return numbered[:last]


def part_path(path: Path, number: int) -> Path:
    """Return the file of a part, counted from 1, of the bundle ``path``."""
    return path.with_name(f"{path.name}.{number:03}")


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Return whether a file, or the first of its parts, begins as bundles do. Never raises ``OSError``."""
    for name in (os.fspath(path), f"{os.fspath(path)}.001"):
        with suppress(OSError):
            descriptor = open_local(look(name)[0])
            try:
                return os.pread(descriptor, len(MAGIC), 0) == MAGIC
            finally:
                os.close(descriptor)
    return False


class BundleStore:
    """A bundle as a store. ``stats`` counts what crosses a network, which is nothing; ``read_stats`` what was read.

    ``partial`` opens one that is cut off, or lacks parts, as far as it goes: ``problem`` says what is wrong with it.
    ``on_bytes`` is called as bytes of ranges were read. Safe among threads.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        connections: int = 4,
        partial: bool = False,
        on_bytes: Callable[[int], None] | None = None,
        parts: Iterable[Path] | None = None,
    ) -> None:
        """Open the bundle at ``path``, or in these ``parts``, and read its directory.

        Raises:
            NotFound: there is no such file.
            FormatError: not a bundle, or damaged, cut off or incomplete.
            OSError: it cannot be read.
        """
        self.url = os.fspath(path)
        self.stats, self.read_stats = StoreStats(), StoreStats()
        self.problem = ""
        self.connections, self._on_bytes = connections, on_bytes
        self.parts = list(parts) if parts is not None else part_paths(path)
        if not self.parts:
            raise NotFound("the bundle", self.url)
        self._files: list[int] = []
        try:
            self._open(partial)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"BundleStore({self.url!r})"

    @property
    def versions(self) -> tuple[BundleVersion, ...]:
        """The versions in the bundle."""
        return self.directory.versions

    # ---- reading

    def read(self, name: str, *, limit: int) -> bytes:
        """Return a small object whole, each piece compared with its check."""
        number = self._number(name)
        length = int(self.directory.lengths[number])
        if length > limit:
            raise FormatError(f"object {name}", limit, f"at most {limit:,} bytes", f"{length:,}")
        first, last = int(self.directory.first[number]), int(self.directory.first[number + 1])
        data = b"".join(self.piece(piece) for piece in range(first, last))
        if len(data) != length:
            raise self._lacking(name)
        self.read_stats.count(bytes=length, requests=1)
        return data

    def piece(self, number: int) -> bytes:
        """Return a piece by its number in the directory; ``FormatError`` if it is not what it was."""
        row = self.directory.pieces[number]
        data = bytearray(int(row["length"]))
        self._read_into(memoryview(data), int(self.directory.positions[number]))
        if object_check(data) != row["check"].tobytes():
            name = self.directory.names[int(self.directory.first.searchsorted(number, side="right")) - 1]
            place = f"byte {self.directory.positions[number]} ({name})"
            raise FormatError(f"bundle {self.url}", place, "what was written", f"other bytes; {AGAIN}")
        return bytes(data)

    def read_range(self, wanted: Range) -> bytes:
        """Return exactly the wanted bytes; ``NotFound`` where the bundle does not have all of them."""
        held = self._held(wanted)
        if sum(length for _, length, _ in held) != wanted.length:
            raise self._lacking(wanted.name)
        return bytes(self._gather(wanted, held))

    def fetch(
        self, ranges: Iterable[Range], deliver: Callable[[Range, memoryview], None], *, again: bool = False
    ) -> None:
        """Deliver each range once from a few threads.

        Callers join what they want over small gaps, and verify what they use: so a range may have gaps that the bundle
        does not hold, which are delivered as zeros. With ``again`` everything must be there.
        """
        wanted = list(ranges)
        for part in wanted:  # before anything is delivered
            held = sum(length for _, length, _ in self._held(part))
            if held == 0 or (again and held != part.length):
                raise self._lacking(part.name)
        in_threads(wanted, lambda part: deliver(part, self._gather(part, self._held(part))), self.connections)

    def held(self, wanted: Range) -> Held:
        """Return what there is of a range; nothing of an object that has another length than promised."""
        number = self.directory.find(wanted.name)
        if number is None or wanted.total not in (None, int(self.directory.lengths[number])):
            return []
        return self.directory.held(number, wanted.start, wanted.length)

    def exists(self, name: str) -> bool:
        """Return whether the bundle has anything of an object."""
        return self.directory.find(name) is not None

    def size(self, name: str) -> int:
        """Return an object's length in bytes."""
        return int(self.directory.lengths[self._number(name)])

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield (name, length) of every object below ``prefix``, in order of names."""
        objects = sorted(zip(self.directory.names, self.directory.lengths.tolist(), strict=True))
        yield from (found for found in objects if not prefix or found[0].startswith(f"{prefix}/"))

    def close(self) -> None:
        """Close the files."""
        files, self._files = self._files, []
        for file in files:
            if file >= 0:
                os.close(file)

    # ---- inside

    def _open(self, partial: bool) -> None:
        missing: list[str] = []
        for path in self.parts:
            try:
                self._files.append(open_local(look(path)[0]))
            except FileNotFoundError:
                self._files.append(-1)
                missing.append(path.name)
        sizes = [os.fstat(file).st_size if file >= 0 else 0 for file in self._files]
        self._part = max(1, sizes[0]) if len(sizes) > 1 else 1 << 62
        data = bytearray(HEADER_SIZE)
        self._read_into(memoryview(data), 0)
        header = Header.from_bytes(data)
        if HEADER_SIZE + header.directory > sum(sizes):
            raise FormatError(f"bundle {self.url}", sum(sizes), "the rest of the directory", f"its end; {AGAIN}")
        data += bytes(header.directory)
        self._read_into(memoryview(data)[HEADER_SIZE:], HEADER_SIZE)
        self.directory = Directory.from_bytes(data)
        self.length = header.length
        problem = self._problem(sizes, missing)
        if problem:
            self.problem = f"{problem} ({sum(sizes):,} of {header.length:,} bytes are there)"
        if problem and not partial:
            got = f"{sum(sizes):,}: {problem}; {AGAIN}"
            raise FormatError(f"bundle {self.url}", "its end", f"{header.length:,} bytes", got)

    def _problem(self, sizes: Sequence[int], missing: Sequence[str]) -> str:
        """Return what is wrong with the lengths of the parts, or nothing."""
        count = -(-self.length // self._part) if len(sizes) > 1 else 1
        whole = [self._part] * (count - 1) + [self.length - self._part * (count - 1)]
        if len(sizes) == 1 and sizes[0] < self.length and self.parts[0].name.endswith(".001"):
            self._part = sizes[0]
            return f"parts after {self.parts[0].name} are missing"
        if missing or len(sizes) < count:
            return f"{', '.join(missing) or f'parts after {self.parts[-1].name}'} missing"
        return "cut off, or mixed up with another" if [*sizes[:count]] != whole else ""

    def _number(self, name: str) -> int:
        number = self.directory.find(name)
        if number is None:
            raise NotFound(name, self.url)
        return number

    def _held(self, wanted: Range) -> Held:
        """Return what there is of a range; ``FormatError`` where the object has another length than promised."""
        length = int(self.directory.lengths[number]) if (number := self.directory.find(wanted.name)) is not None else 0
        if number is not None and wanted.total not in (None, length):
            raise FormatError(f"object {wanted.name}", "length", f"{wanted.total:,} bytes", f"{length:,}")
        return self.held(wanted)

    def _gather(self, wanted: Range, held: Held) -> memoryview:
        data = memoryview(bytearray(wanted.length))
        for start, length, position in held:
            self._read_into(data[start - wanted.start :][:length], position)
        self.read_stats.count(bytes=sum(length for _, length, _ in held), requests=1)
        if self._on_bytes is not None:
            self._on_bytes(wanted.length)
        return data

    def _read_into(self, buffer: memoryview, position: int) -> None:
        """Fill a buffer from a place in the bundle, across parts."""
        done = 0
        while done < len(buffer):
            number, at = divmod(position + done, self._part)
            room = min(len(buffer) - done, self._part - at)
            count = self._read_part(number, buffer[done : done + room], at)
            if count == 0:
                raise FormatError(f"bundle {self.url}", position + done, "more bytes", f"its end; {AGAIN}")
            done += count

    def _read_part(self, number: int, buffer: memoryview, at: int) -> int:
        if number >= len(self._files) or self._files[number] < 0:
            return 0
        try:
            return os.preadv(self._files[number], [buffer], at)
        except OSError as error:
            cause = f"cannot be read ({error.strerror}); if it was unplugged, plug it in and run the same command again"
            raise FetchError(self.url, cause, retryable=error.errno != errno.EBADF) from error

    def _lacking(self, name: str) -> NotFound:
        """Return the error for bytes that the bundle does not have."""
        bases = sorted({f"{version.image} {base}" for version in self.versions for base in version.bases})
        bases += ["the image file that it was made for"] if any(version.files for version in self.versions) else []
        if not bases or not name.startswith("packs/"):
            return NotFound(f"part of {name}", self.url)
        starts = " or ".join(bases)
        return NotFound(
            f"content that this machine lacks, as it does not have {starts}, from which this bundle starts (sync to "
            "that first, or use a full bundle, or a server),",
            self.url,
        )
