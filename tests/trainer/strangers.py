"""Whoever may knock at a server: with which certificate, and as whom. Each over TLS, and where that is none plain."""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paceline import metrics
from paceline.metrics import Instruments
from paceline.wire import endpoint
from paceline.wire.channel import Channel
from paceline.wire.connections import CONNECTIONS
from paceline.wire.frames import BULK, FrameKind, Header
from paceline_core.errors import PacelineError

from .inprocess import ID

TRAINING, ANOTHER_TRAINING = bytes.fromhex(ID), bytes(16)


@dataclass(frozen=True)
class Stranger:
    """`certificate` is a folder, or None for a connection without TLS; `says` is the role in the HELLO."""

    name: str
    certificate: str | None
    says: str
    ordinal: int
    training: bytes = TRAINING
    asks_nobody: bool = False  # takes any server, and shows its own certificate only if it has one


def strangers(tls: bool) -> list[Stranger]:
    """The roles of the matrix. A worker has number 0, a server number 1; the training has no worker or server 2."""
    if not tls:
        return [
            Stranger("worker", None, "worker", 0),
            Stranger("server", None, "server", 1),
            Stranger("worker that there is not", None, "worker", 2),
            Stranger("server that there is not", None, "server", 2),
            Stranger("worker of another training", None, "worker", 0, ANOTHER_TRAINING),
            Stranger("server of another training", None, "server", 1, ANOTHER_TRAINING),
            Stranger("nobody", None, "nobody", 0),
        ]
    return [
        Stranger("worker", "worker-0", "worker", 0),
        Stranger("server", "ps-1", "server", 1),
        Stranger("worker that there is not", "worker-2", "worker", 2),
        Stranger("server that there is not", "ps-2", "server", 2),
        Stranger("worker that says another", "worker-0", "worker", 1),
        Stranger("server that says another", "ps-0", "server", 1),
        Stranger("worker that says server", "worker-1", "server", 1),
        Stranger("server that says worker", "ps-0", "worker", 0),
        Stranger("worker of another training", "another/worker-0", "worker", 0, asks_nobody=True),
        Stranger("server of another training", "another/ps-1", "server", 1, asks_nobody=True),
        Stranger("nobody, without TLS", None, "worker", 0),
        Stranger("nobody, without a certificate", "", "worker", 0, asks_nobody=True),
    ]


def may_open(stranger: Stranger, channel: str, tls: bool) -> bool:
    """What the table says: `CONNECTIONS` of paceline/wire/connections.py."""
    kind = CONNECTIONS.get(channel)
    known = stranger.ordinal < 2 and stranger.training == TRAINING and not stranger.asks_nobody
    own = f"{'worker' if stranger.says == 'worker' else 'ps'}-{stranger.ordinal}"
    proved = stranger.certificate == own if tls else True
    return kind is not None and known and proved and kind.role == stranger.says


def connect(stranger: Stranger, address: str, credentials: Path) -> Channel:
    """Raises PacelineError or OSError when the server does not even shake hands."""
    if not stranger.asks_nobody:
        folder = None if stranger.certificate is None else str(credentials / stranger.certificate)
        return endpoint.connect(address, stranger.training, "ps-0", folder, 0, 10)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if stranger.certificate:
        folder = str(credentials / stranger.certificate)
        context.load_cert_chain(f"{folder}/cert.pem", f"{folder}/key.pem")
    plain = endpoint.connect(address, stranger.training, "ps-0", None, 0, 10)
    return Channel(context.wrap_socket(plain.connection), stranger.training, "ps-0", 10)


def hello(stranger: Stranger) -> Header:
    return Header(FrameKind.HELLO, stranger.training, worker=stranger.ordinal)


def send(channel: Channel, header: Header) -> None:
    """A frame with the smallest payload."""
    channel.send(header, (memoryview(b"" if header.kind in BULK else b"{}"),))


def answers(channel: Channel) -> bool:
    """Whether a frame comes back, and not the end of the connection."""
    try:
        channel.header()
    except (PacelineError, EOFError):
        return False
    return True


def counted(instruments: Instruments) -> dict[str, float]:
    """How many connections were refused, by reason."""
    samples: Iterator[object] = (s for family in instruments.collect() for s in family.samples)
    return {s.labels["reason"]: s.value for s in samples if s.name == metrics.PEERS_REJECTED.name}  # type: ignore[attr-defined]
