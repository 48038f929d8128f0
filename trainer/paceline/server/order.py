"""How the other shards follow shard 0: each tells it of complete pushes, and carries out the orders that it gives.

When the training is over is for shard 0 alone to say: a follower cannot tell a worker that left from one that was lost.
Two connections for each follower, each used in one direction: `arrivals` (follower to shard 0) and `orders` (back).
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from paceline.server.sequencer import Sequencer, event_from_wire, event_to_wire, from_wire, to_wire
from paceline.wire import endpoint
from paceline.wire.channel import Channel
from paceline.wire.frames import Header, Kind
from paceline_core.errors import PeerLost, ProtocolError
from paceline_core.launch import Launch
from paceline_core.strategy import Action, Event, Joined, Pushed


class Followers:
    """Shard 0's side."""

    def __init__(self, sequencer: Callable[[], Sequencer], fail: Callable[[Exception], None]) -> None:
        self._sequencer, self._fail = sequencer, fail
        self._orders: dict[int, Channel] = {}
        self._lock = threading.Lock()  # one frame at a time, and the last one last
        self._over = False
        self._closing = threading.Event()

    def give(self, event: Event, actions: Sequence[Action]) -> None:
        """Send an order to every follower; called in the order of decisions."""
        self._tell(Kind.ORDER, to_wire(event, actions))

    def end(self) -> None:
        """Tell every follower that the training is over."""
        self._tell(Kind.END, {})

    def _tell(self, kind: Kind, value: dict[str, Any]) -> None:
        with self._lock:
            if self._over:
                return
            self._over = kind is Kind.END
            for channel in self._orders.values():
                try:
                    channel.send_json(Header(kind, channel.training), value)
                except PeerLost as error:
                    self._fail(error)

    def serve_orders(self, channel: Channel, hello: Header, asked: dict[str, Any]) -> None:
        """Keep the connection on which the follower hears."""
        channel.peer = f"{asked['role']}-{hello.worker}"
        with self._lock:
            channel.send_json(Header(Kind.READY, channel.training), {})
            self._orders[hello.worker] = channel
        self._closing.wait()

    def serve_arrivals(self, channel: Channel, hello: Header, asked: dict[str, Any]) -> None:
        """Hear what has arrived on a follower."""
        channel.peer = f"{asked['role']}-{hello.worker}"
        channel.send_json(Header(Kind.READY, channel.training), {})
        try:
            while True:
                header = channel.header(idle=True)
                if header.kind is not Kind.ARRIVED:
                    raise ProtocolError("unexpected", f"{header.kind.name} from a follower")
                self._sequencer().arrived(hello.worker, event_from_wire(channel.json(header)))
        except (PeerLost, EOFError, ProtocolError) as error:
            if not self._over and not self._closing.is_set():
                self._fail(PeerLost(f"ps-{hello.worker} was lost: {error}"))
            raise

    def close(self) -> None:
        """No more orders."""
        self._closing.set()


class Leader:
    """A follower's side: its two connections to shard 0."""

    def __init__(self, launch: Launch, follow: Callable[[Event, list[Action]], None]) -> None:
        self._launch, self._follow = launch, follow
        self._lock = threading.Lock()
        self._orders = self._connect("orders")
        self._arrivals = self._connect("arrivals")

    def arrived(self, event: Joined | Pushed) -> None:
        """Tell shard 0 that a push is complete here."""
        with self._lock:
            self._arrivals.send_json(Header(Kind.ARRIVED, self._arrivals.training), event_to_wire(event))

    def listen(self) -> None:
        """Follow orders until shard 0 says that the training is over. Raises EOFError, PeerLost, ProtocolError."""
        while (header := self._orders.header(idle=True)).kind is not Kind.END:
            if header.kind is not Kind.ORDER:
                raise ProtocolError("unexpected", f"{header.kind.name} from shard 0")
            self._follow(*from_wire(self._orders.json(header)))

    def close(self) -> None:
        """End both connections."""
        self._orders.close()
        self._arrivals.close()

    def _connect(self, name: str) -> Channel:
        launch, training = self._launch, bytes.fromhex(self._launch.training_id)
        policy = launch.spec.run_policy
        channel = endpoint.connect(
            launch.servers[0], training, "ps-0", launch.tls, policy.start_timeout_seconds,
            launch.spec.gradients.timeout_seconds,
        )  # fmt: skip
        hello = Header(Kind.HELLO, training, worker=launch.ordinal)
        channel.introduce(hello, {"role": "server", "channel": name})
        return channel
