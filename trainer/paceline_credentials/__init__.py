"""Credentials for one training: an authority made for it, and one certificate for servers and one for workers.

The local runner writes them to a folder, the operator into a Secret.
"""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ROLES = ("server", "worker")
VALID = timedelta(days=365)  # they are looked at when a connection is made, so a longer training cannot reconnect
EARLY = timedelta(minutes=5)  # for clocks that are behind


def issue(training: str) -> dict[str, dict[str, bytes]]:
    """For each role, `server` and `worker`: the files ca.pem, cert.pem and key.pem.

    The authority's own key is not kept. A server's certificate serves as a client's too, because shards connect to
    one another; a worker's is a client's only.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"{training} authority")
    authority = (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return {role: _issue_role(role, authority, key) for role in ROLES}


def write(folder: Path, training: str) -> None:
    """Write folder/<role>/{ca.pem,cert.pem,key.pem}; keys can be read by this user only."""
    for role, files in issue(training).items():
        (folder / role).mkdir(parents=True, mode=0o700)
        for name, data in files.items():
            descriptor = os.open(folder / role / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)


def _issue_role(role: str, authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey) -> dict[str, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if role == "server":
        uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
    certificate = (
        _builder(_name(role), authority.subject, key)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(f"{role}.paceline")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return {
        "ca.pem": authority.public_bytes(pem),
        "cert.pem": certificate.public_bytes(pem),
        "key.pem": key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    }


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLY)
        .not_valid_after(now + VALID)
    )
