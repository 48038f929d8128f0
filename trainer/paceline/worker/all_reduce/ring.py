"""All-reduce: every worker holds the whole model, and gradients are averaged over all of them in each step.

In a synchronous ring every worker shows the same step time: the slow one is the one that waits least. A worker's wait
is the time from its last own gradient to the moment when the mean of all is there.
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from paceline.model_signature import Signature
from paceline.worker.all_reduce.recovery.ring_recovery import RingRecovery
from paceline.worker.all_reduce.reducer import Reducer
from paceline.worker.all_reduce.ring_checkpointing import RingCheckpointing
from paceline.worker.all_reduce.ring_member import RingMember, meet, timeout
from paceline.worker.all_reduce.ring_optimizer import RingOptimizer, make_ring_optimizer
from paceline.worker.model_description import describe, gradient_bytes, trained_parameters
from paceline.worker.observability.measuring import Measuring
from paceline.worker.observability.phase_hooks import Observer
from paceline.worker.observability.reporter import Reporter
from paceline.worker.observability.step_metrics import LastStep
from paceline.worker.own_state import OwnState
from paceline_core.errors import ModelMismatch, UsageError
from paceline_core.launch import Launch

log = logging.getLogger("paceline")


class Ring:
    """One worker's part in the ring: one or more pairs of a model and an optimizer."""

    def __init__(
        self,
        launch: Launch,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        measuring: Measuring,
        total_steps: int | None,
        own_state: OwnState,
    ) -> None:
        self.launch = launch
        self._pairs: list[RingOptimizer] = []
        self._models = [model]
        self._reducer_of: dict[torch.Tensor, Reducer] = {}
        parameters, signature = trained_parameters(optimizer), describe(model, optimizer)
        observer = Observer(model, parameters, measuring.clock, measuring.injected_delay, self._expect(model))
        self._member = RingMember(launch, observer, signature, measuring, gradient_bytes(parameters), total_steps)
        device = parameters[0].device
        backend = _backend(launch, device)
        self._store = meet(launch)
        self._own_state = own_state
        self._recovery = it = RingRecovery(launch, self._store, self._pairs, backend, timeout(launch))
        self._member.join(self._store, it.connections, device, backend)
        it.socket_queues = self._member.socket_queues
        own_state.when_restored(it.asked)
        own_state.when_asked(it.asked)
        self._checkpointing = RingCheckpointing(
            launch, self._store, own_state, self._member.reporter, self._pairs, measuring.clock, it.joins
        )
        self._checkpointing.ask_after = it.next_question(self._checkpointing.ask_after)
        it.ask_after = lambda: self._checkpointing.ask_after
        if launch.replaced:
            own_state.keep(self._keep_place, launch.world_size)
        self._member.number = self._checkpointing.step
        if self._member.number:
            self._member.reporter.went_on(self._member.number)
        self._join(model, optimizer, signature)

    def add(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Train another pair too. Raises UsageError, ModelMismatch."""
        if any(pair.optimizer is optimizer for pair in self._pairs):
            raise UsageError("paceline.distribute() was called before with this optimizer: call it once for each")
        again = any(each is model for each in self._models)
        if not again:
            self._models.append(model)
            self._member.observer.watch(model, self._expect(model))
        number = next(i for i, each in enumerate(self._models) if each is model)
        self._join(model, optimizer, describe(model, optimizer, number, again))

    @property
    def last(self) -> LastStep | None:
        """What came of the last step."""
        return self._member.steps.last

    @property
    def reporter(self) -> Reporter:
        """Who tells the coordinator of this worker."""
        return self._member.reporter

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Accumulate gradients without reducing them."""
        self._pause(True)
        try:
            yield
        finally:
            self._pause(False)

    def tell_rest(self) -> None:
        """The script has failed: tell what is known of its last steps."""
        self._member.reporter.tell_rest()

    def leave(self) -> None:
        """Write the weights (worker 0), and tell that this worker is done."""
        self._checkpointing.leave()
        self._member.save(self._models)
        if self._member.ends_uncompared() and all(pair.unchanged for pair in self._pairs):
            self._tell_weights()
        self._member.leave()

    def explain(self, error: BaseException) -> BaseException:
        """What to tell of an error that ended the script."""
        return self._member.explain(error)

    def before_update(self, pair: RingOptimizer) -> None:
        """The gradients are final."""
        self._checkpointing.step_begins(pair)
        self._member.steps.sample_norm(pair.parameters)
        self._member.clock.enter("apply")

    def not_finite(self, name: str, own: str | None) -> None:
        """The mean gradient of a parameter is not finite, and perhaps this worker's own of one. Raises NotFinite."""
        self._member.not_finite(name, own)

    def after_update(self, pair: RingOptimizer, skipped: bool) -> None:
        """A step has ended, of whichever pair."""
        if pair.repeats:
            self._repeated(pair)
            return
        pair.number += 1
        self._member.step_ended(pair.gradient_bytes, skipped)
        if self._member.weights_due():
            self._tell_weights()
        self._checkpointing.step_ended(pair)

    def _join(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, signature: Signature) -> None:
        """Make the pair's model the same everywhere, and reduce its gradients from now on."""
        self._compare(signature)
        group = self._recovery.new_group()
        number = self._checkpointing.add(model, optimizer, signature, self._reducer_of)
        names = [info.name for info in signature.parameters]
        gradients = self.launch.spec.gradients
        made = make_ring_optimizer(
            model, optimizer, names, self._reducer_of, group, gradients, self, self._member.waiting,
            self._recovery.joins,
        )  # fmt: skip
        made.number, made.is_repeatable = number, self.launch.replaced
        self._pairs.append(made)
        repeats = self._recovery.joined(made, self._own_state.shared)
        if self._recovery.joins:
            self._member.reporter.repeats = self._member.reporter.repeats or repeats > 0
            log.warning(
                "worker-%d goes on where it was lost: after step %d, with %d to repeat",
                self.launch.ordinal, number, repeats,
            )  # fmt: skip
        self._checkpointing.added()
        self._member.clock.end_step()

    def _repeated(self, pair: RingOptimizer) -> None:
        """A step was left out that had been made, and told, before."""
        pair.number += 1
        self._member.step_repeated()
        self._checkpointing.step_repeated(pair)
        if not pair.repeats:
            self._recovery.stepped(pair)
        self._member.reporter.repeats = any(each.repeats for each in self._pairs)

    def _keep_place(self, step: int, optimizers: int, state: bytes) -> None:
        """Tell where this worker is, as long as another could go on there."""
        self._member.reporter.keep_place(step, optimizers, b"" if self._recovery.obstacle() else state)

    def _compare(self, signature: Signature) -> None:
        key = f"paceline/model-{len(self._pairs)}"
        if self.launch.ordinal == 0:
            self._store.set(key, json.dumps(signature.to_json()))
            return
        difference = Signature.from_json(json.loads(self._store.get(key))).difference(signature)
        if difference:
            raise ModelMismatch(f"worker-{self.launch.ordinal} trains another model than worker-0: {difference}")

    def _expect(self, model: torch.nn.Module) -> Callable[[], None]:
        def backward_begins() -> None:
            for pair in self._pairs:
                if pair.model is model:
                    for reducer in pair.reducers:
                        reducer.expect()

        return backward_begins

    def _pause(self, paused: bool) -> None:
        for pair in self._pairs:
            for reducer in pair.reducers:
                reducer.paused = paused

    def _tell_weights(self) -> None:
        for index, pair in enumerate(self._pairs):
            names = [name if index == 0 else f"{name} (model {index + 1})" for name in pair.names]
            self._member.tell_weights(index, names, pair.parameters)


def _backend(launch: Launch, device: torch.device) -> str:
    asked = launch.spec.all_reduce.backend if launch.spec.all_reduce else "Auto"
    chosen = asked if asked != "Auto" else "NCCL" if device.type == "cuda" else "Gloo"
    return chosen.lower()
