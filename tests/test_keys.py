"""Key files: what is written is read back, damage raises our errors only, and publishing keeps what FORMAT.md says."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from syncing import forget_keys

from trimtransfer.chunk import BLOCK_SIZE, Kind, object_digest, table_digest
from trimtransfer.errors import FormatError
from trimtransfer.finder import chunk_keys
from trimtransfer.keys import MAX_TABLES, KeyFile, directory
from trimtransfer.manifest import KEYS, TABLES, Manifest
from trimtransfer.names import keys_name, manifest_name
from trimtransfer.repository import metadata
from trimtransfer.repository.publish import publish
from trimtransfer.repository.reading import VersionReader
from trimtransfer.store import DirectoryStore

KIB = 1024


def opened(data: bytes) -> KeyFile:
    return KeyFile(lambda offset, length: data[offset : offset + length], len(data))


def key_file(tables: dict[bytes, list[int]]) -> bytes:
    keys = b"".join(key.to_bytes(8, "little") for found in tables.values() for key in found)
    return directory([(digest, len(found)) for digest, found in tables.items()]) + keys


tables = st.dictionaries(
    st.binary(min_size=32, max_size=32), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5), min_size=1
)


@given(tables)
def test_what_is_written_is_read_back(content: dict[bytes, list[int]]) -> None:
    file = opened(key_file(content))
    assert len(file) == len(content)
    for digest, keys in content.items():
        number = file.find(digest)
        assert number is not None
        assert file.keys(number).tolist() == keys
        assert file.count(number) == len(keys)
    assert file.find(object_digest(b"none")) is None


EXAMPLE = key_file({table_digest(b"a"): [1, 2, 3], table_digest(b"b"): [0], table_digest(b"c"): [2**64 - 1, 7]})


def test_every_flipped_bit_and_truncation_raises_format_errors_or_changes_names_and_keys_only() -> None:
    names, end = range(16, 16 + 3 * 36), 16 + 3 * 36
    for at in range(len(EXAMPLE)):
        for bit in range(8):
            damaged = bytearray(EXAMPLE)
            damaged[at] ^= 1 << bit
            harmless = at >= end or (at in names and (at - 16) % 36 < 32)
            if harmless:
                file = opened(bytes(damaged))
                assert sum(len(file.keys(number)) for number in range(len(file))) == 6
            else:
                with pytest.raises(FormatError):
                    opened(bytes(damaged))
        with pytest.raises(FormatError):
            opened(EXAMPLE[:at])
    with pytest.raises(FormatError):
        opened(EXAMPLE + b"\0")


def with_field(at: int, value: int, size: int = 4) -> bytes:
    return EXAMPLE[:at] + value.to_bytes(size, "little") + EXAMPLE[at + size :]


@pytest.mark.parametrize(
    "data",
    [
        with_field(12, 0),
        with_field(12, MAX_TABLES + 1),
        with_field(12, 2**32 - 1),
        with_field(8, 2, 2),
        with_field(10, 1, 2),
        with_field(48, 0),
        with_field(48, 16_385),
        with_field(48, 2**32 - 1),
        key_file({table_digest(b"a"): [1]})[:16] + 2 * EXAMPLE[16:52] + bytes(48),
    ],
)
def test_hostile_directories_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        opened(data)


def test_a_table_twice_is_refused() -> None:
    digest = table_digest(b"a")
    with pytest.raises(FormatError, match="twice"):
        opened(directory([(digest, 1), (digest, 1)]) + bytes(16))


def test_a_reader_that_gives_less_is_noticed() -> None:
    with pytest.raises(FormatError):
        KeyFile(lambda offset, length: EXAMPLE[offset : offset + length - 1], len(EXAMPLE))


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_hostile_bytes_raise_format_errors_only(data: bytes) -> None:
    for attempt in (data, EXAMPLE[:16] + data, EXAMPLE[:12] + data):
        try:
            file = opened(attempt)
        except FormatError:
            continue
        assert sum(len(file.keys(number)) for number in range(len(file))) > 0


@given(st.lists(st.integers(0, 3 * BLOCK_SIZE), min_size=1, max_size=6), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_keys_of_chunks_equal_those_of_the_twin(lengths: list[int], seed: int) -> None:
    data = random.Random(seed).randbytes(sum(lengths))
    sizes = np.array(lengths, dtype=np.int64)
    offsets = np.cumsum(sizes) - sizes
    expected = [
        reference.window_keys(data[at : at + BLOCK_SIZE], BLOCK_SIZE)[0] if size >= BLOCK_SIZE else 0
        for at, size in zip(offsets.tolist(), lengths, strict=True)
    ]
    assert chunk_keys(data, offsets, sizes).tolist() == expected


# ---- publishing


def publish_bytes(root: Path, content: bytes, version: str, kind: Kind = Kind.DISK) -> VersionReader:
    (root / "image").write_bytes(content)
    report = publish(root / "r", root / "image", image="a", version=version, kind=kind, level=1)
    store = DirectoryStore(root / "r")
    stored = sum((root / "r/images/a" / version / name).stat().st_size for name in names_of(root, version))
    assert report.metadata_bytes == stored + (root / "r/images/a/head.json").stat().st_size
    return VersionReader(store, Manifest.from_bytes(store.read(manifest_name("a", version), limit=1 << 20)))


def names_of(root: Path, version: str) -> list[str]:
    return [path.name for path in (root / "r/images/a" / version).iterdir()]


def check_keys(reader: VersionReader, content: bytes) -> None:
    """Every region's keys are in the key file of the version that has its table, and are those of its chunks."""
    files = {reader.manifest.files[number].version: file for number, file in reader.key_files()}
    for index in reader.used_regions():
        region, table = reader.manifest.region(index), reader.table(index)
        file = files[reader.manifest.files[region.full.file].version]
        number = file.find(region.table)
        assert number is not None
        solid = ~table.zero
        data = content[region.start : region.start + region.length]
        expected = chunk_keys(data, table.offsets[solid], table.lengths[solid].astype(np.int64))
        assert file.keys(number).tolist() == expected.tolist()


