"""Taking an upload into the repository: everything in it is checked, then it is committed, or nothing of it.

Checked is what a client would check, and more: each pack, frame and chunk that is new or referred to anew, the content
of each region that the version does not share with its parent, each delta. What an upload refers to without bringing it
must be what its publisher may read. The commit is that of a local publish, under the repository's lock: there the
sequence number tells whether somebody else published meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trimtransfer.catalogue import Catalogue
from trimtransfer.chunk import DIGEST_SIZE
from trimtransfer.durable import space_errors
from trimtransfer.errors import FormatError, NotFound, TargetRefused, TrimTransferError, VersionExists
from trimtransfer.location import PackRef
from trimtransfer.manifest import Manifest
from trimtransfer.names import head_name, manifest_name, version_name
from trimtransfer.pack import pack_name
from trimtransfer.repository.audit import audit_new
from trimtransfer.repository.catalogues import Wishes, enrol, entry_of, head_of, record_wishes
from trimtransfer.repository.contents import Damage
from trimtransfer.repository.intent import Intent, clean_up, intended, repository_lock
from trimtransfer.repository.mirrors import read_mirrors
from trimtransfer.repository.overlay import OverlayStore
from trimtransfer.repository.publish import check_free
from trimtransfer.repository.reading import further_disks, read_head, read_manifest
from trimtransfer.repository.signer import Keys, Signer, known_catalogue
from trimtransfer.repository.uploads import ROLE, Upload
from trimtransfer.store import DirectoryStore
from trimtransfer.trust.layout import TARGETS, max_length
from trimtransfer.watch import Watch

_PIECE: Final = 4 << 20
_FUTURE: Final = 86_400
"""Seconds that a publisher's clock may be ahead."""
_APART: Final = 30 * 86_400
"""Seconds that may lie between a publisher's signature and the commit."""
_TOLD: Final = 5
"""Damage of which messages tell."""


class Outrun(TargetRefused):
    """Somebody else published a version of the image since this one was begun: ``newest``."""

    def __init__(self, image: str, version: str, newest: str) -> None:
        self.image, self.version, self.newest = image, version, newest
        super().__init__(f"{image} {version}", f"is not published: {newest or 'another version'} came first")


@dataclass(frozen=True, slots=True)
class Checked:
    """An upload that keeps what it promises: its ``disks``, from the first on; ``packs`` that it refers to with their
    lengths, by name; ``files`` to be stored, by name."""

    disks: tuple[Manifest, ...]
    packs: Mapping[str, int]
    files: tuple[str, ...]


