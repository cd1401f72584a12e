"""Outputs that must not be written to: links, mounted or attached ones, directories in which others may meddle."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from trimtransfer.errors import TargetRefused
from trimtransfer.localfile import file_system_of

_WITHOUT_MODES: Final = ("vfat", "msdos", "exfat", "fuseblk")
"""File systems that keep no modes, as the system names them; under the last one exFAT and NTFS are driven."""


def check_output(output: Path) -> None:
    """Refuse what must not be written to; ``TargetRefused``."""
    try:
        found = os.lstat(output)
    except (FileNotFoundError, NotADirectoryError):
        _check_parent(output)
        return
    if stat.S_ISLNK(found.st_mode):
        raise TargetRefused(str(output), "is a symbolic link; name the file that it leads to")
    if stat.S_ISDIR(found.st_mode):
        raise TargetRefused(str(output), "is a directory; name a file")
    if stat.S_ISBLK(found.st_mode):
        if _is_mounted(found.st_rdev):
            raise TargetRefused(str(output), "is mounted, or in use as swap; unmount it first")
        return
    if not stat.S_ISREG(found.st_mode):
        raise TargetRefused(str(output), "is neither a file nor a block device")
    if _is_attached(output):
        raise TargetRefused(str(output), "is attached to a loop device; detach it first")
    _check_parent(output)


def check_outputs(outputs: Sequence[Path]) -> None:
    """Refuse outputs of several disks that must not be written to, or are the same; ``TargetRefused``."""
    seen = set[str]()
    for output in outputs:
        name, folder = str(output.absolute()), output.absolute().parent
        if file_system_of(folder) in _WITHOUT_MODES:  # there upper and lower case are the same, too
            name = str(folder / output.name.casefold())
        if name in seen:
            raise TargetRefused(str(output), "is named for two disks of the version; name one file for each")
        seen.add(name)
        check_output(output)


def device_behind(output: Path) -> Path:
    """Return the block device that a link such as ``/dev/disk/by-id/...`` leads to; any other path as it is."""
    try:
        if output.is_symlink() and stat.S_ISBLK(os.stat(output).st_mode):
            return output.resolve()
    except OSError:
        pass
    return output


def _check_parent(output: Path) -> None:
    parent = output.absolute().parent
    try:
        found = os.stat(parent)
    except (FileNotFoundError, NotADirectoryError):
        raise TargetRefused(str(output), f"there is no directory {parent}; make it first") from None
    if not stat.S_ISDIR(found.st_mode):
        raise TargetRefused(str(output), f"{parent} is not a directory")
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        raise TargetRefused(
            str(output), f"everybody may replace files in {parent}; choose another directory{_remount(parent)}"
        )


def _remount(folder: Path) -> str:
    """Return what else can be done where the file system keeps no modes."""
    if file_system_of(folder) in _WITHOUT_MODES:
        return ", or mount the disk with the option umask=022"
    return ""


def _is_mounted(device: int) -> bool:
    """Return whether a block device, or a partition of it, is mounted or used as swap (Linux)."""
    name = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return False
    used = {line.split()[2] for line in mounts}
    block = Path("/sys/dev/block") / name
    parts = {part.read_text().strip() for part in block.glob("*/dev")} | {name}
    holders = any(block.glob("holders/*")) or any(block.glob("*/holders/*"))
    return bool(parts & used) or holders or _is_swap(parts)


def _is_swap(devices: set[str]) -> bool:
    try:
        lines = Path("/proc/swaps").read_text().splitlines()[1:]
        numbers = [os.stat(line.split()[0]).st_rdev for line in lines if line.startswith("/dev/")]
    except OSError:
        return False
    return any(f"{os.major(number)}:{os.minor(number)}" in devices for number in numbers)


def _is_attached(path: Path) -> bool:
    """Return whether a file backs a loop device (Linux)."""
    real = str(path.resolve())
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().strip() == real:
                return True
        except OSError:
            continue
    return False
