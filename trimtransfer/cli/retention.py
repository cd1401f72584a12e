"""Commands that take versions and garbage away: retain, remove, gc."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from trimtransfer.cli.arguments import name_of
from trimtransfer.cli.output import Output, count_text, output_options, size_text
from trimtransfer.cli.signing import keys_option, take_keys

if TYPE_CHECKING:
    from trimtransfer.repository.collecting import CollectReport, Garbage
    from trimtransfer.repository.versioning import RemovalReport

_DAY: Final = 86_400
_GRACE: Final = 7


@click.command()
@click.argument("repository", metavar="REPO", type=click.Path(path_type=str))
@click.option("--image", callback=name_of("image"), metavar="NAME", help="Only this image.  [default: all]")
@click.option("--last", type=click.IntRange(1), metavar="N", help="Keep the last N versions.")
@click.option("--days", type=click.FloatRange(0), metavar="D", help="Keep versions published within D days.")
@click.option("--apply", is_flag=True, help="Do it. Without this, it is only told what would be removed.")
@keys_option
@output_options
def retain(
    output: Output,
    /,
    repository: str,
    image: str | None,
    last: int | None,
    days: float | None,
    apply: bool,
    **options: Any,
) -> None:
    """Remove old versions: all but those that --last or --days keeps.

    Always kept are the newest version, pinned ones (`annotate --pin`), and those that a channel stands for or could be
    rolled back to. Labels do not keep a version. Nothing is removed without --apply.

    What is removed leaves the catalogue at once. Its content is deleted by `medv-repo gc`, but not while clients may
    still be fetching it.

    \b
    Examples:
      medv-repo retain /srv/images --last 12
      medv-repo retain /srv/images --image win10 --last 3 --days 90 --apply
    """
    from trimtransfer.repository.versioning import Policy
    from trimtransfer.repository.versioning import retain as run

    if last is None and days is None:
        raise click.UsageError("say what to keep: --last N, --days D, or both")
    keys = take_keys(options)
    report = run(repository, Policy(last, days), image=image, dry_run=not apply, keys=keys, progress=output.progress)
    hint = "" if apply or not report.removed else "\nNothing was removed: --apply does it"
    output.result(report.to_dict(), _removed(report) + hint)


@click.command()
@click.argument("repository", metavar="REPO", type=click.Path(path_type=str))
@click.argument("versions", metavar="VERSION...", nargs=-1, required=True, callback=name_of("version"))
@click.option("--image", required=True, callback=name_of("image"), metavar="NAME", help="The image.")
@click.option("--dry-run", is_flag=True, help="Only tell what that would free.")
@keys_option
@output_options
def remove(
    output: Output, /, repository: str, versions: tuple[str, ...], image: str, dry_run: bool, **options: Any
) -> None:
    """Remove each VERSION (its name or a label) of an image. Not the newest, a pinned one, or one that a channel stands
    for.

    It leaves the catalogue at once. What no other version needs is deleted by `medv-repo gc` later, when no client can
    be fetching it any more. Clients that have the version keep it, and their updates from it stay as small. Its name
    stays taken as long as later versions need anything of it. To remove a whole image, move its folder images/NAME (and
    NAME.disk1 and so on) away; then `gc`.

    \b
    Example:
      medv-repo remove /srv/images 2026-03 2026-04 --image win10
    """
    from trimtransfer.repository.versioning import remove_versions

    keys = take_keys(options)
    report = remove_versions(repository, image, versions, dry_run=dry_run, keys=keys, progress=output.progress)
    output.result(report.to_dict(), _removed(report))


@click.command()
@click.argument("repository", metavar="REPO", type=click.Path(path_type=str))
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=_GRACE,
    show_default=True,
    metavar="DAYS",
    help="Keep what nobody needs for so long: longer than any download takes. 0: delete it now.",
)
@click.option("--dry-run", is_flag=True, help="Only tell what would be done; needs no lock.")
@output_options
def gc(output: Output, repository: str, grace: float, dry_run: bool) -> None:
    """Collect garbage: delete objects that no kept version has needed for --grace days.

    What is found without use for the first time is only noted (put into quarantine, where it stays readable), and
    deleted by a later run: let a timer run this every day. Clients that began before a version was removed have that
    long to finish. Packs are deleted or kept, never rewritten.

    If anything is damaged that tells what is needed, nothing is deleted; see `verify` and `repair`. A clock that is set
    does no harm: time counts by this machine's uptime, and between two boots for at most half the grace in one run.

    Writers of a repository keep each other out by a lock (flock) in it. Where several machines write to a shared file
    system, that must hold among them: NFS 4 does it by default, but not with the mount options nolock or local_lock.

    \b
    Examples:
      medv-repo gc /srv/images
      medv-repo gc /srv/images --dry-run
    """
    from trimtransfer.repository.collecting import collect

    report = collect(repository, grace=int(grace * _DAY), dry_run=dry_run, progress=output.progress)
    output.result(report.to_dict(), _collected(report))


def garbage_text(garbage: Garbage) -> str:
    """Return how many objects of how many bytes."""
    return f"{count_text(garbage.objects, 'object')} ({size_text(garbage.bytes)})"


def _removed(report: RemovalReport) -> str:
    done = "Would remove" if report.dry_run else "Removed"
    lines = [
        f"{done} {image} {', '.join(versions)}; {count_text(report.kept[image], 'version')} kept"
        for image, versions in report.removed.items()
    ]
    if not lines:
        return "Nothing to remove"
    free = "would be" if report.dry_run else "are"
    return "\n".join([*lines, f"{garbage_text(report.freed)} {free} of no use then: `medv-repo gc` deletes them"])


def _collected(report: CollectReport) -> str:
    deleted = "Would delete" if report.dry_run else "Deleted"
    lines = [f"{deleted} {garbage_text(report.deleted)}; in use are {garbage_text(report.live)}"]
    if report.new.objects:
        lines.append(f"Of no use since now: {garbage_text(report.new)}")
    if report.waiting.objects:
        lines.append(f"Of no use for some time: {garbage_text(report.waiting)}")
    if report.rescued.objects:
        lines.append(f"In use again: {garbage_text(report.rescued)}")
    if report.next_due is not None:
        lines.append(f"The next may be deleted in {report.next_due / _DAY:.1f} days, by the run after that")
    return "\n".join(lines)
