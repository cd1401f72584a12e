"""Findings: what is wrong, how grave it is, why it matters, and what to do on which server. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

SERVERS: Final = ("nginx", "iis", "s3", "squid")
"""Servers for which there are remedies of their own."""


class Severity(StrEnum):
    """``ERROR``: clients fail, or get what is wrong. ``WARNING``: they manage, at a price. ``NOTE``: good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ailment:
    """What is known of a fault: ``why`` it matters to ``medv-sync``, what to ``do`` in any case, and on which server.

    ``exit_code`` is what the command returns for it, if it is an error: as the README has it.
    """

    severity: Severity
    why: str
    do: str = ""
    nginx: str = ""
    iis: str = ""
    s3: str = ""
    squid: str = ""
    exit_code: int = 5

    def remedies(self) -> dict[str, str]:
        """Return what to do by server, where there is anything particular."""
        return {server: text for server in SERVERS if (text := getattr(self, server))}


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault that was found: the ``code`` of its ailment, what was ``seen``, and all that is known of it."""

    code: str
    seen: str
    severity: Severity
    ailment: Ailment

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        known = self.ailment
        return {
            "code": self.code,
            "severity": self.severity.value,
            "seen": self.seen,
            "why": known.why,
            "remedy": known.do,
            "remedies": known.remedies(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """An examination: what was found, the gravest first; the ``servers`` recognised on the way; what it cost.

    ``facts`` is what was learnt beside: addresses, TLS, lengths.
    """

    url: str
    findings: tuple[Finding, ...]
    servers: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    requests: int = 0
    bytes: int = 0

    @property
    def exit_code(self) -> int:
        """0, or what the first error found stands for."""
        errors = [found for found in self.findings if found.severity is Severity.ERROR]
        return errors[0].ailment.exit_code if errors else 0

    def count(self, severity: Severity) -> int:
        """Return how many findings are of this severity."""
        return sum(found.severity is severity for found in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "url": self.url,
            "sound": self.exit_code == 0,
            **{f"{severity.value}s": self.count(severity) for severity in Severity},
            "findings": [found.to_dict() for found in self.findings],
            "servers": list(self.servers),
            "facts": dict(self.facts),
            "requests": self.requests,
            "bytes": self.bytes,
        }


def plain(text: str) -> str:
    """Return a text of a server's for a terminal: what is not printable, such as control sequences, becomes ``?``."""
    return "".join(one if one.isprintable() else "?" for one in text)


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings without repetitions, errors before warnings before notes, else as they were found.

    Of one code only the first is kept: the same fault shows in many answers.
    """
    first: dict[str, Finding] = {}
    for found in findings:
        known = first.get(found.code)
        if known is None or _rank(found) < _rank(known):
            first[found.code] = found
    return tuple(sorted(first.values(), key=_rank))


def _rank(found: Finding) -> int:
    ranks: Sequence[Severity] = list(Severity)
    return ranks.index(found.severity)
