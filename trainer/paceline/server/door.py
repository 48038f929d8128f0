"""The door: takes connections, learns who is there, and gives each its own thread. Strangers are counted."""

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from paceline import metrics
from paceline.metrics import Instruments
from paceline.wire import endpoint
from paceline.wire.channel import Channel
from paceline.wire.frames import Header, Kind
from paceline_core.errors import PacelineError, PeerLost, ProtocolError
from paceline_core.launch import Launch

Handler = Callable[[Channel, Header, dict[str, Any]], None]
PAUSE_SECONDS = 0.1  # when there are too many connections, before the next is taken
log = logging.getLogger("paceline")


class Door:
    """Listens; `handlers` maps what a HELLO asks for ("lane", "report", ...) to who serves that connection.

    A handler returns when its peer is done. Nothing that a peer sends can do more than end its own connection.
    """

    def __init__(self, launch: Launch, handlers: Mapping[str, Handler], instruments: Instruments) -> None:
        self._launch, self._handlers, self._metrics = launch, handlers, instruments
        self._training = bytes.fromhex(launch.training_id)
        self._tls = endpoint.server_context(launch.tls) if launch.tls else None
        self._listener = endpoint.listen(launch.listen)
        self._channels: set[Channel | None] = set()
        self._lock = threading.Lock()
        self._refusal: PacelineError | None = None
        self._closing = threading.Event()

    @property
    def address(self) -> str:
        """Where the door is, as `host:port`."""
        return endpoint.address_of(self._listener)

    def open(self) -> None:
        """Start to accept."""
        threading.Thread(target=self._accept, name="door", daemon=True).start()

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
            except (OSError, RuntimeError) as error:  # closed; or no more files or threads, until others go
                if self._closing.wait(PAUSE_SECONDS):
                    return
                if str(error) != said:
                    said = str(error)
                    log.warning("connections have to wait: %s", said)

    def _admit(self) -> None:
        raw, _ = self._listener.accept()
        try:
            threading.Thread(target=self._serve, args=(raw,), daemon=True).start()
        except RuntimeError:
            raw.close()
            raise

    def _serve(self, raw: socket.socket) -> None:
        channel = None
        try:
            channel, role = endpoint.accept(raw, self._training, self._tls)
            with self._lock:
                self._channels.add(channel)
            self._greet(channel, role)
        except ProtocolError as error:
            self._metrics.add(metrics.PEERS_REJECTED, 1, error.reason)
        except (PeerLost, EOFError):
            pass  # its owner decides whether it matters that this connection is gone
        finally:
            with self._lock:
                self._channels.discard(channel)
            if channel:
                channel.close()
            raw.close()

    def _greet(self, channel: Channel, role: str | None) -> None:
        hello = channel.expect(Kind.HELLO)
        asked = channel.json(hello)
        handler = self._handlers.get(str(asked.get("channel")))
        if handler is None:
            raise ProtocolError("bad_channel", "HELLO for a channel that is not served here")
        if role is not None and role != asked.get("role"):
            raise ProtocolError("no_credential", f"a certificate for {role} used as {asked.get('role')}")
        channel.peer = f"{asked.get('role')}-{hello.worker}"
        if asked.get("role") == "worker" and hello.worker >= self._launch.world_size:
            raise ProtocolError("bad_worker", f"{channel.peer}, but there are {self._launch.world_size} workers")
        try:
            if self._refusal is not None:
                raise self._refusal
            handler(channel, hello, asked)
        except ProtocolError:
            raise
        except PacelineError as error:
            tell(channel, error)
            raise PeerLost(str(error)) from error


def tell(channel: Channel, error: Exception) -> None:
    """Send the error to the peer, if it still listens."""
    try:
        channel.send_json(Header(Kind.ERROR, channel.training), {"kind": type(error).__name__, "message": str(error)})
    except PeerLost:
        pass  # it is gone, and will learn the reason elsewhere
