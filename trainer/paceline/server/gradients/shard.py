"""One shard's tensors: its slices of the parameters, their optimizer, and a gradient buffer for each worker.

The unit is the bucket: gradients are summed in worker order, divided by their number, and stepped with the user's own
optimizer class, bucket by bucket, so that a bucket is still in the processor's cache when the next pass reads it.
Each slice of a parameter is a tensor of its own, so every kernel sees what it would see in one process.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from paceline import optimizer_state, optimizers
from paceline.finite_gradients import HALVES, all_finite, first_not_finite
from paceline.model_signature import Signature
from paceline.tensor_bytes import Bytes
from paceline_core.buckets import Bucket, Slice


@dataclass
class Push:
    """What came with a worker's COMMIT, next to the gradients in its buffer."""

    absent: frozenset[int] = frozenset()  # parameters that received no gradient
    settings: Sequence[Mapping[str, Any]] = ()  # of each parameter group, the learning rate among them
    step: int = 0
    unscale: float = 1.0  # by which the gradients are to be multiplied: 1 / scale of a GradScaler
    found_inf: bool = False  # a GradScaler found an infinite gradient: no update
    not_finite: int | None = None  # the first parameter whose gradient is not finite: no update
    changed: frozenset[int] = frozenset()  # parameters that the script has, or may have, changed since the last reply
    certain: frozenset[int] = frozenset()  # those of them that it has changed for certain
    values: dict[int, Bytes] = field(default_factory=dict)  # by bucket: the changed parameters
    loaded: bool = False  # whether the script has loaded a state of the optimizer
    state: bytes = b""  # that state
    touched: frozenset[int] = frozenset()  # untrained tensors that changed on a worker whose own do not count
    version: int = 0  # of the parameters that the worker had
    arrived: float = field(default_factory=time.monotonic)

    @property
    def applicable(self) -> bool:
        """Whether an update can be made with it."""
        return not self.found_inf and self.not_finite is None


