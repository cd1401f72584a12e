"""Options by which a sync behaves: rates by the hour, giving way, mirrors, metered connections.

Each can be set by a variable of the environment, too, for all syncs of a machine; the command line wins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from trimtransfer.cli.arguments import rate
from trimtransfer.cli.output import size_text

if TYPE_CHECKING:
    from trimtransfer.assembly.report import PlanReport, SyncReport
    from trimtransfer.cli.output import Output
    from trimtransfer.fetch.manners import Manners
    from trimtransfer.fetch.schedule import Schedule

F = TypeVar("F", bound=Callable[..., Any])

METERED_BYTES: Final = 32 << 20
"""Most bytes to fetch on a metered connection, where nothing else is said."""
ENVIRONMENT: Final = (
    "MEDV_LIMIT_RATE, MEDV_RATE_SCHEDULE, MEDV_MIRRORS, MEDV_METERED, MEDV_MAX_BYTES, MEDV_BACKGROUND",
    "As the options of these names; mirrors with spaces between them, MEDV_BACKGROUND=1.",
)


def rate_options(function: F) -> F:
    """Decorate a command with the options that say how fast."""
    options = [
        click.option(
            "--limit-rate", callback=rate, metavar="R", envvar="MEDV_LIMIT_RATE",
            help="Most bytes per second, such as 500k or 2.5M, at any time.",
        ),
        click.option(
            "--rate-schedule", "schedule", callback=_schedule, metavar="RULES", envvar="MEDV_RATE_SCHEDULE",
            help="Rates by the hour (local time), the first rule that fits: "
            "'mon-fri 08:00-18:00 500k; sat,sun 22:00-06:00 pause; otherwise unlimited'. A pause waits.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def manners_options(function: F) -> F:
    """Decorate a command with the other options of good behaviour."""
    options = [
        click.option(
            "--background", is_flag=True, envvar="MEDV_BACKGROUND",
            help="Give way to other traffic and other programs.",
        ),
        click.option(
            "--mirror", "mirrors", multiple=True, metavar="URL", callback=_mirrors, envvar="MEDV_MIRRORS",
            help="Further server of the same repository, asked for content only, which is verified; may be given "
            "several times.",
        ),
        click.option(
            "--offered-mirrors/--no-offered-mirrors", default=True,
            help="Use the mirrors that the repository names, or not.  [default: use them]",
        ),
        click.option(
            "--metered", type=click.Choice(["auto", "yes", "no"]), default="auto", show_default=True,
            envvar="MEDV_METERED",
            help=f"Whether bytes cost money here: then more than {size_text(METERED_BYTES)} are refused. "
            "auto: as NetworkManager says.",
        ),
        click.option(
            "--max-bytes", callback=_size, metavar="N", envvar="MEDV_MAX_BYTES",
            help=f"Refuse to fetch more, such as 500M.  [default: no limit; {METERED_BYTES >> 20}M if metered]",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def take_manners(options: dict[str, Any], url: str) -> Manners:
    """Take the values of these options out of a command's and return them."""
    from trimtransfer.fetch.manners import Manners

    metered, limit = options.pop("metered"), options.pop("max_bytes")
    remote = url.lower().startswith(("http://", "https://", "s3://"))
    costly = remote and metered != "no" and (metered == "yes" or _is_metered())
    return Manners(
        schedule=options.pop("schedule"),
        background=options.pop("background"),
        mirrors=options.pop("mirrors"),
        offered_mirrors=options.pop("offered_mirrors"),
        max_bytes=METERED_BYTES if costly and limit is None else limit,
        metered=costly,
    )


def check_cost(planned: PlanReport, manners: Manners) -> None:
    """Raise ``LimitReached`` if a sync would fetch more than it may, of all disks together."""
    from trimtransfer.errors import LimitReached

    needed = sum(disk.fetch_bytes for disk in (planned, *planned.disks))
    if manners.max_bytes is not None and needed > manners.max_bytes:
        raise LimitReached(manners.max_bytes, needed, metered=manners.metered)


def be_modest(output: Output) -> None:
    """Give this process idle priority."""
    from trimtransfer.index.priority import be_idle

    output.detail(f"idle priority for: {', '.join(be_idle()) or 'nothing, this system does not offer it'}")


def conduct_lines(report: SyncReport) -> list[str]:
    """Tell what servers did if there were several, and how long the schedule made it wait."""
    conduct, lines = report.conduct, []
    if len(conduct.servers) > 1:
        for server in conduct.servers:
            trouble = [f"{server.failures} failed"] * bool(server.failures)
            trouble += [f"{server.damaged} DAMAGED"] * bool(server.damaged)
            told = f" ({', '.join(trouble)})" if trouble else ""
            lines.append(f"  {size_text(server.bytes):>11} from {server.url}{told}")
    if conduct.paused_seconds:
        lines.append(f"Paused by the schedule for {conduct.paused_seconds:.0f} s")
    return lines


def estimate_text(report: PlanReport) -> str:
    """Return how long a sync would take, and what it counts on."""
    import time

    from trimtransfer.fetch.schedule import rate_text, when_text

    bandwidth = f"{size_text(report.bandwidth_bytes_per_second)}/s"
    if report.bandwidth_is == "assumed":
        bandwidth += " (assumed; tell with --bandwidth)"
    limit = (
        "" if report.rate is None else f", limited to {rate_text(report.rate)} now" if report.rate else ", paused now"
    )
    if report.estimate_seconds is None:
        return f"not within a year under the rate schedule{limit}"
    now = time.time()
    end = f", at {when_text(now + report.estimate_seconds, now)}" if report.estimate_seconds >= 60 else ""
    return f"{_duration_text(report.estimate_seconds)}{end} at {bandwidth}{limit}"


def _duration_text(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _is_metered() -> bool:
    from trimtransfer.fetch.link import is_metered

    return bool(is_metered())


def _schedule(context: click.Context, parameter: click.Parameter, value: str | None) -> Schedule | None:
    from trimtransfer.errors import FormatError
    from trimtransfer.fetch.schedule import Schedule

    if value is None:
        return None
    try:
        return Schedule.parse(value)
    except FormatError as error:
        raise click.BadParameter(f"{error.where}: expected {error.expected}", context, parameter) from None


def _mirrors(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    from trimtransfer.fetch.site import Site

    for url in value:
        try:
            Site(url)
        except ValueError as error:
            raise click.BadParameter(str(error), context, parameter) from None
    return value


def _size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    from trimtransfer.fetch.schedule import parse_rate

    if value is None:
        return None
    found = parse_rate(value.strip())
    if found is None or value.strip().endswith("/s"):
        raise click.BadParameter(f"{value!r}: a number of bytes, such as 500M or 2G", context, parameter)
    return int(found)
