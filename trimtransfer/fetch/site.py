"""Where a repository is on the web: URLs of its objects, credentials, redirects, and what of it may be shown.

Pure. Credentials in the URL (``https://user:password@host/``) become basic authentication and are sent to that origin
only; neither they nor queries (which often are signatures) ever appear in messages.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Final
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit

from trimtransfer.fetch.retry import Cause, Failed

_PORTS: Final = {"http": 80, "https": 443}


class Site:
    """A repository's address. ``url`` is what messages show; a malformed one raises ``ValueError``.

    ``bearer`` returns the Authorization header to send instead of the URL's own credentials.
    """

    def __init__(self, url: str, bearer: Callable[[], str] | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError(f"{shown(url)}: not an http:// or https:// URL")
        self._origin = _origin(parts)
        self._authorization = _basic(parts)
        self._bearer = bearer
        self._base = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")
        self.url = shown(url).rstrip("/")

    def __repr__(self) -> str:
        return f"Site({self.url!r})"

    def locate(self, name: str) -> str:
        """Return the URL of an object, without credentials; a query of the site's URL (a signature) is kept."""
        return urlunsplit(self._base._replace(path=f"{self._base.path.rstrip('/')}/{quote(name)}"))

    def authorization(self, url: str) -> str | None:
        """Return the Authorization header for a URL: None for every other origin than the site's own.

        The same host's TLS is the one exception, as a redirect from http to https leads there.
        """
        if self._bearer is None and self._authorization is None:
            return None
        if not self.is_own(url):
            return None
        return self._authorization if self._bearer is None else self._bearer()

    def is_own(self, url: str) -> bool:
        """Tell whether a URL is of the site's own origin, or of its TLS, to which redirects from http lead."""
        target = _origin(urlsplit(url))
        upgraded = self._origin[0] == "http" and target == ("https", self._origin[1], 443) and self._origin[2] == 80
        return target == self._origin or upgraded


def follow(url: str, location: str | None, *, status: int) -> str:
    """Return the URL that a redirect leads to; ``Failed`` where it must not be followed."""
    if not location:
        raise Failed(Cause.REDIRECT, "redirect without a Location", status=status)
    try:
        target = urlsplit(urljoin(url, location))
        _origin(target)
    except ValueError:
        raise Failed(Cause.REDIRECT, "redirect to a malformed URL", status=status) from None
    if target.scheme not in _PORTS or not target.hostname:
        raise Failed(Cause.REDIRECT, f"redirect to {target.scheme[:20]}:, neither http nor https", status=status)
    if target.scheme == "http" and urlsplit(url).scheme == "https":
        detail = f"redirect from https to {shown(urlunsplit(target))}, which is not encrypted: refused"
        raise Failed(Cause.REDIRECT, detail, status=status)
    return urlunsplit(target._replace(netloc=target.netloc.rpartition("@")[2], fragment=""))


def shown(url: str) -> str:
    """Return a URL without credentials, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def origin_of(url: str) -> tuple[str, str, int]:
    """Return (scheme, host, port) of a URL; ``ValueError`` for a port out of range."""
    return _origin(urlsplit(url))


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    """Return (scheme, host, port); ``ValueError`` for a port out of range."""
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme, 0)


def _basic(parts: SplitResult) -> str | None:
    """Return the basic authentication (RFC 7617) of a URL's credentials, or None."""
    if parts.username is None and parts.password is None:
        return None
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode("ascii")
