"""Fills a shard from a checkpoint: it takes its slices of what all processes wrote, however many they were."""

from typing import Any

import torch

from paceline import optimizer_state
from paceline.checkpoints import saved_tensors
from paceline.checkpoints.restoring import Restored
from paceline.server.gradients.executor import Executor
from paceline.server.gradients.shard import Shard

FROM_CHECKPOINT = -1  # whose the tensors are that are not trained: no worker's, so that every worker is told


def fill(executor: Executor, restored: Restored, pair: int) -> None:
    """Fill a shard. Raises ModelMismatch for another model, CheckpointDamaged for missing parts."""
    shard = executor.shard
    restored.check_model(pair, shard.signature)
    _fill_parameters(shard, restored, pair)
    shard.load_optimizer_states(_optimizer_states(shard, restored, pair))
    executor.version = restored.version(pair)
    if shard.ordinal == 0:
        executor.untrained.take(FROM_CHECKPOINT, saved_tensors.untrained(restored, pair, shard.signature))


def _held(shard: Shard) -> set[int]:
    return {cut.parameter for bucket in shard.buckets for cut in bucket.slices}


def _fill_parameters(shard: Shard, restored: Restored, pair: int) -> None:
    whole = saved_tensors.parameters(restored, pair, shard.signature, _held(shard))
    for bucket, held in zip(shard.buckets, shard.parameters, strict=True):
        for cut, target in zip(bucket.slices, held.slices, strict=True):
            target.copy_(whole[cut.parameter][cut.start : cut.stop])


def _optimizer_states(shard: Shard, restored: Restored, pair: int) -> dict[tuple[int, int], dict[str, Any]]:
    """The optimizer's state of each slice that this shard holds."""
    flat = {
        number: torch.empty(shard.signature.parameters[number].numel, dtype=torch.uint8, device="cpu")
        for number in _held(shard)
    }
    states = saved_tensors.optimizer_states(restored, pair, flat)
    return {
        (cut.parameter, cut.start): _copied(optimizer_state.cut(flat[cut.parameter], states[cut.parameter], cut))
        for bucket in shard.buckets
        for cut in bucket.slices
        if cut.parameter in states
    }


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """Each slice has a step count of its own."""
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
