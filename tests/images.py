"""Real disk images for tests and benchmarks: ext4 from distribution packages, before and after an upgrade.

Packages are fetched from the distribution's archive in an older and a newer version, unpacked and put into ext4 file
systems. The upgrade happens inside the file system (``debugfs``), as the package manager would do it: archives are
fetched into the file system, new files appear beside old ones and take their names, archives are deleted at the end. So
freed blocks keep what was in them, as on a real disk. No root, no mount, no installed package is touched. Everything is
kept in the directory that ``TRIMTRANSFER_TEST_CACHE`` names (default ``tests/.cache``), so a set is built once.

Run as a program it builds a set: ``python tests/images.py [small|large|desktop]``.
"""

from __future__ import annotations

import fcntl
import filecmp
import functools
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

TOOLS = ("apt-get", "apt-cache", "dpkg-deb", "mke2fs", "debugfs", "e2fsck")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
_RECORD = "packages.json"
_BUILDER = 6
"""Counts the changes of this file that make other images of the same recipe."""
_FETCHED, _FRESH = "fetched-", ".dpkg-new"
_UUID = "6d656476-0000-4000-8000-000000000001"
_EPOCH = 1_700_000_000
"""Creation time of every file system, so that two builds from the same packages are alike."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A set: packages of the image, which get upgraded where the archive has two versions; packages that are installed
    on top of the upgraded image; packages that the host has, in their newest versions. With ``closed`` all that they
    depend on comes too, before the upgrade as the release had it: packages may come and go, kernels always do. Then the
    image is laid out as an installation leaves it, one package after the other, not folder by folder."""

    image: tuple[str, ...]
    installed: tuple[str, ...]
    host: tuple[str, ...]
    closed: bool = False

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Return the three lists of packages by name."""
        return {"image": self.image, "installed": self.installed, "host": self.host}


SETS = {
    "small": Recipe(
        image=("git", "libpython3.11-stdlib", "python3.11-minimal", "perl-modules-5.36", "openssl", "libssl3", "udev"),
        installed=("nano", "libgnutls30"),
        host=("libpython3.11-stdlib", "python3.11-minimal", "perl-modules-5.36", "libssl3", "nano"),
    ),
    # Large programs and data, nearly all of them upgraded.
    "large": Recipe(
        image=(
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
    # A whole desktop: some 500 packages, of which the security updates since the last point release change every
    # sixth, the kernel among them.
    "desktop": Recipe(
        image=(
            "xfce4", "libreoffice-writer", "libreoffice-calc", "firefox-esr", "evince", "gcc", "g++", "git", "python3",
            "linux-image-amd64", "cups", "network-manager", "openssh-server", "vim", "sudo",
        ),
        installed=("gimp", "inkscape", "postgresql-15"),
        host=("build-essential", "cmake", "gdb", "git", "vim", "python3-pip", "openssh-server", "firefox-esr", "xfce4"),
        closed=True,
    ),
}  # fmt: skip


class Unavailable(Exception):
    """The images cannot be had on this machine; the message says why and what would help."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images of one set, as files.

    ``old``; ``new``: the same file system after the upgrade; ``rebuilt``: the upgraded tree in a file system made from
    scratch, folder by folder; ``installed``: ``new`` with further packages. As folders: ``tree``, the unpacked files of
    ``old``; ``host``, the files of a host of the same distribution, up to date, with some of the packages.
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
    wanted = {"builder": _BUILDER, "recipe": json.loads(json.dumps(asdict(recipe)))}
    try:
        record = json.loads((folder / _RECORD).read_text())
    except (OSError, ValueError):
        return False
    return bool(wanted.items() <= record.items())


