"""Advice: what costs bytes that need not be fetched, or ruins reuse, with what can be done about it. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Advice:
    """One piece of advice: a ``code`` for programs, a ``text`` that says what was found, the ``remedy``, and about how
    many ``bytes`` it is about (0: unknown)."""

    code: str
    text: str
    remedy: str
    bytes: int = 0

    def __str__(self) -> str:
        return f"{self.text}: {self.remedy}" if self.remedy else self.text

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)
