"""The README keeps its word: its library example runs as printed, its commands and files exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_library_example_runs_as_printed(tmp_path: Path, rng: np.random.Generator) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    old = bytearray(rng.bytes(3 << 20)) + bytes(64 << 20)  # more than one region
    new = old.copy()
    new[1 << 20 : (1 << 20) + 5] = b"patch"
    (tmp_path / "old.img").write_bytes(old)
    (tmp_path / "disk.img").write_bytes(new)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    fetched, found = (int(number) for number in re.findall(r"\d+", done.stdout))
    assert 0 < fetched < 1 << 20 < found
    assert (tmp_path / "copy.img").read_bytes() == new


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`((?:trimtransfer|native|benchmarks|tests)/[\w./-]+\w)`", README)))
)
def test_files_that_are_named_exist(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize("line", [line.strip() for line in README.splitlines() if line.startswith("    medv-")])
def test_commands_have_the_options_that_are_shown(line: str) -> None:
    program, *words = line.split("#")[0].split()
    names = {"plan", "index", "verify", "publish", "delta", "bundle", "ls", "show", "demo", "diff", "estimate"}
    names |= {"versions", "annotate", "channel", "promote", "retain", "remove", "gc", "repair", "stats"}
    names |= {"keys", "init", "timestamp", "serve", "doctor"}
    command = [str(Path(sys.executable).with_name(program)), *[word for word in words if word in names], "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for option in (word for word in words if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", shown), option
