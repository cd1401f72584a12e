"""Private keys in files: PKCS#8 PEM, encrypted with a passphrase or for its owner alone.

Above the key a file says in plain text whose it is, so that which keys are at hand is known without a passphrase.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from trimtransfer.durable import sync_directory
from trimtransfer.errors import TargetRefused
from trimtransfer.trust.signing import KeySet, PrivateKey, PublicKey

ITERATIONS: Final = 600_000
"""Of PBKDF2 with HMAC-SHA-256 (OWASP, "Password Storage Cheat Sheet"): a fifth of a second for each guess."""
_MOST: Final = 64 << 10
_PUBLIC: Final = re.compile(rb"^# public ([0-9a-f]{64})$", re.MULTILINE)
_PEM: Final = re.compile(rb"-----BEGIN ((?:ENCRYPTED )?PRIVATE KEY)-----.*?-----END \1-----\n?", re.DOTALL)
_BLOCK: Final = 16
"""Bytes of a block of AES, and of salts."""

Passphrase = Callable[[str], bytes]
"""Returns the passphrase of a key; the argument says of which, for people."""


def save_key(directory: Path, role: str, key: PrivateKey, passphrase: bytes | None) -> Path:
    """Write a key to a new file of a directory, which is made where missing, for its owner alone; return its path.

    Raises:
        OSError: it cannot be written, or the file exists.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{role}-{key.public.keyid[:8]}.pem"
    kind = "ENCRYPTED PRIVATE KEY" if passphrase is not None else "PRIVATE KEY"
    der = _encrypted(key.to_der(), passphrase) if passphrase is not None else key.to_der()
    lines = base64.encodebytes(der).decode().replace("\n", "")
    body = "\n".join(lines[at : at + 64] for at in range(0, len(lines), 64))
    text = f"# Key of Trim Transfer: {role}\n# keyid {key.public.keyid}\n# public {key.public.public}\n"
    text += f"-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_directory(directory)
    return path


class Ring:
    """The private keys in some directories, by their public halves. Encrypted ones are opened when they are used."""

    def __init__(self, directories: Iterable[Path], passphrase: Passphrase) -> None:
        """Look which keys there are.

        Raises:
            TargetRefused: a key that is not encrypted can be read by others.
        """
        self.directories = tuple(dict.fromkeys(directories))
        self._passphrase = passphrase
        self._paths: dict[PublicKey, Path] = {}
        self._open: dict[PublicKey, PrivateKey] = {}
        for directory in self.directories:
            for path in sorted(directory.glob("*.pem")):
                self._add(path)

    def __repr__(self) -> str:
        return f"Ring({', '.join(map(str, self.directories))})"

    def __contains__(self, key: PublicKey) -> bool:
        return key in self._paths or key in self._open

    def add(self, key: PrivateKey) -> None:
        """Take a key that is at hand already."""
        self._open[key.public] = key

    def of(self, wanted: KeySet) -> list[PrivateKey]:
        """Return those keys of a role that are here, opened.

        Raises:
            TargetRefused: a wrong passphrase, or a file that is no key.
        """
        return [self._get(key) for key in wanted.keys if key in self]

    def lacks(self, wanted: KeySet) -> int:
        """Return how many keys of a role are lacking here for its threshold."""
        return max(0, wanted.threshold - sum(key in self for key in wanted.keys))

    def named(self, role: str) -> list[PublicKey]:
        """Return the keys whose files are named after a role."""
        return [read_public(path) for one in self.directories for path in sorted(one.glob(f"{role}-*.pem"))]

    def _add(self, path: Path) -> None:
        data = _read(path)
        named, pem = _PUBLIC.search(data), _PEM.search(data)
        if pem is None:
            return
        if pem[1] == b"PRIVATE KEY":
            if os.stat(path).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise TargetRefused(str(path), "is a key that others on this machine may read; chmod 600 it")
            key = _load(path, pem[0], None)
            self._open[key.public] = key
        elif named is not None:
            self._paths[PublicKey(named[1].decode())] = path

    def _get(self, wanted: PublicKey) -> PrivateKey:
        if wanted not in self._open:
            path = self._paths[wanted]
            pem = _PEM.search(_read(path))
            key = _load(path, pem[0] if pem else b"", self._passphrase(path.name))
            if key.public != wanted:
                raise TargetRefused(str(path), "holds another key than it says")
            self._open[wanted] = key
        return self._open[wanted]


def read_public(path: Path) -> PublicKey:
    """Return the public key that a file holds or names: a key file, or 64 hexadecimal digits.

    Raises:
        TargetRefused: it does neither.
    """
    data = _read(path)
    named = _PUBLIC.search(data)
    text = named[1].decode() if named else data.decode("ascii", "replace").strip()
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise TargetRefused(str(path), "holds no public key: a key file of `keys`, or 64 hexadecimal digits")
    return PublicKey(text)


def _read(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(_MOST)


def _load(path: Path, pem: bytes, passphrase: bytes | None) -> PrivateKey:
    try:
        key = load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError) as error:
        reason = "is no key" if passphrase is None else "cannot be opened: a wrong passphrase"
        raise TargetRefused(str(path), reason) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise TargetRefused(str(path), "is a key of another kind than ed25519")
    return PrivateKey(key)


# ---- encryption: PKCS#8 EncryptedPrivateKeyInfo (RFC 5958) by PBES2 (RFC 8018), which OpenSSL reads. The library that
# is used for everything else has PBKDF2 go around 2,048 times, and no way to say otherwise.


def _encrypted(der: bytes, passphrase: bytes) -> bytes:
    salt, start = secrets.token_bytes(_BLOCK), secrets.token_bytes(_BLOCK)
    key = hashlib.pbkdf2_hmac("sha256", passphrase, salt, ITERATIONS, 32)
    padding = _BLOCK - len(der) % _BLOCK
    encryptor = Cipher(algorithms.AES(key), modes.CBC(start)).encryptor()
    sealed = encryptor.update(der + bytes([padding]) * padding) + encryptor.finalize()
    hmac = _sequence(_object("2a864886f70d0209"), b"\x05\x00")
    derive = _sequence(_object("2a864886f70d01050c"), _sequence(_octets(salt), _integer(ITERATIONS), hmac))
    cipher = _sequence(_object("60864801650304012a"), _octets(start))
    scheme = _sequence(_object("2a864886f70d01050d"), _sequence(derive, cipher))
    return _sequence(scheme, _octets(sealed))


def _tagged(tag: int, content: bytes) -> bytes:
    size = len(content)
    length = bytes([size]) if size < 128 else bytes([0x81, size])
    return bytes([tag]) + length + content


def _sequence(*parts: bytes) -> bytes:
    return _tagged(0x30, b"".join(parts))


def _octets(data: bytes) -> bytes:
    return _tagged(0x04, data)


def _object(name: str) -> bytes:
    return _tagged(0x06, bytes.fromhex(name))


def _integer(value: int) -> bytes:
    return _tagged(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


# ---- passphrases


def passphrase_from(environment: Sequence[tuple[str, str]], ask: Passphrase) -> Passphrase:
    """Return what tells passphrases: the first variable that is set of (its name, ``text`` or ``file``), else ``ask``.

    Raises, when it is called: ``OSError``, ``TargetRefused`` for a file that is empty.
    """

    def tell(what: str) -> bytes:
        for name, kind in environment:
            value = os.environ.get(name)
            if not value:
                continue
            if kind == "text":
                return value.encode()
            with contextlib.suppress(IndexError):
                return _read(Path(value)).splitlines()[0]
            raise TargetRefused(value, "is empty: it should hold the passphrase")
        return ask(what)

    return tell
