"""Bundles in a sync: which of the named seeds are some, those that lie beside the image, and what they save."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtransfer.assembly.fetchplan import FetchPlan
from trimtransfer.bundlestore import BundleStore, is_bundle
from trimtransfer.errors import TrimTransferError
from trimtransfer.nearstore import NearStore, held_bytes
from trimtransfer.pack import pack_name
from trimtransfer.store import Range, Store

SUFFIXES: Final = (".bundle", ".bundle.001")
"""Files with these names in the folder of the image are used if they have versions of it: prestaged ones."""
_LOG: Final = logging.getLogger("trimtransfer.assembly")
PathLike: TypeAlias = str | os.PathLike[str]


def set_apart(seeds: Sequence[PathLike]) -> tuple[list[PathLike], list[PathLike]]:
    """Return the seeds that are no bundles, and those that are."""
    bundles = [path for path in seeds if is_bundle(path)]
    return [path for path in seeds if path not in bundles], bundles


def with_bundles(
    store: Store,
    bundles: Sequence[PathLike],
    image: str,
    output: Path,
    *,
    connections: int,
    on_bytes: Callable[[int], None],
) -> Store:
    """Return ``store`` with these bundles nearer, and with those of ``image`` that lie in the folder of ``output``.

    One that cannot be opened is left aside with a warning; one that is cut off serves as far as it goes.
    """
    for path in [*bundles, *_beside(output, bundles, store)]:
        try:
            bundle = BundleStore(path, connections=connections, partial=True, on_bytes=on_bytes)
        except (TrimTransferError, OSError) as error:
            _LOG.warning("the bundle %s is left aside: %s", os.fspath(path), error)
            continue
        if path not in bundles and all(version.image != image for version in bundle.versions):
            bundle.close()
            continue
        if bundle.problem:
            _LOG.warning("the bundle %s: %s; what is intact in it serves", bundle.url, bundle.problem)
        _LOG.info("the bundle %s serves", bundle.url)
        store = NearStore(bundle, store)
    return store


def held_frames(store: Store, fetch: FetchPlan) -> NDArray[np.bool_]:
    """Return which frames of a plan bundles have."""
    held = np.zeros(len(fetch.frames), dtype=np.bool_)
    if isinstance(store, NearStore | BundleStore):
        names = [pack_name(ref.digest) for ref in fetch.packs]
        columns = zip(*(fetch.frames[name].tolist() for name in ("pack", "offset", "stored")), strict=True)
        for number, (pack, offset, stored) in enumerate(columns):
            place = Range(names[pack], offset, stored, fetch.packs[pack].length)
            held[number] = held_bytes(store, place) == stored
    return held


def saved(store: Store, fetch: FetchPlan) -> tuple[int, int]:
    """Return the bytes and the requests of a plan that bundles save."""
    size = requests = 0
    if isinstance(store, NearStore | BundleStore):
        for part in fetch.ranges:
            ref = fetch.packs[part.pack]
            found = held_bytes(store, Range(pack_name(ref.digest), part.start, part.end - part.start, ref.length))
            size += found
            requests += found == part.end - part.start
    return size, requests


def _beside(output: Path, bundles: Sequence[PathLike], store: Store) -> list[Path]:
    """Return the files in the folder of an image that are named like bundles and are some, but for those in use."""
    folder = output.absolute().parent
    used = {os.path.realpath(path).removesuffix(".001") for path in (*bundles, store.url)}
    try:
        names = [] if output.is_block_device() else sorted(os.listdir(folder))
    except OSError:
        return []
    found = [folder / name for name in names if name.endswith(SUFFIXES)]
    return [path for path in found if os.path.realpath(path).removesuffix(".001") not in used and is_bundle(path)]
