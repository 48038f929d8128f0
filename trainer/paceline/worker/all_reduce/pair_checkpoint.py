"""A model and its optimizer in a ring as parts of a checkpoint, and back.

Every worker has all of it, and writes the share that a parameter server of its number would hold, in the same files:
so that servers can go on from them, and a ring from a server's.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch

from paceline import optimizer_state, optimizers
from paceline.checkpoints import part_writer, saved_tensors
from paceline.checkpoints.part_writer import Part
from paceline.checkpoints.restoring import Restored
from paceline.model_signature import Signature
from paceline.worker.all_reduce.ring_optimizer import RingOptimizer
from paceline.worker.model_description import describe, trained_parameters, uncompiled
from paceline_core.buckets import Slice
from paceline_core.errors import UsageError
from paceline_core.launch import Launch

WHOLE = 1 << 62  # bytes of a slice: no parameter is cut
ON_CPU = ("step", "mu_product")  # what torch.optim keeps there, unless the optimizer is capturable or fused


def share(launch: Launch, pairs: Sequence[RingOptimizer], signatures: Sequence[Signature], number: int) -> Part:
    """This worker's share of pair `number`, copied. Raises UsageError when it is not what was distributed any more."""
    pair, signature, first = pairs[number], signatures[number], launch.ordinal == 0
    _demand_unchanged(pair, signature, again=any(each.model is pair.model for each in pairs[:number]))
    slices = _slices(launch, signature)
    tensors = {
        f"{cut.parameter}:{cut.start}": part_writer.copy(_piece(pair.parameters[cut.parameter], cut)) for cut in slices
    }
    if first:
        tensors |= {name: part_writer.copy(tensor) for name, tensor in _untrained(pair.model, signature).items()}
    step, described = sum(each.number for each in pairs), signature.to_json() if first else None
    return Part(step, number, len(pairs), pair.number, tensors, [_state(pair, cut) for cut in slices], described)


@torch.no_grad()
def restore(
    restored: Restored, number: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, signature: Signature,
    others: Collection[torch.Tensor],
) -> None:  # fmt: skip
    """Fill pair `number`; `others` are parameters that pairs before it train.

    Raises ModelMismatch, CheckpointDamaged.
    """
    restored.check_model(number, signature)
    parameters = dict(enumerate(trained_parameters(optimizer)))
    for index, whole in saved_tensors.parameters(restored, number, signature, parameters).items():
        parameters[index].copy_(whole.view(parameters[index].shape))
    untrained = _untrained(model, signature)
    for index, data in saved_tensors.untrained(restored, number, signature).items():
        info = signature.untrained[index]
        if data and untrained[info.name] not in others:
            held = torch.frombuffer(bytearray(data), dtype=getattr(torch, info.dtype))
            untrained[info.name].copy_(held.view(info.shape))
    optimizer.state.clear()
    for index, state in saved_tensors.optimizer_states(restored, number, parameters).items():
        group = optimizer.param_groups[signature.groups[index]]
        optimizer.state[parameters[index]] = {
            key: placed(key, value, parameters[index], group) for key, value in state.items()
        }


def _slices(launch: Launch, signature: Signature) -> list[Slice]:
    """An optimizer that may look at a parameter as a whole has its state whole."""
    element_wise = signature.optimizer in optimizers.OPTIMIZERS
    most = int(launch.spec.gradients.bucket_mib * (1 << 20)) if element_wise else WHOLE
    plan = signature.plan(launch.world_size, most)[launch.ordinal]
    return [cut for bucket in plan.buckets for cut in bucket.slices]


def _demand_unchanged(pair: RingOptimizer, signature: Signature, again: bool) -> None:
    now = replace(describe(pair.model, pair.optimizer, signature.model, again), settings=signature.settings)
    difference = signature.difference(now)
    if difference is None and set(pair.optimizer.state) - set(pair.parameters):
        difference = "a state of the optimizer that belongs to no parameter"
    if difference is not None:
        raise UsageError(f"the model or its optimizer has changed since paceline.distribute(): {difference}")


def _piece(parameter: torch.Tensor, cut: Slice) -> torch.Tensor:
    return parameter.detach().reshape(-1)[cut.start : cut.stop]


def _state(pair: RingOptimizer, cut: Slice) -> tuple[Slice, dict[str, Any]]:
    parameter = pair.parameters[cut.parameter]
    state = optimizer_state.cut(parameter, pair.optimizer.state.get(parameter, {}), cut)
    return cut, {key: part_writer.copy(value) for key, value in state.items()}


def _untrained(model: torch.nn.Module, signature: Signature) -> dict[str, torch.Tensor]:
    """Frozen parameters and buffers as they stand under their names now."""
    model = uncompiled(model)
    held = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    return {info.name: held[info.name] for info in signature.untrained}


def placed(key: str, value: Any, parameter: torch.Tensor, group: dict[str, Any]) -> Any:
    """A value of the state where the optimizer keeps it, and in the parameter's layout if it has its shape."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.dim() and value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    on_cpu = key in ON_CPU and not (group.get("capturable") or group.get("fused"))
    return value if on_cpu else value.to(parameter.device)