def two_versions(rnd: random.Random) -> tuple[bytes, bytes]:
    """Two regions and a piece; the second version changes the first region alone."""
    first = bytearray((64 << 20) + 300 * KIB + 100)
    first[5 * KIB * 4 : 5 * KIB * 4 + 500 * KIB] = rnd.randbytes(500 * KIB)
    first[64 << 20 :] = rnd.randbytes(300 * KIB + 100)
    second = bytearray(first)
    second[1 << 20 : (1 << 20) + 100 * KIB] = rnd.randbytes(100 * KIB)
    return bytes(first), bytes(second)


def test_keys_are_stored_with_new_tables_and_named_for_old_ones(tmp_path: Path, rnd: random.Random) -> None:
    first, second = two_versions(rnd)
    one, two = publish_bytes(tmp_path, first, "1"), publish_bytes(tmp_path, second, "2")
    check_keys(one, first)
    check_keys(two, second)
    assert [len(file) for _, file in one.key_files()] == [2]
    assert sorted(len(file) for _, file in two.key_files()) == [1, 2]
    assert [file.version for file in two.manifest.files if file.kind == KEYS] == ["2", "1"]
    assert (one.manifest.format, two.manifest.format) == (2, 2)
    assert keys_name("a", "2") in two.manifest.file_names()


def test_publishing_twice_gives_the_same_key_file(tmp_path: Path, rnd: random.Random) -> None:
    content = two_versions(rnd)[0]
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        publish_bytes(tmp_path / name, content, "1")
    paths = [tmp_path / name / "r" / keys_name("a", "1") for name in ("x", "y")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_an_unchanged_version_has_no_key_file_of_its_own(tmp_path: Path, rnd: random.Random) -> None:
    content = two_versions(rnd)[0]
    publish_bytes(tmp_path, content, "1")
    two = publish_bytes(tmp_path, content, "2")
    assert "keys.bin" not in names_of(tmp_path, "2")
    check_keys(two, content)


@pytest.mark.parametrize(
    ("content", "kind"), [(bytes(70_000), Kind.DISK), (b"", Kind.DISK), (b"text" * 9999, Kind.BYTES)]
)
def test_without_chunks_on_blocks_there_are_no_keys(tmp_path: Path, content: bytes, kind: Kind) -> None:
    reader = publish_bytes(tmp_path, content, "1", kind)
    assert list(reader.key_files()) == []
    assert reader.manifest.format == 1


def test_keys_come_along_when_tables_must_be_copied(
    tmp_path: Path, rnd: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no room for one more file: what is referred to is copied, and so are its keys."""
    first, second = two_versions(rnd)
    publish_bytes(tmp_path, first, "1")
    monkeypatch.setattr(metadata, "MAX_FILES", 3)
    two = publish_bytes(tmp_path, second, "2")
    assert {file.version for file in two.manifest.files} == {"2"}
    check_keys(two, second)


def test_a_version_after_one_without_keys_has_those_of_its_own_tables(tmp_path: Path, rnd: random.Random) -> None:
    """As it is after an upgrade: regions that do not change have no keys."""
    first, second = two_versions(rnd)
    publish_bytes(tmp_path, first, "1")
    forget_keys(tmp_path / "r", "a")
    two = publish_bytes(tmp_path, second, "2")
    ((number, file),) = two.key_files()
    assert two.manifest.files[number].version == "2"
    assert [file.find(two.manifest.region(index).table) for index in (0, 1)] == [0, None]
    assert [one.version for one in two.manifest.files if one.kind == TABLES] == ["2", "1"]
