"""``medv-sync``: sync (the command without a name) and plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from trimtransfer.cli.arguments import HELP_OPTIONS, VERSION_MESSAGE, local_paths, name_of, rate
from trimtransfer.cli.bundle import only_image, source_arguments
from trimtransfer.cli.credentials import ENVIRONMENT as CREDENTIALS
from trimtransfer.cli.credentials import credential_options, take_credentials
from trimtransfer.cli.index import index
from trimtransfer.cli.manners import (
    ENVIRONMENT,
    be_modest,
    check_cost,
    conduct_lines,
    estimate_text,
    manners_options,
    rate_options,
    take_manners,
)
from trimtransfer.cli.output import EXIT_CODES, Output, count_text, output_options, size_text
from trimtransfer.cli.trust import ENVIRONMENT as TRUST_ENVIRONMENT
from trimtransfer.cli.trust import take_trusting, trust_options, warn_unsigned
from trimtransfer.cli.verifyimage import verify_image_command

if TYPE_CHECKING:
    from trimtransfer.assembly.payoff import Decision
    from trimtransfer.assembly.report import Content, Made, PlanReport, SyncReport
    from trimtransfer.index.host import HostIndex

F = TypeVar("F", bound=Callable[..., Any])
Report = TypeVar("Report", "SyncReport", "PlanReport")

_NAMES: Final = {
    "unchanged": "in place already", "seed": "from seeds", "host": "from host files", "fetched": "fetched",
    "zero": "zeros",
}  # fmt: skip
_HELP: Final = """Bring a disk image up to date from a repository, with as few bytes as possible.

