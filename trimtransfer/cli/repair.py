"""The command that repairs a repository from a copy: repair."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Final

import click

from trimtransfer.cli.arguments import repository_url
from trimtransfer.cli.output import Output, count_text, output_options, size_text

if TYPE_CHECKING:
    from trimtransfer.repository.repairing import RepairReport

EXIT_DAMAGED: Final = 6


@click.command()
@click.argument("repository", metavar="REPO", type=click.Path(path_type=str))
@click.option(
    "--from",
    "copy",
    required=True,
    metavar="COPY",
    callback=repository_url,
    help="A copy of the repository: a directory or URL of a backup, a mirror, another repository with the same image.",
)
@click.option("--quick", is_flag=True, help="Of packs, look only whether they are there, and how long they are.")
@click.option("--connections", type=click.IntRange(1, 16), default=4, show_default=True, help="Requests at a time.")
@click.option(
    "--ca-cert",
    metavar="FILE",
    type=click.Path(exists=True),
    help="Certificate authorities to trust instead of the system's.",
)
@output_options
def repair(output: Output, repository: str, copy: str, quick: bool, connections: int, ca_cert: str | None) -> None:
    """Replace what is damaged or missing in the repository REPO by what a COPY of it has.

    Everything is checked against its digest before it is taken, so the copy need not be trusted; and each object is
    replaced at once, so clients see no half of it. Stopped, run the same command again. Several copies may be tried one
    after the other: each run repairs what its copy has intact.

    A mirror helps with packs; a backup also with manifests, tables and indexes of deltas. A head that is lost is made
    anew from the catalogue. A catalogue is not taken from a copy, for nothing tells whether it is the right one.

    What cannot be repaired is named, with what then helps; the exit code is 6.

    \b
    Examples:
      medv-repo repair /srv/images --from /backup/images
      medv-repo repair /srv/images --from https://mirror.example.net/images
    """
    from trimtransfer.assembly.remote import open_store
    from trimtransfer.repository.repairing import repair as run

    store = open_store(
        copy, connections=connections, limit_rate=None, ca_cert=ca_cert, cancel=None, on_bytes=lambda size: None
    )
    with closing(store):
        report = run(repository, store, quick=quick, progress=output.progress)
    output.result(report.to_dict(), _repaired(report))
    if report.left:
        raise SystemExit(EXIT_DAMAGED)


def _repaired(report: RepairReport) -> str:
    lines = [f"REPAIRED {one.name}: {one.problem}" for one in report.repaired]
    for damage in report.left:
        lines += [f"DAMAGED {damage.name}: {damage.problem}", f"  remedy: {damage.remedy}"]
    lines.append(
        f"Checked {count_text(report.checked, 'object')}: {len(report.repaired):,} repaired, {len(report.left):,} left "
        f"({size_text(report.fetched_bytes)} fetched)"
    )
    return "\n".join(lines)
