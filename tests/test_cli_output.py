"""What commands print: levels, logs, progress and results together, and what they answer to wrong arguments."""

from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from trimtransfer.cli.main import main
from trimtransfer.cli.output import Output, count_text, output_options, size_text
from trimtransfer.errors import NoSpace, NotFound

LIBRARY = logging.getLogger("trimtransfer.fetch")
OTHERS = logging.getLogger("httpx")


def command(body: Callable[[Output], None]) -> click.Command:
    @click.command()
    @output_options
    def one(output: Output) -> None:
        body(output)

    return one


def noisy(output: Output) -> None:
    """Do what a command does: progress, library logs from a thread, a warning, a result."""
    output.progress("fetch", 1 << 20, 4 << 20)

    def work() -> None:
        LIBRARY.warning("%s: trying again", "https://host/a")
        LIBRARY.info("in place")
        LIBRARY.debug("region 5")
        OTHERS.info("HTTP Request: GET")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    output.warn("old certificate")
    output.detail("host index")
    output.progress("fetch", 4 << 20, 4 << 20)
    output.result({"done": True}, "all is done")


def invoke(body: Callable[[Output], None], *arguments: str) -> Result:
    return CliRunner().invoke(command(body), arguments)


@pytest.mark.parametrize(
    ("arguments", "shown", "hidden"),
    [
        ([], ["warning: https://host/a: trying again", "warning: old certificate"], ["in place", "host index"]),
        (["-q"], ["warning: https://host/a: trying again"], ["in place", "fetch:"]),
        (["-v"], ["in place", "host index", "fetch: 4.0 MiB of 4.0 MiB (100 %)"], ["region 5", "HTTP Request"]),
        (["-vv"], ["in place", "region 5", "HTTP Request: GET"], []),
        (["--no-progress"], ["warning: old certificate"], ["fetch:"]),
    ],
)
def test_levels(arguments: list[str], shown: list[str], hidden: list[str]) -> None:
    done = invoke(noisy, *arguments)
    assert done.exit_code == 0
    lines = done.stderr.splitlines()
    assert set(shown) <= set(lines)
    assert not [text for text in hidden if text in done.stderr]
    assert done.stdout == ("" if "-q" in arguments else "all is done\n")


def test_every_line_of_standard_error_is_json() -> None:
    done = invoke(noisy, "--json", "-v")
    assert json.loads(done.stdout) == {"done": True}
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["event"] for event in events] == ["progress", "log", "log", "log", "log", "progress"]
    assert [event["level"] for event in events[1:5]] == ["warning", "info", "warning", "info"]
    assert all(event["seconds"] >= 0 for event in events)


def test_logging_is_left_as_it_was(tmp_path: Path) -> None:
    def state() -> tuple[list[logging.Handler], list[int]]:
        names = ("", "trimtransfer", "medv", "httpx")
        return list(logging.getLogger().handlers), [logging.getLogger(name).level for name in names]

    before = state()
    invoke(noisy, "-vv", "--log-file", str(tmp_path / "log"))
    invoke(refuse, "-v")
    assert state() == before


def refuse(output: Output) -> None:
    raise NotFound("image x", "https://host")


def test_the_log_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    invoke(noisy, "-q", "--log-file", str(path))
    text = path.read_text()
    for part in ("WARNING https://host/a: trying again", "INFO in place", "WARNING old cert", "INFO all is done"):
        assert part in text
    assert "region 5" not in text
    assert "fetch:" not in text
    invoke(refuse, "--json", "--log-file", str(path))
    assert path.read_text().startswith(text)
    assert "ERROR image x not found (https://host)" in path.read_text()
    assert invoke(noisy, "--log-file", str(tmp_path / "none" / "log")).exit_code == 2


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (NotFound("image x", "u"), 4, "image x not found (u)"),
        (NoSpace("/x", None, None), 7, "no space for /x"),
        (OSError(28, "No space left on device", "/x"), 7, "/x: No space left"),
        (PermissionError(13, "Permission denied", b"/x"), 8, "/x: Permission denied"),
        (KeyboardInterrupt(), 130, "run the same command again"),
    ],
)
def test_errors(error: BaseException, code: int, message: str) -> None:
    def fail(output: Output) -> None:
        raise error

    done = invoke(fail)
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    done = invoke(fail, "--json")
    (event,) = map(json.loads, done.stderr.splitlines())
    assert (event["event"], event["level"]) == ("log", "error")
    assert json.loads(done.stdout)["error"]["exit_code"] == code
    assert message in event["message"]
    assert "Traceback" not in done.output
    assert isinstance(invoke(fail, "-vv").exception, SystemExit if code == 130 else type(error))


