"""Certificates of clients: who the holder of one is, by rules over its subject and its alternative names.

That the certificate is genuine is for TLS to find out, here or in the proxy in front; this is about names only. The
only module that knows ``cryptography``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_to_bytes

from cryptography import x509
from cryptography.x509.oid import NameOID

from medv.gateway.access import Principal
from medv.gateway.schemes import Presented, Proven
from medv.gateway.trouble import Refused

_UPN: Final = x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")
"""User principal name, as certificates of Active Directory have it (Microsoft, [MS-WCCE] 2.2.2.7.7.4)."""
_PARTS: Final = {"cn": NameOID.COMMON_NAME, "o": NameOID.ORGANIZATION_NAME, "ou": NameOID.ORGANIZATIONAL_UNIT_NAME}
_MAX_ESCAPED: Final = 64 << 10
_MAX_DER: Final = 32 << 10


@dataclass(frozen=True, slots=True)
class Mapping:
    """Who holds a certificate of which one value of ``field`` fits ``pattern`` (``*``: any characters).

    ``user``, ``computer`` and ``groups``; in them ``{}`` stands for what the first ``*`` stood for, or for the whole
    value where the pattern has none.
    """

    field: str
    pattern: str
    user: str = ""
    computer: str = ""
    groups: tuple[str, ...] = ()

    def holder(self, facts: dict[str, tuple[str, ...]], expires: float) -> Principal | None:
        """Return whoever holds a certificate with these facts, or None if this is not about it."""
        expression = "(.*)".join(map(re.escape, self.pattern.split("*")))
        for value in facts.get(self.field, ()):
            found = re.fullmatch(expression, value, re.IGNORECASE if self.field in ("dns", "email") else 0)
            if found:
                name = found[1] if found.groups() else value
                user, computer = self.user.replace("{}", name), self.computer.replace("{}", name)
                return Principal(
                    "certificate", user=user, computer=computer, groups=frozenset(self.groups), expires=expires
                )
        return None


class CertificateScheme:
    """The certificate of the TLS connection; the first mapping that fits tells who it is."""

    name = "certificate"
    challenge = ""

    def __init__(self, mappings: Sequence[Mapping]) -> None:
        self._mappings = tuple(mappings)

    async def prove(self, presented: Presented, now: float) -> Proven | None:
        """Return who holds the certificate; one that no mapping fits is nobody's."""
        if not presented.certificate:
            return None
        facts, begins, ends = read(presented.certificate)
        if now > ends or now < begins:
            raise Refused(self.name, "the certificate is not valid at this time", expired=now > ends)
        for mapping in self._mappings:
            holder = mapping.holder(facts, ends)
            if holder is not None and holder.name not in ("", "-"):
                return Proven(holder)
        raise Refused(self.name, f"no [[certificate]] mapping fits {facts['subject'][0][:200]}")


@lru_cache(maxsize=1024)
def read(der: bytes) -> tuple[dict[str, tuple[str, ...]], float, float]:
    """Return what a certificate says by field (see ``CERTIFICATE_FIELDS``), and its time; ``Refused`` for none."""
    try:
        if len(der) > _MAX_DER:
            raise ValueError("too long")
        found = x509.load_der_x509_certificate(der)
        facts = {"subject": (found.subject.rfc4514_string(),), **_names(found)}
        for field, oid in _PARTS.items():
            facts[field] = tuple(str(part.value) for part in found.subject.get_attributes_for_oid(oid))
    except (ValueError, x509.DuplicateExtension) as error:
        raise Refused("certificate", f"cannot be read: {error}") from None
    return facts, found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()


def _names(certificate: x509.Certificate) -> dict[str, tuple[str, ...]]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return {}
    others = [name.value for name in names.get_values_for_type(x509.OtherName) if name.type_id == _UPN]
    return {
        "dns": tuple(names.get_values_for_type(x509.DNSName)),
        "email": tuple(names.get_values_for_type(x509.RFC822Name)),
        "uri": tuple(names.get_values_for_type(x509.UniformResourceIdentifier)),
        "upn": tuple(filter(None, map(_utf8_string, others))),
    }


def _utf8_string(der: bytes) -> str:
    """Return the text of a DER UTF8String of less than 128 bytes, or nothing."""
    if len(der) < 2 or der[0] != 0x0C or der[1] != len(der) - 2 or der[1] > 0x7F:
        return ""
    try:
        return der[2:].decode("utf-8")
    except UnicodeDecodeError:
        return ""


def from_escaped(text: str) -> bytes:
    """Return the DER of a certificate as nginx's ``$ssl_client_escaped_cert`` has it; ``Refused`` for none."""
    if len(text) > _MAX_ESCAPED:
        raise Refused("certificate", "longer than any certificate")
    return _from_pem(text)


@lru_cache(maxsize=1024)
def _from_pem(text: str) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        return x509.load_pem_x509_certificate(unquote_to_bytes(text)).public_bytes(Encoding.DER)
    except ValueError as error:
        raise Refused("certificate", f"cannot be read: {error}") from None
