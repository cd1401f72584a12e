"""Where an S3-compatible object store is and by which keys it is asked: as the tools of AWS are told.

In this order, as there: the environment (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``,
``AWS_REGION`` or ``AWS_DEFAULT_REGION``, ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``), then the profile
``AWS_PROFILE`` (else ``default``) of ``~/.aws/credentials`` and ``~/.aws/config``, whose ``credential_process`` can get
keys by any other way. Keys are read when they are needed and again when a server does not take them any more.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from trimtransfer.errors import AccessDenied
from trimtransfer.fetch.sigv4 import AccessKeys

SCHEME: Final = "s3"
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_FIRST_REGION: Final = "us-east-1"
_MAX_FILE: Final = 1 << 20
_PROCESS_SECONDS: Final = 60
_NO_KEYS: Final = (
    "no keys for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with a profile in "
    "~/.aws/credentials; its credential_process may be `aws configure export-credentials --format process`. "
    "What anybody may read is read by its https:// URL instead"
)


@dataclass(frozen=True, slots=True)
class Address:
    """A place in an object store: ``s3://bucket/prefix``. ``prefix`` ends without a slash; empty: the whole bucket."""

    bucket: str
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Parse a URL; ``ValueError`` for one that is none of S3."""
        parts = urlsplit(url)
        bucket, prefix = parts.netloc, unquote(parts.path).strip("/")
        if parts.scheme != SCHEME or not _BUCKET.fullmatch(bucket) or parts.query or parts.fragment:
            raise ValueError(f"{url}: not of the form s3://bucket/prefix")
        if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
            raise ValueError(f"{url}: empty parts, . and .. are not for prefixes")
        return cls(bucket, prefix)

    def __str__(self) -> str:
        return f"{SCHEME}://{self.bucket}/{self.prefix}".rstrip("/")


def is_s3(url: object) -> bool:
    """Tell whether this is the URL of a place in an object store."""
    return str(url).lower().startswith(f"{SCHEME}://")


class Account:
    """What the environment says of S3. Its methods may be called from any thread.

    Raises ``AccessDenied`` for files that cannot be read; ``ValueError`` for an endpoint that is no URL.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = os.environ if environment is None else environment
        self._profile = self._environment.get("AWS_PROFILE", "default")
        config, region = self._section("AWS_CONFIG_FILE", "config"), self._environment.get("AWS_REGION")
        self._config = config
        self.region = region or self._environment.get("AWS_DEFAULT_REGION") or config.get("region") or _FIRST_REGION
        named = (self._environment.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
        self.endpoint = next(filter(None, named), None) or config.get("endpoint_url", "")
        if self.endpoint and urlsplit(self.endpoint).scheme not in ("http", "https"):
            raise ValueError(f"AWS_ENDPOINT_URL: {self.endpoint!r} is not an http:// or https:// URL")
        self.ca_cert = self._environment.get("AWS_CA_BUNDLE") or config.get("ca_bundle") or None
        self._lock = threading.Lock()
        self._keys: AccessKeys | None = None

    def __repr__(self) -> str:
        return f"Account({self._profile!r}, region={self.region!r})"

    def base(self, address: Address) -> str:
        """Return the URL below which the objects of a place are, without a slash at its end."""
        style = re.search(r"addressing_style\s*=\s*(\w+)", self._config.get("s3", ""))
        by_host = "." not in address.bucket if not self.endpoint else bool(style and style[1] == "virtual")
        endpoint = urlsplit(self.endpoint or f"https://s3.{self.region}.amazonaws.com")
        host, path = endpoint.netloc.rpartition("@")[2], endpoint.path.rstrip("/")
        if by_host:
            host = f"{address.bucket}.{host}"
        else:
            path = f"{path}/{address.bucket}"
        return urlunsplit((endpoint.scheme, host, f"{path}/{quote(address.prefix)}".rstrip("/"), "", ""))

    def keys(self) -> AccessKeys:
        """Return the keys; ``AccessDenied`` where there are none."""
        with self._lock:
            self._keys = self._keys or self._read()
            return self._keys

    def renewed(self, sent: AccessKeys) -> bool:
        """Tell whether there are other keys by now than those that were sent."""
        with self._lock:
            if sent == self._keys:
                self._keys = self._read()
            return sent != self._keys

    def _read(self) -> AccessKeys:
        found = _keys_of(self._environment, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        if found is not None and not self._environment.get("AWS_PROFILE"):
            return found
        names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
        credentials = self._section("AWS_SHARED_CREDENTIALS_FILE", "credentials")
        config = self._section("AWS_CONFIG_FILE", "config")
        kept = _keys_of(credentials, *names) or _keys_of(config, *names)
        if kept is not None:
            return kept
        command = credentials.get("credential_process") or config.get("credential_process")
        if command:
            return self._ask(command)
        if found is not None:
            return found
        raise AccessDenied("s3", _NO_KEYS)

    def _section(self, variable: str, file: str) -> Mapping[str, str]:
        """Return the profile's part of one of the two files; empty where there is none."""
        import configparser  # as all below, only for those who read from object stores

        path = Path(self._environment.get(variable) or Path.home() / ".aws" / file)
        parser = configparser.RawConfigParser()
        try:
            with open(path, encoding="utf-8") as text:
                parser.read_string(text.read(_MAX_FILE))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, configparser.Error) as error:
            raise AccessDenied("s3", f"{path} cannot be read: {str(error).splitlines()[0]}") from None
        for name in (self._profile, f"profile {self._profile}"):
            if parser.has_section(name):
                return dict(parser.items(name))
        return {}

    def _ask(self, command: str) -> AccessKeys:
        """Return the keys that a program prints (AWS, "Source credentials with an external process")."""
        import shlex
        import subprocess

        try:
            done = subprocess.run(shlex.split(command), capture_output=True, timeout=_PROCESS_SECONDS, check=True)
            fields: Any = json.loads(done.stdout[:_MAX_FILE])
            return AccessKeys(fields["AccessKeyId"], fields["SecretAccessKey"], fields.get("SessionToken") or "")
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
            program = shlex.split(command)[:1]
            detail = f"credential_process {program} of profile {self._profile} gave no keys: {type(error).__name__}"
            raise AccessDenied("s3", f"{detail}; run it by hand") from None


def _keys_of(values: Mapping[str, str], id: str, secret: str, token: str) -> AccessKeys | None:
    if not values.get(id) or not values.get(secret):
        return None
    return AccessKeys(values[id].strip(), values[secret].strip(), values.get(token, "").strip())
