"""The weights that a shard writes at the end, and whether they are finite."""

from pathlib import Path

import torch

from paceline import json_text, weight_files, weights
from paceline.server.gradients.executor import Executor
from paceline.server.gradients.shard import Shard


def not_finite(executor: Executor) -> str | None:
    """The first tensor here that is not finite."""
    shard, parameters = executor.shard, executor.shard.signature.parameters
    trained = ((parameters[int(place.partition(":")[0])].name, piece) for place, piece in shard.state().items())
    return weights.first_not_finite(trained, _untrained(executor, shard).items())


def write(executor: Executor, pair: int, folder: Path) -> None:
    """Write this shard's part; shard 0 also what is not trained, and the model's signature. Raises OSError."""
    shard = executor.shard
    if shard.ordinal == 0:
        (folder / weight_files.signature_file(pair)).write_text(json_text.dumps(shard.signature.to_json()))
    weights.save(shard.state() | _untrained(executor, shard), folder / weight_files.shard_file(shard.ordinal, pair))


def _untrained(executor: Executor, shard: Shard) -> dict[str, torch.Tensor]:
    return weights.untrained_tensors(shard.signature, executor.untrained.all()) if shard.ordinal == 0 else {}
