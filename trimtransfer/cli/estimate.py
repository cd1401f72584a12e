"""The command that tells what a publish would store, and what clients would fetch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from trimtransfer.cli.arguments import name_of
from trimtransfer.cli.output import Output, count_text, output_options, size_text

if TYPE_CHECKING:
    from trimtransfer.repository.estimatereport import Estimated, EstimateReport

_LEVEL: Final = 16
_MAX_LEVEL: Final = 22


@click.command()
@click.argument("repository", metavar="REPO", type=click.Path(path_type=str))
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=str)
)
@click.option("--image", required=True, callback=name_of("image"), metavar="NAME", help="The image's name.")
@click.option(
    "--parent", callback=name_of("version"), metavar="V", help="Version to compare with.  [default: the newest]"
)
@click.option(
    "--like", multiple=True, callback=name_of("image"), metavar="IMAGE", help="Share content with this image, too."
)
@click.option("--level", type=click.IntRange(1, _MAX_LEVEL), default=_LEVEL, show_default=True, help="zstd level.")
@click.option(
    "--kind", type=click.Choice(["auto", "disk", "bytes"]), default="auto", show_default=True, help="As for publish."
)
@click.option(
    "--format",
    type=click.Choice(["auto", "raw", "vhd", "vhdx", "qcow2", "vmdk"]),
    default="auto",
    show_default=True,
    help="What FILE is, as for publish.",
)
@click.option("--delta/--no-delta", "deltas", default=True, help="Make some deltas as a sample.  [default: --delta]")
@click.option("--trim", is_flag=True, help="As with publish --trim.")
@click.option("--workers", type=click.IntRange(1, 1024), help="Threads that compress.  [default: all cores]")
@output_options
def estimate(
    output: Output, /, repository: str, files: tuple[str, ...], image: str, kind: str, format: str, **options: Any
) -> None:
    """Tell what publishing FILE would store in REPO, and what clients would fetch, without publishing it; several
    FILEs, if the machine has several disks: of each, after the whole.

    FILE is read and compared with the repository as `publish` does it, with the same options. All content is compressed
    quickly, and a sample of it at the level of a publish; so sizes are told with their error, which 19 of 20 estimates
    stay within. What is new, known and repeated is exact. Deltas are made of up to 32 units, a small sample; half of
    them are such as look into compressed files.

    Nothing is written to REPO, which may be read-only, or not exist yet; temporary files go to TMPDIR.

    Warnings say what in the image ruins reuse, and what can be done about it.

    \b
    Examples:
      medv-repo estimate /srv/images debian.img --image debian
      medv-repo estimate /srv/images debian.img --image debian --trim --no-delta --json
      medv-repo estimate /srv/images system.vhdx data.vhdx --image finance
    """
    from trimtransfer.chunk import Kind
    from trimtransfer.repository.estimate import estimate as run

    report = run(
        repository,
        files[0],
        disks=files[1:],
        image=image,
        kind=None if kind == "auto" else Kind[kind.upper()],
        format=None if format == "auto" else format,
        progress=output.progress,
        **options,
    )
    disks = (report, *report.disks)
    for disk, volume in [(one, volume) for one in disks for volume in one.trimmed]:
        if volume.problem:
            name = f"{disk.image}, {volume.name}" if report.disks else volume.name
            output.warn(f"not trimmed: {name}: {volume.problem}")
    for advice in (advice for disk in disks for advice in disk.advice):
        output.warn(str(advice))
    output.result(report.to_dict(), "\n".join(_lines(report)))


def _lines(report: EstimateReport) -> Iterator[str]:
    if report.disks:
        whole = report.whole()
        after = f", after {report.parent}" if report.parent else ", as its first version"
        yield f"Publishing these as {report.image} ({whole.disks} disks, {size_text(whole.length)}{after}) would find"
        yield from _sums(report, whole)
    for disk in (report, *report.disks):
        yield from _disk_lines(disk, report.parent)


def _disk_lines(report: EstimateReport, version: str) -> Iterator[str]:
    """Tell of one disk of an image whose newest version is ``version``, if it has one."""
    found = report.recognised if report.format == "raw" else f"{report.format}: {report.recognised}"
    first = ", a disk that was not there before" if version else ", as its first version"
    after = f", after {report.parent}" if report.parent else first
    yield f"Publishing this as {report.image} ({found}, {size_text(report.length)}{after}) would find"
    yield from _sums(report, report)


def _sums(report: EstimateReport, sums: Estimated) -> Iterator[str]:
    """Tell the sums of a disk, or of all of them, of whose first one ``report`` is."""
    yield f"  zeros      {size_text(sums.zero_bytes):>10}"
    yield f"  known      {size_text(sums.known_bytes):>10}"
    yield f"  repeated   {size_text(sums.repeated_bytes):>10}"
    yield f"  new        {size_text(sums.new_bytes):>10}"
    if sums.again_bytes:
        yield f"  known, to be stored again to keep downloads compact: {size_text(sums.again_bytes)}"
    error = f" (give or take {size_text(sums.error_bytes)})" if sums.error_bytes else ""
    stored, packs = size_text(sums.stored_bytes), count_text(sums.packs, "pack")
    yield f"and add {stored}{error} in {packs}, and {size_text(sums.metadata_bytes)} of metadata"
    if report.parent:
        yield f"A client with {report.parent} would fetch {size_text(sums.fetched_bytes)}{_deltas(report, sums)}"
    yield f"A client with nothing would fetch {size_text(sums.download_bytes)}"
    if sums.trim_bytes:
        content = size_text(sums.trim_content_bytes)
        yield f"--trim would save {size_text(sums.trim_bytes)}: {content} that are new lie in free space"
    took = f"this took {sums.seconds:.1f} s"
    yield f"Publishing would take some {sums.publish_seconds:.0f} s on this machine if it is idle; {took}"


def _deltas(report: EstimateReport, sums: Estimated) -> str:
    if sums is not report:
        any_sampled = any(disk.deltas for disk in (report, *report.disks))
        return f", with deltas {size_text(sums.with_deltas_bytes)}" if any_sampled else ""
    sampled = report.deltas
    if sampled is None:
        return ""
    error = f", give or take {100 * sampled.error:.0f} % of the former" if sampled.error else ""
    units = count_text(sampled.units, "unit")
    return f", with deltas {size_text(report.with_deltas_bytes)} (by {units}{error})"
