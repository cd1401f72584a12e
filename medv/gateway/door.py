"""Who is let through to what: authentication, rules and the index of packs put together.

What is not allowed is decided before anything is looked for, so answers tell nothing about what exists: a pack that is
not there, one that nothing refers to and one of somebody else's image are the same.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from medv.gateway.access import Access, Decision, Principal, Role
from medv.gateway.packindex import PackIndex
from medv.gateway.schemes import Authenticator
from medv.objects import Kind, Named

_REMEMBERED: Final = 65_536
"""Decisions about packs that are kept: each for who asked, so that nobody sees by the time what others ask."""
_TELLING: Final = ("from-", "host-")
NOTHING: Final = Decision(False, "no repository holds anything of this name")


@dataclass(frozen=True, slots=True)
class Refusal:
    """The status of a refused request, and what its text says."""

    status: int
    text: str


class Door:
    """The rules of a server at work. Without an ``index`` only those who may read everything get packs."""

    def __init__(self, access: Access, authenticator: Authenticator, index: PackIndex | None) -> None:
        self.access, self.authenticator, self.index = access, authenticator, index
        self._known: OrderedDict[tuple[Principal, bytes], tuple[int, Decision]] = OrderedDict()

    async def decide(self, principal: Principal, named: Named | None, name: tuple[str, ...]) -> Decision:
        """Decide whether a principal may read an object; what it will ask for next is known afterwards."""
        if named is None:
            return NOTHING
        if named.kind is Kind.PACK:
            return await self._pack(principal, named.pack)
        if named.kind is Kind.IMAGE:
            decision = self.access.image(principal, Role.READ, named.image)
            if decision.allowed and self.index is not None and _leads_to_packs(name[-1]):
                await asyncio.to_thread(self.index.ensure, named.image)
            return decision
        return self.access.anything(principal, Role.READ if named.kind is Kind.METADATA else Role.PUBLISH)

    def refusal(self, principal: Principal, named: Named | None) -> Refusal:
        """Return how a refused request is answered: by who asks and what kind of thing it is, never by what exists."""
        if named is None:
            return Refusal(404, "not found")
        if not principal.authenticated and self.authenticator.schemes:
            return Refusal(401, "credentials are needed")
        if named.kind is Kind.PACK:
            return Refusal(404, "not found")
        return Refusal(403, "these credentials give no right to this")

    async def _pack(self, principal: Principal, pack: bytes) -> Decision:
        everything = self.access.everything(principal, Role.READ)
        if everything.allowed or self.index is None:
            return everything
        generation = self.index.generation
        known = self._known.get((principal, pack))
        if known is not None and known[0] == generation:
            self._known.move_to_end((principal, pack))
            return known[1]
        images = await asyncio.to_thread(self.index.images, pack)
        decision = self.access.any_of(principal, Role.READ, sorted(images))
        self._known[principal, pack] = generation, decision
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return decision


def _leads_to_packs(file: str) -> bool:
    return file in ("head.json", "manifest.bin", "locations.bin") or file.startswith(_TELLING)
