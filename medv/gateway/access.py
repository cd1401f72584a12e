"""Who may do what with which image: decisions from a principal and rules, and nothing else.

Pure. Nothing is allowed that no rule, and no right of the credential itself, allows. A decision names its reason for
the log; what the asker is told must not depend on what exists.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final

_PATTERN: Final = re.compile(r"[a-z0-9._*-]{1,80}")
_MAX_STARS: Final = 4
"""In a pattern: each more multiplies the time that a comparison may take."""
EVERYTHING: Final = "*"


class Role(IntEnum):
    """What may be done; each role holds those below it."""

    READ = 1
    PUBLISH = 2
    ADMIN = 3

    @classmethod
    def of(cls, name: str) -> Role:
        """Return the role of a name (``read``, ``publish``, ``admin``); ``ValueError`` for any other."""
        if name not in ROLE_NAMES:
            raise ValueError(f"{name!r} is no role; there are {', '.join(ROLE_NAMES)}")
        return cls[name.upper()]


ROLE_NAMES: Final = tuple(role.name.lower() for role in Role)


@dataclass(frozen=True, slots=True)
class Scope:
    """What a credential is limited to: patterns of ``images``, and the highest ``role``."""

    images: tuple[str, ...]
    role: Role = Role.READ

    def covers(self, role: Role, image: str) -> bool:
        """Tell whether it extends to ``role`` on ``image``."""
        return role <= self.role and any(matches(pattern, image) for pattern in self.images)


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever asks: ``user`` and ``groups`` or ``computer`` as far as known, and ``how`` that was proven.

    ``scope`` limits what the credential is good for. Where it ``grants``, it is a right in itself (a token for an
    image, a signed URL) and rules are not asked. ``expires``: seconds since 1970 after which it is worth nothing.
    """

    how: str
    user: str = ""
    groups: frozenset[str] = frozenset()
    computer: str = ""
    scope: Scope | None = None
    grants: bool = False
    expires: float | None = None

    @property
    def authenticated(self) -> bool:
        """Whether anything was proven."""
        return self.how != ANONYMOUS.how

    @property
    def name(self) -> str:
        """What the log calls it."""
        return self.user or self.computer or "-"


ANONYMOUS: Final = Principal("anonymous")


@dataclass(frozen=True, slots=True)
class Rule:
    """Whom a role on images is given to: any of the ``users``, ``groups``, ``computers`` named; or to ``anyone``.

    ``anyone`` is ``"authenticated"`` (whoever proved who he is) or ``"anonymous"`` (everybody), else empty.
    """

    images: tuple[str, ...]
    users: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    computers: frozenset[str] = frozenset()
    anyone: str = ""
    role: Role = Role.READ

    def is_for(self, principal: Principal) -> bool:
        """Tell whether the rule speaks of this principal."""
        return (
            self.anyone == "anonymous"
            or (self.anyone == "authenticated" and principal.authenticated and not principal.grants)
            or (bool(principal.user) and principal.user in self.users)
            or (bool(principal.computer) and principal.computer in self.computers)
            or not self.groups.isdisjoint(principal.groups)
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether it is ``allowed``, and the ``reason`` for the log. ``public``: everybody would be allowed the same."""

    allowed: bool
    reason: str
    public: bool = False


class Access:
    """The rules of a repository."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules: Sequence[Rule] = tuple(rules)

    def __repr__(self) -> str:
        return f"Access({len(self.rules)} rules)"

    def image(self, principal: Principal, role: Role, image: str) -> Decision:
        """Decide about one image."""
        reason = self._why(principal, role, image)
        if not reason:
            return Decision(False, _refusal(principal, f"{role.name.lower()} {image}"))
        return Decision(True, reason, self._is_public(role, image))

    def any_of(self, principal: Principal, role: Role, images: Iterable[str]) -> Decision:
        """Decide about what belongs to several images, each of which is enough: a pack. None at all: refused."""
        found = Decision(False, "no image that may be read refers to it")
        for image in images:
            decision = self.image(principal, role, image)
            if decision.public:
                return decision
            found = decision if decision.allowed else found
        return found

    def everything(self, principal: Principal, role: Role) -> Decision:
        """Decide about all images, those to come as well."""
        return self.image(principal, role, EVERYTHING)

    def anything(self, principal: Principal, role: Role) -> Decision:
        """Decide about what is for all who have the role on some image, whichever it is: metadata."""
        public = any(rule.anyone == "anonymous" and role <= rule.role for rule in self.rules)
        scope = principal.scope
        if scope is not None and role > scope.role:
            return Decision(False, "beyond the scope of the credential")
        if principal.grants or any(role <= rule.role and rule.is_for(principal) for rule in self.rules):
            return Decision(True, "has the role on some image", public)
        return Decision(False, _refusal(principal, f"{role.name.lower()} anything"))

    def _why(self, principal: Principal, role: Role, image: str) -> str:
        """Return why it is allowed; empty: it is not."""
        if principal.scope is not None and not principal.scope.covers(role, image):
            return self._by_rule(ANONYMOUS, role, image)
        if principal.grants:
            return "the credential's own right"
        return self._by_rule(principal, role, image)

    def _by_rule(self, principal: Principal, role: Role, image: str) -> str:
        for number, rule in enumerate(self.rules, 1):
            if role <= rule.role and rule.is_for(principal) and any(matches(one, image) for one in rule.images):
                return f"rule {number}"
        return ""

    def _is_public(self, role: Role, image: str) -> bool:
        return bool(self._by_rule(ANONYMOUS, role, image))


def matches(pattern: str, image: str) -> bool:
    """Tell whether a pattern, in which ``*`` stands for any characters, fits an image's name."""
    return _compiled(pattern).fullmatch(image) is not None


def check_pattern(pattern: str) -> str:
    """Return a pattern of image names if it is one; ``ValueError``."""
    if not _PATTERN.fullmatch(pattern) or pattern.count("*") > _MAX_STARS:
        raise ValueError(f"{pattern[:80]!r} is no image name, nor a pattern of one such as win*")
    return pattern


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, pattern.split("*"))))


def _refusal(principal: Principal, wanted: str) -> str:
    if principal.scope is not None:
        return f"beyond the scope of the credential, and no rule lets everybody {wanted}"
    return f"no rule lets {principal.name if principal.authenticated else 'everybody'} {wanted}"
