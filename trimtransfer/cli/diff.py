"""The command that tells where the bytes of an update go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click

from trimtransfer.cli.arguments import name_of
from trimtransfer.cli.output import Output, count_text, output_options, size_text

if TYPE_CHECKING:
    from trimtransfer.assembly.differencereport import DifferenceReport, Part, Whole

_TOP: Final = 20


@click.command()
@click.argument("repository", metavar="REPO", type=click.Path(path_type=str))
@click.option("--image", required=True, callback=name_of("image"), metavar="NAME", help="The image.")
@click.argument("old", metavar="V1", callback=name_of("version"))
@click.argument("new", metavar="V2", callback=name_of("version"))
@click.option(
    "--top", type=click.IntRange(0, 100_000), default=_TOP, show_default=True, help="Length of each list of files."
)
@output_options
def diff(output: Output, /, repository: str, image: str, old: str, new: str, top: int) -> None:
    """Show where the bytes of an update go: what a client with version V1 of an image fetches for V2, and for what.

    By kind of content, file, folder and volume; of a version of several disks for each disk, after the whole. The files
    are those of clean file systems (ext2/3/4, NTFS, FAT, XFS); elsewhere content is told by its place and by what it
    looks like. Free space holds the remains of deleted files.

    "new" is content that V1 has nowhere, "fetched" what the frames and deltas with it take. The total is what
    `medv-sync plan` says for a client that has V1 and nothing else. Files share frames, so what one of them takes is
    estimated by its length: one that compresses well takes less.

    \b
    Examples:
      medv-repo diff /srv/images --image debian 12.1 12.2
      medv-repo diff /srv/images --image debian 12.1 12.2 --top 1000 --json
    """
    from trimtransfer.assembly.difference import difference_of
    from trimtransfer.repository.reading import require_repository
    from trimtransfer.store import DirectoryStore

    store = DirectoryStore(repository)
    require_repository(store)
    report = difference_of(store, image, old, new, top=top, progress=output.progress)
    output.result(report.to_dict(), "\n".join(_lines(report)))


def _lines(report: DifferenceReport) -> Iterator[str]:
    if report.disks:
        yield _headline(report, report.whole(), f", {report.whole().disks} disks")
    for disk in (report, *report.disks):
        yield from _disk_lines(disk)


def _headline(report: DifferenceReport, sums: DifferenceReport | Whole, more: str = "") -> str:
    if not sums.content_bytes:
        return f"{report.image} {report.new}{more} has nothing new for a client with {report.old}"
    update = f"{report.old} to {report.new}" if report.old else f"{report.new}, a disk that was not there before"
    made = f", {size_text(sums.delta_bytes)} of it deltas" if sums.delta_bytes else ""
    new = f"{size_text(sums.content_bytes)} of {size_text(sums.length)} are new"
    return f"{report.image} {update}{more}: {new}, {size_text(sums.fetched_bytes)} to fetch{made}"


def _disk_lines(report: DifferenceReport) -> Iterator[str]:
    yield _headline(report, report)
    if not report.content_bytes:
        return
    yield from _table("By kind", report.kinds)
    overhead = report.gap_bytes + report.metadata_bytes
    yield f"  {'':>10} {size_text(overhead):>10}  metadata, and gaps within requests"
    if report.files:
        yield from _table(f"By file, the largest of {count_text(report.changed_files, 'file')}", report.files)
        yield from _table("By folder", report.folders)
    if report.stretches:
        yield "In no known file, by place:"
    for part in report.stretches:
        place = f"byte {part.start:,} and {size_text(part.length)} on, mostly {part.kind}"
        yield f"  {size_text(part.content):>10} {size_text(part.fetched):>10}  {place}"
    yield "By volume:"
    for volume in report.volumes:
        name = f"{volume.name} ({volume.file_system})" if volume.file_system else volume.name
        reason = f": its files are not known, {volume.problem}" if volume.problem else ""
        yield f"  {size_text(volume.content):>10} {size_text(volume.fetched):>10}  {name}{reason}"
    for advice in report.advice:
        yield f"Advice: {advice}"


def _table(title: str, parts: tuple[Part, ...]) -> Iterator[str]:
    yield f"{title}:"
    yield f"  {'new':>10} {'fetched':>10}"
    for part in parts:
        yield f"  {size_text(part.content):>10} {size_text(part.fetched):>10}  {part.name}"
