"""Requests to an S3-compatible object store: signed, and what its refusals mean.

An object store is a web server like others, so it is read by the same client; only the proof of who asks differs. It
goes to the store's own origin alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from trimtransfer.fetch.account import Account, Address
from trimtransfer.fetch.retry import Cause, Failed
from trimtransfer.fetch.sigv4 import EMPTY, AccessKeys, presigned, signed_headers

MOST: Final = 16 << 10
"""Longest body of a refusal that is read."""
_FIELD: Final = r"<{}>([^<]{{1,200}})</{}>"
_REGION: Final = "the bucket is in another region{}: set AWS_REGION, and AWS_ENDPOINT_URL if it names a region"
_DENIED: Final = (
    "access denied: these keys give no right to this (s3:GetObject and s3:ListBucket to read; s3:PutObject, "
    "s3:DeleteObject, s3:AbortMultipartUpload, s3:ListBucketMultipartUploads and s3:ListMultipartUploadParts to "
    "publish)"
)
_EXPIRED: Final = "access denied: the temporary keys have expired; get new ones and run the same command again"
_REMEDIES: Final[Mapping[str, tuple[Cause, str]]] = {
    "AccessDenied": (Cause.DENIED, _DENIED),
    "InvalidAccessKeyId": (
        Cause.DENIED,
        "access denied: the store does not know the id of these keys: check AWS_ACCESS_KEY_ID (or AWS_PROFILE), and "
        "that AWS_ENDPOINT_URL names the store that they are of",
    ),
    "SignatureDoesNotMatch": (Cause.DENIED, "access denied: the secret is not this id's: check AWS_SECRET_ACCESS_KEY"),
    "ExpiredToken": (Cause.DENIED, _EXPIRED),
    "ExpiredTokenException": (Cause.DENIED, _EXPIRED),
    "TokenRefreshRequired": (Cause.DENIED, _EXPIRED),
    "InvalidToken": (Cause.DENIED, "access denied: AWS_SESSION_TOKEN does not belong to these keys"),
    "RequestTimeTooSkewed": (Cause.DENIED, "access denied: the clock of this machine is wrong{}: set it by NTP"),
    "NoSuchBucket": (Cause.REFUSED, "there is no such bucket: check its name, AWS_ENDPOINT_URL and AWS_REGION"),
    "InvalidBucketName": (Cause.REFUSED, "there is no such bucket: the store does not accept this name"),
    "PermanentRedirect": (Cause.REFUSED, _REGION),
    "TemporaryRedirect": (Cause.REFUSED, _REGION),
    "AuthorizationHeaderMalformed": (Cause.REFUSED, _REGION),
    "IllegalLocationConstraintException": (Cause.REFUSED, _REGION),
    "SlowDown": (Cause.BUSY, "the store asks for fewer requests"),
    "RequestTimeout": (Cause.SERVER, "the store did not get the whole request"),
    "InvalidObjectState": (Cause.REFUSED, "the object is in an archive class: restore it, and keep repositories out"),
    "EntityTooLarge": (Cause.REFUSED, "the store does not take objects of this length"),
    "QuotaExceeded": (Cause.REFUSED, "the bucket is full"),
    "NotImplemented": (Cause.REFUSED, "the store cannot do this"),
}


_MISSING: Final = frozenset(("", "NoSuchKey", "NoSuchUpload", "NoSuchVersion"))
"""What stores say of objects that are not there, with status 404."""


class Signer:
    """Signs requests to the place ``address``. ``url`` is where its objects are."""

    def __init__(self, address: Address, account: Account | None = None) -> None:
        self.address, self.account = address, account or Account()
        self.url = self.account.base(address)
        self.sent: AccessKeys | None = None

    def __repr__(self) -> str:
        return f"Signer({str(self.address)!r})"

    def headers(
        self, method: str, url: str, *, payload: str = EMPTY, headers: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """Return the header lines of a request, with ``headers``; ``AccessDenied`` where there are no keys."""
        self.sent = keys = self.account.keys()
        now = datetime.now(UTC)
        return signed_headers(keys, self.account.region, method, url, now=now, payload=payload, headers=headers)

    def link(self, url: str, seconds: int) -> str:
        """Return a URL with which anybody can GET this object, and nothing else, for so long."""
        return presigned(self.account.keys(), self.account.region, url, now=datetime.now(UTC), seconds=seconds)

    def renewed(self) -> bool:
        """Tell whether there are other keys by now than those that were sent."""
        return self.sent is not None and self.account.renewed(self.sent)


def field(body: bytes, name: str) -> str:
    """Return a field of an answer's short XML; empty where it lacks."""
    found = re.search(_FIELD.format(name, name), body[:MOST].decode("utf-8", "replace"))
    return found[1] if found else ""


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> Failed | None:
    """Return what the refusal of an object store means; None for one that says no more than its status.

    ``headers`` by lower-case name.
    """
    code = field(body, "Code")
    known = _REMEDIES.get(code)
    if known is None and status in (301, 307) and "x-amz-bucket-region" in headers:
        known = _REMEDIES["PermanentRedirect"]
    if known is None and status == 403:
        known = _REMEDIES["AccessDenied"]
    if known is None and status == 404 and code not in _MISSING:
        known = Cause.REFUSED, "the store refuses: check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and the bucket's name"
    if known is None:
        return None
    cause, text = known
    detail = text.format(_detail(code, headers, body)) if "{}" in text else text
    return Failed(cause, f"{detail}{f' [{code}]' if code else ''}", status=status)


def _detail(code: str, headers: Mapping[str, str], body: bytes) -> str:
    if code == "RequestTimeTooSkewed":
        try:
            there = parsedate_to_datetime(headers.get("date", ""))
            seconds = (datetime.now(UTC) - there).total_seconds()
        except (ValueError, TypeError):
            return ""
        return f" by {abs(seconds):,.0f} s"
    region = headers.get("x-amz-bucket-region") or field(body, "Region")
    return f", {region}" if re.fullmatch(r"[a-z0-9-]{1,40}", region) else ""
