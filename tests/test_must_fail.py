"""Files that no reader may accept, kept for ever in ``golden/must_fail.json``: refused as format errors, each of them.

Where a check or digest guards what is wrong it is right, so that the rule itself is what refuses.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from test_bundle import GOLDEN
from test_deltaindex import example, joined, small_index, table_of
from test_format_manifest import documented

from trimtransfer.bundle import Directory
from trimtransfer.chunk import object_check, table_digest
from trimtransfer.deltaindex import DeltaIndex, Units
from trimtransfer.errors import FormatError
from trimtransfer.head import Head
from trimtransfer.index.prefix import PrefixIndex
from trimtransfer.keys import KeyFile
from trimtransfer.location import Locations
from trimtransfer.manifest import Manifest
from trimtransfer.pack import Codec, decode_frame
from trimtransfer.table import Table, decode_full

SIZE: Final = 20_580
"""Bytes of the one region of the worked example, of which these files are variants."""


def read_index(data: bytes) -> None:
    """Open a run file of an index."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        PrefixIndex.open(file.name)


def read_locations(data: bytes) -> None:
    """Read locations and apply them to the table of the worked example."""
    stored = documented()["tables.bin"]
    region = Manifest.from_bytes(documented()["manifest.bin"]).region(0)
    Locations.from_bytes(data).pieces(decode_full(stored, size=SIZE, digest=region.table))


def read_delta_index(data: bytes) -> None:
    """Read an index of deltas and all its units."""
    index = DeltaIndex(data)
    for region in index.regions.tolist():
        index.units(region)


BUNDLE: Final = GOLDEN[:519]
"""Header and directory of the bundle of the worked example."""
READERS: Final[dict[str, Callable[[bytes], Any]]] = {
    "head": Head.from_bytes,
    "manifest": Manifest.from_bytes,
    "table": lambda data: Table.from_bytes(data, size=SIZE),
    "stored table": lambda data: decode_full(data, size=SIZE, digest=table_digest(data)),
    "locations": read_locations,
    "keys": lambda data: KeyFile(lambda offset, length: data[offset : offset + length], len(data)),
    "frame": lambda data: decode_frame(data, codec=Codec.ZSTD, raw=100, check=object_check(data)),
    "index": read_index,
    "bundle": Directory.from_bytes,
    "delta index": read_delta_index,
    "delta units": lambda data: Units.from_bytes(data).pieces(table_of(example()[2])),
}
CASES: Final = json.loads((Path(__file__).parent / "golden" / "must_fail.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['parser']}: {case['why']}")
def test_refused(case: dict[str, Any]) -> None:
    data = bytes.fromhex("".join(case["data"]))
    with pytest.raises(FormatError) as refused:
        READERS[case["parser"]](data)
    assert refused.value.what
    assert refused.value.expected


def test_what_they_are_variants_of_is_accepted() -> None:
    objects = documented()
    region = Manifest.from_bytes(objects["manifest.bin"]).region(0)
    table = decode_full(objects["tables.bin"], size=SIZE, digest=region.table)
    READERS["head"](objects["head.json"])
    READERS["table"](table.to_bytes())
    READERS["locations"](objects["locations.bin"])
    READERS["keys"](objects["keys.bin"])
    READERS["bundle"](BUNDLE)
    READERS["delta index"](small_index())
    READERS["delta units"](joined(*example()[:2]).to_bytes())
    assert {case["parser"] for case in CASES} == set(READERS)
