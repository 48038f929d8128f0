"""Makes the user's optimizer exchange with the servers, while it stays what it is for everyone else.

The object's class becomes a subclass of its own, so that isinstance checks, schedulers, GradScaler and step hooks go
on working. A copy or a pickle of it is of the original class, and holds the state that the servers have.
"""

import copyreg
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from paceline.worker.model_description import ADDED_LATE
from paceline_core.errors import UsageError


class RemoteOptimizer(Protocol):
    """The optimizer on the servers, as the patched methods reach it."""

    def step(self) -> None:
        """Push the gradients, and return when the model holds the parameters for the next forward pass."""

    def fetch_optimizer_state(self) -> dict[torch.Tensor, dict[str, Any]] | None:
        """The servers' state of each parameter; None while the optimizer itself holds one that was loaded."""


class RemoteState(defaultdict[Any, Any]):
    """An optimizer's state while the servers hold it: empty; `cleared` when the script has emptied it on purpose."""

    cleared = False

    def clear(self) -> None:
        """Begin with an empty state."""
        self.cleared = True
        super().clear()


def distribute_optimizer(optimizer: torch.optim.Optimizer, remote: RemoteOptimizer) -> None:
    """Make `optimizer.step()` and `state_dict()` those of the servers' optimizer."""
    original = type(optimizer)

    def step(self: torch.optim.Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        del self
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        remote.step()
        return loss

    def state_dict(self: Any) -> Any:
        with _server_state(self, remote):
            return original.state_dict(self)

    def add_param_group(*_: Any) -> None:
        raise UsageError(ADDED_LATE)

    def reduce(self: Any, _: Any) -> Any:
        with _server_state(self, remote):
            state = self.__getstate__()
            rebuild = (original, object, None)  # of the original class, without calling it
            return copyreg._reconstructor, rebuild, {**state, "state": self.state.copy()}  # type: ignore[attr-defined]

    wrapped: Any = torch.optim.Optimizer.profile_hook_step(step)
    wrapped.hooked = True
    members = {
        "step": wrapped,
        "state_dict": state_dict,
        "add_param_group": add_param_group,
        "__reduce_ex__": reduce,
        "_step_supports_amp_scaling": True,  # GradScaler leaves unscaling and skipping to step()
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    optimizer.__class__ = type(original.__name__, (original,), members)
    if "step" in vars(optimizer):  # a scheduler made before has put its own wrapper around the old step
        del optimizer.step
        _count_for_schedulers(optimizer)


@contextmanager
def _server_state(optimizer: torch.optim.Optimizer, remote: RemoteOptimizer) -> Iterator[None]:
    """Within it the optimizer holds the servers' state."""
    found = remote.fetch_optimizer_state()
    if found is None:
        yield
        return
    held, optimizer.state = optimizer.state, defaultdict(dict, found)
    try:
        yield
    finally:
        optimizer.state = held


def _count_for_schedulers(optimizer: torch.optim.Optimizer) -> None:
    """As schedulers do: remember that step() was called, which they check for the right order of calls."""
    inner = optimizer.step

    def counted(*args: Any, **kwargs: Any) -> Any:
        optimizer._opt_called = True  # type: ignore[attr-defined]
        return inner(*args, **kwargs)

    counted._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = counted  # type: ignore[method-assign]
