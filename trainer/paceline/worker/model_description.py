"""Describes a model and its optimizer as plain data, and refuses what Paceline cannot train."""

from collections.abc import Iterable

import torch

from paceline import optimizers
from paceline.model_signature import ITEM_BYTES, TRAINABLE, Signature, TensorInfo
from paceline_core.errors import UsageError
from paceline_core.modes import WITHOUT_SERVERS

ADDED_LATE = (
    "the optimizer was given other parameters after paceline.distribute(): give the optimizer all parameters before, "
    "frozen ones too; requires_grad_(True) may unfreeze them at any time"
)


def describe(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, number: int = 0, again: bool = False
) -> Signature:
    """The signature of this worker, with the script's model `number`. Raises UsageError for what cannot be sent.

    `again`: the model was distributed before, with another optimizer, which carries its frozen parameters and buffers.
    """
    model = uncompiled(model)
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
    buffers = [] if again else list(model.named_buffers())
    frozen = [] if again else frozen_parameters(model, optimizer)
    return Signature(
        optimizers.name_of(optimizer),
        optimizers.settings(optimizer),
        tuple(_info(names[p], p, TRAINABLE) for p in trained),
        tuple(i for i, group in enumerate(optimizer.param_groups) for _ in group["params"]),
        tuple(_info(names[p], p, tuple(ITEM_BYTES)) for p in frozen if p not in known),
        tuple(_info(name, b, tuple(ITEM_BYTES)) for name, b in buffers),
        tuple(name for name, _ in buffers if name in transient),
        aliases,
        number,
    )


def uncompiled(model: torch.nn.Module) -> torch.nn.Module:
    """The module that torch.compile() was given, whose names are the user's; another module as it is."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, torch.nn.Module) else model


def refuse_modules(model: torch.nn.Module, world_size: int) -> None:
    """Raise UsageError for modules that need what a parameter server does not give, naming them."""
    for name, module in uncompiled(model).named_modules():
        if isinstance(module, torch.nn.SyncBatchNorm) and world_size > 1:
            raise UsageError(
                f"{name or 'the model'} is a SyncBatchNorm, which needs torch.distributed: on a parameter server use "
                f"BatchNorm or GroupNorm, or use topology {WITHOUT_SERVERS}"
            )
        if isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag) and module.sparse:
            raise UsageError(
                f"{name or 'the model'}.weight has sparse gradients: on a parameter server only dense ones can be "
                f"sent; leave out sparse=True, or use topology {WITHOUT_SERVERS}"
            )


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The parameters that the optimizer updates, in the order of its groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def gradient_bytes(parameters: Iterable[torch.Tensor]) -> int:
    """Size of the gradients of those that are trained."""
    return sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)


def model_alone(model: torch.nn.Module) -> Signature:
    """The signature of a worker that brings its own optimizer and reduction: the trained parameters of its model."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    infos = tuple(TensorInfo(n, tuple(p.shape), str(p.dtype).removeprefix("torch.")) for n, p in trained)
    return Signature("", (), infos, (0,) * len(infos), (), (), (), {})


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
