"""A channel: one connection that carries frames. Blocking, used by one thread at a time."""

import select
import socket
import ssl
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from paceline.wire import tcp_state
from paceline.wire.bounded_connections import BoundedConnections
from paceline.wire.frames import HEADER_BYTES, FrameKind, Header, from_json, to_json
from paceline_core import errors, limits
from paceline_core.errors import PeerLost, ProtocolError

SENDMSG_LIMIT = 512  # buffers for one sendmsg; Linux takes 1024
DRAIN_MILLISECONDS = 1
LARGE_BYTES = 256 << 10  # of a control frame that is received when there is room for it
SMALL_BYTES = 128 << 10  # with TLS, smaller pieces are joined: each call makes at least one record
KEEP_IDLE_SECONDS, KEEP_INTERVAL_SECONDS, KEEP_PROBES = 10, 10, 3  # a machine that vanished is noticed after 40 s
if sys.platform == "darwin":
    IDLE_OPTION = socket.TCP_KEEPALIVE
else:
    IDLE_OPTION = socket.TCP_KEEPIDLE


class Channel:
    """Frames over one connected socket, for one training.

    Payloads leave from and arrive in the caller's memory without a copy. Every call is limited by `timeout`
    seconds without progress and raises PeerLost (gone, or too slow) or ProtocolError (not a frame of this training).
    """

    def __init__(self, connection: socket.socket, training: bytes, peer: str, timeout: float) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, IDLE_OPTION, KEEP_IDLE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_INTERVAL_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEP_PROBES)
        connection.settimeout(timeout)
        self.connection, self.training, self.peer, self.timeout = connection, training, peer, timeout
        self.sent = self.received = 0  # payload bytes
        self._opener: tuple[frozenset[FrameKind], int, int] | None = (
            None  # frames that it may send, its ordinal, incarnation
        )
        self._header = memoryview(bytearray(HEADER_BYTES))
        self._large: BoundedConnections | None = None
        self._kept = b""  # small frames that go with the next one

    def bound(self, large: BoundedConnections) -> None:
        """Receive large control frames only while `large` has room for this connection."""
        self._large = large

    def bind(self, frames: frozenset[FrameKind], hello: Header) -> None:
        """From now on take these frames only, and only from who said HELLO."""
        self._opener = frames, hello.worker, hello.incarnation

    def patience(self, seconds: float) -> None:
        """Change the limit of a wait."""
        self.timeout = seconds
        self.connection.settimeout(seconds)

    def send(self, header: Header, pieces: Sequence[memoryview] = (), more: bool = False) -> None:
        """Send one frame whose payload is the concatenation of `pieces`.

        `more`: another follows at once, and a small frame may go with that.
        """
        nbytes = sum(map(len, pieces))
        start = self._kept + header.pack_for(self.training, nbytes)
        self._kept = b"".join([start, *pieces]) if more and len(start) + nbytes < SMALL_BYTES else b""
        if self._kept:
            self.sent += nbytes
            return
        try:
            if isinstance(self.connection, ssl.SSLSocket):
                for piece in _joined(start, pieces):
                    self.connection.sendall(piece)
            else:
                _send_vector(self.connection, [memoryview(start), *pieces])
        except (OSError, ssl.SSLError) as error:
            raise self._lost(error) from _told_apart(error)
        self.sent += nbytes

    def send_json(self, header: Header, value: Mapping[str, Any]) -> None:
        """Send a control frame."""
        self.send(header, (memoryview(to_json(value)),))

    def header(self, idle: bool = False) -> Header:
        """Receive the next header; with `idle`, wait for it as long as the peer lives.

        Raises EOFError when the peer closed between two frames.
        """
        if idle:
            wait_for_bytes(self)
        self._fill(self._header, at_start=True)
        header = Header.unpack(self._header)
        if header.training != self.training:
            raise ProtocolError("wrong_training", f"{self.peer} belongs to another training")
        if self._opener is not None:
            frames, ordinal, incarnation = self._opener
            if header.kind not in frames:
                raise ProtocolError("unexpected", f"{header.kind.name} from {self.peer} on this connection")
            if (header.worker, header.incarnation) != (ordinal, incarnation):
                raise ProtocolError("bad_worker", f"{self.peer} speaks for {header.worker} of {header.incarnation}")
        return header

    def into(self, header: Header, target: memoryview) -> None:
        """Receive the payload of `header` into `target`, whose size must be exactly right."""
        if header.nbytes != len(target):
            raise ProtocolError("bad_size", f"{header.kind.name} of {header.nbytes} bytes, {len(target)} expected")
        self._fill(target)
        self.received += header.nbytes

    def skip(self, header: Header) -> None:
        """Receive the payload of `header` and drop it."""
        scratch, left = memoryview(bytearray(min(1 << 20, header.nbytes))), header.nbytes
        while left:
            part = scratch[: min(left, len(scratch))]
            self._fill(part)
            left -= len(part)

    def json(self, header: Header) -> dict[str, Any]:
        """Receive the payload of a control frame."""
        large = self._large if header.nbytes > LARGE_BYTES else None
        with nullcontext() if large is None else large.holding(self.connection):
            return from_json(self.bytes(header), header.kind)

    def bytes(self, header: Header) -> bytearray:
        """Receive a payload of any size; memory grows as bytes arrive, so that a lying header costs nothing."""
        data = bytearray()
        while len(data) < header.nbytes:
            part = memoryview(bytearray(min(1 << 16, header.nbytes - len(data))))
            self._fill(part)
            data += part
        return data

    def expect(self, *kinds: FrameKind) -> Header:
        """Receive a header of one of `kinds`; an ERROR from the peer is raised as the error that it names."""
        try:
            header = self.header()
        except EOFError as error:
            raise PeerLost(f"{self.peer} closed the connection") from error
        if header.kind is FrameKind.ERROR:
            raise remote_error(self.json(header))
        if header.kind not in kinds:
            raise ProtocolError("unexpected", f"{self.peer} sent {header.kind.name}; expected {kinds[0].name}")
        return header

    def control(self, kind: FrameKind) -> dict[str, Any]:
        """Receive a control frame of `kind`, as `expect` does, and give its payload."""
        return self.json(self.expect(kind))

    def introduce(self, hello: Header, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Say HELLO and give what READY says; the connection is closed when that fails. Raises as `control` does."""
        try:
            self.send_json(hello, asked)
            return self.control(FrameKind.READY)
        except BaseException:
            self.close()
            raise

    def drain(self) -> None:
        """Wait until everything that was sent has left this machine, or the peer answers already."""
        try:
            poll = select.poll()
            poll.register(self.connection, select.POLLIN)
            limit = time.monotonic() + self.timeout
            while tcp_state.unsent(self.connection) and not poll.poll(DRAIN_MILLISECONDS):
                if time.monotonic() > limit:
                    raise self._lost(TimeoutError())
        except (OSError, ValueError) as error:
            raise PeerLost(f"the connection to {self.peer} was closed") from error

    def pace(self, bytes_per_second: float) -> None:
        """Send no faster than this."""
        try:
            tcp_state.pace(self.connection, bytes_per_second)
        except OSError as error:
            raise PeerLost(f"the connection to {self.peer} was closed") from error

    def is_broken(self) -> bool:
        """Whether the connection has ended, where the peer sends nothing unasked: whatever is to be read is its end."""
        try:
            poll = select.poll()
            poll.register(self.connection, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return True

    def end(self) -> None:
        """End the connection; waiting calls of other threads return with PeerLost, and one of them closes it."""
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is gone already

    def close(self) -> None:
        """End the connection and free its socket."""
        self.end()
        self.connection.close()

    def _fill(self, target: memoryview, at_start: bool = False) -> None:
        done, size = 0, len(target)
        # Of TLS each record is a call of its own, and recv_into() only calls read() in its turn.
        read: Any = self.connection.read if isinstance(self.connection, ssl.SSLSocket) else None
        receive = self.connection.recv_into
        try:
            while done < size:
                left = target[done:]
                count = receive(left) if read is None else read(size - done, left)
                if count == 0:
                    if at_start and done == 0:
                        raise EOFError(self.peer)
                    raise ProtocolError("truncated", f"{self.peer} closed the connection in the middle of a frame")
                done += count
        except (OSError, ssl.SSLError, ValueError) as error:
            if read is None and not isinstance(error, OSError):
                raise
            raise self._lost(error) from _told_apart(error)  # a ValueError: of TLS that was closed here

    def _lost(self, error: Exception) -> PeerLost:
        if isinstance(error, TimeoutError) and error.errno is None:
            return PeerLost(f"{self.peer} did not answer within {limits.words(self.timeout)}")
        return PeerLost(f"the connection to {self.peer} broke: {error}")


def wait_for_bytes(*channels: Channel) -> None:
    """Wait until one of them has something to be read, its end included. Raises PeerLost when one was closed here."""
    if any(isinstance(c.connection, ssl.SSLSocket) and c.connection.pending() for c in channels):
        return
    try:
        poll = select.poll()
        for channel in channels:
            poll.register(channel.connection, select.POLLIN)
        poll.poll()
    except (OSError, ValueError) as error:
        raise PeerLost(f"the connection to {channel.peer} was closed") from error


def _told_apart(error: Exception) -> Exception:
    """The error; but a connection that the kernel gave up (ETIMEDOUT) is a broken one, and not a wait of ours."""
    if isinstance(error, TimeoutError) and error.errno is not None:
        return ConnectionAbortedError(error.errno, error.strerror)
    return error


def _joined(start: bytes, pieces: Sequence[memoryview]) -> list[memoryview]:
    """The pieces to write, small ones copied together."""
    out: list[memoryview] = []
    small = bytearray(start)
    for piece in pieces:
        if len(piece) < SMALL_BYTES:
            small += piece
            continue
        if small:
            out.append(memoryview(small))
            small = bytearray()
        out.append(piece)
    if small:
        out.append(memoryview(small))
    return out


def _send_vector(connection: socket.socket, pieces: list[memoryview]) -> None:
    first = 0
    while first < len(pieces):
        sent = connection.sendmsg(pieces[first : first + SENDMSG_LIMIT])
        while first < len(pieces) and sent >= len(pieces[first]):
            sent -= len(pieces[first])
            first += 1
        if sent:
            pieces[first] = pieces[first][sent:]


def error_to_wire(error: Exception) -> dict[str, Any]:
    """An ERROR frame's payload."""
    return {"kind": type(error).__name__, "message": str(error)}


def remote_error(payload: Mapping[str, Any]) -> errors.PacelineError:
    """The exception that a peer's ERROR frame stands for."""
    kind = getattr(errors, str(payload.get("kind")), None)
    message = str(payload.get("message", "the peer reported an error"))
    known = isinstance(kind, type) and issubclass(kind, errors.PacelineError)
    takes_text = known and kind not in (ProtocolError, errors.SpecError)
    error: errors.PacelineError = kind(message) if takes_text and kind else PeerLost(message)
    error.from_peer = True
    return error
