"""What the system knows of its network connection: whether bytes cost money there.

NetworkManager is asked through programs of their own (``busctl``, else ``nmcli``), for a second or two at most; where
neither is there or says anything, nothing is known, and nothing follows from it.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Sequence
from typing import Final

_LOG: Final = logging.getLogger("trimtransfer.fetch")
_SECONDS: Final = 2.0
"""How long a program may take to answer."""
_NAME: Final = "org.freedesktop.NetworkManager"
_BUSCTL: Final = ("busctl", "--system", "--timeout=2", "get-property", _NAME, "/org/freedesktop/NetworkManager", _NAME)
_NMCLI: Final = ("nmcli", "-t", "-f", "GENERAL.STATE,GENERAL.METERED", "device", "show")
_METERED: Final = {1: True, 2: False, 3: True, 4: False}
"""NMMetered of NetworkManager's D-Bus interface: yes, no, and the same guessed; 0 is unknown."""
_CONNECTED: Final = "100"
"""NMDeviceState: activated."""


def is_metered() -> bool | None:
    """Return whether the connection in use is metered; None where nobody knows."""
    answer = _ask((*_BUSCTL, "Metered"))
    found = parse_busctl(answer)
    if found is None and not answer:
        found = parse_nmcli(_ask(_NMCLI))
    _LOG.info("metered connection: %s", {True: "yes", False: "no", None: "unknown"}[found])
    return found


def parse_busctl(text: str) -> bool | None:
    """Return what the property ``Metered`` says, as busctl prints it: ``u 1``."""
    words = text.split()
    if len(words) != 2 or words[0] != "u" or not (words[1].isascii() and words[1].isdigit()):
        return None
    return _METERED.get(int(words[1][:9]))


def parse_nmcli(text: str) -> bool | None:
    """Return whether any connected device is metered, as ``nmcli -t`` tells state and metering of each one."""
    found: set[bool] = set()
    state = ""
    for line in text.splitlines():
        field, _, value = line.partition(":")
        word = value.split(" ")[0]
        if field == "GENERAL.STATE":
            state = word
        elif field == "GENERAL.METERED" and state == _CONNECTED and word in ("yes", "no"):
            found.add(word == "yes")
    return True in found if found else None


def _ask(command: Sequence[str]) -> str:
    """Return what a program prints, or nothing."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
