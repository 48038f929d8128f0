"""Gives the user's optimizer a step() that exchanges with the servers, while it stays what it is for everyone else."""

from collections.abc import Callable
from typing import Any

import torch


def replace_step(optimizer: torch.optim.Optimizer, exchange: Callable[[], None]) -> None:
    """Make `optimizer.step()` call `exchange` instead of updating parameters here.

    The object's class becomes a subclass of its own, so that isinstance checks, schedulers, GradScaler and step hooks
    go on working; step hooks run through the wrapper that torch puts around every optimizer's step.
    """
    original = type(optimizer)

    def step(self: torch.optim.Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        del self
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        exchange()
        return loss

    wrapped: Any = torch.optim.Optimizer.profile_hook_step(step)
    wrapped.hooked = True
    members = {"step": wrapped, "__module__": original.__module__, "__doc__": original.__doc__}
    optimizer.__class__ = type(original.__name__, (original,), members)
    if "step" in vars(optimizer):  # a scheduler made before has put its own wrapper around the old step
        del optimizer.step
        _count_for_schedulers(optimizer)


def _count_for_schedulers(optimizer: torch.optim.Optimizer) -> None:
    """As schedulers do: remember that step() was called, which they check for the right order of calls."""
    inner = optimizer.step

    def counted(*args: Any, **kwargs: Any) -> Any:
        optimizer._opt_called = True  # type: ignore[attr-defined]
        return inner(*args, **kwargs)

    counted._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = counted  # type: ignore[method-assign]
