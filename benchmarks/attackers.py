"""What somebody may try who wants a server to be slow or to grow: one attempt of each kind, without waiting for more."""

import json
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from paceline.wire import endpoint
from paceline.wire.channel import Channel
from paceline.wire.frames import CONTROL_LIMIT, FrameKind, Header
from paceline_core.errors import PacelineError, PeerLost
from paceline_credentials import host_name

HELD = 20_000  # connections that an attacker holds at most


@dataclass
class Target:
    """A server, and what the attacker has of its training."""

    address: str
    metrics: str
    training: bytes
    tls: str | None  # a worker's certificate
    held: list[socket.socket] = field(default_factory=list)
    context: ssl.SSLContext | None = None  # made once: making it takes as long as a handshake

    def raw(self, address: str | None = None) -> socket.socket:
        """A connection without a word."""
        host, _, port = (address or self.address).rpartition(":")
        return socket.create_connection((host, int(port)), timeout=10)

    def hold(self, connection: socket.socket) -> None:
        """Keep it open."""
        self.held.append(connection)
        if len(self.held) > HELD:
            self.held.pop(0).close()

    def channel(self) -> Channel:
        """A connection as a worker makes it."""
        connection = self.raw()
        if self.tls is not None:
            self.context = self.context or endpoint.client_context(self.tls)
            connection = self.context.wrap_socket(connection, server_hostname=host_name("ps-0"))
        return Channel(connection, self.training, "ps-0", 10)

    def store(self) -> Channel:
        """One to the store, as worker 1."""
        channel = self.channel()
        channel.introduce(
            Header(FrameKind.HELLO, self.training, worker=1, incarnation=0), {"role": "worker", "channel": "store"}
        )
        return channel

    def close(self) -> None:
        """End what is held."""
        for each in self.held:
            each.close()
        self.held.clear()


def _end(channel: Channel) -> None:
    """Read until the server ends it."""
    with suppress(PacelineError, EOFError):
        channel.skip(channel.header())
    channel.close()


def _hello(target: Target, payload: bytes, declared: int | None = None) -> None:
    channel = target.channel()
    header = Header(FrameKind.HELLO, target.training, nbytes=len(payload) if declared is None else declared)
    with suppress(OSError):
        channel.connection.sendall(header.pack())
        channel.connection.sendall(payload)
    _end(channel)


def _padded(start: bytes, item: bytes, end: bytes, size: int) -> bytes:
    return start + item * ((size - len(start) - len(end)) // len(item)) + end


EMPTY_LISTS = _padded(b'{"a":[[]', b",[]", b"]}", 16 << 20)
MOST_LISTS = _padded(b'{"a":[[]', b",[]", b"]}", CONTROL_LIMIT)
MOST_DICTS = b'{"a":[' + b",".join(b'{"%07d":1}' % i for i in range(155_000)) + b"]}"
WIDE_TEXT = b'{"a":"\\ud83d\\ude00' + b"x" * ((4 << 20) - 60) + b'"}'


def _slow(target: Target) -> None:
    connection = target.raw()
    connection.sendall(b"P")
    target.hold(connection)


def _connect_and_go(target: Target) -> None:
    target.raw().close()


def _nobody_over_tls(target: Target) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with suppress(OSError), context.wrap_socket(target.raw()) as secure:
        secure.recv(1)


def _get(target: Target, path: str) -> None:
    with suppress(OSError), target.raw(target.metrics) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        while connection.recv(1 << 16):
            pass


def _huge_headers(target: Target) -> None:
    with suppress(OSError), target.raw(target.metrics) as connection:
        connection.sendall(b"GET /status HTTP/1.1\r\n" + b"A: " + b"a" * (1 << 20))
        connection.recv(1 << 16)


def _store_keys(target: Target) -> None:
    """A key of its own with a large value, until there is no room."""
    with suppress(PeerLost):
        channel = target.store()
        ask = {"op": "set", "key": str(time.monotonic_ns()), "value": "A" * (1 << 20)}
        channel.send_json(Header(FrameKind.STORE, target.training, worker=1), ask)
        _end(channel)


def _store_waits(target: Target) -> None:
    """A wait for a key that nobody sets, and away."""
    with suppress(PacelineError):
        channel = target.store()
        channel.send_json(Header(FrameKind.STORE, target.training, worker=1), {"op": "get", "key": "never"})
        channel.close()


def _four_gigabytes(target: Target) -> None:
    with suppress(PacelineError):
        channel = target.store()
        channel.connection.sendall(Header(FrameKind.STORE, target.training, worker=1, nbytes=1 << 32).pack())
        _end(channel)


def _bad_report(target: Target) -> None:
    rows = json.dumps({"channel": "report", "role": "worker", "signature": {"parameters": [[]] * 1000}}).encode()
    _hello(target, rows)


Attempt = Callable[[Target], None]
ATTACKS: dict[str, Attempt] = {
    "HELLO of 16 MiB of empty lists": lambda t: _hello(t, EMPTY_LISTS),
    "HELLO of 8 MiB of empty lists": lambda t: _hello(t, MOST_LISTS),
    "HELLO of as many dicts as are built": lambda t: _hello(t, MOST_DICTS),
    "HELLO of one wide text": lambda t: _hello(t, WIDE_TEXT),
    "HELLO that declares 4 GiB": lambda t: _hello(t, b"", 1 << 32),
    "HELLO without a signature": _bad_report,
    "STORE that declares 4 GiB": _four_gigabytes,
    "STORE of large keys": _store_keys,
    "STORE that waits for ever": _store_waits,
    "slow bytes": _slow,
    "idle connections": lambda t: t.hold(t.raw()),
    "connections that go": _connect_and_go,
    "TLS without a certificate": _nobody_over_tls,
    "HTTP /status": lambda t: _get(t, "/status"),
    "HTTP /metrics": lambda t: _get(t, "/metrics"),
    "HTTP /trace": lambda t: _get(t, "/trace"),
    "HTTP unknown path": lambda t: _get(t, "/unknown"),
    "HTTP headers of 1 MiB": _huge_headers,
    "HTTP idle": lambda t: t.hold(t.raw(t.metrics)),
}
LARGE = {name for name in ATTACKS if name.startswith("HELLO of") or name == "STORE of large keys"}
