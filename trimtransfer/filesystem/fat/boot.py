"""The boot sector of FAT: sizes and places. Source: Microsoft, FAT32 File System Specification 1.03."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.volume import Volume

WHAT: Final = "FAT boot sector"
_FIELDS: Final = struct.Struct("<HBHBHHBHHHII")  # from byte 11 on
_FIELDS_32: Final = struct.Struct("<IHHIHH")  # from byte 36 on
_MAX_12: Final = 4084
"""Most clusters of FAT12."""
_MAX_CLUSTERS: Final = 1 << 24
"""Most clusters that are read here, for the memory: 64 MiB for the table; enough for 512 GiB of the usual 32 KiB."""


@dataclass(frozen=True, slots=True)
class Boot:
    """Sizes and places in bytes; ``bits`` of an entry of the table: 12, 16 or 32.

    ``root_cluster`` is 0 where the root directory lies at ``root`` (``root_length`` bytes) before the clusters;
    ``compared`` copies of the table must be equal, the one in use is ``active``; ``summary`` is where free clusters are
    counted (0: nowhere); ``dirty`` are the flags of who mounted it.
    """

    bits: int
    sector_size: int
    cluster_size: int
    clusters: int
    length: int
    table: int
    table_length: int
    active: int
    compared: int
    root: int
    root_length: int
    root_cluster: int
    data: int
    summary: int
    dirty: int

    @classmethod
    def read(cls, volume: Volume) -> Boot:
        """Read the boot sector of a volume.

        Raises:
            FormatError: there is none, or it has impossible sizes.
        """
        head = volume.bytes(WHAT, 0, 512)
        sector, per, reserved, tables, roots, short, _, per_table, _, _, _, long = _FIELDS.unpack_from(head, 11)
        wide = per_table == 0
        per_table_32, flags, version, root_cluster, summary, _ = _FIELDS_32.unpack_from(head, 36)
        per_table = per_table_32 if wide else per_table
        sectors = short or long
        root_length = roots * 32
        rules = (
            (sector in (512, 1024, 2048, 4096) and per > 0 and not per & (per - 1), "size of sectors or clusters"),
            (reserved > 0 and tables in (1, 2) and per_table > 0, "number of tables"),
            (0 < sectors * sector <= volume.length, "size"),
            (not wide or (roots == 0 and version == 0 and root_cluster >= 2), "root directory"),
            (wide or roots > 0, "root directory"),
        )
        for good, name in rules:
            if not good:
                raise FormatError(WHAT, volume.start + 11, f"a possible {name}", head[11:64].hex())
        root = (reserved + tables * per_table) * sector
        data = root + -(-root_length // sector) * sector
        clusters = (sectors * sector - data) // (per * sector)
        bits = 32 if wide else 12 if clusters <= _MAX_12 else 16
        active = flags & 15 if wide and flags & 0x80 else 0
        found = cls(
            bits=bits,
            sector_size=sector,
            cluster_size=per * sector,
            clusters=clusters,
            length=sectors * sector,
            table=reserved * sector,
            table_length=per_table * sector,
            active=active,
            compared=1 if wide and flags & 0x80 else tables,
            root=root,
            root_length=root_length,
            root_cluster=root_cluster if wide else 0,
            data=data,
            summary=summary * sector if wide and 0 < summary < reserved else 0,
            dirty=head[65 if wide else 37],
        )
        entries = found.table_length * 8 // bits
        if not (0 < clusters <= _MAX_CLUSTERS and clusters + 2 <= entries and active < tables):
            raise FormatError(
                WHAT, volume.start, f"1 to {_MAX_CLUSTERS} clusters that the table has room for", clusters
            )
        return found