def test_a_bug_is_not_called_wrong_usage() -> None:
    def fail(output: Output) -> None:
        raise ValueError("a bug")

    assert isinstance(invoke(fail).exception, ValueError)


def test_nobody_reads_the_output(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trimtransfer", "index", "--status", "--cache", str(tmp_path)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


ON_A_TERMINAL = """
import logging, sys, time
sys.path.insert(0, sys.argv[1])
from trimtransfer.cli.output import Output
with Output() as output:
    output.progress("fetch", 1 << 20, 4 << 20)
    time.sleep(0.2)
    logging.getLogger("trimtransfer.fetch").warning("[red]line[/] " + 30 * "long ")
    print("printed while bars are drawn")
    output.progress("fetch", 2 << 20, 4 << 20)
    time.sleep(0.2)
    output.result({}, "result")
"""


def test_warnings_stand_on_lines_of_their_own_on_a_terminal() -> None:
    reader, writer = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", ON_A_TERMINAL, str(Path(__file__).parent.parent)],
        stdout=subprocess.PIPE, stderr=writer, text=True, env=environment, check=True,
    )  # fmt: skip
    os.close(writer)
    drawn = b""
    while True:
        try:
            part = os.read(reader, 1 << 16)
        except OSError:  # what Linux says when nobody has the other end open
            break
        if not part:
            break
        drawn += part
    os.close(reader)
    assert done.stdout == "printed while bars are drawn\nresult\n"
    lines = drawn.decode().replace("\x1b[2K", "\n").splitlines()
    assert "warning: [red]line[/] " + (30 * "long ").rstrip() in [line.strip() for line in lines]
    assert any("fetch" in line and "MiB" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sync", "ftp://host/", "disk"], "use http://, https://, s3:// or the path of a directory"),
        (["sync", "https:///x", "disk"], "not an http:// or https:// URL"),
        (["plan", "https://host:99999/", "disk"], "URL"),
        (["sync", "https://host/", "Disk"], "'Disk' is no image name"),
        (["sync", "https://host/", "disk", "--version", "1/2"], "is no version name"),
        (["sync", "https://host/", "disk", "--limit-rate", "0"], "bytes per second above 0"),
        (["plan", "https://host/", "disk", "--bandwidth", "fast"], "bytes per second above 0"),
        (["sync", "https://host/", "disk", "--seed", "/not/there"], "/not/there: No such file"),
        (["sync", "https://host/", "disk", "--ca-cert", "/not/there"], "does not exist"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_short_help_and_version() -> None:
    for arguments in (["-h"], ["sync", "-h"], ["repo", "verify", "-h"]):
        assert CliRunner().invoke(main, arguments).exit_code == 0
    from trimtransfer.cli.sync import medv_sync

    assert CliRunner().invoke(medv_sync, ["--version"], prog_name="medv-sync").output.startswith("medv-sync 0.")


def test_a_phase_that_has_not_begun_is_no_line() -> None:
    def start(output: Output) -> None:
        output.progress("scan", 0, 5)
        output.progress("verify", 0, 0)
        output.progress("scan", 5, 5)

    assert invoke(start).stderr == "scan: 5 B of 5 B (100 %)\n"
    assert len(invoke(start, "--json").stderr.splitlines()) == 3


def test_numbers() -> None:
    assert [count_text(count, "chunk") for count in (0, 1, 2000)] == ["0 chunks", "1 chunk", "2,000 chunks"]


def test_sizes() -> None:
    assert [size_text(size) for size in (0, 1023, 1024, 3 << 20, 5 << 30, 7 << 40)] == [
        "0 B", "1023 B", "1.0 KiB", "3.0 MiB", "5.0 GiB", "7.00 TiB",
    ]  # fmt: skip
