"""All-reduce: torch's DistributedDataParallel reduces; Paceline brings the workers together and measures.

In a synchronous ring every worker shows the same step time: the slow one is the one that waits least. A worker's wait
is the time from its last own gradient to the end of backward, when the sum of all is there.
"""

import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from paceline import failure, weights
from paceline.worker.describe import describe, trained_parameters
from paceline.worker.links import Links, sockets
from paceline.worker.measuring import Measuring
from paceline.worker.observer import Observer
from paceline.worker.record import LastStep, Record
from paceline.worker.reporter import Reporter
from paceline.worker.steps import Steps
from paceline.worker.store import WireStore
from paceline.worker.witness import Witness
from paceline_core.errors import PacelineError
from paceline_core.launch import Launch, Slowed


class Replica(DistributedDataParallel):
    """DistributedDataParallel that reads like the model in it: its attributes, and its names in the state dict."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The model's output; without gradients (a test by one worker alone) nobody else takes part."""
        if not torch.is_grad_enabled():
            return self.module(*inputs, **kwargs)
        return super().forward(*inputs, **kwargs)  # type: ignore[no-untyped-call]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own state dict, without the prefix `module.`."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load the model's own state dict."""
        return self.module.load_state_dict(state_dict, *args, **kwargs)


class Ring:
    """One worker's part in the ring."""

    def __init__(
        self,
        launch: Launch,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        measuring: Measuring,
        total_steps: int | None,
    ) -> None:
        self.launch, self.clock, self._inner = launch, measuring.clock, model
        self._brake = measuring.brake
        self._parameters = parameters = trained_parameters(optimizer)
        self.observer = Observer(model, parameters, self.clock, self._brake)
        gradient_bytes = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
        # of the gradients, each worker sends and receives this share in a ring
        self._shared = gradient_bytes * 2 * (launch.world_size - 1) / launch.world_size
        record = Record(measuring.metrics, self.observer.device, gradient_bytes)
        signature = describe(model, optimizer)
        self.reporter = Reporter(launch, signature, total_steps, record, measuring.clocks_compared)
        self._steps = Steps(measuring, self.reporter, self.observer)
        self._number = 0
        device = parameters[0].device
        before = sockets()
        backend = _backend(launch, device)
        self._store = _join(launch, backend)
        self._links = Links(sockets() - before, self._waits)
        self._witness = Witness(launch, self._waits_in)
        measuring.describe(device, backend.lower(), launch.node)
        self.model = Replica(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            bucket_cap_mb=launch.spec.gradients.bucket_mib,
        )
        self.model.register_forward_pre_hook(self._forward)
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self.observer.gradient_ready)
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)
        self.clock.end_step()

    @property
    def last(self) -> LastStep | None:
        """What came of the last step."""
        return self._steps.last

    def no_sync(self) -> AbstractContextManager[None]:
        """Accumulate gradients without reducing them."""
        context: AbstractContextManager[None] = self.model.no_sync()
        return context

    def leave(self) -> None:
        """Write the weights (worker 0), and say goodbye."""
        if self.launch.ordinal == 0 and self.launch.output:
            tensors = {k: v for k, v in self._inner.state_dict().items() if isinstance(v, torch.Tensor)}
            weights.save(tensors, Path(self.launch.output, weights.FILE))
        self._links.close()
        self.reporter.leave()
        dist.destroy_process_group()
        self._store.close()
        self._witness.close()

    def explain(self, error: BaseException) -> BaseException:
        """What to tell of an error that ended the script: of a broken ring, who broke it, if that can be found out."""
        if not failure.broken_ring(error):
            return error
        try:
            self._store.broken(self._number + 1, failure.too_late(error))
        except PacelineError as named:
            if named.from_peer:
                named.__cause__ = error
                return named.with_traceback(None)
        return error

    def _forward(self, *_: Any) -> None:
        if torch.is_grad_enabled():
            self.observer.backward_ended()
            self.clock.enter("wait")  # for worker 0's buffers; the model's own forward comes next

    def _before_step(self, *_: Any) -> None:
        if self.clock.phase == "backward" and self.observer.last_ready is not None:
            self.clock.enter("wait", at=self.observer.last_ready)
        self._steps.look_at(self._parameters)
        self.clock.enter("apply")

    def _after_step(self, *_: Any) -> None:
        now = time.perf_counter()
        ready = self.observer.last_ready or now
        self._number += 1
        moved = int(self._number * self._shared)
        last = LastStep(self._number, 0, True, "")
        self._steps.finish(self._number, last, now - ready, (moved, moved), self._links.sending)
        seconds = self._brake.seconds()
        if self._brake.part is Slowed.SEND and seconds > 0:
            self._links.pace(self._shared / seconds)

    def _waits(self) -> bool:
        """Whether this worker has done its own part of the step, and waits for the sum of all gradients."""
        return self.clock.phase == "backward" and self.observer.all_ready

    def _waits_in(self) -> int:
        """The step in which this worker waits for others' gradients, or for worker 0's buffers; 0: it does not wait."""
        return self._number + 1 if self._waits() or self.clock.phase == "wait" else 0


def _backend(launch: Launch, device: torch.device) -> str:
    asked = launch.spec.all_reduce.backend if launch.spec.all_reduce else "Auto"
    return asked if asked != "Auto" else "NCCL" if device.type == "cuda" else "Gloo"


def _join(launch: Launch, backend: str) -> WireStore:
    if launch.servers[0].startswith("127.0.0.1:"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = WireStore(launch)
    store.meet()
    dist.init_process_group(
        backend.lower(),
        store=store,
        rank=launch.ordinal,
        world_size=launch.world_size,
        timeout=timedelta(seconds=launch.spec.gradients.timeout_seconds),
    )
    return store
