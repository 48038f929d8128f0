"""One shard's tensors: its slices of the parameters, their optimizer, and a gradient buffer for each worker.

The unit is the bucket: gradients are summed in worker order, divided by their number, and stepped with the user's own
optimizer class, bucket by bucket, so that a bucket is still in the processor's cache when the next pass reads it.
Each slice of a parameter is a tensor of its own, so every kernel sees what it would see in one process.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from paceline import optimizers
from paceline.memory import Bytes
from paceline.signature import Signature
from paceline_core.buckets import Bucket


class Push:
    """What came with a worker's COMMIT, next to the gradients in its buffer."""

    def __init__(self, absent: Sequence[int] = (), settings: Sequence[Mapping[str, Any]] = (), step: int = 0) -> None:
        self.absent = frozenset(absent)  # parameters that received no gradient
        self.step, self.arrived = step, time.monotonic()
        self.settings = settings  # of each parameter group, the learning rate among them


class Shard:
    """The tensors of one parameter server."""

    def __init__(self, signature: Signature, ordinal: int, shards: int, bucket_bytes: int) -> None:
        self.signature, self.ordinal = signature, ordinal
        self.buckets = signature.plan(shards, bucket_bytes)[ordinal].buckets
        self.parameters = [Bytes(b, signature.parameters) for b in self.buckets]
        self.leaves = [[torch.nn.Parameter(s) for s in b.slices] for b in self.parameters]
        self.optimizers = [self._optimizer(b, leaves) for b, leaves in zip(self.buckets, self.leaves, strict=True)]
        self._gradients: dict[int, list[Bytes]] = {}
        self._lock = threading.Lock()

    def gradients(self, worker: int) -> list[Bytes]:
        """The worker's buffer: its gradients on the way in, and its copy of the parameters on the way out."""
        with self._lock:  # a worker's lanes may come for it at the same time
            if worker not in self._gradients:
                self._gradients[worker] = [Bytes(b, self.signature.parameters) for b in self.buckets]
            return self._gradients[worker]

    def update(self, index: int, pushes: Mapping[int, Push], factor: float) -> None:
        """Apply the mean of the workers' gradients to one bucket; `factor` multiplies the learning rate.

        As in one process, a parameter for which nobody has a gradient is left alone, optimizer state included.
        """
        workers = sorted(pushes)
        for position, (cut, leaf) in enumerate(zip(self.buckets[index].slices, self.leaves[index], strict=True)):
            parts = [
                self.gradients(w)[index].slices[position] for w in workers if cut.parameter not in pushes[w].absent
            ]
            leaf.grad = _mean(parts, len(workers)) if parts else None
        optimizer = self.optimizers[index]
        for group in optimizer.param_groups:
            group.update(pushes[workers[0]].settings[group["index"]])
            group["lr"] = group["lr"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def copy_for(self, worker: int, index: int) -> None:
        """Keep one bucket of the parameters, as they are now, in the worker's buffer."""
        self.gradients(worker)[index].raw.copy_(self.parameters[index].raw)

    def state(self) -> dict[str, torch.Tensor]:
        """Every slice of the parameters, named `index:start`."""
        return {
            f"{cut.parameter}:{cut.start}": piece
            for bucket, held in zip(self.buckets, self.parameters, strict=True)
            for cut, piece in zip(bucket.slices, held.slices, strict=True)
        }

    def _optimizer(self, bucket: Bucket, leaves: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
        groups: dict[int, list[torch.nn.Parameter]] = {}
        for cut, leaf in zip(bucket.slices, leaves, strict=True):
            groups.setdefault(self.signature.groups[cut.parameter], []).append(leaf)
        settings = self.signature.settings
        return optimizers.build(
            self.signature.optimizer,
            [{**settings[i], "params": leaves, "index": i} for i, leaves in groups.items()],
        )


def _mean(parts: list[torch.Tensor], count: int) -> torch.Tensor:
    total = parts[0]
    for part in parts[1:]:
        total.add_(part)
    return total.div_(count) if count > 1 else total
