"""The boot sector of NTFS: sizes, and where the master file table begins.

Source: the structures as described by the Linux-NTFS project (little-endian throughout).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from trimtransfer.errors import FormatError
from trimtransfer.filesystem.volume import Volume

WHAT: Final = "NTFS boot sector"
_FIELDS: Final = struct.Struct("<HB26xQQQbxxxb")  # from byte 11 on
_MAX_CLUSTERS: Final = 1 << 36


@dataclass(frozen=True, slots=True)
class Boot:
    """``cluster_size`` and ``record_size`` in bytes, ``clusters`` of the volume, its ``length`` in bytes, and the first
    cluster of the table of files and of the copy of its beginning."""

    cluster_size: int
    clusters: int
    length: int
    record_size: int
    table: int
    mirror: int

    @classmethod
    def read(cls, volume: Volume) -> Boot:
        """Read the boot sector of a volume.

        Raises:
            FormatError: there is none, or it has impossible sizes.
        """
        data = volume.bytes(WHAT, 0, 512)
        if data[3:11] != b"NTFS    ":
            raise FormatError(WHAT, volume.start + 3, "the mark NTFS", data[3:11])
        sector, per_cluster, sectors, table, mirror, per_record, _ = _FIELDS.unpack_from(data, 11)
        if per_cluster > 128:  # a negative power of two, for clusters above 64 KiB
            per_cluster = 1 << min(256 - per_cluster, 20)
        cluster = sector * per_cluster
        record = per_record * cluster if per_record > 0 else 1 << min(-per_record, 20)
        rules = (
            (sector in (512, 1024, 2048, 4096), "sector size"),
            (_is_power(per_cluster) and cluster <= 2 << 20, "cluster size"),
            (record in (1024, 2048, 4096), "size of file records"),
            (0 < sectors * sector <= volume.length and sectors // max(1, per_cluster) < _MAX_CLUSTERS, "size"),
        )
        for good, name in rules:
            if not good:
                raise FormatError(WHAT, volume.start + 11, f"a possible {name}", data[11:72].hex())
        clusters = sectors // per_cluster
        if not (0 < table < clusters and 0 < mirror < clusters):
            raise FormatError(WHAT, volume.start + 48, f"tables within {clusters} clusters", (table, mirror))
        return cls(cluster, clusters, sectors * sector, record, table, mirror)


def _is_power(number: int) -> bool:
    return number > 0 and not number & (number - 1)
