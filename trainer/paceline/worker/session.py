"""A worker's session with the parameter servers: join once, then exchange gradients for parameters at each step."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from paceline import metrics, optimizers
from paceline.memory import memory
from paceline.wire.frames import Header, Kind
from paceline.worker.describe import describe, frozen_parameters, trained_parameters
from paceline.worker.gradients import Gradients
from paceline.worker.lane import Answer, Commit, Lane, answers
from paceline.worker.measuring import Measuring
from paceline.worker.observer import Observer
from paceline.worker.record import LastStep, Record
from paceline.worker.reporter import Reporter
from paceline.worker.steps import Steps
from paceline.worker.targets import Targets
from paceline_core.errors import UsageError
from paceline_core.launch import Launch


class Session:
    """The exchange of one worker. `push_and_pull` is what the user's optimizer.step() becomes."""

    def __init__(
        self,
        launch: Launch,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        measuring: Measuring,
        total_steps: int | None,
    ) -> None:
        optimizers.check(optimizer)
        self.launch, self._model, self._optimizer = launch, model, optimizer
        self._metrics, self.clock, self._brake = measuring.metrics, measuring.clock, measuring.brake
        self._signature = describe(model, optimizer)
        gradients = launch.spec.gradients
        self._plan = self._signature.plan(launch.spec.server.replicas, int(gradients.bucket_mib * (1 << 20)))
        self._parameters = trained_parameters(optimizer)
        self._bytes = sum(p.numel() * p.element_size() for p in self._parameters)
        self._targets = Targets(self._parameters)
        self._lanes = self._connect()
        self._buffers = Statics([b for _, b in model.named_buffers()])
        self._version = 0
        self.observer = Observer(model, self._parameters, self.clock, self._brake)
        self.number = 0  # of the last step
        self.gradients = Gradients(
            self._parameters, self._signature, self._plan, self._push, self.observer.gradient_ready, gradients.overlap
        )
        self._join(Statics(frozen_parameters(model, optimizer)))
        measuring.describe(self._parameters[0].device, "paceline", launch.node)
        record = Record(self._metrics, self.observer.device, self._bytes)
        self.reporter = Reporter(launch, self._signature, total_steps, record, measuring.clocks_compared)
        self.steps = Steps(measuring, self.reporter, self.observer)

    def step(self) -> None:
        """Push this step's gradients, and return when the model holds the parameters for the next forward pass."""
        ready = self.observer.last_ready or time.perf_counter()
        self.observer.backward_ended()
        self.clock.enter("encode")
        self.steps.look_at(self._parameters)
        absent = self.gradients.finish()
        if len(self._optimizer.param_groups) != len(self._signature.settings):
            raise UsageError("a parameter group was added after paceline.distribute(): add it before")
        payload = {"absent": absent, "settings": optimizers.settings(self._optimizer)}
        statics = [(1, self._buffers.pack())] if self.launch.ordinal == 0 and self._buffers.nbytes else []
        started = time.perf_counter()
        found = self._commit(self._header(Kind.COMMIT), payload, statics, [self._buffers.nbytes])
        self._charge(started, found)
        self._install(found, own_buffers=self.launch.ordinal == 0)
        self._finish(found, ready)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Accumulate gradients: nothing is sent before the step."""
        self.gradients.paused = True
        try:
            yield
        finally:
            self.gradients.paused = False

    def leave(self) -> None:
        """Say goodbye: this worker is done."""
        self.reporter.leave()
        for lane in self._lanes:
            lane.close()

    @property
    def last(self) -> LastStep | None:
        """What came of the last step."""
        return self.steps.last

    def _connect(self) -> list[Lane]:
        count = self.launch.spec.gradients.connections

        def retried() -> None:
            self._metrics.add(metrics.RETRIES, 1, "reset")

        return [
            Lane(self.launch, self._signature, shard, number, self._targets, retried, self._brake)
            for shard in self._plan
            for number in range(count)
        ]

    def _join(self, frozen: "Statics") -> None:
        self._targets.load()
        statics = [(0, frozen.pack()), (1, self._buffers.pack())] if self.launch.ordinal == 0 else []
        sizes = [frozen.nbytes, self._buffers.nbytes]
        found = self._commit(self._header(Kind.JOIN, step=0), {}, statics, sizes)
        for answer in found:
            if answer.statics:
                frozen.unpack(answer.statics[0])
                self._buffers.unpack(answer.statics[1])
        self._targets.finish()
        self._version = found[0].version
        self.clock.end_step()

    def _push(self, shard: int, bucket: int, pieces: list[memoryview]) -> None:
        count = self.launch.spec.gradients.connections
        lane = self._lanes[shard * count + bucket % count]
        lane.push(self._header(Kind.PUSH, bucket=bucket), pieces)

    def _commit(
        self, header: Header, payload: dict[str, Any], statics: list[tuple[int, memoryview]], sizes: list[int]
    ) -> list[Answer]:
        self._targets.refresh()
        commits = []
        for lane in self._lanes:
            commit = Commit(header, payload)
            if lane.carries_statics:
                commit.statics, commit.expects = statics, sizes
            commits.append(commit)
            lane.commit(commit)
        return answers(commits)

    def _charge(self, started: float, found: Sequence[Answer]) -> None:
        """Divide the exchange: sending until the last lane had sent, waiting until the last lane had an answer."""
        sent = max(a.sent for a in found)
        self.clock.enter("send", at=started)
        self.clock.enter("wait", at=sent)
        self.clock.enter("receive", at=max(a.begun for a in found))
        self.clock.enter("apply", at=max(a.done for a in found))

    def _install(self, found: Sequence[Answer], own_buffers: bool) -> None:
        for answer in found:
            if answer.statics and not own_buffers:
                self._buffers.unpack(answer.statics[0])
        self._targets.finish()
        self._version = found[0].version

    def _finish(self, found: Sequence[Answer], ready: float) -> None:
        now, first = time.perf_counter(), found[0]
        traffic = sum(lane.bytes_sent for lane in self._lanes), sum(lane.bytes_received for lane in self._lanes)
        last = LastStep(first.version, first.delay, first.accepted, first.reason)
        self.number += 1
        self.steps.finish(self.number, last, now - ready, traffic)

    def _header(self, kind: Kind, bucket: int = 0, step: int | None = None) -> Header:
        number = self.number + 1 if step is None else step
        return Header(
            kind, bytes.fromhex(self.launch.training_id), self.launch.ordinal, self.launch.incarnation, number,
            self._version, bucket,
        )  # fmt: skip


class Statics:
    """Tensors that travel whole beside the parameters: frozen parameters, and buffers as of BatchNorm."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = tensors
        self.nbytes = sum(t.numel() * t.element_size() for t in tensors)

    def pack(self) -> memoryview:
        """Their bytes, one after the other."""
        parts = [memory(t.detach().cpu().contiguous()) for t in self._tensors]
        return memoryview(b"".join(parts))

    def unpack(self, data: bytearray) -> None:
        """Set them from bytes."""
        if not data:
            return
        raw, start = torch.frombuffer(data, dtype=torch.uint8), 0
        with torch.no_grad():
            for tensor in self._tensors:
                end = start + tensor.numel() * tensor.element_size()
                tensor.copy_(raw[start:end].clone().view(tensor.dtype).view(tensor.shape))
                start = end
