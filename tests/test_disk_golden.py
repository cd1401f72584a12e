"""Golden disks: small files of every format, written once by qemu-img, that must be read the same for ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3
from disks import GOLDEN, GOLDEN_FACTS, GOLDEN_SIZE, golden_content

from trimtransfer.disk.source import open_disk

FACTS = json.loads(GOLDEN_FACTS.read_text())


@pytest.mark.parametrize("name", FACTS)
def test_read_as_ever(name: str, tmp_path: Path) -> None:
    facts = FACTS[name]
    path = tmp_path / name
    path.write_bytes(zstandard.ZstdDecompressor().decompress((GOLDEN / f"{name}.zst").read_bytes()))
    with open_disk(path) as disk:
        assert (disk.format, disk.size) == (facts["format"], facts["size"])
        content = disk.read(0, disk.size)
        stored = sum(size for _, size in disk.extents(0, disk.size))
    assert blake3(content).hexdigest() == facts["blake3"]
    assert content[:GOLDEN_SIZE] == golden_content()
    assert not any(content[GOLDEN_SIZE:])
    assert 4096 <= stored <= disk.size


def test_none_is_missing_and_all_are_small() -> None:
    files = sorted(GOLDEN.iterdir())
    assert {file.stem for file in files} == set(FACTS)
    assert all(file.stat().st_size < 20_000 for file in files)