def check_upload(
    store: DirectoryStore,
    upload: Upload,
    *,
    may: Callable[[str], bool],
    workers: int = 2,
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> Checked:
    """Check everything that was uploaded; ``may`` tells what of the repository it may refer to, by name.

    Raises:
        FormatError, NotFound: something is wrong or missing. Outrun: somebody else published meanwhile.
    """
    tree = upload.tree(may)
    manifest = _own_manifest(tree, upload)
    catalogue = _known(store, upload.image)
    _check_follows(manifest, catalogue)
    disks = (manifest, *(one.manifest for one in further_disks(tree, manifest)))
    for number, disk in enumerate(disks):
        _check_disk(disk, number, manifest)
    files = _check_files(tree, upload, disks)
    sound = _version(store, catalogue, manifest.parent)
    bases = [disk for name in _bases(upload, catalogue, manifest) for disk in _version(store, catalogue, name)]
    damage, packs = audit_new(tree, disks, bases, sound, workers=workers, watch=watch)
    if damage:
        raise _damaged(damage)
    return Checked(disks, {pack_name(key): size or tree.size(pack_name(key)) for key, size in packs.items()}, files)


def commit_upload(
    store: DirectoryStore,
    upload: Upload,
    checked: Checked,
    wishes: Wishes,
    *,
    keys: Keys | None = None,
    now: int | None = None,
) -> None:
    """Publish what was checked: all of it, or nothing. ``now``: when its channels were set, as its publisher says.

    In a repository that is signed the role of the image came with it, signed by its publisher, or ``keys`` sign it.

    Raises:
        Locked: another process writes to the repository. VersionExists, Outrun: somebody else published meanwhile.
        FormatError, NotFound: what it refers to is gone. TargetRefused: wishes that cannot be granted; no keys.
    """
    manifest = checked.disks[0]
    with space_errors(store.path), repository_lock(store, f"publishing {upload.image} {upload.version} for others"):
        clean_up(store)
        role = _signed_role(upload)
        signer = Signer.open(store, upload.image if role is None else None, keys)
        catalogue = _known(store, upload.image, signer)
        check_free(store, upload.image, upload.version, len(checked.disks), catalogue)
        _check_follows(manifest, catalogue)
        now = _moment(now)
        new = wishes.granted(catalogue.with_version(entry_of(manifest)), manifest.version, now)
        with intended(store, upload.image, upload.version) as intent:
            if wishes != Wishes():
                record_wishes(store, upload.image, upload.version, wishes, now)
            _take_over(store, upload, checked, intent)
            _commit(store, manifest, new, signer, intent, role)
            _enrol(store, new, wishes)


def check_name_free(store: DirectoryStore, image: str, version: str) -> None:
    """Raise ``VersionExists`` for a version that there is, before anything of it is uploaded."""
    if any(entry.version == version for entry in _known(store, image).versions):
        raise VersionExists(image, version)


def published(store: DirectoryStore, upload: Upload) -> bool:
    """Tell whether an upload was committed, though nobody could note that any more: its manifest is the one there."""
    try:
        entry = _known(store, upload.image).find(upload.version)
        return entry is not None and entry.manifest_digest == _own_manifest(upload.tree(), upload).digest()
    except (TrimTransferError, OSError):
        return False


def settle_commit(store: DirectoryStore) -> None:
    """Finish what a commit that died after it had counted left to be done; raises as :func:`commit_upload`."""
    with space_errors(store.path), repository_lock(store, "finishing what was published"):
        clean_up(store)


# ---- checks


def _own_manifest(tree: OverlayStore, upload: Upload) -> Manifest:
    if not tree.has(manifest_name(upload.image, upload.version)):
        raise FormatError("upload", manifest_name(upload.image, upload.version), "a manifest", "nothing")
    return read_manifest(tree, upload.image, upload.version)


def _known(store: DirectoryStore, image: str, signer: Signer | None = None) -> Catalogue:
    """Return the catalogue to go on from, its sequence number no less than the head's; an empty one at first."""
    try:
        head = read_head(store, image)
        catalogue = known_catalogue(store, signer, image)
    except NotFound:
        return Catalogue(image)
    return replace(catalogue, sequence=max(head.sequence, catalogue.sequence))


def _check_follows(manifest: Manifest, catalogue: Catalogue) -> None:
    """Raise ``Outrun`` where the version does not follow the newest; ``FormatError`` for a parent that is not there."""
    if manifest.sequence != catalogue.sequence + 1:
        raise Outrun(manifest.image, manifest.version, catalogue.newest.version if catalogue.newest else "")
    if manifest.parent and not any(entry.version == manifest.parent for entry in catalogue.versions):
        raise Outrun(manifest.image, manifest.version, f"the removal of {manifest.parent}")


def _check_disk(disk: Manifest, number: int, first: Manifest) -> None:
    expected = (number, first.sequence, first.version)
    if (disk.disk, disk.sequence, disk.version) != expected or disk.created > time.time() + _FUTURE:
        found = (disk.disk, disk.sequence, disk.version, disk.created)
        raise FormatError(f"manifest of {disk.image}", "disk, sequence, version, created", expected, found)
    if number and disk.disks:
        raise FormatError(f"manifest of {disk.image}", "disks", "none: it is a further disk itself", len(disk.disks))


def _check_files(tree: OverlayStore, upload: Upload, disks: Sequence[Manifest]) -> tuple[str, ...]:
    """Return the names of the files that came; ``FormatError`` for any that the version does not have."""
    own = {name for disk in disks for name in (manifest_name(disk.image, disk.version), *_named(disk))}
    folders = tuple(f"images/{disk.image}/{disk.version}/" for disk in disks)
    role = version_name(upload.image, upload.version, ROLE)
    names = [name for name, _ in tree.list_own("images") if name != role]
    for name in names:
        further = name.rpartition("/")[2].startswith(("from-", "host-")) or name.endswith("/hosts.bin")
        if name not in own and not (further and name.startswith(folders)):
            raise FormatError("upload", name, "only files that belong to the version", "another one")
    return tuple(names)


def _named(disk: Manifest) -> list[str]:
    """Return the names of files of the same version that a manifest names."""
    pairs = zip(disk.file_names(), disk.files, strict=True)
    return [name for name, file in pairs if file.version == disk.version]


def _bases(upload: Upload, catalogue: Catalogue, manifest: Manifest) -> set[str]:
    """Return the versions that the upload is built on; ``FormatError`` for deltas from one that is not there."""
    names = {file[5:-4] for _, file, _ in upload.files() if file.startswith("from-")}
    for name in names:
        if not any(entry.version == name for entry in catalogue.versions):
            raise FormatError("upload", f"from-{name}.bin", "a version that is there", name)
    return names | ({manifest.parent} if manifest.parent else set())


def _version(store: DirectoryStore, catalogue: Catalogue, version: str) -> list[Manifest]:
    """Return the manifests of a version's disks as the repository has them; none for no version."""
    if not version:
        return []
    first = read_manifest(store, catalogue.image, version, digest=catalogue.entry(version).manifest_digest)
    return [first, *(one.manifest for one in further_disks(store, first))]


def _damaged(damage: Sequence[Damage]) -> FormatError:
    told = "; ".join(f"{one.name}: {one.problem}" for one in damage[:_TOLD])
    more = f"; and {len(damage) - _TOLD} more" if len(damage) > _TOLD else ""
    return FormatError("upload", "what came", "what its manifest promises", f"{told}{more}")


# ---- the commit


def _signed_role(upload: Upload) -> bytes | None:
    """Return the signed role that came; None if none did."""
    try:
        return upload.tree().read(version_name(upload.image, upload.version, ROLE), limit=max_length(TARGETS))
    except NotFound:
        return None


def _moment(now: int | None) -> int:
    """Return the time of the commit: the publisher's, if it can be."""
    here = int(time.time())
    if now is not None and abs(now - here) > _APART:
        raise FormatError("upload", "now", f"a time within {_APART:,} seconds of {here}", now)
    return here if now is None else now


def _take_over(store: DirectoryStore, upload: Upload, checked: Checked, intent: Intent) -> None:
    """Put packs and files into the repository, where nobody refers to them yet. Packs are linked, files copied: the
    upload may grow again."""
    tree = upload.tree()
    came = [name for name in checked.packs if tree.has(name)]
    new = {name for name in came if not store.exists(name)}
    old = [name for name in checked.packs if name not in new]
    first = checked.disks[0]
    further = [name for name in checked.files if not _is_own(name, first)]
    if new or further:
        intent.add("\n".join((*sorted(new), *further)))
    for name in came:
        if name in new or not store.holds(name, checked.packs[name]):
            _place(store, tree, name)
    for name in checked.files:
        _copy(store, tree, name)
    intent.rely_on(PackRef(bytes.fromhex(name[-4 - 2 * DIGEST_SIZE : -4]), checked.packs[name]) for name in old)


def _is_own(name: str, manifest: Manifest) -> bool:
    """Tell whether an intent undoes a file by the version's name alone."""
    files = ("manifest.bin", "tables.bin", "locations.bin", "keys.bin")
    return name in [version_name(manifest.image, manifest.version, file) for file in files]


def _place(store: DirectoryStore, tree: OverlayStore, name: str) -> None:
    """Give a pack its place, as one more name of the same file where the file system can do that."""
    source, staged = tree.path / name, store.scratch() / f"taken-{os.getpid()}-{Path(name).stem}"
    staged.unlink(missing_ok=True)
    try:
        os.link(source, staged)
    except OSError:
        _copy(store, tree, name)
        return
    store.take(staged, name)


def _copy(store: DirectoryStore, tree: OverlayStore, name: str) -> None:
    with store.staged(name) as staging, open(tree.path / name, "rb") as file:
        while data := file.read(_PIECE):
            staging.write(data)


def _commit(
    store: DirectoryStore,
    manifest: Manifest,
    catalogue: Catalogue,
    signer: Signer | None,
    intent: Intent,
    role: bytes | None,
) -> None:
    """Write the head and, in a repository that is signed, let the timestamp count: then it is published."""
    if signer is not None:
        signer.stage(intent, manifest.image, [manifest.version], catalogue=catalogue, signed=role)
    signed = signer.repository if signer is not None else ""
    head = head_of(manifest, mirrors=read_mirrors(store), signed=signed)
    intent.secure()
    store.put(head_name(manifest.image), head.to_bytes())
    if signer is not None:
        signer.finish()


def _enrol(store: DirectoryStore, catalogue: Catalogue, wishes: Wishes) -> None:
    """Enter the version, which is published, into its catalogue; what fails is made up for by whatever writes next."""
    with contextlib.ExitStack() as stack:
        if wishes == Wishes():
            stack.enter_context(contextlib.suppress(TrimTransferError, OSError))
        enrol(store, catalogue)
