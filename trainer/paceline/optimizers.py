"""The optimizers that a parameter server can rebuild from their settings."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from paceline_core.errors import UsageError

# Optimizers that treat each element by itself: only these give the same result on slices of a tensor.
OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {
    c.__name__: c
    for c in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop)
}  # fmt: skip
DEVICE_ONLY = {"capturable", "fused"}  # about kernels on the worker's device; the server's are the plain ones


def check(optimizer: torch.optim.Optimizer) -> None:
    """Raise UsageError, saying what to do, for an optimizer that the server cannot rebuild."""
    name = type(optimizer).__name__
    if OPTIMIZERS.get(name) is not type(optimizer):
        raise UsageError(
            f"{type(optimizer).__module__}.{name} cannot run on a parameter server, which knows torch.optim's "
            f"{', '.join(OPTIMIZERS)}: use one of these, or topology AllReduce, which takes any optimizer"
        )
    # Adagrad has its state from the start, with step 0; the others have none before their first step.
    if any(state and state.get("step", 1) > 0 for state in optimizer.state.values()):
        raise UsageError("the optimizer has made steps already: call paceline.distribute() before the first one")
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise UsageError("differentiable=True cannot run on a parameter server: leave it out, or use AllReduce")


def settings(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], ...]:
    """What the server needs to rebuild each parameter group: the optimizer's own options, as plain numbers."""
    return tuple(
        {key: _plain(group[key]) for key in optimizer.defaults if key in group and key not in DEVICE_ONLY}
        for group in optimizer.param_groups
    )


def build(name: str, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer `name` on these groups. Raises UsageError for one that is not on the list."""
    if name not in OPTIMIZERS:
        raise UsageError(f"optimizer {name} is not one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name](list(groups))  # type: ignore[call-arg]


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item()
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str | None) else repr(value)
