"""The command that checks a repository, or a bundle: `medv-repo verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from trimtransfer.cli.arguments import name_of
from trimtransfer.cli.bundle import check, open_repository
from trimtransfer.cli.output import Output, count_text, output_options, size_text

if TYPE_CHECKING:
    from trimtransfer.repository.audit import AuditReport

EXIT_DAMAGED: Final = 6


def _percent(context: click.Context, parameter: click.Parameter, value: str) -> float:
    """Read a share: ``5`` or ``5%``."""
    try:
        share = float(value.strip().removesuffix("%"))
    except ValueError:
        share = 0.0
    if not 0 < share <= 100:
        raise click.BadParameter(f"{value!r}: a share above 0 and up to 100, such as 5%", context, parameter)
    return share


@click.command()
@click.argument("repository", metavar="REPO", type=click.Path(path_type=str))
@click.argument("image", metavar="[IMAGE]", callback=name_of("image"), required=False)
@click.option("--version", callback=name_of("version"), metavar="V", help="Check one version of IMAGE only.")
@click.option(
    "--sample",
    callback=_percent,
    default="100%",
    metavar="PERCENT",
    help="Check all metadata, but only this share of the content, such as 5%, picked at random.",
)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), metavar="N", help="Pick the sample that this number picks.")
@click.option("--quick", is_flag=True, help="Check all metadata, and that packs are there; read no content.")
@click.option("--workers", type=click.IntRange(1, 1024), default=2, show_default=True, help="Threads that decode.")
@output_options
def verify(
    output: Output,
    repository: str,
    image: str | None,
    version: str | None,
    sample: float,
    seed: int | None,
    quick: bool,
    workers: int,
) -> None:
    """Check the repository (or bundle) REPO, or one IMAGE in it: read, decode and compare everything with its digest.

    With --sample, run now and then, different parts are read each time; the number told with the result picks the same
    ones again (--seed).

    Metadata, packs, chunks; and the content of each region is put together from its chunks, as a client would. Damage
    is reported by name, with who needs it and what can be done; the exit code is then 6.
    """
    from trimtransfer.bundlestore import BundleStore
    from trimtransfer.repository.audit import audit
    from trimtransfer.watch import Watch

    if version and not image:
        raise click.UsageError("--version needs an IMAGE")
    if quick and (sample < 100 or seed is not None):
        raise click.UsageError("--quick reads no content of which to --sample a part")
    store = open_repository(repository)
    if isinstance(store, BundleStore):
        check(output, store, quick=quick)
        return
    watch = Watch(output.progress)
    report = audit(
        store, image=image, version=version, sample=sample, seed=seed, quick=quick, workers=workers, watch=watch
    )
    output.result(report.to_dict(), _verified(report))
    if report.damage:
        raise SystemExit(EXIT_DAMAGED)


def _verified(report: AuditReport) -> str:
    lines = [
        f"Checked {count_text(report.images, 'image')}, {count_text(report.versions, 'version')}, "
        f"{count_text(report.regions, 'region')}, {report.packs_checked:,} of {count_text(report.packs, 'pack')}, "
        f"{count_text(report.deltas_made, 'delta')} ({size_text(report.read_bytes)} read)"
    ]
    if report.sample < 100:
        lines.append(f"A sample of {report.sample:g} % of packs, contents and deltas (--seed {report.seed})")
    if report.unreferenced:
        lines.append(f"Of no use to any version: {count_text(len(report.unreferenced), 'pack')}")
    lines += [f"Not applied, the files of its profile are not all here: {name}" for name in report.not_made]
    for damage in report.damage:
        lines.append(f"DAMAGED {damage.name}: {damage.problem}")
        lines += [f"  needed by {version}, {_numbers(regions)}" for version, regions in damage.needed.items()]
        lines.append(f"  remedy: {damage.remedy}")
    lines.append(f"Damaged: {count_text(len(report.damage), 'object')}" if report.damage else "No damage found")
    return "\n".join(lines)


def _numbers(regions: tuple[int, ...]) -> str:
    """Return numbers in order, runs of them shortened: ``regions 1, 4 to 9``."""
    known = set(regions)
    starts = [number for number in regions if number - 1 not in known]
    ends = [number for number in regions if number + 1 not in known]
    parts = [str(one) if one == last else f"{one} to {last}" for one, last in zip(starts, ends, strict=True)]
    return f"region{'s' if len(regions) > 1 else ''} {', '.join(parts)}"
