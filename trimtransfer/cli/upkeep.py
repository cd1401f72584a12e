"""The commands with which versions and their repository are looked after."""

from __future__ import annotations

from typing import Final

from trimtransfer.cli.channel import channel, promote
from trimtransfer.cli.repair import repair
from trimtransfer.cli.retention import gc, remove, retain
from trimtransfer.cli.stats import stats
from trimtransfer.cli.versions import annotate, versions

UPKEEP: Final = (versions, annotate, channel, promote, retain, remove, gc, repair, stats)
