"""A plain script with torch's own DistributedDataParallel, and no call of Paceline: it is only brought together
with the others and measured.
"""

from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from paceline.model_signature import Signature
from paceline.worker.all_reduce import weight_checksum
from paceline.worker.all_reduce.ring_member import RingMember, meet
from paceline.worker.model_description import gradient_bytes, model_alone
from paceline.worker.observability.measuring import Measuring
from paceline.worker.observability.phase_hooks import Observer
from paceline.worker.observability.reporter import Reporter
from paceline.worker.observability.socket_queues import sockets
from paceline.worker.observability.step_metrics import LastStep
from paceline_core.errors import UsageError
from paceline_core.launch import Launch

SAVES_ITSELF = (
    "spec.checkpoint and --resume are for scripts that call paceline.distribute(); one with torch's own "
    "DistributedDataParallel saves and goes on by itself: leave them out"
)


class DdpScript:
    """One worker of the training; its steps are those of optimizers that update parameters of the first DDP model."""

    def __init__(self, launch: Launch, measuring: Measuring) -> None:
        if launch.spec.checkpoint is not None or launch.resume is not None:
            raise UsageError(SAVES_ITSELF)
        self.launch, self._measuring = launch, measuring
        self.store = meet(launch)
        self._before = sockets()
        self._member: RingMember | None = None
        self._model = torch.nn.Module()

    def measure(self, wrapper: torch.nn.parallel.DistributedDataParallel) -> None:
        """Measure the steps of this model."""
        if self._member is not None:
            return
        self._model = model = wrapper.module
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._parameters = list(self._named.values())
        self._known: dict[int, bool] = {}  # whether an optimizer updates one of them, by its identity
        self._bytes = gradient_bytes(self._parameters)
        connections = sockets() - self._before
        self._begin(model, model_alone(model)).join(
            self.store, connections, self._parameters[0].device, torch.distributed.get_backend()
        )
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._gradient_ready)
        self._unchanged = weight_checksum.Unchanged(self._parameters)
        register_optimizer_step_pre_hook(self._before_step)
        register_optimizer_step_post_hook(self._after_step)
        self._measuring.clock.end_step()

    @property
    def last(self) -> LastStep | None:
        """What came of the last step."""
        return self._member.steps.last if self._member else None

    @property
    def reporter(self) -> Reporter:
        """Who tells the coordinator of this worker."""
        return self._joined().reporter

    def tell_rest(self) -> None:
        """The script has failed: tell what is known of its last steps."""
        if self._member is not None:
            self._member.reporter.tell_rest()

    def leave(self) -> None:
        """Write the weights (worker 0), and tell that this worker is done."""
        member = self._joined()
        if member.number:
            member.save([self._model])
            if member.ends_uncompared() and self._unchanged:
                member.tell_weights(0, list(self._named), self._parameters)
        member.leave()

    def explain(self, error: BaseException) -> BaseException:
        """What to tell of an error that ended the script."""
        return self._member.explain(error) if self._member else error

    def _joined(self) -> RingMember:
        """Also without a model: a script may reduce by itself."""
        if self._member is None:
            member = self._begin(self._model, Signature("", (), (), (), (), (), (), {}))
            member.join(self.store, (), torch.device("cpu"), "")
        assert self._member is not None, "it was made"
        return self._member

    def _begin(self, model: torch.nn.Module, signature: Signature) -> RingMember:
        parameters: list[torch.Tensor] = [*model.parameters()] or [torch.empty(0, dtype=torch.float32, device="cpu")]
        clock, injected_delay = self._measuring.clock, self._measuring.injected_delay
        observer = Observer(model, parameters, clock, injected_delay, self._backward_begins)
        self._member = RingMember(self.launch, observer, signature, self._measuring, gradient_bytes(parameters), None)
        return self._member

    def _backward_begins(self) -> None:
        torch.autograd.Variable._execution_engine.queue_callback(self._own_part_done)

    def _own_part_done(self) -> None:
        """Every gradient is there. DDP's own callback, queued with the last of them, waits for the others' now."""
        if torch._C._current_autograd_node() is None:
            self._joined().waiting.begin()
            torch.autograd.Variable._execution_engine.queue_callback(self._joined().waiting.end)

    def _gradient_ready(self, parameter: torch.Tensor) -> None:
        self._joined().waiting.gradient_ready(parameter)

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._trains(optimizer):
            member = self._joined()
            member.waiting.script_ended()
            member.steps.sample_norm(self._parameters)
            member.clock.enter("apply")

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._trains(optimizer):
            member = self._joined()
            self._unchanged.note()
            member.step_ended(self._bytes)
            if member.weights_due():
                member.tell_weights(0, list(self._named), self._parameters)

    def _trains(self, optimizer: torch.optim.Optimizer) -> bool:
        key = id(optimizer)
        if key not in self._known:
            own = {id(p) for p in self._parameters}
            self._known[key] = any(id(p) in own for group in optimizer.param_groups for p in group["params"])
        return self._known[key]


def rendezvous() -> tuple[Any, int, int]:
    """What torch asks of env://: a store, this worker's rank, and how many there are."""
    import paceline

    training = paceline._training()
    assert training is not None, "this is asked in a worker only"
    return training.store(), training.launch.ordinal, training.launch.world_size


def measure(wrapper: torch.nn.parallel.DistributedDataParallel) -> None:
    """Measure the steps of a DistributedDataParallel, unless the script has called paceline.distribute()."""
    import paceline

    training = paceline._training()
    if training is not None:
        training.measure(wrapper)
