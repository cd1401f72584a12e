"""Recognition of disk formats by content. Pure.

A guest can write what it likes into its disk, so a raw image may look like a container; whoever publishes is told what
was recognised, and a container that names other files is only followed where its format was stated.
"""

from __future__ import annotations

from typing import Final

from trimtransfer.disk import qcow2, vhd, vhdx, vmdk
from trimtransfer.geometry import Read
from trimtransfer.manifest import DISK_FORMATS

FORMATS: Final = DISK_FORMATS
NAMES: Final = {"vpc": "vhd", "file": "raw", "host_device": "raw"}
"""Names that QEMU has for some of them."""


def recognise_format(read: Read, size: int) -> str:
    """Return the format of a file of ``size`` bytes, one of ``FORMATS``."""
    start = read(0, 32)
    if start[:4] == qcow2.MAGIC:
        return "qcow2"
    if start[:8] == vhdx.IDENTIFIER:
        return "vhdx"
    if start[:4] == vmdk.MAGIC or start[:4] in vmdk.REFUSED or start.startswith(vmdk.DESCRIPTOR_MARK):
        return "vmdk"
    if start[:8] == vhd.COOKIE:
        return "vhd"
    footer = vhd.parse_footer(read(size - vhd.FOOTER.size, vhd.FOOTER.size)) if size >= vhd.FOOTER.size else None
    return "vhd" if footer is not None else "raw"