URL is a repository (https://..., s3://..., a directory, or a bundle), IMAGE the name of an image in it. What is on this
machine already - the old version, other images, program files - is not fetched again. Every byte is verified.

Interrupted, killed or out of space: the old image is intact, or the new one complete; run the same command again
and it goes on where it stopped.

\b
Examples:
  medv-sync https://host/images debian
  medv-sync https://host/images debian -o /var/lib/images/debian.img --host-index
  medv-sync --from /media/stick/debian.bundle debian
  medv-sync plan https://host/images debian
  medv-sync verify debian.img
"""
_ENVIRONMENT: Final = (
    ("HTTPS_PROXY, HTTP_PROXY, NO_PROXY", "The way to the server. A password belongs into the proxy's URL."),
    (
        "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL, ...",
        "Keys and place of object stores (s3://bucket/prefix), as AWS tools find them.",
    ),
    ("SSL_CERT_FILE, SSL_CERT_DIR", "Certificate authorities to trust; --ca-cert wins."),
    ("XDG_CACHE_HOME", "Folder of the indexes (in medv/); --cache wins."),
    ("XDG_STATE_HOME", "Folder of what is recorded of devices (in medv/)."),
    ("TMPDIR", "Folder of temporary files."),
    ENVIRONMENT,
    TRUST_ENVIRONMENT,
    CREDENTIALS,
)


class SyncGroup(click.Group):
    """A group whose commands' names win, and whose other arguments belong to the command ``sync``."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Put ``sync`` before arguments that do not begin with a command's name.

        A lone ``--version`` is the question for the program's own.
        """
        if args and args != ["--version"] and args[0] not in (*self.commands, *context.help_option_names):
            args = ["sync", *args]
        return super().parse_args(context, args)

    def format_usage(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write both ways to call it."""
        formatter.write_usage(context.command_path, "[OPTIONS] URL IMAGE")
        formatter.write_usage(context.command_path, "[OPTIONS] --from BUNDLE [IMAGE]")
        formatter.write_usage(context.command_path, "COMMAND ...")

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of ``sync`` and the other commands."""
        options = [one for one in self.commands["sync"].get_params(context) if isinstance(one, click.Option)]
        records = [record for option in options if (record := option.get_help_record(context))]
        with formatter.section("Options"):
            formatter.write_dl(records)
        self.format_commands(context, formatter)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write which variables of the environment count, and what exit codes mean."""
        _write_epilog(formatter)


class SyncCommand(click.Command):
    """The command ``sync``, whose help ends like that of the group that stands for it."""

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write which variables of the environment count, and what exit codes mean."""
        _write_epilog(formatter)


def _write_epilog(formatter: click.HelpFormatter) -> None:
    with formatter.section("Environment, where no option says otherwise"):
        formatter.write_dl(_ENVIRONMENT)
    with formatter.section("Exit codes"):
        formatter.write_text(EXIT_CODES)


def source_options(function: F) -> F:
    """Decorate a command with the options that sync and plan share."""
    options = [
        source_arguments,
        click.option(
            "-o", "--output", "outputs", multiple=True, metavar="FILE",
            help="File or block device to write; once more for each further disk of a version of several.  "
            "[default: ./IMAGE.img, .qcow2, ...; further disks where they were put before, else beside the first, "
            "IMAGE.disk1.img]"
        ),
        click.option(
            "--version", metavar="V", callback=name_of("version"),
            help="Version to sync, by its name or a label.  [default: the newest]"
        ),
        click.option(
            "--channel", metavar="NAME", callback=name_of("channel"),
            help="Sync the version that this channel (live, pilot, ...) stands for, also if that goes back."
        ),
        click.option(
            "--seed", "seeds", multiple=True, metavar="PATH", callback=local_paths,
            help="File, folder, device or bundle that may hold parts of the image, a file also one that contains the "
            "image at any offset; may be given several times.",
        ),
        click.option(
            "--host-index/--no-host-index", default=None,
            help="Use this machine's program files, indexing first what is new in them, as far as that pays; "
            "or do not use them.  "
            "[default: use the index if there is one]",
        ),
        click.option(
            "--write", type=click.Choice(["auto", "new", "in-place"]), default="auto", show_default=True,
            help="Write a new file beside the old one and rename it, or bring the old one forward in place.",
        ),
        click.option(
            "--format", type=click.Choice(["raw", "qcow2", "vhd", "vhdx"]),
            help="Format of the file; all but raw are written anew each time.  "
            "[default: as it is now; at first, as it was published]",
        ),
        trust_options,
        click.option("--cache", metavar="DIR", help="Keep indexes of host files and seeds here."),
        click.option(
            "--connections", type=click.IntRange(1, 16), default=4, show_default=True, help="Requests at a time."
        ),
        click.option(
            "--ca-cert", metavar="FILE", type=click.Path(exists=True),
            help="Certificate authorities to trust instead of the system's.",
        ),
        credential_options,
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@click.group(cls=SyncGroup, name="sync", context_settings=HELP_OPTIONS, help=_HELP)
@click.version_option(package_name="trimtransfer", message=VERSION_MESSAGE)
def medv_sync() -> None:
    """Bring a disk image up to date: the program ``medv-sync``."""


@medv_sync.command("sync", cls=SyncCommand, hidden=True, help=_HELP)
@source_options
@rate_options
@manners_options
@click.option(
    "--bandwidth", callback=rate, metavar="R", help="Bytes per second of the line, to decide what local reuse pays."
)
@output_options
def sync_command(
    output: Output, /, url: str, image: str | None, host_index: bool | None, cache: str | None, **options: Any
) -> None:
    """Bring a disk image up to date from a repository."""
    from trimtransfer.assembly.preview import plan
    from trimtransfer.assembly.sync import sync

    manners = take_manners(options, url)
    if manners.background:
        be_modest(output)
    asked: dict[str, Any] = {
        "url": url, "image": image or only_image(url), "manners": manners,
        "credentials": take_credentials(options), **options
    }  # fmt: skip

    def confirm() -> None:
        if manners.max_bytes is not None:
            check_cost(_with_host_index(plan, output, host_index, cache, **asked), manners)

    report = _with_host_index(sync, output, host_index, cache, confirm=confirm, **asked)
    warn_unsigned(output, report)
    output.result(report.to_dict(), "\n".join(map(_sync_text, (report, *report.disks))))


@medv_sync.command("plan")
@source_options
@click.option("--bandwidth", callback=rate, metavar="R", help="Bytes per second, to estimate and decide with.")
@rate_options
@output_options
def plan_command(
    output: Output,
    /,
    url: str,
    image: str | None,
    host_index: bool | None,
    cache: str | None,
    schedule: Any,
    **options: Any,
) -> None:
    """Tell what a sync would fetch, and how long that takes. Fetches and writes no content.

    Seeds that have no index yet are scanned for it.

    Also told is what was decided, with the numbers: fewer bytes win unless they take more than a second, and more than
    20 times the time that they save on the line. So for little nobody walks through this machine's files, the less the
    faster the line is.
    """
    from trimtransfer.assembly.preview import plan
    from trimtransfer.fetch.manners import Manners

    manners, image = Manners(schedule=schedule), image or only_image(url)
    options["credentials"] = take_credentials(options)
    report = _with_host_index(plan, output, host_index, cache, url=url, image=image, manners=manners, **options)
    warn_unsigned(output, report)
    output.result(report.to_dict(), "\n".join(map(_plan_text, (report, *report.disks))))


medv_sync.add_command(index)
medv_sync.add_command(verify_image_command)


def _with_host_index(
    function: Callable[..., Report], output: Output, wanted: bool | None, cache: str | None, /, **options: Any
) -> Report:
    """Call ``sync`` or ``plan`` with the host index as it is wanted; show the warnings of its report and return it."""
    host, options["trusting"] = _host_index(wanted, cache, output), take_trusting(options)
    first, *further = options.pop("outputs") or (None,)
    report: Report = function(
        output=first,
        disk_outputs=further,
        host_index=host,
        refresh_host_index=bool(wanted),
        cache=cache,
        progress=output.progress,
        **options,
    )
    for warning in (*report.warnings, *(warning for disk in report.disks for warning in disk.warnings)):
        output.warn(warning)
    for decision in report.decisions:
        output.detail(decision_text(decision))
    return report


def _host_index(wanted: bool | None, cache: str | None, output: Output) -> HostIndex | None:
    """Return the host index to use: none, or the one there is (which may be empty)."""
    if wanted is False:
        return None
    from pathlib import Path

    from trimtransfer.index.host import HostIndex

    host = HostIndex(Path(cache) / "index" if cache is not None else None)
    output.detail(f"host index: {host.directory}")
    return host


def _sync_text(report: SyncReport) -> str:
    name = f"{report.image} {report.version}{_way_text(report)}"
    if report.wrote == "nothing":
        return f"{report.output} is {name} already ({size_text(report.network.bytes)} fetched)"
    kind = "" if report.format == "raw" else f" in {report.format}"
    lines = [f"{report.output} is now {name}{kind}, {size_text(report.length)}, verified"]
    lines += [*_content_lines(report.content, report.length), *_made_lines(report.made)]
    network = report.network
    how = {"new": "as a new file", "in-place": "in place"}[report.wrote]
    requests = count_text(network.requests, "request")
    lines.append(f"{size_text(network.bytes)} over the network in {requests}; written {how} in {report.seconds:.1f} s")
    lines += _bundle_lines(report.bundle_bytes)
    lines += conduct_lines(report)
    if report.resumed_bytes:
        lines.append(f"{size_text(report.resumed_bytes)} were there from an interrupted run")
    if report.rejected_chunks:
        chunks = count_text(report.rejected_chunks, "chunk")
        lines.append(f"{chunks} of local data had changed and came from elsewhere")
    return "\n".join(lines)


def _way_text(report: SyncReport | PlanReport) -> str:
    """Tell which channel leads there, and what newer version is left."""
    parts = [f"channel {report.channel}"] * bool(report.channel)
    parts += [f"back from {report.back_from}, which is newer"] * bool(report.back_from)
    return f" ({', '.join(parts)})" if parts else ""


def _plan_text(report: PlanReport) -> str:
    name = f"{report.image} {report.version}{_way_text(report)}"
    if report.would_write == "nothing":
        return f"{report.output} is {name} already"
    kind = "" if report.format == "raw" else f" in {report.format}"
    lines = [f"{report.output} would become {name}{kind}, {size_text(report.length)}"]
    lines += [*_content_lines(report.content, report.length), *_made_lines(report.made)]
    line = f"{size_text(report.fetch_bytes)} to fetch in about {count_text(report.fetch_requests, 'request')}"
    line += f": {estimate_text(report)}"
    bundles = _bundle_lines(report.bundle_bytes)
    return "\n".join([*lines, line, *bundles, *(decision_text(decision) for decision in report.decisions)])


def decision_text(decision: Decision) -> str:
    """Tell what was decided, with the numbers and the reason."""
    done = {"host index": "is {}brought up to date", "deltas": "are {}used"}.get(decision.what, "is {}made")
    saved = f"saves at most {size_text(decision.saves_bytes)}, {decision.saves_seconds:.1f} s on the line"
    what = f"The {decision.what} {done.format('' if decision.used else 'not ')}"
    return f"{what}: {saved}; costs {decision.costs_seconds:.1f} s; {decision.reason}"


def _bundle_lines(size: int) -> list[str]:
    return [f"{size_text(size)} from bundles"] if size else []


def _made_lines(made: Made) -> list[str]:
    """Tell what part of the content fetched is made by deltas."""
    failed = f"; {made.failed} of them could not be used" if made.failed else ""
    if made.solid:
        parts = f"in solid units: {size_text(made.content)} by {made.units:,}{failed}"
    else:
        parts = f"made out of what is here: {size_text(made.content)} by {count_text(made.units, 'delta')}{failed}"
    lines = [f"    of these {parts}"] if made.units or made.failed else []
    if made.declined:
        lines.append(f"    {count_text(made.declined, 'delta')} left aside: to compress again fails or does not pay")
    return lines


def _content_lines(content: Content, length: int) -> list[str]:
    values = {key: value for key, value in content.to_dict().items() if value}
    return [
        f"  {_NAMES[key]:<17}{size_text(value):>11}  {100 * value / max(1, length):5.1f} %"
        for key, value in values.items()
    ]
