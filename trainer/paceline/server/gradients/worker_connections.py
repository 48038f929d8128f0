"""The connections over which workers send gradients and receive parameters."""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from paceline import metrics, optimizer_state, optimizers, untrained_codec
from paceline.metrics import Instruments
from paceline.model_signature import Signature
from paceline.server.gradients.executor import Executor, Outcome, waited_for
from paceline.server.gradients.incoming_push import IncomingPush
from paceline.server.gradients.shard import Push, Shard
from paceline.server.membership.membership import PRESENCE_SECONDS, Membership
from paceline.wire.channel import Channel
from paceline.wire.connections import MOST_PAIRS
from paceline.wire.frames import UNREADABLE, FrameKind, Header
from paceline_core.errors import PeerLost, ProtocolError
from paceline_core.launch import Launch
from paceline_core.state_machine import Joined, Pushed

Arrived = Callable[[int, Joined | Pushed], None]  # of a pair


class WorkerConnections:
    """Serves the connections of all workers to one shard; `arrived` is told of each push that is complete.

    Each pair of a model and an optimizer (one call of paceline.distribute) has connections and an executor of its own.
    """

    def __init__(
        self,
        launch: Launch,
        membership: Membership,
        instruments: Instruments,
        arrived: Arrived,
        waiting_for: Callable[[int], tuple[int, ...]],
        new_executor: Callable[[int, Shard], Executor],
    ) -> None:
        self.launch, self.membership, self.metrics = launch, membership, instruments
        self.arrived, self.waiting_for, self._new_executor = arrived, waiting_for, new_executor
        self.count = launch.spec.gradients.connections
        self.initialised: set[int] = set()  # pairs whose first parameters are here
        self.executors: dict[int, Executor] = {}  # of the pairs that worker 0 has told of
        self._incoming: dict[tuple[int, int], IncomingPush] = {}
        self._open: dict[tuple[int, int, int], Channel] = {}
        self._lock = threading.Lock()

    def serve(self, channel: Channel, hello: Header, asked: dict[str, Any]) -> None:
        """Serve one connection until its worker is done with it."""
        try:
            signature, number = Signature.from_json(asked["signature"]), int(asked["lane"])
            pair = int(asked["pair"])
        except UNREADABLE as error:
            raise ProtocolError("bad_payload", f"a HELLO without a signature or lane: {error}") from error
        if not 0 <= number < self.count:
            raise ProtocolError("bad_channel", f"lane {number} of {self.count}")
        if not 0 <= pair < MOST_PAIRS:
            raise ProtocolError("bad_channel", f"pair {pair}: a script may distribute {MOST_PAIRS} optimizers")
        self.membership.connected(hello.worker, hello.incarnation)
        try:
            executor = self._prepare(pair, self.membership.agree(hello.worker, signature, channel, pair))
            incoming = self._replace(pair, hello.worker, number, channel, len(executor.shard.buckets))
            channel.patience(self.launch.step_limit)
            channel.send_json(Header(FrameKind.READY, channel.training), {"initialised": pair in self.initialised})
            WorkerConnection(self, pair, executor, channel, incoming, hello.worker, number).run()
        finally:
            self.membership.disconnected(hello.worker)

    def _prepare(self, pair: int, signature: Signature) -> Executor:
        with self._lock:
            if pair not in self.executors:
                self.executors[pair] = self._new_executor(pair, self._new_shard(signature))
            return self.executors[pair]

    def _new_shard(self, signature: Signature) -> Shard:
        spec = self.launch.spec
        bucket_bytes = int(spec.gradients.bucket_mib * (1 << 20))
        try:
            return Shard(signature, self.launch.ordinal, spec.server.replicas, bucket_bytes, spec.server.optimizers)
        except (*UNREADABLE, RuntimeError) as error:  # of the optimizer; a user's own may raise others
            raise ProtocolError("bad_payload", f"a signature of which no shard can be made: {error}") from error

    def _replace(self, pair: int, worker: int, number: int, channel: Channel, buckets: int) -> IncomingPush:
        """Take the place of a connection of this number that broke, which must not write any more."""
        with self._lock:
            incoming = self._incoming.setdefault((pair, worker), IncomingPush(buckets, self.count))
            before = self._open.get((pair, worker, number))
            self._open[pair, worker, number] = channel
        if before is not None:
            before.close()
        with incoming.connection_locks[number]:
            return incoming


