"""Repositories in object stores: the commands push and pull, and every other command on an ``s3://`` URL."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from trimtransfer.cli.output import Output, count_text, output_options, results_held, size_text

if TYPE_CHECKING:
    from trimtransfer.bucket.pushing import PushReport

_DAY: Final = 86_400
_DIRECT: Final = frozenset(("ls", "show", "verify", "bundle", "serve", "sign", "push", "pull"))
"""Commands that read from an object store themselves, or mean something else."""
_READING: Final = frozenset(("stats", "versions", "estimate", "diff"))
"""Commands that change nothing."""


def _s3_url(context: click.Context, parameter: click.Parameter, value: str) -> str:
    from trimtransfer.fetch.account import Address

    try:
        return str(Address.parse(value))
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


@click.command()
@click.argument("repository", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=str))
@click.argument("url", metavar="S3URL", callback=_s3_url)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=7,
    show_default=True,
    metavar="DAYS",
    help="Delete there what DIR does not have once that has been so for so long.",
)
@click.option("--replace", is_flag=True, help="DIR counts, whatever is there.")
@click.option("--break-lock", is_flag=True, help="The process that publishes there is dead: I have looked.")
@click.option("--connections", type=click.IntRange(1, 64), default=8, show_default=True, help="Requests at once.")
@output_options
def push(
    output: Output,
    /,
    repository: str,
    url: str,
    grace: float,
    replace: bool,
    break_lock: bool,
    connections: int,
) -> None:
    """Copy the repository DIR to an object store, s3://bucket/prefix, or bring the copy up to date.

    Only what lacks there is sent; large objects in parts. Clients see the old state until all is there, then the new
    one. Interrupted, run it again: it goes on where it stopped. What DIR does not have any more is deleted there, but
    not before --grace is over, as clients may need it still.

    One process writes at a time; others are told. What somebody else published there in the meantime is not
    overwritten: the push is refused.

    Keys, region and endpoint are found as AWS tools find them: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_SESSION_TOKEN, AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL, AWS_CA_BUNDLE, ~/.aws/credentials, ~/.aws/config.

    \b
    Examples:
      medv-repo push /srv/images s3://images/prod
      AWS_ENDPOINT_URL=https://s3.example.org medv-repo push /srv/images s3://images/prod
    """
    from trimtransfer.bucket.claim import claimed
    from trimtransfer.bucket.pushing import push as run
    from trimtransfer.bucket.wire import Wire
    from trimtransfer.store import DirectoryStore
    from trimtransfer.watch import Watch

    store, watch = DirectoryStore(repository), Watch(output.progress)
    options: dict[str, Any] = {"grace": int(grace * _DAY), "replacing": replace, "threads": connections}
    with Wire(url) as wire, claimed(wire, "pushing", break_others=break_lock) as claim:
        report = run(wire, claim, store, watch=watch, **options)
    output.result(report.to_dict(), pushed_text(report))


@click.command()
@click.argument("url", metavar="S3URL", callback=_s3_url)
@click.argument("repository", metavar="DIR", type=click.Path(file_okay=False, path_type=str))
@click.option("--connections", type=click.IntRange(1, 64), default=8, show_default=True, help="Requests at once.")
@click.option("--replace", is_flag=True, help="The object store counts, whatever versions DIR has.")
@output_options
def pull(output: Output, url: str, repository: str, connections: int, replace: bool) -> None:
    """Make DIR a copy of the repository in an object store, or bring the copy up to date.

    What others have removed there is deleted in DIR, too. Versions that were published to DIR itself and never pushed
    are not: then it is refused, unless --replace is said.

    \b
    Example:
      medv-repo pull s3://images/prod /srv/images
    """
    from trimtransfer.bucket.claim import claimed
    from trimtransfer.bucket.commit import settle
    from trimtransfer.bucket.pushing import pull as run
    from trimtransfer.bucket.wire import Wire
    from trimtransfer.repository.intent import check_target
    from trimtransfer.store import DirectoryStore
    from trimtransfer.watch import Watch

    store = DirectoryStore(repository)
    check_target(store)
    with Wire(url) as wire, claimed(wire, "pulling"):
        settle(wire)
        count, length = run(wire, store, replacing=replace, threads=connections, watch=Watch(output.progress))
    output.result(
        {"url": url, "objects": count, "bytes": length}, f"Fetched {count_text(count, 'object')} of {size_text(length)}"
    )


def pushed_text(report: PushReport) -> str:
    """Return what a push did, for people."""
    lines = [f"Pushed {count_text(report.sent, 'object')} of {size_text(report.sent_bytes)} to {report.url}"]
    if report.kept:
        lines.append(f"There already: {count_text(report.kept, 'object')} of {size_text(report.kept_bytes)}")
    if report.deleted:
        lines.append(f"Deleted there: {count_text(report.deleted, 'object')}")
    if report.waiting:
        lines.append(f"Of no use there, but kept for clients that began before: {count_text(report.waiting, 'object')}")
    return "\n".join(lines)


def reach_buckets(group: click.Group) -> None:
    """Let the commands of a group, and of groups in it, take ``s3://bucket/prefix`` for their repository."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            reach_buckets(command)
        elif name not in _DIRECT and command.callback is not None:
            command.callback = _at_bucket(name, command.callback)


def _at_bucket(name: str, callback: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(callback)
    def run(*args: Any, **options: Any) -> Any:
        url = str(options.get("repository", ""))
        if not url.lower().startswith("s3://"):
            return callback(*args, **options)
        return _on_copy(name, callback, args, url, options)

    return run


def _on_copy(name: str, callback: Callable[..., Any], args: tuple[Any, ...], url: str, options: dict[str, Any]) -> Any:
    """Run a command on a working copy, and push what it changed; errors become those of a command."""
    shown = {key: options[key] for key in ("as_json", "quiet", "verbose", "no_progress", "log_file") if key in options}

    @output_options
    def around(output: Output) -> Any:
        from trimtransfer.bucket.working import changing, reading
        from trimtransfer.fetch.account import Address
        from trimtransfer.watch import Watch

        watch = Watch(output.progress)
        try:
            place = str(Address.parse(url))
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        if name in _READING:
            return callback(*args, **{**options, "repository": str(reading(place, watch))})
        with results_held(), changing(place, name, collecting=name == "gc", watch=watch) as working:
            result = callback(*args, **{**options, "repository": str(working.path)})
        if working.report is not None:
            output.detail(pushed_text(working.report))
        return result

    return around(**shown)
