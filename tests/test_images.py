"""The real images that other tests rely on are what they claim: sound file systems with the packages' files."""

from __future__ import annotations

import filecmp
import os
import subprocess
from pathlib import Path

import pytest
from images import PATH, ImageSet

pytestmark = pytest.mark.net


def files_of(image: Path, target: Path) -> set[str]:
    """Extract an image and return the paths of everything in it."""
    target.mkdir()
    environment = {**os.environ, "PATH": PATH}
    subprocess.run(["debugfs", "-R", f'rdump / "{target}"', image], env=environment, capture_output=True, check=True)
    found = set()
    for folder, folders, files in os.walk(target):
        found |= {os.path.relpath(os.path.join(folder, name), target) for name in (*folders, *files)}
    return found


def test_upgrade_in_place_and_rebuilt_image_hold_the_same_files(images: ImageSet, tmp_path: Path) -> None:
    in_place, rebuilt = tmp_path / "new", tmp_path / "rebuilt"
    names = files_of(images.new, in_place)
    assert names == files_of(images.rebuilt, rebuilt)
    regular = [name for name in names if (in_place / name).is_file() and not (in_place / name).is_symlink()]
    assert len(regular) > 500
    assert filecmp.cmpfiles(in_place, rebuilt, regular, shallow=False) == (regular, [], [])


def test_versions_differ(images: ImageSet, tmp_path: Path) -> None:
    sizes = {image.stat().st_size for image in (images.old, images.new, images.rebuilt, images.installed)}
    assert len(sizes) == 1
    for one, other in ((images.old, images.new), (images.new, images.rebuilt), (images.new, images.installed)):
        assert not filecmp.cmp(one, other, shallow=False)
    before, after = files_of(images.new, tmp_path / "new"), files_of(images.installed, tmp_path / "installed")
    assert before < after
