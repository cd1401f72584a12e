"""The command that records reference hosts, so that deltas can start from their files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from trimtransfer.cli.arguments import local_paths, name_of
from trimtransfer.cli.output import Output, count_text, output_options, size_text
from trimtransfer.cli.signing import keys_option, take_keys
from trimtransfer.names import NOTHING

if TYPE_CHECKING:
    from trimtransfer.repository.profiles import ProfileReport, ProfileSummary


@click.command()
@click.argument("repository", metavar="REPO", type=click.Path(path_type=str))
@click.argument("name", metavar="[NAME]", callback=name_of("profile"), required=False)
@click.argument("trees", metavar="[TREE]...", nargs=-1, type=click.Path(path_type=str), callback=local_paths)
@click.option("--list", "listing", is_flag=True, help="Only list the profiles.")
@click.option("--remove", is_flag=True, help="Delete the profile NAME, and the deltas from it.")
@keys_option
@output_options
def profile(
    output: Output,
    /,
    repository: str,
    name: str | None,
    trees: tuple[str, ...],
    listing: bool,
    remove: bool,
    **options: Any,
) -> None:
    """Record the files of a reference host as the profile NAME, so that first downloads on such hosts take less.

    Clients take what equals files of their own system from there (`medv-sync index`, or `--seed`). With a profile of
    their system, deltas also make what is only similar: publish with `--profile NAME`, or `medv-repo delta --profile
    NAME` later. Each client finds out by itself which profile fits it; one that differs uses what does fit.

    TREE is a folder with the files as clients have them, such as /usr of a fresh installation, mounted anywhere. What
    is stored are digests and paths of files that every user may read - no content: it is read from TREE again while
    deltas are made, and must be there then.

    \b
    Examples:
      medv-repo profile /srv/images debian-12 /srv/reference/usr /srv/reference/opt
      medv-repo delta /srv/images --image debian --profile debian-12
      medv-repo profile /srv/images --list
    """
    if listing != (name is None) or (remove and (listing or trees)) or not (listing or remove or trees):
        raise click.UsageError("give a NAME and its TREEs, --remove and a NAME, or --list alone")
    if name == NOTHING and not remove:
        raise click.UsageError(f"{NOTHING} is the name of what needs no host (`delta --solid`); take another NAME")
    if listing:
        _list(output, repository)
    elif remove:
        from trimtransfer.repository.hostdeltas import remove_profile

        versions = remove_profile(repository, str(name), keys=take_keys(options))
        text = f"Removed the profile {name}, and the deltas from it of {count_text(versions, 'version')}"
        output.result({"profile": name, "removed": True, "versions": versions}, text)
    else:
        from trimtransfer.repository.profiles import record_profile

        report = record_profile(repository, str(name), trees, progress=output.progress)
        output.result(report.to_dict(), _recorded(report))


def source_text(profile: str) -> str:
    """Return what deltas from a profile start from, in words."""
    return "nothing (solid units)" if profile == NOTHING else f"the profile {profile}"


def _list(output: Output, repository: str) -> None:
    from trimtransfer.repository.profiles import list_profiles
    from trimtransfer.store import DirectoryStore

    found = list_profiles(DirectoryStore(repository))
    output.result({"profiles": [one.to_dict() for one in found]}, "\n".join(map(_listed, found)) or "no profiles")


def _listed(one: ProfileSummary) -> str:
    if one.problem:
        return f"{one.profile:<20} DAMAGED: {one.problem}"
    where = ", ".join(one.trees) or "its trees are not known here"
    return f"{one.profile:<20} {count_text(one.files, 'file')} of {size_text(one.bytes)}: {where}"


def _recorded(report: ProfileReport) -> str:
    lines = [
        f"Recorded the profile {report.profile}: {count_text(report.files, 'file')} of {size_text(report.bytes)} in "
        f"{count_text(report.chunks, 'chunk')}, stored in {size_text(report.stored_bytes)}; {report.seconds:.1f} s"
    ]
    if report.private or report.unreadable:
        lines.append(f"Left out: {report.private:,} not readable by every user, {report.unreadable:,} unreadable")
    return "\n".join(lines)
