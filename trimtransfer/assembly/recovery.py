"""Recording what an image holds, and finishing what a killed run had begun to write in place - before any network.

Order at the end of a sync: the image is complete and verified; then ``manifest.bin``; then ``state.json``; then the
rest is deleted. A kill in between leaves a state that is not believed, and the next run hashes the image.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from pathlib import Path
from typing import Final

from trimtransfer.assembly.rawfile import RawFile
from trimtransfer.assembly.redo import apply, discard_redo, is_committed, read_header
from trimtransfer.assembly.side import RACY_NS, FileState, Installed, SideDirectory
from trimtransfer.assembly.verify import wrong_regions
from trimtransfer.errors import IntegrityError
from trimtransfer.image import ImageSource
from trimtransfer.manifest import Manifest
from trimtransfer.watch import Watch

_LOG: Final = logging.getLogger("trimtransfer.assembly")
IMAGE_MODE: Final = 0o444
"""Nobody writes to a base image: changes belong into overlays."""


def mark_image(path: Path, manifest: Manifest) -> None:
    """Make a complete image read-only and date it: by the time it was published, or a little before now.

    A date that is not fresh lets the recorded state be believed at once; any later write sets another.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return
    now = time.time_ns()
    mtime = min(manifest.created * 1_000_000_000, now - RACY_NS - 1_000_000_000)
    try:
        os.chmod(path, IMAGE_MODE)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EPERM):  # file systems that keep no modes
            raise
    os.utime(path, ns=(now, mtime))


def record_installed(
    side: SideDirectory, manifest: Manifest, *, disk_format: str = "raw", repository: str | None = None
) -> Installed:
    """Record that the image holds this version as it looks now; return what was recorded. ``repository`` vouched for it
    ("": nobody; None: whoever did so for the image before)."""
    if repository is None:
        before = side.installed()
        repository = before.repository if before is not None else ""
    data = manifest.to_bytes()
    side.write(side.manifest, data)
    found = FileState.of(os.stat(side.output))
    digests = manifest.digest(), manifest.image_digest()
    installed = Installed(manifest.image, manifest.version, *digests, found, disk_format, repository)
    side.write(side.state, installed.to_bytes())
    return installed


def finish_interrupted(side: SideDirectory, watch: Watch) -> bool:
    """Bring an image whose redo file is complete to its new version; return whether there was anything to finish.

    Everything is hashed at the end, because nobody knows what happened to the image since. If it is wrong all the same
    (the redo file was damaged, or the image is another one) nothing is recorded, and the sync that follows looks at
    every part of the image. Hold the lock. Raises ``Cancelled``, ``NoSpace``, ``OSError``.
    """
    if not side.redo.exists():
        return False
    with RawFile(side.redo) as file:
        header = read_header(file)
        if header is None or not is_committed(file):
            return False  # the image is untouched; the run that follows goes on with it, or discards it
        key = header[0]
        installed = side.believed()
        if installed is not None and installed.manifest_digest == key.target:
            discard_redo(side.redo)
            return False
        manifest = side.read_manifest(side.target, key.target) or side.read_manifest(side.manifest, key.target)
        if manifest is not None and _same_image(side.output, key.device, key.inode):
            _finish(side, file, manifest, watch)
    discard_redo(side.redo)
    return True


def _finish(side: SideDirectory, file: RawFile, manifest: Manifest, watch: Watch) -> None:
    _LOG.info("finishing an interrupted update of %s to %s %s", side.output, manifest.image, manifest.version)
    try:
        with RawFile(side.output) as image:
            apply(file, image, length=manifest.length, progress=watch.progress)
    except IntegrityError:
        return
    mark_image(side.output, manifest)
    with ImageSource(side.output) as source:
        wrong = wrong_regions(source, manifest, range(manifest.region_count), watch)
    if not wrong:
        record_installed(side, manifest)


def _same_image(path: Path, device: int, inode: int) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (device, inode)
