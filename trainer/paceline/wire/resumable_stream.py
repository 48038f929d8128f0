"""Control frames that survive their connection: numbered from 1, kept until the peer has them, sent again if need be.

Two peers have a stream each way, over a connection each. A frame's header carries its number as `step` and, as
`version`, the number of the last frame that its sender has received on the stream the other way (a cumulative
acknowledgement, as TCP's). When a connection is made anew, HELLO or READY says the same of the stream that it carries.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from paceline.wire.channel import Channel
from paceline.wire.frames import FrameKind, Header
from paceline_core.errors import PacelineError, ProtocolError

RECEIVED = "received"  # in HELLO and READY: the number of the last frame that was received


class ResumableSender:
    """One stream's sending side. Sending never fails: what a broken connection did not carry, the next one does.

    `ordinal` stands in each header, `received` gives the number of the last frame of the stream the other way.
    """

    def __init__(self, ordinal: int, received: Callable[[], int]) -> None:
        self._ordinal, self._received = ordinal, received
        self._kept: deque[tuple[int, FrameKind, Mapping[str, Any]]] = deque()  # sent, and perhaps lost
        self._last = 0  # number of the last frame
        self._channel: Channel | None = None
        self._lock = threading.Lock()  # one frame at a time, in the order of numbers

    def send(self, kind: FrameKind, value: Mapping[str, Any]) -> None:
        """Send a frame now, or over the next connection."""
        with self._lock:
            self._last += 1
            self._kept.append((self._last, kind, value))
            self._write(self._last, kind, value)

    def resume(self, channel: Channel, received: Any) -> None:
        """Go on over this connection, to a peer that has the frames up to number `received`. Raises ProtocolError."""
        with self._lock:
            kept_from = self._last - len(self._kept)
            if type(received) is not int or not kept_from <= received <= self._last:
                raise ProtocolError("bad_step", f"the peer has {received!r} frames; {kept_from} to {self._last} may be")
            self._forget(received)
            if self._channel is not None:
                self._channel.end()
            self._channel = channel
            for kept in tuple(self._kept):
                self._write(*kept)

    def acknowledged(self, received: int) -> None:
        """The peer has the frames up to number `received`. Raises ProtocolError when there are not so many."""
        with self._lock:
            if received > self._last:
                raise ProtocolError("bad_step", f"the peer has {received} frames of {self._last}")
            self._forget(received)

    @property
    def delivered(self) -> int:
        """How many frames the peer has for sure."""
        with self._lock:
            return self._last - len(self._kept)

    def _forget(self, received: int) -> None:
        while self._kept and self._kept[0][0] <= received:
            self._kept.popleft()

    def _write(self, number: int, kind: FrameKind, value: Mapping[str, Any]) -> None:
        if self._channel is None:
            return
        header = Header(kind, self._channel.training, self._ordinal, step=number, version=self._received())
        try:
            self._channel.send_json(header, value)
        except PacelineError:
            self._channel.end()  # who waits on it hears of it
            self._channel = None


class ResumableReceiver:
    """One stream's receiving side: each frame is carried out once, in order, whichever connection it comes on."""

    def __init__(self) -> None:
        self.received = 0  # number of the last frame
        self.lock = threading.Lock()  # held while a frame is carried out

    def take(self, header: Header, carry_out: Callable[[], None]) -> None:
        """Carry out a frame, unless it came before. Raises ProtocolError when one before it is missing."""
        with self.lock:
            if header.step > self.received + 1:
                raise ProtocolError("bad_step", f"frame {header.step} came after {self.received}")
            if header.step == self.received + 1:
                carry_out()
                self.received = header.step
