"""What is wrong below the objects: names, addresses, TLS, redirects, connections, clocks. Pure: from what was seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from medv.doctor.ailments import find
from medv.doctor.finding import Finding, Severity
from trimtransfer.fetch.retry import Cause
from trimtransfer.fetch.seen import AddressSeen, Seen, TlsSeen

DAY: Final = 86_400.0
SOON: Final = 30 * DAY
"""A certificate is renewed a month before it ends, by whatever renews it by itself."""
MOST_SKEW: Final = 120.0
"""Seconds by which clocks may differ: less than signed things allow."""
WRONG_CLOCK: Final = DAY
_SLOW_START: Final = 1.0
_OF_CAUSE: Final = {
    Cause.NOBODY: "no-connection",
    Cause.CONNECTION: "no-connection",
    Cause.CERTIFICATE: "tls-certificate",
    Cause.NOT_TLS: "not-tls",
    Cause.STALL: "stalled",
    Cause.CUT: "cut",
    Cause.REDIRECT: "redirect-refused",
    Cause.PROXY_DENIED: "proxy-denied",
}
_NOT_YET, _EXPIRED, _SELF_SIGNED, _SELF_SIGNED_ABOVE = 9, 10, 18, 19
_NO_ISSUER: Final = (2, 20, 21)
_OTHER_NAME: Final = (62, 63, 64)


def judge_failure(seen: Seen) -> Iterator[Finding]:
    """What a question met that got no whole answer."""
    if seen.cause is None:
        return
    code = _OF_CAUSE.get(seen.cause, "refused")
    if seen.problem.startswith("host name not found"):
        code = "name-unknown"
    elif seen.cause is Cause.CONNECTION and "SSL" in seen.problem.upper():
        code = "tls-handshake"
    yield find(code, f"{seen.url}: {seen.problem}")


def judge_tls(tls: TlsSeen, place: str, *, now: float) -> Iterator[Finding]:
    """What is wrong with the certificate, its chain, or the protocol at ``place``; ``now`` in seconds since 1970."""
    own = tls.chain[0] if tls.chain else None
    whose = f"{place}: {tls.problem}"
    if own is not None:
        whose += f"; sent: a certificate for {', '.join(own.names) or own.subject}, issued by {own.issuer}"
    if tls.error < 0:
        yield find("tls-handshake", whose)
    elif tls.error in (_EXPIRED, _NOT_YET):
        yield find("tls-expired", whose + (f", valid until {_date(own.not_after)}" if own and own.not_after else ""))
    elif tls.error in _OTHER_NAME:
        yield find("tls-name", whose)
    elif tls.error in _NO_ISSUER and len(tls.chain) == 1:
        told = (
            f"{whose}; nothing else. The issuer is an intermediate that should be sent, or an authority not known here"
        )
        yield find("tls-chain", told)
    elif tls.error in (_SELF_SIGNED, _SELF_SIGNED_ABOVE, *_NO_ISSUER):
        yield find("tls-authority", whose)
    elif tls.error:
        yield find("tls-certificate", whose)
    elif own is not None and own.not_after is not None and own.not_after - now < SOON:
        days = (own.not_after - now) / DAY
        yield find("tls-expiring", f"{place}: the certificate ends on {_date(own.not_after)}, in {days:.0f} days")


def judge_addresses(found: Sequence[AddressSeen]) -> Iterator[Finding]:
    """What is wrong with some of the addresses of a name, if others are right."""
    good = [one for one in found if one.seen.status is not None]
    if good:
        for one in found:
            if one.seen.status is None:
                yield find("address-silent", f"{one.address}: {one.seen.problem}; {good[0].address} answers")
    bodies = {one.address: one.seen.body for one in good if one.seen.status == 200 and one.seen.ended}
    states = {one.address: one.seen.status for one in good}
    if len(set(bodies.values())) > 1 or len(set(states.values())) > 1:
        told = ", ".join(f"{address}: HTTP {states[address]}, {_short(bodies.get(address))}" for address in states)
        yield find("address-differs", told)


def judge_redirects(seen: Seen, *, credentials: bool) -> Iterator[Finding]:
    """What redirects cost, and whether they lose credentials."""
    if not seen.hops:
        return
    last = seen.hops[-1]
    told = f"{seen.hops[0].origin} leads to {last.target}, by {len(seen.hops)} redirects"
    crossed = any(hop.crossed for hop in seen.hops)
    upgraded = seen.hops[0].origin.partition(":")[2] == last.target.partition(":")[2]
    if crossed and credentials and not upgraded:
        denied = seen.status in (401, 403)
        yield find("redirect-elsewhere", told, severity=Severity.ERROR if denied else None)
    elif seen.cause is None:
        yield find("redirect", told)


def judge_connection(seen: Sequence[Seen]) -> Iterator[Finding]:
    """What is wrong with how a connection is kept, from answers in a row that were all read to their ends."""
    answers = [one for one in seen if one.status is not None]
    if not answers:
        return
    last = answers[-1]
    if last.protocol == "HTTP/1.0":
        yield find("old-http", f"{last.url}: answered by {last.protocol}")
    elif len(answers) > 1 and all(one.opened for one in answers[1:]):
        closing = next((one for one in answers if "close" in one.headers.get("connection", "").lower()), None)
        how = "Connection: close" if closing else "the connection was closed without notice"
        yield find("connection-closed", f"{len(answers)} requests took {len(answers)} connections ({how})")


def judge_clock(seen: Seen) -> Iterator[Finding]:
    """What is wrong with the server's clock, or with ours."""
    if seen.status is None:
        return
    date = _parsed(seen.headers.get("date", ""))
    if date is None:
        yield find("no-date", f"{seen.url}: Date: {seen.headers.get('date', 'missing')[:40]}")
        return
    age = seen.headers.get("age", "").strip()
    skew = date + (int(age[:12]) if age.isascii() and age.isdigit() else 0) - seen.at
    # An answer that took long may have been dated at its beginning.
    if abs(skew) - seen.seconds > MOST_SKEW:
        side = "ahead of" if skew > 0 else "behind"
        told = f"the server's clock ({_time(seen.at + skew)} UTC) is {_duration(abs(skew))} {side} ours"
        yield find("clock-skew", told, severity=Severity.ERROR if abs(skew) > WRONG_CLOCK else None)


