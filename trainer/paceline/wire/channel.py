"""A channel: one connection that carries frames. Blocking, used by one thread at a time."""

import select
import socket
import ssl
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from paceline.wire import link
from paceline.wire.frames import HEADER_BYTES, Header, Kind, from_json, to_json
from paceline_core import errors
from paceline_core.errors import PeerLost, ProtocolError

SENDMSG_LIMIT = 512  # buffers for one sendmsg; Linux takes 1024
DRAIN_MILLISECONDS = 1
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
        self._header = memoryview(bytearray(HEADER_BYTES))

    def patience(self, seconds: float) -> None:
        """Change the limit of a wait."""
        self.timeout = seconds
        self.connection.settimeout(seconds)

    def send(self, header: Header, pieces: Sequence[memoryview] = ()) -> None:
        """Send one frame whose payload is the concatenation of `pieces`."""
        nbytes = sum(len(p) for p in pieces)
        start = replace(header, training=self.training, nbytes=nbytes).pack()
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
            self._await_first_byte()
        self._fill(self._header, at_start=True)
        header = Header.unpack(self._header)
        if header.training != self.training:
            raise ProtocolError("wrong_training", f"{self.peer} belongs to another training")
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
        data = bytearray()
        while len(data) < header.nbytes:  # grows as bytes arrive, so that a lying header costs nothing
            part = memoryview(bytearray(min(1 << 16, header.nbytes - len(data))))
            self._fill(part)
            data += part
        return from_json(data)

    def expect(self, *kinds: Kind) -> Header:
        """Receive a header of one of `kinds`; an ERROR from the peer is raised as the error that it names."""
        try:
            header = self.header()
        except EOFError as error:
            raise PeerLost(f"{self.peer} closed the connection") from error
        if header.kind is Kind.ERROR:
            raise remote_error(self.json(header))
        if header.kind not in kinds:
            raise ProtocolError("unexpected", f"{self.peer} sent {header.kind.name}; expected {kinds[0].name}")
        return header

    def control(self, kind: Kind) -> dict[str, Any]:
        """Receive a control frame of `kind`, as `expect` does, and give its payload."""
        return self.json(self.expect(kind))

    def introduce(self, hello: Header, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Say HELLO and give what READY says; the connection is closed when that fails. Raises as `control` does."""
        try:
            self.send_json(hello, asked)
            return self.control(Kind.READY)
        except BaseException:
            self.close()
            raise

    def drain(self) -> None:
        """Wait until everything that was sent has left this machine, or the peer answers already."""
        try:
            poll = select.poll()
            poll.register(self.connection, select.POLLIN)
            limit = time.monotonic() + self.timeout
            while link.unsent(self.connection) and not poll.poll(DRAIN_MILLISECONDS):
                if time.monotonic() > limit:
                    raise self._lost(TimeoutError())
        except (OSError, ValueError) as error:
            raise PeerLost(f"the connection to {self.peer} was closed") from error

    def pace(self, bytes_per_second: float) -> None:
        """Send no faster than this."""
        try:
            link.pace(self.connection, bytes_per_second)
        except OSError as error:
            raise PeerLost(f"the connection to {self.peer} was closed") from error

    def close(self) -> None:
        """End the connection; waiting calls of other threads return with PeerLost."""
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is gone already
        self.connection.close()

    def _await_first_byte(self) -> None:
        if isinstance(self.connection, ssl.SSLSocket) and self.connection.pending():
            return
        try:
            poll = select.poll()
            poll.register(self.connection, select.POLLIN)
            poll.poll()
        except (OSError, ValueError) as error:
            raise PeerLost(f"the connection to {self.peer} was closed") from error

    def _fill(self, target: memoryview, at_start: bool = False) -> None:
        done, receive = 0, self.connection.recv_into
        try:
            while done < len(target):
                count = receive(target[done:])
                if count == 0:
                    if at_start and done == 0:
                        raise EOFError(self.peer)
                    raise ProtocolError("truncated", f"{self.peer} closed the connection in the middle of a frame")
                done += count
        except (OSError, ssl.SSLError) as error:
            raise self._lost(error) from _told_apart(error)

    def _lost(self, error: Exception) -> PeerLost:
        if isinstance(error, TimeoutError) and error.errno is None:
            return PeerLost(f"{self.peer} did not answer within {self.timeout:g} s")
        return PeerLost(f"the connection to {self.peer} broke: {error}")


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


def remote_error(payload: Mapping[str, Any]) -> errors.PacelineError:
    """The exception that a peer's ERROR frame stands for."""
    kind = getattr(errors, str(payload.get("kind")), None)
    message = str(payload.get("message", "the peer reported an error"))
    known = isinstance(kind, type) and issubclass(kind, errors.PacelineError)
    takes_text = known and kind not in (ProtocolError, errors.SpecError)
    error: errors.PacelineError = kind(message) if takes_text and kind else PeerLost(message)
    error.from_peer = True
    return error
