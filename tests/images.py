"""Real disk images for tests and benchmarks: ext4 from distribution packages, before and after an upgrade.

Packages are fetched from the distribution's archive in an older and a newer version, unpacked and put into ext4 file
systems; the upgrade happens inside the file system (``debugfs``), so freed blocks keep what was in them, as on a real
disk. No root, no mount, no installed package is touched. Everything is kept in the directory that
``TRIMTRANSFER_TEST_CACHE`` names (default ``tests/.cache``), so a set is built once.

Run as a program it builds a set: ``python tests/images.py [small|large]``.
"""

from __future__ import annotations

import fcntl
import filecmp
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

TOOLS = ("apt-get", "apt-cache", "dpkg-deb", "mke2fs", "debugfs", "e2fsck")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
_RECORD = "packages.json"
_UUID = "6d656476-0000-4000-8000-000000000001"
_EPOCH = 1_700_000_000
"""Creation time of every file system, so that two builds from the same packages are alike."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A set: packages that get upgraded (where the archive has two versions), packages that are installed on top of
    the upgraded image, and packages that the host has, in their newest versions."""

    upgraded: tuple[str, ...]
    installed: tuple[str, ...]
    host: tuple[str, ...]


SETS = {
    "small": Recipe(
        upgraded=(
            "git", "libpython3.11-stdlib", "python3.11-minimal", "perl-modules-5.36", "openssl", "libssl3", "udev",
        ),
        installed=("nano", "libgnutls30"),
        host=("libpython3.11-stdlib", "python3.11-minimal", "perl-modules-5.36", "libssl3", "nano"),
    ),
    "large": Recipe(
        upgraded=(
            "firefox-esr", "libreoffice-core", "samba-libs", "postgresql-15", "qemu-system-x86", "git",
            "libpython3.11-stdlib", "python3.11-minimal", "perl-modules-5.36", "openssl", "libssl3", "libc6", "systemd",
            "udev", "php8.2-cli", "bind9-libs", "libgs10", "tzdata", "openjdk-17-jre-headless", "vim-runtime",
            "gcc-12", "cpp-12", "g++-12", "libicu72", "libllvm15", "fonts-noto-core",
        ),
        installed=("gimp", "libgimp2.0", "inkscape", "gimp-data"),
        host=(
            "libpython3.11-stdlib", "python3.11-minimal", "perl-modules-5.36", "openssl", "libssl3", "libc6", "systemd",
            "udev", "tzdata", "git", "vim-runtime", "gcc-12", "cpp-12", "libicu72", "firefox-esr",
        ),
    ),
}  # fmt: skip


class Unavailable(Exception):
    """The images cannot be had on this machine; the message says why and what would help."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images of one set, as files.

    ``old``; ``new``: the same file system after the upgrade; ``rebuilt``: the upgraded tree in a file system made from
    scratch; ``installed``: ``new`` with further packages. As folders: ``tree``, the unpacked files of ``old``;
    ``host``, the files of a host of the same distribution, up to date, with some of the packages.
    """

    name: str
    old: Path
    new: Path
    rebuilt: Path
    installed: Path
    tree: Path
    host: Path


def image_set(name: str = "small") -> ImageSet:
    """Return the set ``name`` of :data:`SETS`, building it at first use; :class:`Unavailable` if it cannot be had."""
    folder = cache_folder() / name
    files = [folder / f"{part}.img" for part in ("old", "new", "rebuilt", "installed")]
    found = ImageSet(name, *files, tree=folder / "tree", host=folder / "host")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{name}.lock", "w") as lock:  # test processes may run in parallel
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_built(SETS[name], folder):
            _build(SETS[name], found, folder)
    return found


def cache_folder() -> Path:
    """Return the directory that keeps the images and the fetched packages."""
    return Path(os.environ.get("TRIMTRANSFER_TEST_CACHE") or Path(__file__).parent / ".cache")


def _is_built(recipe: Recipe, folder: Path) -> bool:
    try:
        return json.loads((folder / _RECORD).read_text())["recipe"] == json.loads(json.dumps(asdict(recipe)))
    except (OSError, ValueError, KeyError):
        return False


def _build(recipe: Recipe, images: ImageSet, folder: Path) -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    if missing:
        raise Unavailable(f"no {', '.join(missing)}: needs a Debian system with e2fsprogs")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    packages = cache_folder() / "packages"
    packages.mkdir(exist_ok=True)
    versions = {name: _versions(name) for name in {*recipe.upgraded, *recipe.installed, *recipe.host}}
    if not any(old != new for old, new in versions.values()):
        raise Unavailable("the package archive has one version only of every package of this set")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        upgraded, complete = Path(scratch, "upgraded"), Path(scratch, "complete")
        for name in recipe.upgraded:
            old, new = versions[name]
            _unpack(_download(name, old, packages), images.tree)
            _unpack(_download(name, new, packages), upgraded)
        shutil.copytree(upgraded, complete, symlinks=True)
        for name in recipe.installed:
            _unpack(_download(name, versions[name][1], packages), complete)
        for name in recipe.host:
            _unpack(_download(name, versions[name][1], packages), images.host)
        size = max(_tree_size(images.tree), _tree_size(complete)) * 14 // 10 + (64 << 20)
        make_ext4(images.tree, images.old, size=size)
        make_ext4(upgraded, images.rebuilt, size=size)
        upgrade(images.old, images.new, images.tree, upgraded)
        upgrade(images.new, images.installed, upgraded, complete)
    # Written last: a build that was interrupted starts again.
    (folder / _RECORD).write_text(
        json.dumps({"recipe": asdict(recipe), "versions": dict(sorted(versions.items()))}, indent=1) + "\n"
    )


