"""The command that examines a repository's server: `medv-repo doctor`."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

import click

from trimtransfer.cli.arguments import name_of, size
from trimtransfer.cli.credentials import credential_options, take_credentials
from trimtransfer.cli.output import Output, count_text, output_options, size_text

if TYPE_CHECKING:
    from medv.doctor.finding import Finding, Report
    from trimtransfer.fetch.seen import Seen

_WIDTH: Final = 110
_EXAMPLES: Final = ("nginx", "iis", "s3", "squid")


@click.command()
@click.argument("url", metavar="[URL]", required=False)
@click.argument("image", metavar="[IMAGE]", required=False, callback=name_of("image"))
@click.option(
    "--source",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=str),
    help="The repository as it was published: tells whether the server shows its newest version.",
)
@click.option("--ca-cert", metavar="PATH", type=click.Path(exists=True, path_type=str), help="Authorities to believe.")
@click.option(
    "--max-bytes", callback=size, default="1M", show_default=True, metavar="N", help="Read no more than this."
)
@click.option(
    "--timeout",
    type=click.FloatRange(1, 600),
    default=20,
    show_default=True,
    metavar="SECONDS",
    help="Most time for one request.",
)
@click.option("--example", type=click.Choice(_EXAMPLES), help="Print a configuration for this server, and end.")
@credential_options
@output_options
def doctor(
    output: Output,
    /,
    url: str | None,
    image: str | None,
    source: str | None,
    ca_cert: str | None,
    max_bytes: int,
    timeout: float,
    example: str | None,
    **options: Any,
) -> None:
    """Examine the server, proxies and caches of the repository at URL, by one IMAGE in it, as a client would meet them.

    IMAGE may be left out where --source or signed metadata tell of one.

    Names and addresses, TLS, redirects, kept connections, the clock; whether all kinds of files are served, unaltered;
    ranges; what is not there; what caches may keep, and whether they show the newest version. Each finding says what
    was seen, why it matters, and what to do, on the server that was recognised or else on nginx, IIS, S3 and Squid.

    It makes some thirty requests, reads at most 1 MiB (--max-bytes) and changes nothing. The server is shown what
    clients show it: a token, a certificate, a ticket, or credentials in the URL (https://user:password@host/); keys for
    s3://bucket/prefix are found as AWS tools find them. -v shows each request.

    The exit code is 0 if clients can sync - there may be warnings - else that of the first error: 5 for most of them,
    4 where files are not served, 6 where they are altered, 8 where access is denied.

    \b
    Examples:
      medv-repo doctor https://images.example.org/ win10
      medv-repo doctor https://images.example.org/ win10 --source /srv/www/images
      medv-repo doctor https://images.example.org/ win10 --token-file branch.token
      medv-repo doctor --example squid > /etc/squid/squid.conf
    """
    if (example is None) == (url is None):
        raise click.UsageError("name a URL to examine, or --example SERVER")
    if example is not None:
        _print_example(output, example)
        return
    assert url is not None
    try:
        credential = take_credentials(options).of(url, own=True)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    limits: dict[str, Any] = {"budget": max_bytes, "patience": timeout}
    report = _examine(output, url, image, source, ca_cert=ca_cert, credential=credential, **limits)
    output.result(report.to_dict(), _told(report))
    if report.exit_code:
        raise SystemExit(report.exit_code)


def _examine(output: Output, url: str, image: str | None, source: str | None, **options: Any) -> Report:
    """Examine, showing how far it is; what cannot be a URL is wrong usage."""
    from medv.doctor.examination import examine
    from trimtransfer.store import DirectoryStore

    read = 0

    def tell(seen: Seen) -> None:
        nonlocal read
        read += len(seen.body)
        output.progress("examine", read, 0)
        output.detail(_request(seen))

    try:
        return examine(url, image, source=None if source is None else DirectoryStore(source), tell=tell, **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _print_example(output: Output, server: str) -> None:
    from medv.doctor.examples import example

    text = example(server)
    output.result({"server": server, "configuration": text}, text.rstrip("\n"))


def _request(seen: Seen) -> str:
    """Return one line about a request."""
    from medv.doctor.finding import plain

    asked = f" bytes {seen.asked[0]}-{seen.asked[1] - 1}" if seen.asked else ""
    hops = "".join(f" -> {hop.status} {hop.target}" for hop in seen.hops)
    came = seen.problem if seen.status is None else f"HTTP {seen.status}, {len(seen.body):,} bytes"
    broke = f", {seen.problem}" if seen.status is not None and seen.problem else ""
    return plain(f"GET {seen.url}{asked}{hops}: {came}{broke}, {seen.seconds * 1000:.0f} ms")


def _told(report: Report) -> str:
    from medv.doctor.finding import Severity

    errors, warnings = report.count(Severity.ERROR), report.count(Severity.WARNING)
    servers = f" ({', '.join(report.servers)})" if report.servers else ""
    lines = [f"Examined {report.url}{servers}: {count_text(report.requests, 'request')}, {size_text(report.bytes)}"]
    for found in report.findings:
        lines += ["", *_finding(found, report.servers)]
    judged = "Sound" if not errors else "Not sound"
    lines += ["", f"{judged}: {count_text(errors, 'error')}, {count_text(warnings, 'warning')}"]
    return "\n".join(lines)


def _finding(found: Finding, servers: tuple[str, ...]) -> list[str]:
    """Return the lines about a finding: what to do on the servers that were recognised, else on all."""
    known = found.ailment
    lines = textwrap.wrap(
        f"{found.severity.value.upper()} {found.code}: {found.seen}", _WIDTH, subsequent_indent="    "
    )
    remedies = known.remedies()
    told = {server: text for server, text in remedies.items() if server in servers} or remedies
    for title, text in (("why", known.why), ("do", known.do), *told.items()):
        if text:
            lines += textwrap.wrap(f"{title}: {text}", _WIDTH, initial_indent="    ", subsequent_indent="      ")
    return lines
