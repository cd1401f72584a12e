"""Where in a version members of compressed files begin that may have new chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtransfer.framed import member_starts
from trimtransfer.table import Table
from trimtransfer.watch import Watch

Records: TypeAlias = NDArray[np.int64]


class ImageContent(Protocol):
    """An image, published or not: where its regions start, which of them are all ``zero``, their tables and content."""

    starts: NDArray[np.int64]
    zero: NDArray[np.bool_]

    def table(self, index: int) -> Table:
        """Return the table of a region."""
        ...

    def parts(self, index: int, table: Table) -> Iterator[tuple[int, int, bytearray | None]]:
        """Yield its content as :func:`trimtransfer.repository.rebuild.parts` does."""
        ...


def new_starts(image: ImageContent, new: Mapping[int, Records], *, workers: int, watch: Watch) -> list[int]:
    """Return places in the image, ascending, where members may begin that have some of the ``new`` records, by
    region: those in them, and those in front of them, as far as no file ends between.

    All chunks of these regions, and of those before them, are read once. Memory: some 5 MiB for each worker.

    Raises:
        FormatError, IntegrityError, NotFound: the repository is damaged.
    """
    before = {index - 1 for index in new if index and not image.zero[index - 1]}

    def look(index: int) -> list[int]:
        watch.check()
        return _starts(image, index, new.get(index, np.zeros(0, dtype=np.int64)), goes_on=index + 1 in new)

    with ThreadPoolExecutor(workers, "starts") as pool:
        return [start for found in pool.map(look, sorted(before | set(new))) for start in found]


def _starts(image: ImageContent, index: int, new: Records, *, goes_on: bool) -> list[int]:
    """Return the places in one region; ``goes_on``: what reaches its end counts, too."""
    table, found, ends = image.table(index), [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for first, last, content in image.parts(index, table):
        if content is None:
            ends.append(np.array([first]))
            continue
        found.append(member_starts(content) + table.offsets[first])
        ends.append(first + _file_ends(content, table.lengths[first:last]))
    starts, borders = np.concatenate(found), np.append(np.concatenate(ends), len(table))
    record = np.searchsorted(table.offsets, starts, side="right") - 1
    following = np.append(new, len(table))[np.searchsorted(new, record)]
    border = borders[np.searchsorted(borders, record)]
    use = (following <= border) & ((following < len(table)) | goes_on)
    places: list[int] = (starts[use] + int(image.starts[index])).tolist()
    return places


def _file_ends(content: bytearray, lengths: NDArray[np.uint32]) -> Records:
    """Return the numbers of the records, which have these lengths, with which a file seems to end: in zeros."""
    view, last = np.frombuffer(content, np.uint8), np.cumsum(lengths, dtype=np.int64)
    tails = np.maximum(last[:, None] - np.arange(1, 17), 0)
    return np.flatnonzero(~view[tails].any(axis=1))