def make_ext4(tree: Path, image: Path, *, size: int) -> None:
    """Make an ext4 file system of ``size`` bytes (rounded to MiB) that holds ``tree``, in blocks of 4 KiB as usual."""
    options = ["-q", "-t", "ext4", "-b", "4096", "-U", _UUID, "-E", f"hash_seed={_UUID}", "-d", str(tree)]
    _run(["mke2fs", *options, str(image), f"{-(-size >> 20)}M"])


def upgrade(old: Path, new: Path, before: Path, after: Path) -> None:
    """Copy the image ``old`` to ``new`` and turn the tree ``before`` in it into ``after``, file by file."""
    _run(["cp", "--sparse=always", "--", str(old), str(new)])
    commands = new.with_suffix(".debugfs")
    commands.write_text("\n".join(_changes(before, after)) + "\n")
    _run(["debugfs", "-w", "-f", str(commands), str(new)])
    commands.unlink()
    _run(["e2fsck", "-f", "-n", str(new)])


def _changes(before: Path, after: Path) -> Iterator[str]:
    """Yield the debugfs commands that turn one tree into the other."""
    gone = [path for path in _entries(before) if not _exists(after / path)]
    yield from (f'rm "/{path}"' for path in gone if not _is_folder(before / path))
    for path in _entries(after):
        old, new = before / path, after / path
        if _is_folder(new):
            if not _is_folder(old):
                yield f'mkdir "/{path}"'
            continue
        if _exists(old):
            if _same(old, new):
                continue
            yield f'rm "/{path}"'
        yield f'symlink "/{path}" "{os.readlink(new)}"' if new.is_symlink() else f'write "{new}" "/{path}"'


def _entries(tree: Path) -> list[str]:
    """Return the paths of everything in ``tree``, folders before their content."""
    found = []
    for folder, folders, files in os.walk(tree):
        found += [os.path.relpath(os.path.join(folder, name), tree) for name in (*folders, *files)]
    return sorted(path for path in found if '"' not in path and "\n" not in path)


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _same(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and os.readlink(one) == os.readlink(other)
    return filecmp.cmp(one, other, shallow=False)


def _tree_size(tree: Path) -> int:
    """Return what the files of ``tree`` take in blocks of 4 KiB."""
    return sum(-(-os.lstat(tree / path).st_size // 4096) * 4096 for path in _entries(tree))


@functools.cache
def _versions(name: str) -> tuple[str, str]:
    """Return the oldest and the newest version of a package in the archive."""
    listed = _run(["apt-cache", "madison", name]).splitlines()
    found = {line.split("|")[1].strip() for line in listed if line.count("|") == 2 and "Packages" in line}
    if not found:
        raise Unavailable(f"the package lists have no {name}: run apt-get update")
    ordered = sorted(found, key=functools.cmp_to_key(_compare))
    return ordered[0], ordered[-1]


def _compare(one: str, other: str) -> int:
    if one == other:
        return 0
    return -1 if subprocess.run(["dpkg", "--compare-versions", one, "lt", other]).returncode == 0 else 1


def _download(name: str, version: str, folder: Path) -> Path:
    """Return the package file, fetched unless it is there."""
    pattern = f"{name}_{version.replace(':', '%3a')}_*.deb"
    if not (found := list(folder.glob(pattern))):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            try:
                _run(["apt-get", "-q", "download", f"{name}={version}"], cwd=Path(scratch))
            except subprocess.CalledProcessError as error:
                raise Unavailable(f"cannot fetch {name} {version}: {error.stderr.strip()[-300:]}") from error
            for file in Path(scratch).glob("*.deb"):
                file.replace(folder / file.name)
        found = list(folder.glob(pattern))
    return found[0]


def _unpack(package: Path, tree: Path) -> None:
    tree.mkdir(parents=True, exist_ok=True)
    _run(["dpkg-deb", "-x", str(package), str(tree)])


def _run(command: list[str], *, cwd: Path | None = None) -> str:
    environment = {**os.environ, "PATH": PATH, "LC_ALL": "C.UTF-8", "E2FSPROGS_FAKE_TIME": str(_EPOCH)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    print(image_set(*sys.argv[1:2]))
