"""The command that checks an image on this machine: `medv-sync verify`."""

from __future__ import annotations

import sys
from shlex import quote
from typing import TYPE_CHECKING, Final

import click

from trimtransfer.cli.output import Output, output_options, size_text

if TYPE_CHECKING:
    from trimtransfer.assembly.report import VerifyReport

EXIT_DAMAGED: Final = 6
EXIT_MISSING: Final = 4


@click.command("verify")
@click.argument("file", metavar="FILE", type=click.Path(exists=True, dir_okay=False), required=False)
@click.option(
    "-o", "--output", "outputs", multiple=True, metavar="FILE", type=click.Path(exists=True, dir_okay=False),
    help="The version's disks, as for a sync: the first (unless it is FILE), then each further one.  "
    "[default: where the sync put them]",
)  # fmt: skip
@output_options
def verify_image_command(output: Output, /, file: str | None, outputs: tuple[str, ...]) -> None:
    """Compare an image, with its further disks, with what was recorded when it was synced. Reads all of it.

    Exit code 6 if it differs; the next sync repairs it. Exit code 4 if a further disk of the version is not found: name
    where it is, or sync again.

    \b
    Examples:
      medv-sync verify /var/lib/images/debian.img
      medv-sync verify server.img -o /data/server-data.img
    """
    from trimtransfer.assembly.verify import verify_image

    paths = outputs if file is None or outputs[:1] == (file,) else (file, *outputs)
    if not paths:
        raise click.UsageError("Missing argument 'FILE'.")
    report = verify_image(paths[0], disks=paths[1:], progress=output.progress)
    output.result(report.to_dict(), _text(report))
    if report.damage:
        sys.exit(EXIT_DAMAGED)
    if report.missing:
        sys.exit(EXIT_MISSING)


def _text(report: VerifyReport) -> str:
    lines = [_disk_text(report), *(_disk_text(disk) for disk in report.disks)]
    for disk in report.missing:
        where = f": no image that was synced at {disk.path}" if disk.path else ": it is not recorded where it is"
        lines.append(f"{disk.image} {report.version} is MISSING{where}")
    if report.missing:
        places = {disk.image: quote(disk.path) for disk in report.disks}
        places |= {disk.image: f"PATH_OF_{disk.image}" for disk in report.missing}
        named = "".join(f" -o {places[name]}" for name in sorted(places, key=_number))
        lines.append(f"  if it is somewhere else: medv-sync verify {quote(report.path)}{named}")
        lines.append("  if it is lost: run the sync again")
    return "\n".join(lines)


def _number(name: str) -> int:
    """Return the number of a disk by its image's name: ``desk.disk1``."""
    return int(name.rpartition("disk")[2])


def _disk_text(report: VerifyReport) -> str:
    name = f"{report.image} {report.version}"
    if report.intact and report.belongs:
        return f"{report.path} is {name}: {size_text(report.length)}, digest {report.digest.hex()}"
    if not report.belongs:
        return f"{report.path} is NOT the disk of that version: it is {name}; run the sync again"
    lines = [f"{report.path} is NOT {name}"]
    if report.found_length != report.length:
        lines.append(f"  {report.found_length:,} bytes instead of {report.length:,}")
    lines += [f"  other content in bytes {start:,} to {start + length:,}" for start, length in report.damaged]
    return "\n".join(lines)
