"""Deltas that a repository offers for what is here: from the old version, or else from host files, or from nothing."""

from __future__ import annotations

from trimtransfer.assembly.hostunits import fitting, open_host_deltas, read_offers, solid_of
from trimtransfer.assembly.payoff import Judge, decide_solid
from trimtransfer.assembly.remote import Remote
from trimtransfer.assembly.resolve import Resolver
from trimtransfer.assembly.units import Deltas, open_deltas
from trimtransfer.assembly.ways import Old


def deltas_from(remote: Remote, old: Old | None) -> Deltas | None:
    """Return the deltas from the old image's version, if that is known and the repository has any."""
    return open_deltas(remote, old.image) if old is not None and old.image is not None else None


def add_host_deltas(resolver: Resolver, old: Old | None, judge: Judge) -> None:
    """Give the resolver deltas from host files, or else from nothing if they pay, where it has no others and no version
    of the image is here."""
    known, remote = None if old is None else old.manifest, resolver.remote
    if resolver.deltas is not None or (known is not None and known.image == remote.manifest.image):
        return
    offers = read_offers(remote)
    offer = fitting(offers, resolver.seeds)
    if offer is None and (solid := solid_of(offers, resolver.seeds)) is not None:
        decision = decide_solid(plain=solid.plain, stored=solid.stored, line=judge.line(remote.measured))
        offer = solid if judge.note(decision) else None
    if offer is not None:
        resolver.deltas = open_host_deltas(remote, offer, resolver.seeds)


def deltas_that_pay(remote: Remote, old: Old | None, judge: Judge) -> Deltas | None:
    """Return what :func:`deltas_from` does if using it pays; units that compress again are left aside where only they
    do not."""
    deltas = deltas_from(remote, old)
    if deltas is None:
        return None
    again = deltas.decision_to_compress(judge.line(remote.measured))
    if again is not None and not judge.note(again):
        deltas.leave_tools()
    if not deltas.usable:
        return deltas  # to be told of, but nothing to decide about
    return deltas if judge.note(deltas.decision(judge.line(remote.measured))) else None
