"""Accepts connections, learns who is there, and gives each its own thread. Strangers are counted."""

import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from paceline import metrics
from paceline.metrics import Instruments
from paceline.wire import endpoint
from paceline.wire.bounded_connections import BoundedConnections
from paceline.wire.channel import Channel, error_to_wire
from paceline.wire.connections import SERVER, WORKER, ConnectionKind, opened
from paceline.wire.frames import FrameKind, Header
from paceline_core.errors import PacelineError, PeerLost, ProtocolError
from paceline_core.launch import Launch

Handler = Callable[[Channel, Header, dict[str, Any]], None]
PAUSE_SECONDS = 0.1  # when there are too many connections, before the next is taken
MOST_STRANGERS, STRANGER_SECONDS = 256, 1.0  # connections without a HELLO; where there are more, the oldest are ended
LARGE_FRAME_SECONDS = 5.0  # for one large frame, when others wait: there is memory for one at a time
log = logging.getLogger("paceline")


class Acceptor:
    """Listens; `handlers` maps the kinds of connections (paceline/wire/connections.py) to who serves each.

    A handler returns when its peer is done. Nothing that a peer sends can do more than end its own connection.
    `is_newest(worker, incarnation)` tells whether no other process has taken a worker's place.
    """

    def __init__(
        self,
        launch: Launch,
        handlers: Mapping[str, Handler],
        instruments: Instruments,
        is_newest: Callable[[int, int], bool] = lambda *_: True,
    ) -> None:
        self._name, self._handlers, self._metrics, self._is_newest = launch.name, handlers, instruments, is_newest
        self._peers = {WORKER: range(launch.world_size), SERVER: range(1, launch.spec.server.replicas)}
        self._training = bytes.fromhex(launch.training_id)
        self._tls = endpoint.server_context(launch.tls) if launch.tls else None
        self._listener = endpoint.listen(launch.listen)
        self._channels: set[Channel | None] = set()
        self._open: Counter[tuple[str, int]] = Counter()  # connections by kind and opener, while they are served
        self._lanes = launch.spec.gradients.connections
        self._strangers = BoundedConnections(MOST_STRANGERS, STRANGER_SECONDS, lambda: self._refused("crowded"))
        self._large = BoundedConnections(1, LARGE_FRAME_SECONDS, lambda: self._refused("slow"))
        self._lock = threading.Lock()
        self._refusal: PacelineError | None = None
        self._closing = threading.Event()

    @property
    def address(self) -> str:
        """Where it listens, as `host:port`."""
        return endpoint.address_of(self._listener)

    def open(self) -> None:
        """Start to accept."""
        threading.Thread(target=self._accept, name="acceptor", daemon=True).start()

    def refuse(self, error: PacelineError) -> None:
        """End every connection, and answer each new one with `error`."""
        self._refusal = error
        self._close_channels()

    def close(self) -> None:
        """Accept nobody any more and end every connection."""
        self._closing.set()
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # nobody was waiting in accept
        self._listener.close()
        self._close_channels()

    def _refused(self, reason: str) -> None:
        self._metrics.add(metrics.PEERS_REJECTED, 1, reason)

    def _close_channels(self) -> None:
        with self._lock:
            for channel in self._channels:
                if channel:
                    channel.close()

    def _accept(self) -> None:
        said = ""
        while True:
            try:
                self._admit()
            except Exception as error:  # closed; or no more files or threads, until others go; or whatever else
                if self._closing.wait(PAUSE_SECONDS):
                    return
                if str(error) != said:
                    said = str(error)
                    log.warning("connections have to wait: %s", said)

    def _admit(self) -> None:
        raw, _ = self._listener.accept()
        try:
            connection = endpoint.secured(raw, self._tls)
        except ProtocolError as error:
            self._refused(error.reason)
            return
        self._strangers.add(connection)
        try:
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
        except RuntimeError:
            self._strangers.remove(connection)
            connection.close()
            raise

    def _serve(self, connection: socket.socket) -> None:
        channel, known = None, False
        try:
            channel, names = endpoint.shake_hands(connection, self._training)
            channel.bound(self._large)
            with self._lock:
                self._channels.add(channel)
            kind, hello, asked = self._greet(channel, names)
            known = self._strangers.remove(connection)
            with self._counted(kind, hello.worker):
                self._hand_over(channel, kind, hello, asked)
        except ProtocolError as error:
            if known or self._strangers.remove(connection):
                self._refused(error.reason)
        except (PeerLost, EOFError) as error:  # its owner decides whether it matters that this connection is gone
            if not known and isinstance(error, PeerLost) and self._strangers.remove(connection):
                self._refused("silent")
        except Exception as error:  # a mistake of ours: the peer ends with its text, and not with a broken connection
            log.exception("a connection of %s failed", channel.peer if channel else "a peer")
            if channel:
                tell(channel, PeerLost(f"{self._name} failed: {type(error).__name__}: {error}"))
        finally:
            with self._lock:
                self._channels.discard(channel)
            self._strangers.remove(connection)
            if channel:
                channel.close()
            connection.close()

    def _greet(self, channel: Channel, names: frozenset[str] | None) -> tuple[ConnectionKind, Header, dict[str, Any]]:
        hello = channel.header()
        if hello.kind is not FrameKind.HELLO:
            raise ProtocolError("unexpected", f"{hello.kind.name} where a HELLO was expected")
        asked = channel.json(hello)
        kind = opened(asked.get("channel"), asked.get("role"), names, self._peers, hello.worker)
        if kind.name not in self._handlers:
            raise ProtocolError("bad_channel", "HELLO for a channel that is not served here")
        channel.peer = f"{kind.role}-{hello.worker}"
        channel.bind(kind.frames, hello)
        if kind.role == WORKER and not self._is_newest(hello.worker, hello.incarnation):
            raise ProtocolError("outdated", f"another process has taken the place of {channel.peer}")
        return kind, hello, asked

    @contextmanager
    def _counted(self, kind: ConnectionKind, opener: int) -> Iterator[None]:
        """While a connection is served. Raises ProtocolError when its opener has too many."""
        most = kind.most * (self._lanes if kind.name == "lane" else 1)
        with self._lock:
            if self._open[kind.name, opener] >= most:
                raise ProtocolError("too_many", f"{most} connections of {kind.name} {opener} are open")
            self._open[kind.name, opener] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[kind.name, opener] -= 1

    def _hand_over(self, channel: Channel, kind: ConnectionKind, hello: Header, asked: dict[str, Any]) -> None:
        try:
            if self._refusal is not None:
                raise self._refusal
            self._handlers[kind.name](channel, hello, asked)
        except ProtocolError:
            raise
        except PacelineError as error:
            tell(channel, error)
            raise PeerLost(str(error)) from error


def tell(channel: Channel, error: Exception) -> None:
    """Send the error to the peer, if it still listens."""
    try:
        channel.send_json(Header(FrameKind.ERROR, channel.training), error_to_wire(error))
    except PeerLost:
        pass  # it is gone, and will learn the reason elsewhere