def _build(recipe: Recipe, images: ImageSet, folder: Path) -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    if missing:
        raise Unavailable(f"no {', '.join(missing)}: needs a Debian system with e2fsprogs")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    chosen = {part: set(_closure(names) if recipe.closed else names) for part, names in recipe.parts().items()}
    before = set(_closure(recipe.image, released=True)) if recipe.closed else chosen["image"]
    packages = Packages(cache_folder() / "packages", before.union(*chosen.values()))
    if not packages.changed & before:
        raise Unavailable("the package archive has one version only of every package of this set")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        upgraded, complete = Path(scratch, "upgraded"), Path(scratch, "complete")
        same = (before & chosen["image"]) - packages.changed
        packages.unpack(same, images.tree)
        _link_tree(images.tree, upgraded)
        packages.unpack(before - same, images.tree, newest=False)
        packages.unpack(chosen["image"] - same, upgraded)
        _link_tree(upgraded, complete)
        packages.unpack(chosen["installed"] - chosen["image"], complete)
        packages.unpack(chosen["host"], images.host)
        fetched = sum(path.stat().st_size for path in packages.archives(set().union(*chosen.values())))
        size = max(_tree_size(images.tree), _tree_size(complete)) * 14 // 10 + fetched + (64 << 20)
        if recipe.closed:
            install(images.tree, images.old, packages.paths(before), size=size)
        else:
            make_ext4(images.tree, images.old, size=size)
        make_ext4(upgraded, images.rebuilt, size=size)
        new = packages.archives(chosen["image"] - same)
        upgrade(images.old, images.new, images.tree, upgraded, archives=new)
        new = packages.archives(chosen["installed"] - chosen["image"])
        upgrade(images.new, images.installed, upgraded, complete, archives=new)
    # Written last, so that a build that was interrupted starts again.
    record = {"builder": _BUILDER, "recipe": asdict(recipe), "versions": packages.versions}
    (folder / _RECORD).write_text(json.dumps(record, indent=1) + "\n")


def make_ext4(tree: Path, image: Path, *, size: int) -> None:
    """Make an ext4 file system of ``size`` bytes (rounded to MiB) that holds ``tree``, in blocks of 4 KiB as usual."""
    options = ["-q", "-t", "ext4", "-b", "4096", "-U", _UUID, "-E", f"hash_seed={_UUID}", "-d", str(tree)]
    _run(["mke2fs", *options, str(image), f"{-(-size >> 20)}M"])


def install(tree: Path, image: Path, paths: Iterable[str], *, size: int) -> None:
    """Make an ext4 file system as :func:`make_ext4` does, whose files were written one after the other in the order of
    ``paths``."""
    with tempfile.TemporaryDirectory(dir=image.parent) as nothing:
        make_ext4(Path(nothing), image, size=size)
    there: set[str] = set()
    commands = []
    for path in paths:
        if path in there or not _exists(tree / path):
            continue
        folders = [str(folder) for folder in Path(path).parents if str(folder) != "."]
        commands += [f'mkdir "/{folder}"' for folder in reversed(folders) if folder not in there]
        there.update(folders, (path,))
        if not _is_folder(tree / path):
            commands.append(_written(tree / path, path))
        elif path not in folders:
            commands.append(f'mkdir "/{path}"')
    _debugfs(image, commands)


def upgrade(old: Path, new: Path, before: Path, after: Path, *, archives: Sequence[Path] = ()) -> None:
    """Copy the image ``old`` to ``new`` and turn the tree ``before`` in it into ``after``, file by file, out of
    ``archives`` that are there meanwhile."""
    _run(["cp", "--sparse=always", "--", str(old), str(new)])
    fetched = [f'write "{path}" "/{_FETCHED}{number}.deb"' for number, path in enumerate(archives)]
    cleaned = [f'rm "/{_FETCHED}{number}.deb"' for number in range(len(archives))]
    _debugfs(new, [*fetched, *_changes(before, after), *cleaned])


def _debugfs(image: Path, commands: Iterable[str]) -> None:
    """Carry out commands in a file system and check it."""
    script = image.with_suffix(".debugfs")
    script.write_text("\n".join(commands) + "\n")
    _run(["debugfs", "-w", "-f", str(script), str(image)])
    script.unlink()
    _run(["e2fsck", "-f", "-n", str(image)])


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
        if not _exists(old):
            yield _written(new, path)
        elif not _same(old, new):
            # A name is a directory entry: ln and unlink leave the count of links alone, together they rename.
            yield _written(new, f"{path}{_FRESH}")
            yield f'rm "/{path}"'
            yield f'ln "/{path}{_FRESH}" "/{path}"'
            yield f'unlink "/{path}{_FRESH}"'


def _written(source: Path, path: str) -> str:
    """Return the debugfs command that writes a file or symbolic link."""
    return f'symlink "/{path}" "{os.readlink(source)}"' if source.is_symlink() else f'write "{source}" "/{path}"'


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


