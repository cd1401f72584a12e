"""A disk image to show the engine with, made of what the machine has: its programs and libraries in ext4.

Nothing in it is random or invented. The next version is made inside the file system, as an upgrade would: files are
replaced, edited, removed and added, and freed blocks keep what was in them. New programs are those whose names begin
with one certain letter; the first version goes without them, and so must the index of host files. Needs no root, but
``mke2fs``, ``debugfs`` and ``e2fsck`` (e2fsprogs).
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trimtransfer.errors import TrimTransferError
from trimtransfer.image import ImageSource

PROGRAM_FOLDERS: Final = ("/usr/bin", "/usr/lib", "/usr/lib64", "/usr/share")
_LARGEST_PART: Final = 0.45
"""Share of the image that one folder may fill, so that an image is of many kinds of files."""
_CODE_PART: Final = 0.8
"""Share of the image that programs and libraries may fill; the rest is data and text from /usr/share."""
_MAX_FOLDER: Final = 1 << 30
"""Folders with more bytes are left out: indexing them would take longer than all the rest."""
_NEW_PART: Final = 0.08
"""Share of the bytes that is kept back for the upgrade to bring."""
_EDITED_PART: Final = 0.04
_REMOVED_EVERY: Final = 60
_PLAIN: Final = re.compile(r"/[A-Za-z0-9._+@:,=~%/-]+")
"""Paths that need no quoting anywhere; the few others are left out."""
_TOOLS: Final = ("mke2fs", "debugfs", "e2fsck")
_SEARCH_PATH: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
_PIECE: Final = 1 << 20
_UUID: Final = "6d656476-0000-4000-8000-000000000002"


class SampleFailed(TrimTransferError):
    """The demonstration, or its sample image, cannot be made here; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A regular file of this machine: path, size in bytes, and where in the path the part below /usr/x begins."""

    path: str
    size: int
    below: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The files of the first version, the files that the upgrade brings, the folders of both, and the letter."""

    kept: tuple[SourceFile, ...]
    new: tuple[SourceFile, ...]
    folders: tuple[str, ...]
    letter: str

    @property
    def exclude(self) -> tuple[str, ...]:
        """Patterns of the files that an index must leave out to know the first version's files only."""
        return (f"{self.letter}*", f"lib{self.letter}*")


@dataclass(frozen=True, slots=True)
class Changes:
    """What the upgrade did: numbers of files replaced by other programs, edited, removed and added."""

    replaced: int
    edited: int
    removed: int
    added: int


