"""What each worker of a ring does beside the reduction: join, measure steps, tell who broke the ring, and leave."""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from paceline import failure, weight_files, weights
from paceline.model_signature import Signature
from paceline.worker.all_reduce import weight_checksum
from paceline.worker.all_reduce.diagnosis_responder import DiagnosisResponder
from paceline.worker.collectives.rendezvous_store import RendezvousStore
from paceline.worker.model_description import uncompiled
from paceline.worker.observability.measuring import Measuring
from paceline.worker.observability.phase_hooks import Observer
from paceline.worker.observability.reporter import Reporter
from paceline.worker.observability.socket_queues import SocketQueues
from paceline.worker.observability.step_metrics import LastStep, StepMetrics
from paceline.worker.observability.step_record import StepRecords
from paceline.worker.observability.wait_time import Waiting
from paceline_core import finiteness, limits
from paceline_core.errors import NotFinite, PacelineError, PeerLost
from paceline_core.finiteness import MOST_IN_A_ROW, NONFINITE
from paceline_core.launch import Launch, Slowed
from paceline_core.spec import OnNonFinite


class RingMember:
    """One worker's place in a ring."""

    def __init__(
        self,
        launch: Launch,
        observer: Observer,
        signature: Signature,
        measuring: Measuring,
        gradient_bytes: int,
        total_steps: int | None,
    ) -> None:
        self.launch, self.clock, self._injected_delay = launch, measuring.clock, measuring.injected_delay
        self._measuring, self.observer, self._total = measuring, observer, total_steps
        self.waiting = Waiting(observer)
        self.number = 0  # of the last step
        self._in_a_row = 0  # steps whose mean gradient was not finite
        self._moved = 0.0  # bytes of gradients, each way
        step_metrics = StepMetrics(measuring.metrics, observer.device, gradient_bytes)
        self.reporter = Reporter(launch, signature, total_steps, step_metrics, measuring.clocks_compared)
        self.steps = StepRecords(measuring, self.reporter, observer)

    def join(self, store: RendezvousStore, connections: Iterable[int], device: torch.device, backend: str) -> None:
        """The process group is there, with these connections."""
        self._store = store
        self.socket_queues = SocketQueues(connections, self._waits)
        self._responder = DiagnosisResponder(self.launch, self._waits_in)
        self._measuring.describe(device, backend, self.launch.node)

    def not_finite(self, name: str, own: str | None) -> None:
        """The mean gradient of a parameter is not finite: its update is left out on every worker.

        `own`: a parameter of which this worker's own is not. Raises NotFinite where the training is to end.
        """
        self._in_a_row += 1
        if own is not None:
            self.reporter.gradient_not_finite(self.number + 1, own)
        fails = self.launch.spec.gradients.on_non_finite is OnNonFinite.FAIL
        if fails or self._in_a_row >= MOST_IN_A_ROW:
            step, worker = self.number + 1, self.launch.ordinal
            mean = f"the mean gradient of {name} is not finite at step {step}"
            raise NotFinite(mean if own is None else finiteness.of_gradient(worker, step, own))

    def step_ended(self, gradient_bytes: int, skipped: bool = False) -> None:
        """An optimizer that reduced so many bytes of gradients made its step, or left it out."""
        if not skipped:
            self._in_a_row = 0
        now = time.perf_counter()
        ready = self.observer.last_ready or now
        self.number += 1
        # of the gradients, each worker sends and receives this share in a ring
        shared = gradient_bytes * 2 * (self.launch.world_size - 1) / self.launch.world_size
        self._moved += shared
        traffic = int(self._moved), int(self._moved)
        last = LastStep(self.number, 0, not skipped, NONFINITE if skipped else "")
        self.steps.finish(self.number, last, now - ready, traffic, self.socket_queues.sending)
        seconds = self._injected_delay.seconds()
        if self._injected_delay.part is Slowed.SEND and seconds > 0:
            self.socket_queues.pace(shared / seconds)

    def step_repeated(self) -> None:
        """A step has ended that was told before, by another process."""
        self.number += 1
        self.clock.end_step()
        self.observer.device.end_step()
        self.observer.step_ended()

    def weights_due(self) -> bool:
        """Whether the workers' weights are compared after the step that ended."""
        return weight_checksum.due(self.number, self._total)

    def ends_uncompared(self) -> bool:
        """Whether the weights of the last step are still to be compared. Of one step they are told once."""
        return self.number > 0 and not self.weights_due()

    def tell_weights(self, pair: int, names: Sequence[str], parameters: Sequence[torch.Tensor]) -> None:
        """Let the coordinator compare the weights of the step that ended with the other workers'."""
        sums = weight_checksum.checksums(parameters)
        self.reporter.weights(partial(weight_checksum.told, self.number, pair, names, sums))

    def save(self, models: Sequence[torch.nn.Module]) -> None:
        """Write the weights, on worker 0."""
        if self.launch.ordinal != 0 or not self.launch.output:
            return
        for index, model in enumerate(models):
            state: Mapping[str, object] = uncompiled(model).state_dict()
            tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
            weights.save(tensors, Path(self.launch.output, weight_files.file(index)))
            trained = {name for name, _ in uncompiled(model).named_parameters(remove_duplicate=False)}
            name = weights.first_not_finite(
                ((n, t) for n, t in tensors.items() if n in trained),
                ((n, t) for n, t in tensors.items() if n not in trained),
            )
            if name is not None:
                self.reporter.weights_not_finite(name if index == 0 else f"{name} (model {index + 1})")

    def leave(self) -> None:
        """Tell that this worker is done, and end its connections."""
        self.socket_queues.close()
        self.reporter.leave()
        if dist.is_initialized():
            dist.destroy_process_group()
        self._store.close()
        self._responder.close()

    def explain(self, error: BaseException) -> BaseException:
        """What to tell of an error that ended the script: of a broken ring, who broke it, if that can be found out."""
        if not failure.broken_ring(error):
            return error
        try:
            self._store.broken(self.number + 1, failure.too_late(error))
        except PacelineError as named:
            if named.from_peer:
                named.__cause__ = error
                return named.with_traceback(None)
        if failure.too_late(error):
            waited = PeerLost(f"torch.distributed waited {limits.words(self.launch.step_limit)}: {error}")
            waited.__cause__ = error
            return waited
        return error

    def _waits(self) -> bool:
        """Whether this worker has done its own part of the step, and waits for the sum of all gradients."""
        return self.waiting.active

    def _waits_in(self) -> int:
        """The step in which this worker waits for others' gradients, or for worker 0's buffers; 0: it does not wait."""
        return self.number + 1 if self.waiting.active else 0


def meet(launch: Launch) -> RendezvousStore:
    """The coordinator's store, when every worker is there. Raises PeerLost."""
    if launch.servers[0].startswith("127.0.0.1:"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = RendezvousStore(launch)
    store.meet()
    return store


def timeout(launch: Launch) -> timedelta:
    """How long torch.distributed waits for another worker."""
    return timedelta(seconds=launch.step_limit)
