"""Checksums of the weights, by which the coordinator sees whether all workers hold the same."""

from collections.abc import Mapping, Sequence

import torch

STEPS = 500  # between two checksums: one costs about a tenth of a step, so less than 0.1 % of the time
FIRST = (1, 10, 100)  # and early, because workers that differ mostly do from the start


def due(step: int, last: int | None) -> bool:
    """Whether the weights are compared after this step, of `last`: the same on every worker."""
    return step % STEPS == 0 or step in FIRST or step == last


def checksums(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """A sum over the bits of each, of shape [len(parameters)] and int64; it is not waited for on a GPU."""
    device = parameters[0].device
    return torch.stack([_bits(p.detach()).to(device) for p in parameters])


class Unchanged:
    """Whether weights are still what the last step made of them: a script may load others after it, for a test."""

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        self._parameters = parameters
        self._smallest = min(parameters, key=torch.Tensor.numel)
        self.note()

    def note(self) -> None:
        """A step has ended."""
        self._versions = self._sum_versions()
        self._copy = self._smallest.detach().clone()  # changes through .data leave the version as it is

    def __bool__(self) -> bool:
        return self._versions == self._sum_versions() and torch.equal(self._copy, self._smallest)

    def _sum_versions(self) -> int:
        return sum([p._version for p in self._parameters])


def told(step: int, pair: int, names: Sequence[str], sums: torch.Tensor) -> Mapping[str, object]:
    """The checksums as they are sent."""
    return {"step": step, "pair": pair, "sums": dict(zip(names, sums.tolist(), strict=True))}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The sum, modulo 2^64, of the tensor's bytes taken as int64: seven times as fast as of narrower integers."""
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    whole = len(flat) // 8 * 8
    if flat.storage_offset() % 8:
        flat = flat.clone()
    return flat[:whole].view(torch.int64).sum() + flat[whole:].sum()
