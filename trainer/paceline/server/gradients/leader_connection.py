"""A follower's side of paceline/server/gradients/followers.py: its two connections to shard 0."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from paceline.server.gradients.followers import BEGINS_AT
from paceline.server.gradients.gradient_norm import Key, Norms, norm_from_wire, norm_to_wire
from paceline.server.gradients.sequencer import event_to_wire, from_wire
from paceline.wire import endpoint, retries
from paceline.wire.channel import Channel, error_to_wire, remote_error, wait_for_bytes
from paceline.wire.frames import FrameKind, Header
from paceline.wire.resumable_stream import RECEIVED, ResumableReceiver, ResumableSender
from paceline.wire.retries import Attempts, persist
from paceline_core.errors import CheckpointDamaged, PeerLost, ProtocolError
from paceline_core.launch import Launch
from paceline_core.state_machine import Action, Event, Joined, Pushed

GONE_SECONDS = 1.0  # without a connection, for a shard 0 for which nobody waits who is told to end
STABLE_SECONDS = 1.0  # a connection that has held for so long was a good one


@dataclass
class Reopened:
    """A connection that is opened anew when it breaks. `progress` counts the frames that have got through."""

    channel: Channel
    open: Callable[[], Channel]
    progress: Callable[[], int]
    attempts: Attempts = field(default_factory=Attempts)
    since: float = field(default_factory=time.monotonic)
    before: int = 0

    def again(self, error: PeerLost | ProtocolError) -> None:
        """Open another, after one that ended with this error. Raises PeerLost, ProtocolError when that is no use."""
        self.channel.close()
        if self.progress() > self.before or time.monotonic() > self.since + STABLE_SECONDS:
            self.attempts.succeeded()
        self.before = self.progress()
        while True:
            self.attempts.failed(error)
            self.attempts.pause()
            try:
                self.channel, self.since = self.open(), time.monotonic()
                return
            except (PeerLost, ProtocolError) as failure:
                error = failure


class LeaderConnection:
    """Tells shard 0 what arrives here, and follows its orders."""

    def __init__(
        self, launch: Launch, follow: Callable[[int, Event, list[Action]], None], norms: Norms, begins_at: int = 0
    ) -> None:
        self._launch, self._follow, self._norms, self._begins_at = launch, follow, norms, begins_at
        self._answered = time.monotonic()  # when the connection was last seen unbroken, since this shard is to end
        self.ends = self._asked_to_end = False  # whether it may end, when it is told to
        self._received = ResumableReceiver()
        self._sent = ResumableSender(launch.ordinal, lambda: self._received.received)
        patience = launch.start_limit
        self._orders = Reopened(
            persist(lambda: self._open_orders(patience)), self._open_orders, lambda: self._received.received
        )
        self._arrivals = Reopened(
            persist(lambda: self._open_arrivals(patience)), self._open_arrivals, lambda: self._sent.delivered
        )

    def arrived(self, pair: int, event: Joined | Pushed) -> None:
        """Tell shard 0 that a push is complete here."""
        self._sent.send(FrameKind.ARRIVED, event_to_wire(pair, event))

    def tell_norm(self, key: Key, squares: float) -> None:
        """Tell shard 0 the squared norm of this shard's part of a gradient."""
        self._sent.send(FrameKind.NORM, norm_to_wire(key, squares))

    def tell_saved(self, value: dict[str, Any]) -> None:
        """Tell shard 0 that this shard's part of a checkpoint is written."""
        self._sent.send(FrameKind.SAVED, value)

    def lets_end(self) -> bool:
        """Whether this shard, which was told to end, may: shard 0 saves a checkpoint before."""
        if not self.ends and not self._asked_to_end:
            self._asked_to_end, self._answered = True, time.monotonic()
            self._sent.send(FrameKind.ENDING, {})
        if not self._arrivals.channel.is_broken():
            self._answered = time.monotonic()
        return self.ends or time.monotonic() > self._answered + GONE_SECONDS

    def tell_failure(self, error: Exception) -> None:
        """Tell shard 0 why this shard ends."""
        self._sent.send(FrameKind.ERROR, error_to_wire(error))

    def listen(self) -> None:
        """Follow orders until shard 0 says that the training is over. Raises PacelineError."""
        while True:
            wait_for_bytes(self._orders.channel, self._arrivals.channel)
            if self._arrivals.channel.is_broken():  # shard 0 sends nothing on it
                self._arrivals.again(PeerLost("ps-0 ended the connection for arrivals"))
            elif (order := self._next_order()) is not None:
                header, value = order
                self._sent.acknowledged(header.version)
                self._received.take(header, lambda h=header, v=value: self._carry_out(h.kind, v))  # type: ignore[misc]
                if header.kind is FrameKind.END:
                    self._sent.send(FrameKind.END, {})  # it has been heard
                    return

    def close(self) -> None:
        """End both connections."""
        self._orders.channel.close()
        self._arrivals.channel.close()

    def _next_order(self) -> tuple[Header, dict[str, Any]] | None:
        """A frame of shard 0; None when the connection broke, and there is a new one."""
        channel = self._orders.channel
        try:
            header = channel.header()
            value = channel.json(header)
        except EOFError:
            self._orders.again(PeerLost("ps-0 closed the connection"))
        except (PeerLost, ProtocolError) as error:
            self._orders.again(error)
        else:
            if header.kind is FrameKind.ERROR:
                raise remote_error(value)
            return header, value
        return None

    def _carry_out(self, kind: FrameKind, value: dict[str, Any]) -> None:
        match kind:
            case FrameKind.ORDER:
                self._follow(*from_wire(value))
            case FrameKind.NORM:
                self._norms.known(*norm_from_wire(value))
            case FrameKind.ENDING:
                self.ends = True
            case FrameKind.END:
                pass  # `listen` ends with it
            case _:
                raise ProtocolError("unexpected", f"{kind.name} from shard 0")

    def _open_orders(self, patience: float | None = None) -> Channel:
        channel, ready = self._connect("orders", {RECEIVED: self._received.received}, patience)
        if (step := ready.get(BEGINS_AT)) != self._begins_at:
            channel.close()
            raise CheckpointDamaged(
                f"{self._launch.name} goes on from step {self._begins_at} and ps-0 from step {step}: one of them "
                "cannot read the newest checkpoint"
            )
        return channel

    def _open_arrivals(self, patience: float | None = None) -> Channel:
        channel, ready = self._connect("arrivals", {}, patience)
        self._sent.resume(channel, ready.get(RECEIVED))
        return channel

    def _connect(self, name: str, more: dict[str, Any], patience: float | None) -> tuple[Channel, dict[str, Any]]:
        launch, training = self._launch, bytes.fromhex(self._launch.training_id)
        channel = endpoint.connect(
            launch.servers[0], training, "ps-0", launch.tls, retries.TRY_SECONDS if patience is None else patience,
            launch.step_limit,
        )  # fmt: skip
        hello = Header(FrameKind.HELLO, training, worker=launch.ordinal)
        return channel, channel.introduce(hello, {"role": "server", "channel": name, **more})
