"""Credentials for one training: an authority made for it, and a certificate for each replica that names its processes.

The local runner writes them to a folder, the operator into Secrets.
"""

import os
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DOMAIN = "paceline"
NAME = re.compile(rf"(?P<role>[a-z]+)-(?P<first>\d{{1,9}})(?:-(?P<last>\d{{1,9}}))?\.{DOMAIN}")
VALID = timedelta(days=365)  # they are looked at when a connection is made, so a longer training cannot reconnect
EARLY = timedelta(minutes=5)  # for clocks that are behind


def host_name(process: str) -> str:
    """How a certificate names a process, for example worker-3, or several, worker-8-15."""
    return f"{process}.{DOMAIN}"


def names(certificate: Iterable[str], role: str, ordinal: int) -> bool:
    """Whether one of the names in a certificate is that of this process."""
    for found in filter(None, map(NAME.fullmatch, certificate)):
        first, last = int(found["first"]), int(found["last"] or found["first"])
        if found["role"] == role and first <= ordinal <= last:
            return True
    return False


def issue(training: str, servers: Iterable[str], workers: Mapping[str, range]) -> dict[str, dict[str, bytes]]:
    """For each server, and each replica of workers with the ranks of its processes: ca.pem, cert.pem and key.pem.

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
    out = {name: _issue_one(name, True, authority, key) for name in servers}
    return out | {name: _issue_one(_worker(ranks), False, authority, key) for name, ranks in workers.items()}


def write(folder: Path, training: str, servers: Iterable[str], workers: int) -> None:
    """Write folder/<process>/{ca.pem,cert.pem,key.pem}, for so many workers; keys can be read by this user only."""
    ranks = {_worker(range(rank, rank + 1)): range(rank, rank + 1) for rank in range(workers)}
    for name, files in issue(training, servers, ranks).items():
        (folder / name).mkdir(parents=True, mode=0o700)
        for file_name, data in files.items():
            descriptor = os.open(folder / name / file_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)


def _worker(ranks: range) -> str:
    return f"worker-{ranks[0]}" if len(ranks) == 1 else f"worker-{ranks[0]}-{ranks[-1]}"


def _issue_one(
    name: str, serves: bool, authority: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> dict[str, bytes]:
    own = ec.generate_private_key(ec.SECP256R1())
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if serves else ())]
    certificate = (
        _builder(_name(name), authority.subject, own)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host_name(name))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return {
        "ca.pem": authority.public_bytes(pem),
        "cert.pem": certificate.public_bytes(pem),
        "key.pem": own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
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
