"""Commands on channels, which clients follow: channel, promote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from trimtransfer.cli.arguments import name_of
from trimtransfer.cli.output import Output, output_options
from trimtransfer.cli.signing import keys_option, take_keys

if TYPE_CHECKING:
    from trimtransfer.catalogue import Catalogue


@click.command()
@click.argument("repository", metavar="REPO", type=click.Path(path_type=str))
@click.argument("name", metavar="[CHANNEL]", callback=name_of("channel"), required=False)
@click.argument("version", metavar="[VERSION]", callback=name_of("version"), required=False)
@click.option("--image", required=True, callback=name_of("image"), metavar="NAME", help="The image.")
@click.option("--rollback", is_flag=True, help="Let it stand for what it stood for before.")
@click.option("--remove", is_flag=True, help="Remove it: clients that follow it fail then.")
@keys_option
@output_options
def channel(
    output: Output,
    /,
    repository: str,
    name: str | None,
    version: str | None,
    image: str,
    rollback: bool,
    remove: bool,
    **options: Any,
) -> None:
    """Let CHANNEL stand for VERSION (its name or a label) of an image. Or show what it stands for, or all channels.

    Clients follow a channel with `medv-sync URL IMAGE --channel CHANNEL`: those that test follow test, a few users
    pilot, all others live. Any name will do. The versions that a channel stands for, and the last 5 that it stood for,
    are kept whatever the policy of `retain` is, so that it can be rolled back; its clients go back then, too.

    \b
    Examples:
      medv-repo channel /srv/images test 2026-11 --image win10
      medv-repo promote /srv/images --image win10 --from test --to pilot
      medv-repo channel /srv/images live --image win10 --rollback
      medv-repo channel /srv/images --image win10                       (shows them)
    """
    from trimtransfer.repository import versioning

    keys = take_keys(options)
    if (version is not None) + rollback + remove > 1 or ((rollback or remove) and name is None):
        raise click.UsageError("give a CHANNEL with a VERSION, --rollback or --remove; or neither, to see it")
    if remove:
        catalogue = versioning.remove_channel(repository, image, str(name), keys=keys)
        output.result({"image": image, "channel": name, "removed": True}, f"Removed the channel {name} of {image}")
        return
    if rollback:
        catalogue = versioning.roll_back_channel(repository, image, str(name), keys=keys)
    elif version is not None:
        catalogue = versioning.point_channel(repository, image, str(name), version=version, keys=keys)
    else:
        (catalogue,) = versioning.catalogues_of(repository, image)
    _show(output, catalogue, name)


@click.command()
@click.argument("repository", metavar="REPO", type=click.Path(path_type=str))
@click.option("--image", required=True, callback=name_of("image"), metavar="NAME", help="The image.")
@click.option("--from", "source", required=True, callback=name_of("channel"), metavar="A", help="What has proved good.")
@click.option("--to", "target", required=True, callback=name_of("channel"), metavar="B", help="What follows.")
@keys_option
@output_options
def promote(output: Output, /, repository: str, image: str, source: str, target: str, **options: Any) -> None:
    """Let the channel B stand for the version that the channel A stands for.

    \b
    Example:
      medv-repo promote /srv/images --image win10 --from pilot --to live
    """
    from trimtransfer.repository.versioning import point_channel

    _show(output, point_channel(repository, image, target, like=source, keys=take_keys(options)), target)


def _show(output: Output, catalogue: Catalogue, name: str | None) -> None:
    """Tell what a channel stands for, or all of them."""
    shown = catalogue.channels if name is None else (catalogue.channel(name),)
    lines = []
    for one in shown:
        back = ", ".join(step.version for step in one.history)
        lines.append(f"{one.name}: {catalogue.image} {one.version}" + (f" (before: {back})" if back else ""))
    facts = {"image": catalogue.image, "channels": [one.to_dict() for one in shown]}
    output.result(facts, "\n".join(lines) or "no channels")
