"""Gradients that are summed over the workers in one call: many dense ones in one buffer, or a sparse one by itself."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch

HALVES = (torch.float16, torch.bfloat16)


class _Buffer:
    """Room for one gradient of each parameter, and at its end for one element each."""

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        dtype = torch.float32 if parameters[0].dtype in HALVES else parameters[0].dtype
        sizes = [*(p.numel() for p in parameters), len(parameters)]
        self.flat = torch.zeros(sum(sizes), dtype=dtype, device=parameters[0].device)
        *pieces, self.presence = self.flat.split(sizes)
        self.views = [piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)]
        self.targets = [*self.views, self.presence]


class ReductionBucket:
    """Dense gradients of one device and dtype, in one buffer.

    Halves are summed and divided in float32 and rounded once. At the buffer's end stands one element for each
    parameter: 1 from a worker that has a gradient for it. A parameter without a gradient on any worker keeps none;
    one with a gradient on some of them gets the mean, in which the others count as zeros.

    A bucket that `keeps` has a second buffer, so that the means of the last reduction are there until the next ends.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], world_size: int) -> None:
        self.parameters, self._world_size = parameters, world_size
        self._divisor = world_size  # 1 for what is a mean already
        self._buffer = _Buffer(parameters)
        self._other: _Buffer | None = None  # once there are two
        self.keeps = False
        self.means: torch.Tensor | None = None
        self._ones = torch.ones_like(self._buffer.presence)
        self._gradients: list[torch.Tensor | None] = []
        self._work: Any = None
        self.watches = False  # whether to look at this worker's own gradients
        self._own_norms: Sequence[torch.Tensor] = ()

    def own_not_finite(self) -> int | None:
        """The place of the first parameter of which this worker's own gradient was not finite, when it was watched."""
        return next((i for i, norm in enumerate(self._own_norms) if not math.isfinite(norm)), None)

    def launch(self, group: Any) -> None:
        """Begin to sum the gradients as they now are. Raises RuntimeError when one is sparse."""
        if self.means is self._buffer.flat:
            self._buffer, self._other = self._other or _Buffer(self.parameters), self._buffer
        buffer, self._gradients = self._buffer, [p.grad for p in self.parameters]
        gradients = self._gradients
        present: list[Any] = [g for g in gradients if g is not None]
        if len(present) == len(gradients):
            torch._foreach_copy_(buffer.targets, [*present, self._ones])
        else:
            buffer.flat.zero_()
            here = [i for i, g in enumerate(gradients) if g is not None]
            if here:
                torch._foreach_copy_([buffer.views[i] for i in here], present)
            buffer.presence.copy_(torch.tensor([g is not None for g in gradients], dtype=torch.bool, device="cpu"))
        if self.watches:
            self._own_norms = torch._foreach_norm(buffer.views)  # read only if the mean is not finite: no GPU waits
        self._divisor, self._work = self._world_size, group.allreduce([buffer.flat])

    def wait(self) -> None:
        """Wait for the sum; on a GPU its stream waits, and not the caller."""
        self._work.wait()
        self._work = None

    def drain(self) -> None:
        """Wait until what was launched over a group that is broken has failed."""
        work, self._work = self._work, None
        if work is not None:
            with suppress(RuntimeError):
                work.wait()

    def take(self, means: torch.Tensor) -> None:
        """Take the means that others have, in place of a reduction."""
        self._gradients = [p.grad for p in self.parameters]
        self._buffer.flat.copy_(means)
        self._divisor = 1

    def write(self) -> list[int]:
        """Put the means into the gradients; gives the places of parameters that have none on any worker."""
        buffer, gradients, self._gradients = self._buffer, self._gradients, []
        buffer.flat.div_(self._divisor)
        self.means = buffer.flat if self.keeps else None
        present: list[Any] = [g for g in gradients if g is not None]
        if len(present) == len(gradients):
            torch._foreach_copy_(present, buffer.views)
            return []
        # whoever lacks a gradient asks who has one; the others need not wait for their device
        nowhere = [i for i, share in enumerate(buffer.presence.tolist()) if share == 0]
        for i, gradient in enumerate(gradients):
            if gradient is not None:
                gradient.copy_(buffer.views[i])
            elif i not in nowhere:
                parameter = self.parameters[i]
                parameter.grad = torch.empty_like(parameter, requires_grad=False).copy_(buffer.views[i])
        return nowhere


class SparseBucket:
    """The sparse gradient of one parameter. Who has none adds nothing."""

    def __init__(self, parameter: torch.Tensor, world_size: int) -> None:
        self.parameters, self._world_size = [parameter], world_size
        self._sum: Any = None
        self._work: Any = None
        self.watches = self.keeps = False
        self.means: torch.Tensor | None = None  # none are kept
        self._own: torch.Tensor | None = None

    def own_not_finite(self) -> int | None:
        """0 when this worker's own gradient was not finite, and it was watched."""
        return None if self._own is None or math.isfinite(self._own) else 0

    def launch(self, group: Any) -> None:
        """Begin to sum the gradients as they now are."""
        parameter = self.parameters[0]
        gradient = parameter.grad
        if gradient is None:
            self._sum = _no_rows(parameter)
        else:
            self._sum = gradient.clone() if gradient.layout is torch.sparse_coo else gradient.to_sparse(1)
        self._sum = self._sum.coalesce()
        if self.watches:
            self._own = self._sum.values().norm()  # read only if the mean is not finite
        self._work = group.allreduce([self._sum])

    def wait(self) -> None:
        """Wait for the sum."""
        self._work.wait()
        self._work = None

    def drain(self) -> None:
        """Nothing is waited for: a ring with sparse gradients is not made anew."""

    def write(self) -> list[int]:
        """Make the mean the gradient; [0] when no worker has one."""
        parameter, mean, self._sum = self.parameters[0], self._sum.coalesce(), None
        if parameter.grad is None and mean._nnz() == 0:
            return [0]
        mean.values().div_(self._world_size)
        parameter.grad = mean if parameter.grad is None or parameter.grad.is_sparse else mean.to_dense()
        return []


def _no_rows(parameter: torch.Tensor) -> torch.Tensor:
    """A sparse gradient as an embedding's backward makes them, one sparse dimension, without any row."""
    rows = torch.empty((0, *parameter.shape[1:]), dtype=parameter.dtype, device=parameter.device)
    index = torch.empty((1, 0), dtype=torch.int64, device=parameter.device)
    return torch.sparse_coo_tensor(index, rows, parameter.shape, check_invariants=False)


def fill(parameters: Sequence[torch.Tensor], world_size: int, most_bytes: int) -> Iterator[ReductionBucket]:
    """Dense parameters in buckets: from the last to the first, as backward makes their gradients.

    A bucket holds no more than `most_bytes`, or else a single parameter.
    """
    open_buckets: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for parameter in reversed(parameters):
        kind = parameter.device, parameter.dtype
        filled = open_buckets.setdefault(kind, [])
        if filled and sum(_nbytes(p) for p in filled) + _nbytes(parameter) > most_bytes:
            yield ReductionBucket(filled, world_size)
            filled = open_buckets[kind] = []
        filled.append(parameter)
    for rest in open_buckets.values():
        yield ReductionBucket(rest, world_size)


def _nbytes(parameter: torch.Tensor) -> int:
    return parameter.numel() * parameter.element_size()
