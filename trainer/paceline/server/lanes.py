"""Lanes: the connections over which workers send gradients and receive parameters."""

import threading
from collections.abc import Callable
from typing import Any

from paceline import metrics
from paceline.metrics import Instruments
from paceline.server.executor import Executor, Outcome, waited_for
from paceline.server.inbox import Inbox
from paceline.server.roll import Roll
from paceline.server.shard import Push, Shard
from paceline.signature import Signature
from paceline.wire.channel import Channel
from paceline.wire.frames import Header, Kind
from paceline_core.errors import ProtocolError
from paceline_core.launch import Launch
from paceline_core.strategy import Joined, Pushed

Arrived = Callable[[Joined | Pushed], None]


class Lanes:
    """Serves the lanes of all workers on one shard; `arrived` is told of each push that is complete."""

    def __init__(
        self,
        launch: Launch,
        roll: Roll,
        instruments: Instruments,
        arrived: Arrived,
        waiting_for: Callable[[], tuple[int, ...]],
        new_executor: Callable[[Shard], Executor],
    ) -> None:
        self.launch, self.roll, self.metrics = launch, roll, instruments
        self.arrived, self.waiting_for, self._new_executor = arrived, waiting_for, new_executor
        self.count = launch.spec.gradients.connections
        self.initialised = False
        self._inboxes: dict[int, Inbox] = {}
        self._open: dict[tuple[int, int], Channel] = {}
        self._lock = threading.Lock()
        self._executor: Executor | None = None

    @property
    def executor(self) -> Executor | None:
        """The executor; None until worker 0 has told what there is to train."""
        return self._executor

    def serve(self, channel: Channel, hello: Header, asked: dict[str, Any]) -> None:
        """Serve one lane until its worker is done with it."""
        try:
            signature, number = Signature.from_json(asked["signature"]), int(asked["lane"])
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError("bad_payload", f"a HELLO without a signature or lane: {error}") from error
        if not 0 <= number < self.count:
            raise ProtocolError("bad_channel", f"lane {number} of {self.count}")
        self.roll.connected(hello.worker, hello.incarnation)
        try:
            executor = self._prepare(self.roll.agree(hello.worker, signature))
            inbox = self._replace(hello.worker, number, channel, len(executor.shard.buckets))
            channel.patience(self.launch.spec.gradients.timeout_seconds)
            channel.send_json(Header(Kind.READY, channel.training), {"initialised": self.initialised})
            Lane(self, executor, channel, inbox, hello.worker, number).run()
        finally:
            self.roll.disconnected(hello.worker)

    def _prepare(self, signature: Signature) -> Executor:
        with self._lock:
            if self._executor is None:
                spec = self.launch.spec
                bucket_bytes = int(spec.gradients.bucket_mib * (1 << 20))
                shard = Shard(signature, self.launch.ordinal, spec.server.replicas, bucket_bytes)
                self._executor = self._new_executor(shard)
            return self._executor

    def _replace(self, worker: int, number: int, channel: Channel, buckets: int) -> Inbox:
        """Take the lane over from a connection that broke, which must not write any more."""
        with self._lock:
            inbox = self._inboxes.setdefault(worker, Inbox(buckets, self.count))
            before = self._open.get((worker, number))
            self._open[worker, number] = channel
        if before is not None:
            before.close()
        with inbox.lane_locks[number]:
            return inbox


