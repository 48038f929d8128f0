"""The optimizers that a parameter server can rebuild from their settings."""

import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import optim

from paceline_core.errors import UsageError
from paceline_core.modes import WITHOUT_SERVERS

# Optimizers that treat each element by itself: only these give the same result on slices of a tensor.
OPTIMIZERS: Mapping[str, type[optim.Optimizer]] = {
    c.__name__: c
    for c in (
        optim.SGD, optim.Adam, optim.AdamW, optim.Adagrad, optim.RMSprop, optim.Adadelta, optim.Adamax, optim.NAdam,
        optim.RAdam, optim.ASGD, optim.Rprop,
    )
}  # fmt: skip
MOST_VALUES, MOST_CHARACTERS = 16, 200  # of one option
PLAIN = (float, int, bool, type(None))
DEVICE_ONLY = {"capturable", "fused"}  # about kernels on the worker's device; the server's are the plain ones


def check(optimizer: optim.Optimizer, allowed: Sequence[str] = ()) -> None:
    """Raise UsageError, saying what to do, for an optimizer that the server cannot rebuild."""
    name = name_of(optimizer)
    if not (name in OPTIMIZERS or (name in allowed and not _is_torchs(name))):
        own = (
            "; one that treats each element by itself, in a module that the servers can import, may be allowed with "
            f"`parameterServer: {{optimizers: [{name}]}}`"
        )
        raise UsageError(
            f"{type(optimizer).__module__}.{type(optimizer).__name__} cannot run on a parameter server, which knows "
            f"torch.optim's {', '.join(OPTIMIZERS)}: use one of these, or topology {WITHOUT_SERVERS}, which takes any "
            f"optimizer{'' if _is_torchs(name) else own}"
        )
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise UsageError(
            f"differentiable=True cannot run on a parameter server: leave it out, or use {WITHOUT_SERVERS}"
        )


def _is_torchs(name: str) -> bool:
    """Whether it is torch's own; those that are not listed do not treat each element by itself."""
    return name.startswith("torch.optim.")


def name_of(optimizer: optim.Optimizer) -> str:
    """What a server is told to build: torch.optim's class by its name, another as `module:Class`."""
    kind = type(optimizer)
    if OPTIMIZERS.get(kind.__name__) is kind:
        return kind.__name__
    module = kind.__module__
    if module == "__main__":  # the servers know the script by the name of its file
        module = Path(getattr(sys.modules["__main__"], "__file__", None) or "__main__").stem
    return f"{module}:{kind.__qualname__}"


def has_state(optimizer: optim.Optimizer) -> bool:
    """Whether it has made steps, or loaded the state of one that had."""
    # Adagrad has its state from the start, with step 0; the others have none before their first step.
    return any(state and state.get("step", 1) > 0 for state in optimizer.state.values())


def settings(optimizer: optim.Optimizer) -> tuple[dict[str, Any], ...]:
    """What the server needs to rebuild each parameter group: the optimizer's own options, as plain numbers."""
    return tuple(
        {key: _plain(group[key]) for key in optimizer.defaults if key in group and key not in DEVICE_ONLY}
        for group in optimizer.param_groups
    )


def same_options(now: Sequence[Mapping[str, Any]], agreed: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these are settings of the same groups with the same options: their values may have changed."""
    return len(now) == len(agreed) and all(
        mine.keys() == known.keys() and all(map(_is_plain, mine.values()))
        for mine, known in zip(now, agreed, strict=True)
    )


def _is_plain(value: Any, nested: bool = False) -> bool:
    """Whether an option is what `settings` gives: None, a bool, a text, a finite number, or a few of them."""
    if isinstance(value, list | tuple):
        return not nested and len(value) <= MOST_VALUES and all(_is_plain(v, nested=True) for v in value)
    if isinstance(value, int | float):
        return abs(value) <= sys.float_info.max  # neither infinite, nor no number
    return value is None or (isinstance(value, str) and len(value) <= MOST_CHARACTERS)


def build(name: str, groups: Sequence[dict[str, Any]], allowed: Sequence[str] = ()) -> optim.Optimizer:
    """The optimizer `name` on these groups. Raises UsageError for one that is neither torch.optim's nor allowed."""
    if name not in OPTIMIZERS and (name not in allowed or _is_torchs(name)):
        raise UsageError(
            f"optimizer {name} is neither one of {', '.join(OPTIMIZERS)} nor in parameterServer.optimizers"
        )
    kind: Any = OPTIMIZERS.get(name) or _imported(name)
    known = inspect.signature(kind).parameters  # Adagrad, for one, does not read all of its options from the groups
    options = {key: value for key, value in groups[0].items() if key in known and key != "params"}
    built: optim.Optimizer = kind(list(groups), **options)
    return built


def _imported(name: str) -> Any:
    module, _, kind = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"the server cannot import optimizer {name}: {error}; is it in the servers' image?") from error
    if not (isinstance(found, type) and issubclass(found, optim.Optimizer)):
        raise UsageError(f"{name} is not a torch.optim.Optimizer")
    return found


def _plain(value: Any) -> Any:
    if type(value) in PLAIN:
        return value
    if isinstance(value, torch.Tensor):
        return value.item()
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value if isinstance(value, int | float | str) else repr(value)
