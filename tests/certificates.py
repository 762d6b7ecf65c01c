"""Certificates of an authority that nobody trusts who isn't told to, for a day."""

from __future__ import annotations

import base64
import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Certificates:
    """Files in a folder: PEM."""

    folder: Path

    @property
    def authority(self) -> Path:
        """What clients have to trust."""
        return self.folder / "ca.pem"

    @property
    def server(self) -> Path:
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        """The server's."""
        return self.folder / "server.key"

    def secret(self, namespace: str, name: str) -> dict[str, Any]:
        """The server's, as a Secret of Kubernetes."""
        data = {"tls.crt": self.server, "tls.key": self.key}
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "type": "kubernetes.io/tls",
            "data": {key: base64.b64encode(file.read_bytes()).decode() for key, file in data.items()},
        }


def make_certificates(folder: Path, *names: str) -> Certificates:
    """For a server of these names, or at 127.0.0.1."""
    now = datetime.datetime.now(datetime.UTC)
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of the tests")])
    keys = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def certificate(name: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(authority)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    of_authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key())
    signing = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(keys[0].public_key())
    own = x509.BasicConstraints(ca=True, path_length=0), signing, identifier
    loopback = x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))
    place = x509.SubjectAlternativeName([x509.DNSName(name) for name in names] or [loopback])
    server = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server of the tests")])
    made = Certificates(folder)
    made.authority.write_bytes(certificate(authority, keys[0], *own))
    made.server.write_bytes(certificate(server, keys[1], place, of_authority))
    made.key.write_bytes(
        keys[1].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return made