def choose(size: int, *, folders: Sequence[str] = PROGRAM_FOLDERS) -> Choice:
    """Choose files of about ``size`` bytes in all. The same machine gives the same choice.

    Raises:
        SampleFailed: the folders hold too little.
    """
    found: dict[str, list[SourceFile]] = {}
    filled = 0
    for top, folder in _candidates(folders):
        room = size * (1.0 if top == folders[-1] else _CODE_PART) - filled
        if room < size // 1000:
            continue
        found[folder] = _take(folder, int(min(room, size * _LARGEST_PART)), below=len(top) + 1)
        filled += sum(file.size for file in found[folder])
    if filled < min(size // 4, 16 << 20):
        raise SampleFailed(f"{', '.join(folders)} hold too few readable files for a sample image")
    every = [file for files in found.values() for file in files]
    letter = _choose_letter(every, {part[0] for top in folders for part in os.path.realpath(top).split("/") if part})
    used = [folder for folder, files in found.items() if any(not _begins_with(file, letter) for file in files)]
    new = [file for file in every if _begins_with(file, letter)]
    kept = [file for file in every if not _begins_with(file, letter)]
    return Choice(tuple(kept), tuple(new), tuple(used), letter)


def build_first(choice: Choice, image: Path, scratch: Path) -> None:
    """Make the first version: an ext4 file system with the chosen files under their own paths.

    Raises:
        SampleFailed: a tool of e2fsprogs is missing or failed.
    """
    tree = scratch / "tree"
    for file in choice.kept:
        copy = tree / file.path.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path, copy)
        copy.chmod(0o755 if os.access(file.path, os.X_OK) else 0o644)
    content = sum(-(-file.size // 4096) * 4096 for file in choice.kept)
    megabytes = (content * 5 // 4 >> 20) + 32
    # A fixed identity: two runs on the same machine make the same file system, times apart. Blocks as on any real disk:
    # left to itself mke2fs takes 1 KiB for file systems below 512 MiB.
    identity = ["-U", _UUID, "-E", f"hash_seed={_UUID},root_owner=0:0"]
    _run("mke2fs", "-q", "-t", "ext4", "-b", "4096", *identity, "-d", str(tree), str(image), f"{megabytes}M")
    shutil.rmtree(tree)


def build_next(choice: Choice, first: Path, image: Path, scratch: Path) -> Changes:
    """Make the next version: the file system of ``first`` after an upgrade.

    Raises:
        SampleFailed: a tool of e2fsprogs is missing or failed.
    """
    _copy_sparse(first, image)
    edits = scratch / "edits"
    edits.mkdir()
    steps = _upgrade(choice, edits)
    script = scratch / "upgrade.debugfs"
    script.write_text("".join(f"{step}\n" for kind in steps.values() for step in kind))
    complaints = _run("debugfs", "-w", "-f", str(script), str(image)).stderr.splitlines()[1:]  # the first is a banner
    if complaints:
        raise SampleFailed(f"debugfs: {complaints[0]}")
    _run("e2fsck", "-f", "-n", str(image))
    shutil.rmtree(edits)
    return Changes(**{kind: len(done) for kind, done in steps.items()})


def _upgrade(choice: Choice, edits: Path) -> dict[str, list[str]]:
    """Return the commands for debugfs by what they do (fields of ``Changes``); edited files are put into ``edits``."""
    steps: dict[str, list[str]] = {"replaced": [], "edited": [], "removed": [], "added": []}
    untouched = {file.path: file for file in choice.kept}
    folders = {str(parent) for file in choice.kept for parent in Path(file.path).parents}
    for number, file in enumerate(choice.new):
        victim = _sibling(file, untouched) if number % 2 == 0 else None
        if victim:
            del untouched[victim.path]
            steps["replaced"].append(f"rm {victim.path}\nwrite {file.path} {victim.path}")
        else:
            steps["added"].append("\n".join([*_new_folders(file.path, folders), f"write {file.path} {file.path}"]))
    for number, path in enumerate(list(untouched)):
        if number % _REMOVED_EVERY == 0:
            del untouched[path]
            steps["removed"].append(f"rm {path}")
    limit = sum(file.size for file in choice.kept) * _EDITED_PART
    for file, text in _edited(untouched.values(), int(limit)):
        edited = edits / str(len(steps["edited"]))
        edited.write_bytes(text)
        steps["edited"].append(f"rm {file.path}\nwrite {edited} {file.path}")
    return steps


def _candidates(folders: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (top, folder) to take files from: the first as it is, then subfolders of the others, libraries first."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    seen = set()
    for top in folders:
        real = os.path.realpath(top)
        if real in seen or not os.path.isdir(real):
            continue
        seen.add(real)
        if top == folders[0]:
            yield real, real
            continue
        names = sorted(entry.name for entry in os.scandir(real) if entry.is_dir(follow_symlinks=False))
        yield from ((real, os.path.join(real, name)) for name in sorted(names, key=lambda name: name != multiarch))


def _take(folder: str, room: int, *, below: int) -> list[SourceFile]:
    """Return files of ``folder`` in the order of their names, about ``room`` bytes; none if the folder is huge."""
    taken: list[SourceFile] = []
    total = filled = 0
    for inner, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(inner, name)
            size = _readable_size(path)
            total += size
            if total > _MAX_FOLDER:
                return []
            if size and filled + size <= room:
                taken.append(SourceFile(path, size, below))
                filled += size
    return taken


def _readable_size(path: str) -> int:
    """Return the size of a regular file that everybody may read, else 0."""
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    usable = stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH and _PLAIN.fullmatch(path)
    return status.st_size if usable else 0


def _begins_with(file: SourceFile, letter: str) -> bool:
    """Tell whether a part of the path below /usr/x begins with the letter, or with ``lib`` and the letter."""
    return any(part.startswith((letter, f"lib{letter}")) for part in file.path[file.below :].split("/"))


def _choose_letter(files: Sequence[SourceFile], taken: set[str]) -> str:
    """Return the letter that keeps back the share of bytes nearest to what an upgrade should bring.

    Not one that a part of a top folder's own path begins with, or the patterns of the index would leave out all of it.
    """
    total = sum(file.size for file in files)

    def distance(letter: str) -> float:
        return abs(sum(file.size for file in files if _begins_with(file, letter)) - total * _NEW_PART)

    return min(sorted(set("abcdefghijklmnopqrstuvwxyz") - taken), key=distance)


def _sibling(file: SourceFile, candidates: dict[str, SourceFile]) -> SourceFile | None:
    """Return the largest file not larger than ``file`` that lies in the same folder and is of the same kind."""
    folder, suffix = os.path.dirname(file.path), os.path.splitext(file.path)[1]
    best: SourceFile | None = None
    for other in candidates.values():
        same = os.path.dirname(other.path) == folder and os.path.splitext(other.path)[1] == suffix
        if same and other.size <= file.size and (best is None or other.size > best.size):
            best = other
    return best


def _new_folders(path: str, known: set[str]) -> Iterator[str]:
    """Yield the commands that make the folders of ``path`` that are not ``known`` yet; they are then."""
    for parent in reversed(Path(path).parents):
        if str(parent) not in known:
            known.add(str(parent))
            yield f"mkdir {parent}"


def _edited(files: Iterable[SourceFile], limit: int) -> Iterator[tuple[SourceFile, bytes]]:
    """Yield every third text file with its lines changed, up to ``limit`` bytes in all."""
    texts = 0
    for file in files:
        if limit <= 0:
            return
        if not 1 << 10 <= file.size <= 1 << 20:
            continue
        with open(file.path, "rb") as opened:
            content = opened.read()
        if b"\0" in content or content.count(b"\n") < 16:
            continue
        texts += 1
        if texts % 3 == 0:
            limit -= len(content)
            yield file, _edit(content.splitlines(keepends=True))


def _edit(lines: list[bytes]) -> bytes:
    """Change a text with its own words: a line taken out, one moved, one altered; longer texts grow by a quarter."""
    place = len(lines) // 3
    moved = lines.pop(place)
    lines.pop(place)
    lines.insert(2 * place, moved)
    lines[place] = lines[place].rstrip(b"\n") + lines[place - 1]
    if len(lines) > 400:
        lines += lines[: len(lines) // 4]
    return b"".join(lines)


def _copy_sparse(source: Path, target: Path) -> None:
    """Copy a file, leaving holes where it has holes."""
    with ImageSource(source) as reader, open(target, "wb") as writer:
        writer.truncate(reader.size)
        for start, length in reader.extents(0, reader.size):
            writer.seek(start)
            for at in range(start, start + length, _PIECE):
                writer.write(reader.read(at, min(_PIECE, start + length - at)))


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which(name, path=_SEARCH_PATH)
    if program is None:
        missing = [tool for tool in _TOOLS if shutil.which(tool, path=_SEARCH_PATH) is None]
        raise SampleFailed(f"{', '.join(missing)} not found: install e2fsprogs (Debian: apt-get install e2fsprogs)")
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run([program, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise SampleFailed(f"{name}: {reason[-1]}")
    return done
