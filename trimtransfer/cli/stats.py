"""The command that tells what a repository consists of: stats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from trimtransfer.cli.arguments import name_of
from trimtransfer.cli.output import Output, count_text, output_options, size_text
from trimtransfer.cli.retention import garbage_text

if TYPE_CHECKING:
    from trimtransfer.repository.statistics import ImageStatistics, Statistics


@click.command()
@click.argument("repository", metavar="REPO", type=click.Path(path_type=str))
@click.option("--image", callback=name_of("image"), metavar="NAME", help="Tell the fragmentation of this image only.")
@output_options
def stats(output: Output, repository: str, image: str | None) -> None:
    """Tell what the repository REPO takes, and for what: packs, deltas, tables; what nobody needs; what sharing saves;
    and how scattered the newest version of each image is. Reads metadata only.

    `medv-repo versions --sizes` tells what each version takes.
    """
    from trimtransfer.repository.statistics import statistics

    report = statistics(repository, image=image, progress=output.progress)
    output.result(report.to_dict(), _told(report))


def _told(report: Statistics) -> str:
    lines = [f"In use: {garbage_text(report.live)}"]
    lines += [f"  {kind:<18} {size_text(some.bytes):>10} in {some.objects:,}" for kind, some in report.kinds.items()]
    quarantined = f", of these in quarantine {garbage_text(report.quarantine)}" if report.quarantine.objects else ""
    lines.append(f"Of no use: {garbage_text(report.unused)}{quarantined}")
    count = sum(len(one.versions) for one in report.images)
    lines.append(f"{count_text(count, 'version')}; all images together are {report.ratio:g} times what is stored")
    return "\n".join([*lines, *map(_scattered, report.images)])


def _scattered(image: ImageStatistics) -> str:
    share = 100 * image.frame_bytes / max(1, image.pack_bytes)
    newest = image.versions[-1].version
    where = f"{count_text(image.frames, 'frame')} in {count_text(image.packs, 'pack')}, {share:.0f} % of them"
    return f"{image.image} {newest}: a first download takes {size_text(image.frame_bytes)}: {where}"