def judge_speed(seen: Sequence[Seen]) -> Iterator[Finding]:
    """How long the server takes to answer, and how fast bytes come: a hint."""
    kept = sorted(one.seconds for one in seen if one.succeeded and not one.opened)
    if not kept:
        return
    middle = kept[len(kept) // 2]
    large = [one for one in seen if one.succeeded and len(one.body) >= 64 << 10 and one.body_seconds > 0]
    rate = max((len(one.body) / one.body_seconds for one in large), default=0.0)
    told = f"an answer begins after {middle * 1000:.0f} ms (the middle of {len(kept)})"
    if rate:
        told += f"; {rate / (1 << 20):.1f} MiB/s in one short transfer"
    yield find("speed", told, severity=Severity.WARNING if middle > _SLOW_START else None)


def _parsed(value: str) -> float | None:
    try:
        date = parsedate_to_datetime(value)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):  # what the parser raises depends on the nonsense
        return None


def _date(moment: float) -> str:
    return _time(moment)[:10]


def _time(moment: float) -> str:
    """Return an instant as a date and time, for whatever number a server makes us compute."""
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "out of range"


def _duration(seconds: float) -> str:
    if seconds < 2 * 60:
        return f"{seconds:.0f} seconds"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 2 * DAY else f"{seconds / DAY:.0f} days"


def _short(body: bytes | None) -> str:
    return "nothing" if body is None else f"{len(body)} bytes beginning {body[:40]!r}" if body else "no bytes"
