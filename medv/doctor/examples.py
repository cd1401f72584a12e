"""Configurations to begin with: nginx and IIS that serve a repository, S3 with CloudFront, and Squid as a branch cache.

Tests run those of nginx and Squid as they are printed, but for paths and ports.
"""

from __future__ import annotations

from importlib.resources import files as resources
from typing import Final

FILES: Final = {"nginx": "nginx.conf", "iis": "web.config", "s3": "s3.md", "squid": "squid.conf"}


def example(server: str) -> str:
    """Return the configuration for a server: ``nginx``, ``iis``, ``s3`` or ``squid``."""
    return resources("medv.doctor").joinpath("examples").joinpath(FILES[server]).read_text(encoding="utf-8")
