"""A model and its optimizer in a ring: what happens before and after each step of this optimizer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import is_not
from typing import Any, Protocol

import torch
from torch.distributed import ReduceOp

from paceline.finite_gradients import first_not_finite
from paceline.worker.all_reduce.buffer_broadcast import Buffers
from paceline.worker.all_reduce.reducer import Reducer
from paceline.worker.all_reduce.weight_checksum import Unchanged
from paceline.worker.model_description import ADDED_LATE, gradient_bytes, trained_parameters
from paceline.worker.observability.wait_time import Waiting
from paceline_core.errors import UsageError
from paceline_core.spec import Gradients


class StepListener(Protocol):
    """Who is told of the steps."""

    def before_update(self, pair: "RingOptimizer") -> None:
        """Gradients and settings are final."""

    def after_update(self, pair: "RingOptimizer", skipped: bool) -> None:
        """The parameters are those of the next step; they are as before when the update was left out."""

    def not_finite(self, name: str, own: str | None) -> None:
        """The mean gradient of a parameter is not finite, and perhaps this worker's own of one. May raise NotFinite."""


@dataclass
class RingOptimizer:
    """Reduces before the optimizer's update, clips, and takes worker 0's buffers.

    `reducers` are all that reduce one of its parameters, its own first: another optimizer may train the same.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    parameters: list[torch.Tensor]
    names: list[str]
    reducers: Sequence[Reducer]
    reducer_of: dict[torch.Tensor, Reducer]  # of all pairs
    group: Any
    max_norm: float | None
    listener: StepListener
    waiting: Waiting
    buffers: Buffers
    checks_gradients: bool = False
    number: int = 0  # of its last step
    reached: int = 0  # the last step that was made without this process: up to it, steps are left out
    calls_closures: bool = False
    # if worker 0 may be lost while it sends its buffers, others take them before the update: another worker 0 can then
    # run the model again with the same weights
    is_repeatable: bool = False

    def __post_init__(self) -> None:
        self.gradient_bytes = gradient_bytes(self.parameters)
        self.unchanged = Unchanged(self.parameters)
        self.look()
        self._evaluates = False  # whether the step in progress calls a closure
        self._left_out: list[torch.Tensor | None] | None = None  # gradients that are not finite, during the step
        if self.checks_gradients:
            for reducer in self.reducers:
                reducer.watch()
        self.optimizer.register_step_pre_hook(self._before)
        self.optimizer.register_step_post_hook(self._after)

    def look(self) -> None:
        """What was reduced so far belongs to earlier steps."""
        self._seen = [reducer.passes for reducer in self.reducers]

    def _before(self, _: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        self.waiting.script_ended()
        closure = arguments[1] if len(arguments) > 1 else named.get("closure")
        self._evaluates = callable(closure)
        self.calls_closures = self.calls_closures or self._evaluates
        if closure is not None and self._evaluates:  # it computes the gradients within the step, perhaps several times
            return (arguments[0], self._evaluated(closure), *arguments[2:]), _without(named, "closure")
        self._settle()
        if self.buffers:
            self.buffers.begin()
            if self.is_repeatable:
                self._end_exchange()
        self.listener.before_update(self)
        if self.repeats:
            self._leave_out()
        elif self.checks_gradients:
            self._leave_out_what_is_not_finite()
        return None

    @property
    def shared(self) -> tuple[int, int]:
        """Reductions of the gradients that its own reducer has, and exchanges of buffers, in this attempt."""
        return self.reducers[0].passes, self.buffers.exchanges

    @property
    def repeats(self) -> bool:
        """Whether the step in progress, or else the next, was made without this process."""
        return self.number < self.reached

    def _end_exchange(self) -> None:
        self.waiting.begin_buffers()
        self.buffers.end()
        self.waiting.end()

    def _after(self, *_: Any) -> None:
        if self.buffers and (self._evaluates or not self.is_repeatable):
            if self._evaluates:  # the model ran within this step
                self.buffers.begin()
            self._end_exchange()
        self.unchanged.note()
        skipped = self._left_out is not None
        if self._left_out is not None:
            for parameter, gradient in zip(self.parameters, self._left_out, strict=True):
                parameter.grad = gradient
            self._left_out = None
        self.listener.after_update(self, skipped)

    def _leave_out_what_is_not_finite(self) -> None:
        """Of a mean that is not finite, which is so on every worker alike, the optimizer shall see nothing.

        A GradScaler looks by itself.
        """
        if getattr(self.optimizer, "found_inf", None) is not None:
            return
        gradients = [p.grad for p in self.parameters]
        place = first_not_finite(gradients)
        if place is None:
            return
        own = next((name for r in self.reducers if (name := r.own_not_finite()) is not None), None)
        self.listener.not_finite(self.names[place], own)
        self._leave_out()

    def _leave_out(self) -> None:
        """Without gradients the optimizer changes nothing."""
        self._left_out = [p.grad for p in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None

    def _settle(self) -> None:
        trained = trained_parameters(self.optimizer)
        if len(trained) != len(self.parameters) or any(map(is_not, trained, self.parameters)):
            if not set(self.parameters) <= set(trained):
                raise UsageError(ADDED_LATE)
            self._adopt()
        self._seen = [reducer.settle(seen) for reducer, seen in zip(self.reducers, self._seen, strict=True)]
        if self.max_norm is not None:
            _clip(self.parameters, self.max_norm, getattr(self.optimizer, "grad_scale", None))

    def _adopt(self) -> None:
        """Take in the parameters of groups that were added since the last step, with worker 0's values."""
        known = set(self.parameters)
        new = [p for p in trained_parameters(self.optimizer) if p not in known]
        named: dict[torch.Tensor, str] = {p: name for name, p in self.model.named_parameters()}
        names = [named.get(p, f"optimizer.{i}") for i, p in enumerate(new, len(known))]
        _spread(new, self.group, self.parameters[0].device)
        own = [(p, name) for p, name in zip(new, names, strict=True) if p not in self.reducer_of]
        self.reducers[0].reduce()  # what there is, with the parameters that it was planned for
        self.reducers[0].add([p for p, _ in own], [name for _, name in own])
        self.reducers[0].reduce()
        self.reducer_of.update((p, self.reducers[0]) for p, _ in own)
        name_of = dict(zip([*self.parameters, *new], [*self.names, *names], strict=True))
        self.parameters = trained_parameters(self.optimizer)
        self.names = [name_of[p] for p in self.parameters]
        self.unchanged = Unchanged(self.parameters)

    def _evaluated(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure with the mean gradients and, where the optimizer goes by the loss, the mean loss."""
        common = _goes_by_the_loss(self.optimizer)

        def evaluate() -> Any:
            with torch.enable_grad():
                loss = closure()
            self._settle()
            if common and loss is not None:
                loss = self._mean(loss)
            self.listener.before_update(self)
            return loss

        return evaluate

    def _mean(self, loss: Any) -> Any:
        device = self.parameters[0].device
        value = torch.as_tensor(loss, dtype=getattr(loss, "dtype", torch.float64), device=device).detach().clone()
        self.group.allreduce([value], ReduceOp.SUM).wait()
        mean = value / self.group.size()
        return mean if isinstance(loss, torch.Tensor) else mean.item()


def make_ring_optimizer(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    reducer_of: dict[torch.Tensor, Reducer],
    group: Any,
    gradients: Gradients,
    listener: StepListener,
    waiting: Waiting,
    joins: bool = False,
) -> RingOptimizer:
    """Give every worker worker 0's model, and reduce from now on what no reducer in `reducer_of` does yet.

    One that `joins` others takes the model from them in another way.
    """
    parameters = trained_parameters(optimizer)
    device = parameters[0].device
    if not joins:
        _spread([*parameters, *model.parameters(), *model.buffers()], group, device)
    own = {p: name for p, name in zip(parameters, names, strict=True) if p not in reducer_of}
    most_bytes = int(gradients.bucket_mib * (1 << 20))
    sparse = _with_sparse_gradients(model)
    reducer = Reducer(list(own), list(own.values()), sparse, group, waiting, most_bytes, gradients.overlap)
    reducer_of.update(dict.fromkeys(own, reducer))
    reducers = list(dict.fromkeys([reducer, *(reducer_of[p] for p in parameters)]))
    buffers, most = Buffers(model, group, device), gradients.max_norm
    return RingOptimizer(
        model, optimizer, parameters, list(names), reducers, reducer_of, group, most, listener, waiting, buffers,
        gradients.on_non_finite.checks_gradients,
    )  # fmt: skip


def _clip(parameters: Iterable[torch.Tensor], most: float, scale: torch.Tensor | None) -> None:
    """As clip_grad_norm_; `scale`: of gradients that a fused optimizer divides by it within its step (GradScaler)."""
    known = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in known if p.grad is not None])
    torch.nn.utils.clip_grads_with_norm_(known, most, norm if scale is None else norm / scale)


def _goes_by_the_loss(optimizer: torch.optim.Optimizer) -> bool:
    """Of torch's own optimizers only LBFGS compares losses; of others one cannot know."""
    builtin = type(optimizer).__module__.startswith("torch.optim.")
    return not builtin or isinstance(optimizer, torch.optim.LBFGS)


def _without(named: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in named.items() if k != key}


def _with_sparse_gradients(model: torch.nn.Module) -> set[torch.Tensor]:
    """Parameters whose gradients are sparse."""
    kinds = (torch.nn.Embedding, torch.nn.EmbeddingBag)
    return {module.weight for module in model.modules() if isinstance(module, kinds) and module.sparse}


def _spread(tensors: Sequence[torch.Tensor], group: Any, device: torch.device) -> None:
    """Give every worker the values that worker 0 has, as bytes, because not every backend knows every dtype."""
    sent = []
    for tensor in dict.fromkeys(tensors):
        raw = tensor.detach().contiguous().view(-1).view(torch.uint8).to(device)
        if len(raw):
            sent.append((tensor, raw, group.broadcast(raw, 0)))
    for tensor, raw, work in sent:
        work.wait()
        tensor.detach().copy_(raw.view(tensor.dtype).view(tensor.shape))
