"""What workers tell about their steps, and that they are done."""

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from paceline.model_signature import Signature
from paceline.server.membership.membership import Membership, lost
from paceline.server.membership.places import Places
from paceline.server.observability.checksum_comparison import ChecksumComparison
from paceline.server.observability.reported_rows import checked, whole
from paceline.server.observability.training_status import TrainingStatus
from paceline.terminal import printable
from paceline.wire.channel import Channel
from paceline.wire.frames import PLACE_LIMIT, UNREADABLE, FrameKind, Header, number
from paceline_core.errors import NotFinite, ProtocolError, WeightsDiffer

STATE_BYTES = 1 << 30  # of one worker's state in a checkpoint
NAME_LENGTH = 500  # characters of a tensor's name


class WorkerStates(Protocol):
    """Takes workers' states for a checkpoint, and tells those to go on from."""

    def hear_worker(self, worker: int, step: int, data: bytes) -> None:
        """A worker's state for the checkpoint of `step`."""

    def worker_state(self, worker: int) -> bytes:
        """The state to go on from; b"" where there is none."""

    def replaced(self, worker: int, place: Callable[[int], bytes | None]) -> None:
        """Another goes on where a worker was; `place` tells where that was after so many updates."""


class Reports:
    """Serves the report connection of every worker, on shard 0 or the coordinator."""

    def __init__(
        self,
        membership: Membership,
        training_status: TrainingStatus,
        left: Callable[[int, int], None],
        fail: Callable[[Exception], None],
        states: WorkerStates | None = None,
        places: Places | None = None,
        made: Callable[[], int] = lambda: 0,
    ) -> None:
        self._places = places  # kept, where others wait for one in a lost worker's place
        self._made = made  # updates, where they are not counted here
        self._states = states
        self._fail = fail
        self._membership, self._training_status, self._left = membership, training_status, left
        self._checksums = ChecksumComparison(membership.world_size)
        self._told: dict[int, tuple[int, int]] = {}  # of each worker: incarnation, number of its last report
        self._telling = [threading.Lock() for _ in range(membership.world_size)]  # of each worker

    def serve(self, channel: Channel, hello: Header, asked: dict[str, Any]) -> None:
        """Serve one worker until it leaves."""
        try:
            signature, total = Signature.from_json(asked["signature"]), asked.get("total_steps")
            total_steps = None if total is None else whole(total)
        except UNREADABLE as error:
            raise ProtocolError("bad_payload", f"a HELLO without a signature: {error}") from error
        worker = hello.worker
        self._membership.connected(worker, hello.incarnation)
        try:
            self._membership.agree(worker, signature, channel)
            self._demand_place(worker, hello.incarnation)
            self._training_status.state(worker, "training", total_steps)
            channel.send_json(Header(FrameKind.READY, channel.training), {})
            self._listen(channel, worker)
        finally:
            self._membership.disconnected(worker)

    def _demand_place(self, worker: int, incarnation: int) -> None:
        """Who takes a lost worker's place needs it; without one all have to begin anew."""
        if self._places is None or not self._places.begins(worker, incarnation):
            return
        made = self._training_status.version
        if not self._places.of(worker, incarnation, made) or not self._training_status.replaceable(worker):
            self._fail(lost(worker))
        elif self._states is not None:
            self._states.replaced(worker, lambda step: self._places.at(worker, step) if self._places else None)

    def _listen(self, channel: Channel, worker: int) -> None:
        while True:
            header = channel.header(idle=True)
            if header.kind in (FrameKind.SNAPSHOT, FrameKind.KEPT):
                self._take_state(channel, header)
                continue
            value = channel.json(header)
            if header.kind is FrameKind.REPORT:
                self._take_report(header, value)
                channel.send_json(Header(FrameKind.READY, channel.training), {})
            elif header.kind is FrameKind.CLOCK:
                channel.send_json(Header(FrameKind.VALUE, channel.training), {"time": time.time()})
            elif header.kind is FrameKind.LEAVE:
                self._take_leave(channel, worker, header.incarnation)

    def _take_state(self, channel: Channel, header: Header) -> None:
        most = PLACE_LIMIT if header.kind is FrameKind.KEPT else STATE_BYTES
        if header.nbytes > most:
            raise ProtocolError("too_large", f"a state of {header.nbytes} bytes; at most {most} are allowed")
        data = bytes(channel.bytes(header))
        if not data and header.kind is FrameKind.SNAPSHOT:
            self._tell_state(channel, header)
            return
        if header.kind is FrameKind.KEPT:
            self._keep_place(header, data)
        elif self._states is not None:
            self._states.hear_worker(header.worker, header.step, data)
        channel.send_json(Header(FrameKind.READY, channel.training), {})

    def _keep_place(self, header: Header, data: bytes) -> None:
        if self._places is not None:
            self._places.hear(header, data)
            self._training_status.kept(header.worker, header.step if data else None)

    def _tell_state(self, channel: Channel, header: Header) -> None:
        """What a worker goes on from: the place that it takes, or else a checkpoint's."""
        made = self._made() or self._training_status.version
        place = self._places.of(header.worker, header.incarnation, made) if self._places is not None else b""
        saved = self._states.worker_state(header.worker) if self._states is not None and not place else b""
        kind = FrameKind.KEPT if place else FrameKind.SNAPSHOT
        channel.send(Header(kind, channel.training), (memoryview(place or saved),))

    def _take_report(self, header: Header, value: dict[str, Any]) -> None:
        """Count a report once, however often it is sent."""
        if header.step < 1:
            raise ProtocolError("bad_step", "reports are counted from 1")
        with self._telling[header.worker]:
            if (header.incarnation, header.step) > self._told.get(header.worker, (0, 0)):
                self._count(header.worker, value)
                self._told[header.worker] = header.incarnation, header.step

    def _take_leave(self, channel: Channel, worker: int, incarnation: int) -> None:
        newest = self._membership.is_newest(worker, incarnation)
        if newest:
            self._training_status.state(worker, "finished")
            self._check_finite()
        channel.send_json(Header(FrameKind.READY, channel.training), {})
        if newest:
            self._left(worker, incarnation)
            self._membership.leave(worker, incarnation)

    def _check_finite(self) -> None:
        """Now that this worker is done nobody waits for what it might tell."""
        try:
            self._training_status.demand_finite()
        except NotFinite as error:
            self._fail(error)

    def _count(self, worker: int, value: dict[str, Any]) -> None:
        try:
            rows = [checked(row) for row in value["rows"]]
            reported = {name: number(told) for name, told in value["reported"].items()}
            self._training_status.went_on(worker, whole(value.get("went_on", 0)))
            self._training_status.report(worker, rows, reported)
            for step, name in value.get("gradients", ()):
                self._training_status.gradient_not_finite(worker, whole(step), printable(str(name), NAME_LENGTH))
            for name in value.get("not_finite", ()):
                self._training_status.weights_not_finite(printable(str(name), NAME_LENGTH))
            self._checksums.hear(worker, value.get("weights", ()))
            self._training_status.demand_finite()
        except (OSError, WeightsDiffer, NotFinite) as error:  # an OSError: the log of steps cannot be written
            self._fail(error)
            return
        except UNREADABLE as error:
            raise ProtocolError("bad_payload", f"a REPORT that cannot be read: {error}") from error
