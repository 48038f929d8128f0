"""Where processes meet: listening, connecting, and who the peer's certificate says it is."""

import socket
import ssl
import time
from pathlib import Path
from typing import Any

from paceline.wire.channel import Channel
from paceline_core import limits
from paceline_core.errors import ProtocolError, Unreachable
from paceline_credentials import host_name

RETRY_SECONDS = 0.05
HANDSHAKE_SECONDS = 10.0
BACKLOG = 512


def listen(address: str) -> socket.socket:
    """A listening socket for `host:port`, or the inherited one named by `fd:N`.

    `[::]:port` takes connections to every address of this machine, of IPv4 and IPv6, as far as it has them.
    """
    if address.startswith("fd:"):
        return socket.socket(fileno=int(address[3:]))
    host, port = _host_and_port(address)
    if host == "::":
        if socket.has_dualstack_ipv6():
            return socket.create_server((host, port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
        host = "0.0.0.0"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def address_of(listener: socket.socket) -> str:
    """Where it listens, as `host:port`."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def connect(address: str, training: bytes, peer: str, tls: str | None, patience: float, timeout: float) -> Channel:
    """Connect to `host:port`, trying again for `patience` seconds. Raises Unreachable.

    With TLS, the certificate found there must be that of `peer`, for example ps-0.
    """
    limit = time.monotonic() + patience
    while True:
        try:
            raw = socket.create_connection(_host_and_port(address), timeout=HANDSHAKE_SECONDS)
            return _channel(raw, tls, training, peer, timeout)
        except ssl.SSLCertVerificationError as error:
            raise Unreachable(
                f"what answers at {address} has no certificate of {peer} of this training: {error.verify_message}"
            ) from error
        except OSError as error:
            if time.monotonic() > limit:
                raise Unreachable(
                    f"cannot reach {peer} at {address} after {limits.words(patience)}: {error}"
                ) from error
            time.sleep(RETRY_SECONDS)


def secured(raw: socket.socket, tls: ssl.SSLContext | None) -> socket.socket:
    """An accepted connection, before anything was read from it. Raises ProtocolError."""
    try:
        return raw if tls is None else tls.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
    except (OSError, ValueError) as error:  # it has ended already
        raw.close()
        raise ProtocolError("no_credential", f"no connection: {error}") from error


def shake_hands(connection: socket.socket, training: bytes) -> tuple[Channel, frozenset[str] | None]:
    """Make a channel of an accepted connection; with TLS, also the processes that its certificate names.

    Raises ProtocolError.
    """
    connection.settimeout(HANDSHAKE_SECONDS)
    try:
        if not isinstance(connection, ssl.SSLSocket):
            return Channel(connection, training, "a peer", HANDSHAKE_SECONDS), None
        connection.do_handshake()
        certificate = connection.getpeercert() or {}
        alternatives: Any = certificate.get("subjectAltName", ())
        names = frozenset(str(value) for kind, value in alternatives if kind == "DNS")
        return Channel(connection, training, "a peer", HANDSHAKE_SECONDS), names
    except (OSError, ValueError) as error:
        raise ProtocolError("no_credential", f"no connection: {error}") from error


def server_context(folder: str) -> ssl.SSLContext:
    """TLS 1.3 for a listener that takes only peers with a certificate of this training."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # connections are long; nobody resumes a session
    return _with_credentials(context, folder)


def client_context(folder: str) -> ssl.SSLContext:
    """TLS 1.3 for who connects, with the certificate in `folder`, to a listener with one of the same training."""
    return _with_credentials(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), folder)


def _host_and_port(address: str) -> tuple[str, int]:
    """The parts of `host:port`; an IPv6 address stands in brackets."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _channel(raw: socket.socket, tls: str | None, training: bytes, peer: str, timeout: float) -> Channel:
    secure = raw
    try:
        secure = _client_side(raw, tls, peer)
        return Channel(secure, training, peer, timeout)
    except BaseException:
        secure.close()
        raw.close()
        raise


def _client_side(raw: socket.socket, folder: str | None, peer: str) -> socket.socket:
    if folder is None:
        return raw
    return client_context(folder).wrap_socket(raw, server_hostname=host_name(peer))


def _with_credentials(context: ssl.SSLContext, folder: str) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(Path(folder, "ca.pem"))
    context.load_cert_chain(Path(folder, "cert.pem"), Path(folder, "key.pem"))
    return context