class Shard:
    """The tensors of one parameter server, for one pair of a model and an optimizer."""

    def __init__(
        self, signature: Signature, ordinal: int, shards: int, bucket_bytes: int, allowed: Sequence[str] = ()
    ) -> None:
        self.signature, self.ordinal, self._allowed = signature, ordinal, allowed
        self.buckets = signature.plan(shards, bucket_bytes)[ordinal].buckets
        self.parameters = [Bytes(b, signature.parameters) for b in self.buckets]
        self.leaves = [[torch.nn.Parameter(s) for s in b.slices] for b in self.parameters]
        self.optimizers = [self._optimizer(b, leaves) for b, leaves in zip(self.buckets, self.leaves, strict=True)]
        self._gradients: dict[int, list[Bytes]] = {}
        self._lock = threading.Lock()

    def gradients(self, worker: int) -> list[Bytes]:
        """The worker's buffer: its gradients on the way in, and its copy of the parameters on the way out."""
        with self._lock:  # a worker's connections may come for it at the same time
            if worker not in self._gradients:
                self._gradients[worker] = [self.memory(b.index) for b in self.buckets]
            return self._gradients[worker]

    def memory(self, index: int) -> Bytes:
        """New memory for one bucket."""
        return Bytes(self.buckets[index], self.signature.parameters)

    def average(self, index: int, pushes: Mapping[int, Push]) -> None:
        """Make the mean of the workers' gradients the gradient of one bucket.

        As in one process, a parameter for which nobody has a gradient is left alone, optimizer state included.
        """
        workers = sorted(pushes)
        if self._average_whole(index, [pushes[w] for w in workers], [self.gradients(w)[index] for w in workers]):
            return
        for position, (cut, leaf) in enumerate(zip(self.buckets[index].slices, self.leaves[index], strict=True)):
            parts = [
                (self.gradients(w)[index].slices[position], pushes[w].unscale)
                for w in workers
                if cut.parameter not in pushes[w].absent
            ]
            leaf.grad = _mean(parts, len(workers)) if parts else None

    def _average_whole(self, index: int, pushes: Sequence[Push], held: Sequence[Bytes]) -> bool:
        """The mean of all slices of a bucket at once, the zeros between them too, and whether it could be made so.

        It can where every worker has a gradient of each slice, in one dtype that is not summed in a wider one.
        """
        values = [bucket.values for bucket in held if bucket.values is not None]
        if not values:
            return False
        total, *others = values
        if total.dtype.itemsize < 4 or any(p.absent or p.unscale != 1.0 for p in pushes):
            return False
        for other in others:
            total.add_(other)
        if others:
            total.div_(len(held))
        for leaf, gradient in zip(self.leaves[index], held[0].slices, strict=True):
            leaf.grad = gradient
        return True

    def not_finite(self, index: int, pushes: Mapping[int, Push]) -> tuple[int, int] | None:
        """A worker and a parameter because of which the mean of one bucket, just made, is not finite.

        The mean lies in the first worker's buffer: it is that one's fault if it is nobody else's.
        """
        first = min(pushes)
        whole = self.gradients(first)[index].values
        if whole is not None and whole.dtype not in HALVES and not pushes[first].absent and all_finite([whole]):
            return None  # one call for all slices
        place = first_not_finite([leaf.grad for leaf in self.leaves[index]])
        if place is None:
            return None
        parameter = self.buckets[index].slices[place].parameter
        first, *others = (w for w in sorted(pushes) if parameter not in pushes[w].absent)
        odd = first_not_finite([self.gradients(w)[index].slices[place] * pushes[w].unscale for w in others])
        return first if odd is None else others[odd], parameter

    def squares(self, index: int) -> float:
        """The squared norm of one bucket's gradient."""
        gradients = [leaf.grad for leaf in self.leaves[index] if leaf.grad is not None]
        wide = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
        return sum(float(torch.linalg.vector_norm(g, dtype=wide.get(g.dtype))) ** 2 for g in gradients)

    def step(self, index: int, settings: Sequence[Mapping[str, Any]], factor: float, scale: float = 1.0) -> None:
        """Update one bucket; `factor` multiplies the learning rate, `scale` the gradient."""
        optimizer = self.optimizers[index]
        for group in optimizer.param_groups:
            group.update(settings[group["index"]])
            group["lr"] = group["lr"] * factor
        if scale != 1.0:
            torch._foreach_mul_([leaf.grad for leaf in self.leaves[index] if leaf.grad is not None], scale)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def install(self, changed: frozenset[int], values: Mapping[int, Bytes]) -> None:
        """Set parameters to what a script made of them."""
        for index, bucket in values.items():
            held = self.parameters[index].slices
            for cut, target, new in zip(self.buckets[index].slices, held, bucket.slices, strict=True):
                if cut.parameter in changed:
                    target.copy_(new)

    def holds(self, changed: frozenset[int]) -> set[int]:
        """The buckets with slices of these parameters."""
        return {b.index for b in self.buckets if any(c.parameter in changed for c in b.slices)} if changed else set()

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

    def optimizer_state(self) -> bytes:
        """The optimizer's state of every slice."""
        return optimizer_state.pack(self.optimizer_states())

    def optimizer_states(self) -> Iterator[tuple[Slice, Mapping[str, Any]]]:
        """The optimizer's state of each slice; its tensors are those that the next update changes."""
        for bucket, leaves in zip(self.buckets, self.leaves, strict=True):
            for cut, leaf in zip(bucket.slices, leaves, strict=True):
                yield cut, self.optimizers[bucket.index].state.get(leaf, {})

    def load_optimizer_state(self, data: bytes) -> None:
        """Take over a state; what it does not name has none. Raises ProtocolError."""
        self.load_optimizer_states(optimizer_state.unpack(data))

    def load_optimizer_states(self, states: Mapping[tuple[int, int], dict[str, Any]]) -> None:
        """Take over the state of each slice, by (parameter, start)."""
        self.optimizers = [self._optimizer(b, leaves) for b, leaves in zip(self.buckets, self.leaves, strict=True)]
        for bucket, leaves in zip(self.buckets, self.leaves, strict=True):
            for cut, leaf in zip(bucket.slices, leaves, strict=True):
                if state := states.get((cut.parameter, cut.start)):
                    self.optimizers[bucket.index].state[leaf] = state

    def _optimizer(self, bucket: Bucket, leaves: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
        groups: dict[int, list[torch.nn.Parameter]] = {}
        for cut, leaf in zip(bucket.slices, leaves, strict=True):
            groups.setdefault(self.signature.groups[cut.parameter], []).append(leaf)
        settings = self.signature.settings
        return optimizers.build(
            self.signature.optimizer,
            [{**settings[i], "params": leaves, "index": i} for i, leaves in groups.items()],
            self._allowed,
        )


def _mean(parts: list[tuple[torch.Tensor, float]], count: int) -> torch.Tensor:
    """The mean of (gradient, factor), in worker order; of half precision the sum is made in float32, rounded once."""
    first, unscale = parts[0]
    wide = first.dtype.itemsize < 4 and len(parts) > 1
    total = first.float() if wide else first
    if unscale != 1.0:
        total.mul_(unscale)
    for part, factor in parts[1:]:
        summand = part.float() if wide else part
        total.add_(summand if factor == 1.0 else summand * factor)
    if count > 1:
        total.div_(count)
    return total.to(first.dtype) if wide else total
