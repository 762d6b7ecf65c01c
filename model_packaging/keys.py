"""The Ed25519 keys (RFC 8032) that artifacts are signed with, in files that OpenSSL and cosign read too (RFC 8410)."""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)

from model_packaging.errors import KeyRefused

PASSWORD_VARIABLE = "LEPTON_KEY_PASSWORD"  # noqa: S105 - its name

_LARGEST_FILE = 64 << 10
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_MAKE_A_PAIR = "make a pair with lepton package key FILE"


@dataclass(frozen=True)
class PublicKey:
    """What a team's signatures are verified with."""

    der: bytes
    """SubjectPublicKeyInfo."""

    @classmethod
    def parse(cls, pem: str, what: str) -> PublicKey:
        """The key in a text; `what` says in errors where that text stands.

        Raises:
            KeyRefused: it holds something else than one public Ed25519 key.
        """
        if "PRIVATE KEY" in pem:
            raise KeyRefused(
                f"{what} holds a private key, which nobody but its team may have: give the public key, and replace "
                "the pair if others can read this place"
            )
        if pem.count("-----BEGIN") > 1:
            raise KeyRefused(f"{what} holds several keys; name each in an entry of its own")
        try:
            key = load_pem_public_key(pem.encode())
        except (ValueError, UnsupportedAlgorithm):
            raise KeyRefused(
                f"{what} holds no public key in PEM ('-----BEGIN PUBLIC KEY-----'); {_MAKE_A_PAIR}"
            ) from None
        if not isinstance(key, Ed25519PublicKey):
            raise KeyRefused(f"{what} holds {_kind(key)}, and signatures are Ed25519; {_MAKE_A_PAIR}")
        return cls(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    @classmethod
    def read(cls, file: Path, what: str | None = None) -> PublicKey:
        """The key in a file; `what` says in errors where the file is named. Raises KeyRefused."""
        named = str(file) if what is None else f"{what}: {file}"
        return cls.parse(_read(file, named).decode("ascii", errors="replace"), named)

    @property
    def pem(self) -> str:
        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    @property
    def fingerprint(self) -> str:
        """Names the key: `openssl pkey -pubin -in KEY.pub -outform DER | sha256sum` says the same."""
        return f"sha256:{hashlib.sha256(self.der).hexdigest()}"

    def verifies(self, signature: bytes, content: bytes) -> bool:
        """Whether this key's private half made `signature` over `content`."""
        try:
            self._key.verify(signature, content)
        except InvalidSignature:
            return False
        return True

    @property
    def _key(self) -> Ed25519PublicKey:
        key = load_der_public_key(self.der)
        assert isinstance(key, Ed25519PublicKey)
        return key


class PrivateKey:
    """What a team signs with."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def read(cls, file: Path, password: str | None = None) -> PrivateKey:
        """The key in a file that only its owner can read.

        Raises:
            KeyRefused: others can read the file, the password is wrong, or it holds no private Ed25519 key.
        """
        content = _read(file, str(file), private=True)
        encrypted = b"ENCRYPTED PRIVATE KEY" in content
        if encrypted and not password:
            raise KeyRefused(f"{file} is encrypted, and no password was given; set {PASSWORD_VARIABLE}")
        try:
            key = load_pem_private_key(content, password.encode() if encrypted and password else None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            if encrypted:
                raise KeyRefused(f"{file} can't be decrypted: the password is wrong, or the file is damaged") from None
            raise KeyRefused(
                f"{file} holds no private key in PEM ('-----BEGIN PRIVATE KEY-----'); {_MAKE_A_PAIR}"
            ) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyRefused(f"{file} holds {_kind(key)}, and signatures are Ed25519; {_MAKE_A_PAIR}")
        return cls(key)

    @property
    def public(self) -> PublicKey:
        return PublicKey(self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    def sign(self, content: bytes) -> bytes:
        return self._key.sign(content)


def generate_key(private: Path, public: Path, password: str | None = None) -> PublicKey:
    """Writes a new pair into two new files: the private key readable by this user alone, and encrypted if a password
    is given (PKCS #8), and the public one (SubjectPublicKeyInfo), both in PEM.

    Raises:
        KeyRefused: one of the files is there already, or can't be written; neither is touched then.
    """
    if private == public:
        raise KeyRefused(f"{private} can't hold both keys; name two files")
    key = Ed25519PrivateKey.generate()
    encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    made = PrivateKey(key).public
    _write(private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption), mode=0o600)
    try:
        _write(public, made.pem.encode(), mode=0o644)
    except BaseException:
        private.unlink()
        raise
    return made


def _write(file: Path, content: bytes, mode: int) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise KeyRefused(f"{file} exists, and a key is never overwritten; name another file") from None
    except OSError as error:
        raise KeyRefused(f"{file} can't be written: {error.strerror}") from error
    try:
        with open(descriptor, "wb") as target:
            target.write(content)
            target.flush()
            os.fsync(descriptor)
    except BaseException as error:
        with suppress(FileNotFoundError):
            file.unlink()
        if isinstance(error, OSError):
            raise KeyRefused(f"{file} can't be written: {error.strerror}") from error
        raise


def _read(file: Path, named: str, *, private: bool = False) -> bytes:
    try:
        # Not held up by a pipe.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as source:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise KeyRefused(f"{named} is not a plain file; {_MAKE_A_PAIR}")
            if private and mode & _OTHERS:
                raise KeyRefused(
                    f"{named} can be used by others (mode {stat.S_IMODE(mode):04o}); chmod 600 it, and replace "
                    "the pair if somebody else may have read it"
                )
            content = source.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise KeyRefused(f"{named} can't be read: {error.strerror}; name the file of a key") from error
    if len(content) > _LARGEST_FILE:
        raise KeyRefused(f"{named} is larger than any key's file; {_MAKE_A_PAIR}")
    return content


def _kind(key: object) -> str:
    name = type(key).__name__.removeprefix("_").removesuffix("PublicKey").removesuffix("PrivateKey")
    return f"a key of the kind {name}"
