"""The house in order: linters, types, import layers, sizes, what --help loads, and a wheel that needs no checkout."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = {"pyproject.toml", "trimtransfer", "medv", "native", "benchmarks", "tests", "README.md"}
MAX_FUNCTION = 60
HEAVY = {"numpy", "httpx", "blake3", "zstandard", "rich", "xxhash", "cffi", "sqlite3", "uvicorn", "aiofiles", "trustme"}
HEAVY |= {"tuf", "securesystemslib", "cryptography", "starlette", "joserfc", "prometheus_client", "gssapi"}


def run(command: list[str], *, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command; its output becomes the test's message if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def tool(name: str) -> str:
    """Return a command that was installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["lint-imports", "--no-cache"]],
    ids=lambda command: " ".join(command[:2]),
)
def test_tools(command: list[str]) -> None:
    run([tool(command[0]), *command[1:]])


def test_nothing_else_at_the_top() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    names = {line.split("/")[0] for line in run(["git", "ls-files", "--cached"]).splitlines()}
    assert {name for name in names if not name.startswith(".")} == TOP_LEVEL


@pytest.mark.parametrize("path", sorted((*ROOT.glob("trimtransfer/**/*.py"), *ROOT.glob("medv/**/*.py"))), ids=str)
def test_functions_are_short_and_everything_public_is_explained(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if tree.body:
        assert ast.get_docstring(tree), "no module docstring"
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if not node.name.startswith("_") and not _is_inner(tree, node) and not _is_setter(node):
            assert ast.get_docstring(node), f"{node.name}: no docstring"
        if not isinstance(node, ast.ClassDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION, f"{node.name}: longer than {MAX_FUNCTION} lines"


def _is_inner(tree: ast.Module, wanted: ast.AST) -> bool:
    """Tell whether a definition is local to a function, or belongs to a private class."""
    for node in ast.walk(tree):
        hides = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.ClassDef) and node.name.startswith("_")
        )
        if hides and node is not wanted and any(inner is wanted for inner in ast.walk(node)):
            return True
    return False


def _is_setter(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    return any(isinstance(one, ast.Attribute) and one.attr == "setter" for one in node.decorator_list)


@pytest.mark.parametrize("program", ["medv_sync", "medv_repo"])
def test_help_loads_nothing_heavy(program: str) -> None:
    code = f"""
import sys
from medv.cli import {program}
sys.argv = ["x", "--help"]
try:
    {program}()
except SystemExit as ended:
    assert not ended.code, ended.code
print("loaded:", *sorted(sys.modules))
"""
    loaded = set(run([sys.executable, "-c", code]).rpartition("loaded:")[2].split())
    assert loaded & HEAVY == set()


def test_ci_runs_the_command_of_the_readme() -> None:
    assert "\n    bash tests/run\n" in (ROOT / "README.md").read_text()
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == 'exec bash "$(dirname "$0")/../tests/run"'


@pytest.mark.slow
def test_the_wheel_works_without_a_checkout(tmp_path: Path) -> None:
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)])
    (wheel,) = tmp_path.glob("*.whl")
    assert "cp311-abi3-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"trimtransfer", "medv"}
    assert {f"medv/doctor/examples/{name}" for name in ("nginx.conf", "squid.conf", "web.config", "s3.md")} <= set(
        names
    )
    assert any(re.fullmatch(r"trimtransfer/_native\.abi3\.so", name) for name in names)
    run([sys.executable, "-m", "venv", str(tmp_path / "fresh")])
    python = str(tmp_path / "fresh/bin/python")
    run([python, "-m", "pip", "install", "-q", str(wheel)])
    used = "import trimtransfer.native, trimtransfer.chunk; print(trimtransfer.native.__file__)"
    assert str(tmp_path / "fresh") in run([python, "-c", used], cwd=tmp_path)
    for command in ([python, "-m", "trimtransfer", "--help"], [str(tmp_path / "fresh/bin/medv-sync"), "--help"]):
        assert "Usage" in run(command, cwd=tmp_path)