class WorkerConnection:
    """One worker's connection number `number` to one shard: it carries the buckets whose index fits the number."""

    def __init__(
        self,
        connections: WorkerConnections,
        pair: int,
        executor: Executor,
        channel: Channel,
        incoming: IncomingPush,
        worker: int,
        number: int,
    ) -> None:
        self.connections, self.pair, self.executor, self.shard = connections, pair, executor, executor.shard
        self.channel, self.incoming, self.worker, self.number = channel, incoming, worker, number
        self.buckets = range(number, len(self.shard.buckets), connections.count)
        self.carries_state = number == 0
        self.carries_untrained = connections.launch.ordinal == 0 and number == 0
        self._counted = (0, 0)
        self._settings: Sequence[Mapping[str, Any]] | None = None  # the last that were looked at

    @property
    def initialised(self) -> bool:
        """Whether the first parameters are here."""
        return self.pair in self.connections.initialised

    def run(self) -> None:
        """Take frames until the worker closes the connection."""
        while True:
            header = self.channel.header(idle=True)
            match header.kind:
                case FrameKind.PUSH | FrameKind.INITIAL:
                    self._receive(header)
                case FrameKind.STATICS:
                    self._receive_untrained(header)
                case FrameKind.STATE:
                    self._receive_state(header)
                case FrameKind.JOIN:
                    self._join(header)
                case FrameKind.COMMIT:
                    self._commit(header)
                case FrameKind.ASK_STATE:
                    self._tell_state(header)

    def _receive(self, header: Header) -> None:
        if header.bucket not in self.buckets:
            raise ProtocolError("bad_bucket", f"bucket {header.bucket} is not one of this lane")
        initial, first = header.kind is FrameKind.INITIAL, header.step == 0
        if first and (not initial or self.worker != 0 or self.initialised):
            raise ProtocolError("unexpected", "first parameters come once, from worker 0")
        if header.nbytes != self.shard.buckets[header.bucket].nbytes:
            raise ProtocolError("bad_size", f"{header.nbytes} bytes for bucket {header.bucket}")
        with self.incoming.connection_locks[self.number]:
            if not self.incoming.wants((header.incarnation, header.step)):
                self.channel.skip(header)
                return
            if initial and not first:
                self.channel.into(header, self.incoming.changed_values(header.bucket, self.shard).view)
                return
            held = self.shard.parameters if initial else self.shard.gradients(self.worker)
            self.channel.into(header, held[header.bucket].view)
            self.incoming.received(header.bucket)

    def _receive_untrained(self, header: Header) -> None:
        infos = self.shard.signature.untrained
        if not self.carries_untrained:
            raise ProtocolError("unexpected", "buffers come on the first lane of shard 0")
        given = untrained_codec.decode(self._payload(header, untrained_codec.limit(infos)), infos)
        with self.incoming.connection_locks[self.number]:
            if self.incoming.wants((header.incarnation, header.step)):
                self.executor.sent_untrained[self.worker] = header.incarnation, given

    def _receive_state(self, header: Header) -> None:
        if not self.carries_state:
            raise ProtocolError("unexpected", "an optimizer's state comes on the first lane")
        data = self._payload(header, optimizer_state.limit(self.shard.buckets))
        with self.incoming.connection_locks[self.number]:
            if self.incoming.wants((header.incarnation, header.step)):
                self.incoming.state = bytes(data)

    def _payload(self, header: Header, most: int) -> bytearray:
        if header.nbytes > most:
            raise ProtocolError("too_large", f"{header.kind.name} of {header.nbytes} bytes, at most {most} expected")
        data = bytearray(header.nbytes)
        self.channel.into(header, memoryview(data))
        return data

    def _tell_state(self, header: Header) -> None:
        self.channel.skip(header)
        try:
            data = self.executor.optimizer_state(self.connections.launch.step_limit)
        except FutureTimeout:
            raise PeerLost("the server is too busy to tell its optimizer's state") from None
        self.channel.send(Header(FrameKind.STATE, self.channel.training), (memoryview(data),))

    def _join(self, header: Header) -> None:
        self.channel.json(header)
        key, first = (header.incarnation, 0), self.worker == 0 and not self.initialised
        if self.incoming.commit(key, self.number, needs_buckets=first):
            if self.worker == 0:
                self.connections.initialised.add(self.pair)
            self.connections.arrived(self.pair, Joined(self.worker, header.incarnation))
        self._reply(self._outcome(key, self.connections.launch.start_limit))

    def _commit(self, header: Header) -> None:
        push, final = self._read(header)
        key = (header.incarnation, header.step)
        if header.step == 0:
            raise ProtocolError("bad_step", "steps are counted from 1")
        if self.incoming.commit(key, self.number, needs_buckets=not final):
            push.values, push.state = self.incoming.values, self.incoming.state
            if not self.shard.holds(push.changed) <= push.values.keys():
                raise ProtocolError("incomplete", "changed parameters without their values")
            if final:
                self.executor.final[self.worker] = push
            else:
                self.executor.pushes[self.worker] = push
                self.connections.arrived(
                    self.pair, Pushed(self.worker, header.incarnation, header.step, header.version)
                )
        if final:
            self.channel.send_json(Header(FrameKind.READY, self.channel.training), {})
            return
        self._reply(self._outcome(key, self.connections.launch.step_limit))

    def _read(self, header: Header) -> tuple[Push, bool]:
        """The push that a COMMIT ends, and whether it is only what the script changed after its last step."""
        try:
            value = self.channel.json(header)
            push = Push(
                absent=frozenset(int(i) for i in value["absent"]),
                settings=[dict(s) for s in value["settings"]],
                step=header.step,
                unscale=float(value.get("unscale", 1.0)),
                found_inf=bool(value.get("found_inf", False)),
                not_finite=None if value.get("not_finite") is None else int(value["not_finite"]),
                changed=frozenset(int(i) for i in value.get("changed", ())),
                certain=frozenset(int(i) for i in value.get("certain", ())),
                loaded=bool(value.get("state", False)),
                touched=frozenset(int(i) for i in value.get("touched", ())),
                version=header.version,
            )
        except UNREADABLE as error:
            raise ProtocolError("bad_payload", f"a COMMIT without settings: {error}") from error
        signature = self.shard.signature
        if push.settings != self._settings:
            if not optimizers.same_options(push.settings, signature.settings):
                raise ProtocolError("bad_payload", "a COMMIT with other settings than the optimizer has")
            self._settings = push.settings
        if not (0 < push.unscale < math.inf):
            raise ProtocolError("bad_payload", f"a COMMIT whose scale is {push.unscale}")
        named = {push.not_finite} - {None}
        if not push.absent | push.changed | push.certain | named <= set(range(len(signature.parameters))):
            raise ProtocolError("bad_payload", "a COMMIT that names parameters that there are not")
        return push, bool(value.get("final", False))

    def _outcome(self, key: tuple[int, int], timeout: float) -> Outcome:
        follower = self.connections.launch.ordinal > 0
        limit = time.monotonic() + timeout + (5 if follower else 0)
        while (left := limit - time.monotonic()) > 0:
            if outcome := self.executor.outcome(self.worker, *key, min(PRESENCE_SECONDS, left)):
                return outcome
            if self.channel.is_broken():
                raise PeerLost(f"{self.channel.peer} is gone")
        raise waited_for(self.connections.waiting_for(self.pair), timeout)

    def _reply(self, outcome: Outcome) -> None:
        start = Header(
            FrameKind.APPLIED if outcome.accepted else FrameKind.REJECTED,
            self.channel.training, self.worker, outcome.incarnation, outcome.step, outcome.version,
        )  # fmt: skip
        answer = {"delay": outcome.delay, "reason": outcome.reason, "lowest": outcome.lowest}
        more = ({"ignored": True} if outcome.ignored else {}) | ({"save": outcome.save} if outcome.save else {})
        more |= {"last": True} if outcome.last else {}
        self.channel.send_json(start, answer | more)
        if self.carries_untrained:
            untrained = untrained_codec.encode(outcome.untrained)
            self.channel.send(Header(FrameKind.STATICS, self.channel.training), untrained, more=bool(self.buckets))
        for bucket in self.buckets:
            self.executor.ready(outcome, bucket)
            header = Header(FrameKind.PARAMETERS, self.channel.training, bucket=bucket, version=outcome.version)
            self.channel.send(header, (self.executor.reply_memory(self.worker, bucket),))
        self._count()

    def _count(self) -> None:
        now = (self.channel.received, self.channel.sent)
        for direction, total, before in zip(("received", "sent"), now, self._counted, strict=True):
            self.connections.metrics.add(metrics.SERVER_BYTES, total - before, direction)
        self._counted = now
