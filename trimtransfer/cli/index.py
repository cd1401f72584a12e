"""The command that indexes local files, so that syncs find what is already on this disk."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from trimtransfer.cli.arguments import local_paths
from trimtransfer.cli.output import Output, count_text, output_options, size_text

if TYPE_CHECKING:
    from trimtransfer.index.catalogue import Totals
    from trimtransfer.index.host import HostIndex
    from trimtransfer.index.update import UpdateReport
    from trimtransfer.index.walk import Skipped


@click.command()
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path(path_type=str), callback=local_paths)
@click.option("--include", multiple=True, metavar="GLOB", help="Only files that match. May be given several times.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="No files that match, nor folders. Wins over --include.")
@click.option("--cache", metavar="DIR", type=click.Path(path_type=str), help="Keep the index in DIR/index.")
@click.option("--no-idle", is_flag=True, help="Work at normal priority instead of only when the machine is idle.")
@click.option("--status", is_flag=True, help="Only tell what the index holds.")
@click.option("--clear", is_flag=True, help="Only delete the index.")
@output_options
def index(
    output: Output,
    paths: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    cache: str | None,
    no_idle: bool,
    status: bool,
    clear: bool,
) -> None:
    """Index local files for --host-index, or bring the index up to date.

    Without PATH these are the operating system's program and library folders, never home directories. Only files that
    every user of this machine may read are indexed; links are not followed, and other file systems mounted inside are
    left out: name them. What has not changed since the last time is not read again, and Ctrl-C loses nothing.

    GLOB is matched against the full path: * within one name, ** across any number of folders; a pattern that does not
    begin with / matches at any depth; one that matches a folder matches all in it.

    \b
      medv-sync index                                  the default folders
      medv-sync index /srv/vm --include '*.img'        disk images, too
      medv-sync index --exclude '/usr/share/doc' --exclude '*.pyc'
    """
    from pathlib import Path

    from trimtransfer.index.globs import parse_pattern
    from trimtransfer.index.host import HostIndex

    if (status or clear) and (paths or include or exclude or (status and clear)):
        raise click.UsageError("--status and --clear stand alone")
    for pattern in (*include, *exclude):
        try:
            parse_pattern(pattern)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    host = HostIndex(Path(cache) / "index" if cache is not None else None)
    if clear:
        host.clear()
        output.result({"index": str(host.directory), "cleared": True}, f"Deleted the index in {host.directory}")
    elif status:
        totals = host.totals()
        output.result({"index": str(host.directory), **_facts(totals)}, _held(host, totals))
    else:
        _update(output, host, paths, include, exclude, idle=not no_idle)


def _update(
    output: Output,
    host: HostIndex,
    paths: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    *,
    idle: bool,
) -> None:
    from trimtransfer.index.host import default_paths
    from trimtransfer.index.priority import be_idle
    from trimtransfer.index.update import UpdateReport

    chosen = paths or tuple(map(str, default_paths()))
    given = be_idle() if idle else []
    output.say(f"Indexing {', '.join(chosen)}" + (f" with idle {' and '.join(given)} priority" if given else ""))
    report = UpdateReport()

    def progress(phase: str, done: int, total: int) -> None:
        output.count(phase, files=report.files)
        output.progress(phase, done, total)

    host.update(chosen, include=include, exclude=exclude, report=report, progress=progress)
    totals = host.totals()
    facts = {"index": str(host.directory), "paths": chosen, **_facts(totals), "update": dataclasses.asdict(report)}
    output.result(facts, f"{_done(report)}\n{_held(host, totals)}")


def _facts(totals: Totals) -> dict[str, Any]:
    return {"files": totals.files, "bytes": totals.bytes, "rows": totals.rows, "runs": totals.runs}


def _held(host: HostIndex, totals: Totals) -> str:
    if not totals.files:
        return f"The index in {host.directory} is empty"
    return (
        f"The index in {host.directory} holds {count_text(totals.files, 'file')} of {size_text(totals.bytes)} "
        f"in {count_text(totals.rows, 'chunk')}"
    )


def _done(report: UpdateReport) -> str:
    rate = f", {size_text(report.bytes / report.seconds)}/s" if report.seconds and report.bytes else ""
    lines = [
        f"Read {count_text(report.scanned, 'file')} ({size_text(report.bytes)}) in {report.seconds:.1f} s{rate}; "
        f"{report.unchanged:,} had not changed, {report.removed:,} are gone"
    ]
    if report.rebuilt:
        lines.append("The index was damaged or of another version and was made anew")
    if report.changing:
        lines.append(f"Changed just now, to be read again the next time: {count_text(report.changing, 'file')}")
    if reasons := _reasons(report.skipped):
        lines.append(f"Left out: {reasons}")
    return "\n".join(lines)


def _reasons(skipped: Skipped) -> str:
    counts = (
        (skipped.unreadable, "unreadable"),
        (skipped.private, "not readable by every user (name them with --seed instead)"),
        (skipped.other_device, "folders on other file systems"),
        (skipped.too_deep, "folders nested too deep"),
        (skipped.excluded, "by the patterns"),
    )
    return ", ".join(f"{count:,} {reason}" for count, reason in counts if count)