def _link_tree(source: Path, target: Path) -> None:
    """Copy a tree by hard links; what is unpacked over it later replaces files and never writes into them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _run(["cp", "-al", "--", str(source), str(target)])


class Packages:
    """Packages in the oldest and the newest version that the archive has, fetched into ``folder``."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        found = _available(sorted(names))
        self.versions = {name: (found[name][0], found[name][-1]) for name in sorted(names)}
        self.changed = {name for name, (old, new) in self.versions.items() if old != new}
        self._fetch([(name, version) for name, pair in self.versions.items() for version in sorted(set(pair))])

    def unpack(self, names: Iterable[str], tree: Path, *, newest: bool = True) -> None:
        """Unpack packages into a tree."""
        tree.mkdir(parents=True, exist_ok=True)
        for name in sorted(names):
            (package,) = self._files(name, self.versions[name][newest])
            _run(["dpkg-deb", "-x", str(package), str(tree)])

    def paths(self, names: Iterable[str]) -> Iterator[str]:
        """Yield the paths in the older versions of packages, in the order in which installing them writes them."""
        for name in sorted(names):
            (package,) = self._files(name, self.versions[name][0])
            content = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
            with tarfile.open(fileobj=io.BytesIO(content)) as files:
                paths = [os.path.normpath(entry.name) for entry in files]
            yield from (path for path in paths if path != "." and '"' not in path and "\n" not in path)

    def archives(self, names: Iterable[str]) -> list[Path]:
        """Return the newest archives of packages."""
        return [path for name in sorted(names) for path in self._files(name, self.versions[name][1])]

    def _files(self, name: str, version: str) -> list[Path]:
        return list(self._folder.glob(f"{name}_{version.replace(':', '%3a')}_*.deb"))

    def _fetch(self, wanted: Iterable[tuple[str, str]]) -> None:
        missing = [f"{name}={version}" for name, version in wanted if not self._files(name, version)]
        if not missing:
            return
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            try:
                _run(["apt-get", "-q", "download", *missing], cwd=Path(scratch))
            except subprocess.CalledProcessError as error:
                raise Unavailable(f"cannot fetch packages: {error.stderr.strip()[-300:]}") from error
            for file in Path(scratch).glob("*.deb"):
                file.replace(self._folder / file.name)


def _closure(names: Iterable[str], *, released: bool = False) -> tuple[str, ...]:
    """Return the packages and all that they depend on, as an installation on an empty disk would take them.

    ``released``: in the versions of the release, without the updates that are in archives of their own.
    """
    with tempfile.NamedTemporaryFile() as nothing:
        options = [f"Dir::State::status={nothing.name}", "APT::Install-Recommends=false", "Debug::NoLocking=true"]
        if released:
            options.append(f"APT::Default-Release={platform.freedesktop_os_release()['VERSION_CODENAME']}")
        command = ["apt-get", "-q", "-y", "--print-uris", *(part for one in options for part in ("-o", one)), "install"]
        try:
            listed = _run([*command, *names])
        except subprocess.CalledProcessError as error:
            raise Unavailable(f"the package lists are not usable: {error.stderr.strip()[-300:]}") from error
    return tuple(line.split()[1].split("_")[0] for line in listed.splitlines() if line.startswith("'"))


def _available(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the versions of each package in the archive, in ascending order."""
    found: dict[str, set[str]] = {name: set() for name in names}
    for line in _run(["apt-cache", "madison", *names]).splitlines():
        name, version, source = (part.strip() for part in line.split("|"))
        if source.endswith("Packages") and name in found:
            found[name].add(version)
    if absent := [name for name, versions in found.items() if not versions]:
        raise Unavailable(f"the package lists have no {', '.join(absent[:5])}: run apt-get update on Debian 12")
    return {name: sorted(versions, key=functools.cmp_to_key(_compare)) for name, versions in found.items()}


def _compare(one: str, other: str) -> int:
    if one == other:
        return 0
    return -1 if subprocess.run(["dpkg", "--compare-versions", one, "lt", other]).returncode == 0 else 1


def _run(command: list[str], *, cwd: Path | None = None) -> str:
    environment = {**os.environ, "PATH": PATH, "LC_ALL": "C.UTF-8", "E2FSPROGS_FAKE_TIME": str(_EPOCH)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    print(image_set(*sys.argv[1:2]))