class Lane:
    """One worker's connection number `number` to one shard: it carries the buckets whose index fits the number."""

    def __init__(
        self, lanes: Lanes, executor: Executor, channel: Channel, inbox: Inbox, worker: int, number: int
    ) -> None:
        self.lanes, self.executor, self.channel, self.inbox = lanes, executor, channel, inbox
        self.shard, self.worker, self.number = executor.shard, worker, number
        self.buckets = range(number, len(self.shard.buckets), lanes.count)
        self.carries_statics = lanes.launch.ordinal == 0 and number == 0
        self._counted = (0, 0)

    def run(self) -> None:
        """Take frames until the worker closes the connection."""
        while True:
            header = self.channel.header(idle=True)
            if header.worker != self.worker:
                raise ProtocolError("bad_worker", f"{self.channel.peer} speaks for worker-{header.worker}")
            match header.kind:
                case Kind.PUSH | Kind.INITIAL:
                    self._receive(header)
                case Kind.STATICS:
                    self._receive_statics(header)
                case Kind.JOIN:
                    self._join(header)
                case Kind.COMMIT:
                    self._commit(header)
                case _:
                    raise ProtocolError("unexpected", f"{header.kind.name} on a lane")

    def _receive(self, header: Header) -> None:
        if header.bucket not in self.buckets:
            raise ProtocolError("bad_bucket", f"bucket {header.bucket} is not one of this lane")
        initial = header.kind is Kind.INITIAL
        if initial and (self.worker != 0 or self.lanes.initialised):
            raise ProtocolError("unexpected", "first parameters come once, from worker 0")
        with self.inbox.lane_locks[self.number]:
            if not self.inbox.wants((header.incarnation, header.step)):
                self.channel.skip(header)
                return
            held = self.shard.parameters if initial else self.shard.gradients(self.worker)
            self.channel.into(header, held[header.bucket].view)
            self.inbox.received(header.bucket)

    def _receive_statics(self, header: Header) -> None:
        if not self.carries_statics or self.worker != 0 or header.bucket > 1:
            raise ProtocolError("unexpected", "buffers come from worker 0, on the first lane of shard 0")
        signature = self.shard.signature
        size = sum(t.nbytes for t in (signature.frozen, signature.buffers)[header.bucket])
        if header.nbytes != size:
            raise ProtocolError("bad_size", f"STATICS of {header.nbytes} bytes, {size} expected")
        data = bytearray(size)
        self.channel.into(header, memoryview(data))
        if not self.inbox.wants((header.incarnation, header.step)):
            return
        if header.bucket == 0:
            self.executor.frozen = bytes(data)
        elif header.step == 0:
            self.executor.statics = bytes(data)
        else:
            self.executor.incoming[0] = bytes(data)

    def _join(self, header: Header) -> None:
        self.channel.json(header)
        key, first = (header.incarnation, 0), self.worker == 0 and not self.lanes.initialised
        if self.inbox.commit(key, self.number, needs_buckets=first):
            self.lanes.initialised |= self.worker == 0
            self.lanes.arrived(Joined(self.worker, header.incarnation))
        outcome = self._outcome(key, self.lanes.launch.spec.run_policy.start_timeout_seconds)
        self._reply(outcome, with_frozen=True)

    def _commit(self, header: Header) -> None:
        try:
            value = self.channel.json(header)
            push = Push([int(i) for i in value["absent"]], [dict(s) for s in value["settings"]], header.step)
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError("bad_payload", f"a COMMIT without settings: {error}") from error
        if len(push.settings) != len(self.shard.signature.settings):
            raise ProtocolError("bad_payload", "a COMMIT with another number of parameter groups")
        key = (header.incarnation, header.step)
        if header.step == 0:
            raise ProtocolError("bad_step", "steps are counted from 1")
        if self.inbox.commit(key, self.number):
            self.executor.pushes[self.worker] = push
            self.lanes.arrived(Pushed(self.worker, header.incarnation, header.step, header.version))
        self._reply(self._outcome(key, self.lanes.launch.spec.gradients.timeout_seconds), with_frozen=False)

    def _outcome(self, key: tuple[int, int], timeout: float) -> Outcome:
        follower = self.lanes.launch.ordinal > 0
        outcome = self.executor.outcome(self.worker, *key, timeout + (5 if follower else 0))
        if outcome is None:
            raise waited_for(self.lanes.waiting_for(), timeout)
        return outcome

    def _reply(self, outcome: Outcome, with_frozen: bool) -> None:
        start = Header(
            Kind.APPLIED if outcome.accepted else Kind.REJECTED,
            self.channel.training, self.worker, outcome.incarnation, outcome.step, outcome.version,
        )  # fmt: skip
        self.channel.send_json(start, {"delay": outcome.delay, "reason": outcome.reason})
        if self.carries_statics:
            statics = (self.executor.frozen, outcome.statics) if with_frozen else (outcome.statics,)
            for data in statics:
                self.channel.send(Header(Kind.STATICS, self.channel.training), (memoryview(data),))
        for bucket in self.buckets:
            self.executor.ready(outcome, bucket)
            header = Header(Kind.PARAMETERS, self.channel.training, bucket=bucket, version=outcome.version)
            self.channel.send(header, (self.executor.reply_memory(self.worker, bucket),))
        self._count()

    def _count(self) -> None:
        now = (self.channel.received, self.channel.sent)
        for direction, total, before in zip(("received", "sent"), now, self._counted, strict=True):
            self.lanes.metrics.add(metrics.SERVER_BYTES, total - before, direction)
        self._counted = now
