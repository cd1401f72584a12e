"""All that is known of faults, by their code; and findings of them. Pure."""

from __future__ import annotations

from typing import Final

from medv.doctor.cacheailments import CACHES
from medv.doctor.finding import Ailment, Finding, Severity, plain
from medv.doctor.objectailments import OBJECTS
from medv.doctor.wireailments import WIRE

AILMENTS: Final[dict[str, Ailment]] = {**WIRE, **OBJECTS, **CACHES}


def find(code: str, seen: str, *, severity: Severity | None = None) -> Finding:
    """Return a finding of an ailment, where need be of another severity than usual."""
    known = AILMENTS[code]
    return Finding(code, plain(seen), severity or known.severity, known)
