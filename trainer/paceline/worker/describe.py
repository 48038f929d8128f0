"""Describes a model and its optimizer as plain data, and refuses what Paceline cannot train."""

import torch

from paceline import optimizers
from paceline.signature import ITEM_BYTES, TRAINABLE, Signature, TensorInfo
from paceline_core.errors import UsageError


def describe(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Signature:
    """The signature of this worker. Raises UsageError for tensors that cannot be trained or sent."""
    names: dict[torch.Tensor, str] = {}
    aliases: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter in names:
            aliases[name] = names[parameter]
        names.setdefault(parameter, name)
    trained = trained_parameters(optimizer)
    for position, tensor in enumerate(trained):
        names.setdefault(tensor, f"optimizer.{position}")
    known = set(trained)
    transient = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    buffers = list(model.named_buffers())
    return Signature(
        type(optimizer).__name__,
        optimizers.settings(optimizer),
        tuple(_info(names[p], p, TRAINABLE) for p in trained),
        tuple(i for i, group in enumerate(optimizer.param_groups) for _ in group["params"]),
        tuple(_info(names[p], p, tuple(ITEM_BYTES)) for p in frozen_parameters(model, optimizer) if p not in known),
        tuple(_info(name, b, tuple(ITEM_BYTES)) for name, b in buffers),
        tuple(name for name, _ in buffers if name in transient),
        aliases,
    )


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The parameters that the optimizer updates, in the order of its groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def frozen_parameters(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The model's other parameters."""
    known = set(trained_parameters(optimizer))
    return [p for p in model.parameters() if p not in known]


def _info(name: str, tensor: torch.Tensor, allowed: tuple[str, ...]) -> TensorInfo:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout is not torch.strided:
        raise UsageError(f"{name} is a {tensor.layout} tensor: only dense ones can be distributed")
    if dtype not in allowed:
        raise UsageError(f"{name} has dtype {dtype}; a parameter server trains {', '.join(allowed)}")
    return TensorInfo(name, tuple(tensor.shape), dtype)
