"""Errors of the server and its commands: what is wrong with a configuration, and what to do."""

from __future__ import annotations

from trimtransfer.errors import TrimTransferError


class ConfigError(TrimTransferError):
    """A setting that cannot be used: its ``file`` (or where else it is from), ``key``, ``problem`` and ``remedy``."""

    exit_code = 2

    def __init__(self, file: str, key: str, problem: str, remedy: str) -> None:
        self.file, self.key, self.problem, self.remedy = file, key, problem, remedy
        super().__init__(f"{file}: {key}: {problem}; {remedy}")


class Refused(Exception):
    """Credentials that do not count: ``scheme``, the ``reason`` for the log, and whether they merely ``expired``.

    ``token``: what the client is answered in words of the scheme, to go on with or to learn why.
    """

    def __init__(self, scheme: str, reason: str, *, expired: bool = False, token: bytes = b"") -> None:
        super().__init__(reason)
        self.scheme, self.reason, self.expired, self.token = scheme, reason, expired, token
