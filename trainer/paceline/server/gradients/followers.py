"""How the other shards follow shard 0: each tells it of complete pushes, and carries out the orders that it gives.

When the training is over is for shard 0 alone to say: a follower cannot tell a worker that left from one that was lost.
Each follower opens two connections, one for each direction: `arrivals` to shard 0 and `orders` back. One that breaks is
opened anew, and what it did not carry is sent again (paceline/wire/resumable_stream.py).
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from paceline.server.gradients.gradient_norm import Key, Norms, norm_from_wire, norm_to_wire
from paceline.server.gradients.sequencer import event_from_wire, to_wire
from paceline.wire import retries
from paceline.wire.channel import Channel, remote_error, wait_for_bytes
from paceline.wire.frames import FrameKind, Header
from paceline.wire.resumable_stream import RECEIVED, ResumableReceiver, ResumableSender
from paceline_core.errors import PeerLost, ProtocolError
from paceline_core.state_machine import Action, Event, Joined, Pushed

BEGINS_AT = "begins_at"  # in READY: every shard must go on from the checkpoint of the same step
Arrived = Callable[[int, int, Joined | Pushed], None]  # of a pair, on a shard


class Follower:
    """What shard 0 knows of one other shard, whichever connections carry it."""

    def __init__(self) -> None:
        self.arrivals = ResumableReceiver()
        self.orders = ResumableSender(0, lambda: self.arrivals.received)
        self.ended = False  # it has heard that the training is over
        self.told_to_end = False  # by SIGTERM, and waits for a checkpoint
        self._open: Counter[str] = Counter()
        self._broken: dict[str, float] = {}  # since when a connection is missing
        self._lock = threading.Lock()

    @contextmanager
    def connected(self, name: str) -> Iterator[None]:
        """While one of its connections is open."""
        with self._lock:
            self._open[name] += 1
            self._broken.pop(name, None)
        try:
            yield
        finally:
            with self._lock:
                self._open[name] -= 1
                if not self._open[name]:
                    self._broken[name] = time.monotonic()

    def away_seconds(self) -> float:
        """For how long it has been without one of its connections."""
        with self._lock:
            return time.monotonic() - min(self._broken.values(), default=time.monotonic())


class FollowerConnections:
    """Shard 0's side."""

    def __init__(
        self,
        shards: int,
        arrived: Arrived,
        fail: Callable[[Exception], None],
        norms: Norms,
        saved: Callable[[int, dict[str, Any]], None] = lambda *_: None,
        begins_at: int = 0,
    ) -> None:
        self._begins_at = begins_at  # the step of the checkpoint that the training goes on from
        self._arrived, self._fail, self._norms, self._saved = arrived, fail, norms, saved
        self._followers = {ordinal: Follower() for ordinal in range(1, shards)}
        self._over_since: float | None = None
        self._let_end = False  # those that were told to
        self._news = threading.Condition()  # of followers that have heard of the end

    def give(self, pair: int, event: Event, actions: Sequence[Action]) -> None:
        """Send an order to every follower; called in the order of decisions."""
        if self._followers:
            self._tell(FrameKind.ORDER, to_wire(pair, event, actions))

    def give_norm(self, key: Key, squares: float) -> None:
        """Tell every follower the squared norm of a whole gradient."""
        self._tell(FrameKind.NORM, norm_to_wire(key, squares))

    def end(self, seconds: float) -> bool:
        """Tell every follower that the training is over; True once all have heard it, or cannot any more."""
        with self._news:
            if self._over_since is None:
                self._over_since = time.monotonic()
                self._tell(FrameKind.END, {})
            all_ended = self._news.wait_for(lambda: all(f.ended for f in self._followers.values()), seconds)
            return all_ended or time.monotonic() > self._over_since + retries.TRY_SECONDS

    def told_to_end(self) -> bool:
        """Whether a follower waits to end until a checkpoint is saved."""
        return not self._let_end and any(f.told_to_end for f in self._followers.values())

    def let_end(self) -> None:
        """Tell every follower that it need not wait, if it is told to end."""
        if not self._let_end:
            self._let_end = True
            self._tell(FrameKind.ENDING, {})

    def lost(self) -> PeerLost | None:
        """The error of a follower whose connection broke and did not come back, if there is one."""
        for ordinal, follower in self._followers.items():
            ends = follower.told_to_end and self._let_end
            if ends and follower.away_seconds() > 0:
                return PeerLost(f"ps-{ordinal} was told to end, and has ended")
            limit = retries.TRY_SECONDS
            if self._over_since is None and follower.away_seconds() > limit:
                return PeerLost(f"ps-{ordinal} was lost: its connection broke and it did not come back in {limit:g} s")
        return None

    def serve_orders(self, channel: Channel, hello: Header, asked: dict[str, Any]) -> None:
        """Keep the connection on which the follower hears; it sends nothing."""
        follower = self._followers[hello.worker]
        channel.send_json(Header(FrameKind.READY, channel.training), {BEGINS_AT: self._begins_at})
        with follower.connected("orders"):
            follower.orders.resume(channel, asked.get(RECEIVED))
            wait_for_bytes(channel)

    def serve_arrivals(self, channel: Channel, hello: Header, _: dict[str, Any]) -> None:
        """Hear what has arrived on a follower."""
        follower = self._followers[hello.worker]
        with follower.connected("arrivals"):
            with follower.arrivals.lock:
                received = follower.arrivals.received
            channel.send_json(Header(FrameKind.READY, channel.training), {RECEIVED: received})
            try:
                while True:
                    header = channel.header(idle=True)
                    value = channel.json(header)
                    follower.orders.acknowledged(header.version)
                    follower.arrivals.take(header, lambda h=header, v=value: self._hear(hello.worker, h.kind, v))  # type: ignore[misc]
            except (PeerLost, EOFError, ProtocolError):
                raise
            except Exception as error:  # nobody else hears of this shard's arrivals
                error.add_note(f"what arrived on ps-{hello.worker} could not be ordered")
                self._fail(error)
                raise

    def _hear(self, ordinal: int, kind: FrameKind, value: dict[str, Any]) -> None:
        match kind:
            case FrameKind.NORM:
                self._norms.add(ordinal, *norm_from_wire(value))
            case FrameKind.ARRIVED:
                pair, event = event_from_wire(value)
                self._arrived(pair, ordinal, event)
            case FrameKind.SAVED:
                self._saved(ordinal, value)
            case FrameKind.ENDING:
                self._followers[ordinal].told_to_end = True
            case FrameKind.ERROR:
                self._fail(remote_error(value))
            case FrameKind.END:
                with self._news:
                    self._followers[ordinal].ended = True
                    self._news.notify_all()

    def _tell(self, kind: FrameKind, value: dict[str, Any]) -> None:
        for follower in self._followers.values():
            follower.orders.send(kind, value)
