"""Commands that show the versions of images and say something about them: versions, annotate."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from trimtransfer.cli.arguments import name_of
from trimtransfer.cli.output import Output, output_options, size_text
from trimtransfer.cli.signing import keys_option, take_keys

if TYPE_CHECKING:
    from trimtransfer.catalogue import Catalogue, Entry
    from trimtransfer.repository.statistics import ImageStatistics, VersionUse
    from trimtransfer.store import Store


@click.command()
@click.argument("repository", metavar="REPO", type=click.Path(path_type=str))
@click.option("--image", callback=name_of("image"), metavar="NAME", help="Only this image.")
@click.option("--sizes", is_flag=True, help="Tell also what each takes, and what removing it alone would free.")
@output_options
def versions(output: Output, repository: str, image: str | None, sizes: bool) -> None:
    """List the versions that are kept: parents, age, labels, channels, pins, notes; and what each channel stands for.

    \b
    Examples:
      medv-repo versions /srv/images
      medv-repo versions /srv/images --image win10 --sizes
    """
    from trimtransfer.repository.statistics import statistics
    from trimtransfer.repository.versioning import catalogues_of

    found = catalogues_of(repository, image)
    told = statistics(repository, image=image, progress=output.progress).images if sizes else ()
    uses = {(one.image, use.version): use for one in told for use in one.versions}
    texts = [_listed(catalogue, {use.version: use for use in _uses(told, catalogue.image)}) for catalogue in found]
    facts = [_facts(catalogue, uses) for catalogue in found]
    output.result({"images": facts}, "\n".join(texts))


def _uses(told: tuple[ImageStatistics, ...], image: str) -> tuple[VersionUse, ...]:
    return next((one.versions for one in told if one.image == image), ())


@click.command()
@click.argument("repository", metavar="REPO", type=click.Path(path_type=str))
@click.argument("version", metavar="VERSION", callback=name_of("version"))
@click.option("--image", required=True, callback=name_of("image"), metavar="NAME", help="The image.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    callback=name_of("label"),
    metavar="L",
    help="Give it this label: another name, which only one version of the image has at a time.",
)
@click.option("--unlabel", multiple=True, callback=name_of("label"), metavar="L", help="Take this label away.")
@click.option("--note", metavar="TEXT", help="Set its note, at most 1,000 characters ('': none).")
@click.option("--pin/--unpin", "pinned", default=None, help="Keep it whatever is removed, or not any more.")
@keys_option
@output_options
def annotate(
    output: Output,
    /,
    repository: str,
    version: str,
    image: str,
    labels: tuple[str, ...],
    unlabel: tuple[str, ...],
    note: str | None,
    pinned: bool | None,
    **options: Any,
) -> None:
    """Say something about a version (named by its name or a label): labels, a note, a pin. The version stays as it is.

    Clients can name labels: `medv-sync URL IMAGE --version LABEL`. A label that another version has moves.

    \b
    Examples:
      medv-repo annotate /srv/images 2026-11 --image win10 --label sp1 --note "with the November patches"
      medv-repo annotate /srv/images 2026-08 --image win10 --pin
    """
    from trimtransfer.repository.versioning import annotate as run

    if not (labels or unlabel) and note is None and pinned is None:
        raise click.UsageError("nothing to say: give --label, --unlabel, --note, --pin or --unpin")
    changed = run(
        repository, image, version, labels=labels, unlabel=unlabel, note=note, pinned=pinned, keys=take_keys(options)
    )
    entry = next(iter(changed.entry(name) for name in (version, *labels) if changed.find(name)), None)
    facts = {"image": image, **(entry.to_dict() if entry else {})}
    output.result(facts, _line(changed, entry, None).strip() if entry else f"{image}: done")


def named(store: Store, image: str, version: str | None) -> str | None:
    """Return the name of the version that has this label, if one has; else what was given."""
    from trimtransfer.repository.catalogues import stored_catalogue

    entry = stored_catalogue(store, image).find(version) if version is not None else None
    return entry.version if entry is not None else version


def remarks(store: Store, image: str, version: str) -> tuple[dict[str, object], str]:
    """Return what the catalogue says of a version, as facts and as lines of text; nothing where there is none."""
    from trimtransfer.repository.catalogues import stored_catalogue

    catalogue = stored_catalogue(store, image)
    entry = catalogue.find(version)
    channels = list(catalogue.channels_of(version))
    if entry is None:
        return {"labels": [], "channels": [], "note": "", "pinned": False}, ""
    facts = {"labels": list(entry.labels), "channels": channels, "note": entry.note, "pinned": entry.pinned}
    parts = [*(f"label {name}" for name in entry.labels), *(f"channel {name}" for name in channels)]
    parts += ["pinned"] * entry.pinned + [entry.note] * bool(entry.note)
    return facts, f"\n  remarks     {', '.join(parts)}" if parts else ""


def _facts(catalogue: Catalogue, uses: dict[tuple[str, str], VersionUse]) -> dict[str, object]:
    rows = []
    for entry in catalogue.versions:
        use = uses.get((catalogue.image, entry.version))
        sizes = {"stored_bytes": use.stored_bytes, "own_bytes": use.own_bytes} if use else {}
        rows.append({**entry.to_dict(), "channels": list(catalogue.channels_of(entry.version)), **sizes})
    return {**catalogue.to_dict(), "versions": rows}


def _listed(catalogue: Catalogue, uses: dict[str, VersionUse]) -> str:
    lines = [catalogue.image]
    lines += [_line(catalogue, entry, uses.get(entry.version)) for entry in catalogue.versions]
    for channel in catalogue.channels:
        back = ", ".join(step.version for step in channel.history)
        lines.append(
            f"  channel {channel.name}: {channel.version} since {_when(channel.since)}"
            + (f", before {back}" if back else "")
        )
    return "\n".join(lines)


def _line(catalogue: Catalogue, entry: Entry, use: VersionUse | None) -> str:
    """Return the line of one version."""
    parts = [f"  {entry.version:<20} {_when(entry.published)}"]
    parts += [f"after {entry.parent}"] * bool(entry.parent)
    if use is not None:
        parts.append(f"{size_text(use.stored_bytes)} stored, {size_text(use.own_bytes)} of it for this one alone")
    parts += ["newest"] * (entry is catalogue.newest) + ["pinned"] * entry.pinned
    parts += [f"channel {name}" for name in catalogue.channels_of(entry.version)]
    parts += [f"label {name}" for name in entry.labels]
    note = "".join(f"\n      {line}" for line in entry.note.split("\n")) if entry.note else ""
    return ", ".join(parts) + note


def _when(seconds: int) -> str:
    """Return a date, and for what happened lately how long ago that was."""
    try:
        date = time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)) + " UTC"
    except (OverflowError, ValueError, OSError):
        return f"{seconds} s after 1970"
    days = int((time.time() - seconds) // 86_400)
    return f"{date} ({days} days ago)" if days >= 1 else date
