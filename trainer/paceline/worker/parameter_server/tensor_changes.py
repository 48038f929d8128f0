"""Notices what a script does to tensors between two comparisons, whichever way it writes.

Version counters are not honoured by every writer (`.data`, kernels in C++ and Triton), so that beside them a few
elements of each tensor, evenly spread, are compared bit by bit. What was found changed once is from then on compared
whole, with a copy of it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

SAMPLES = 64  # elements of a tensor that are compared
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bits are compared, because of NaN


class Changed(NamedTuple):
    """Numbers of tensors. Of the `possible` ones only the version counter tells; they may hold what they held."""

    certain: list[int]
    possible: list[int]

    @property
    def all(self) -> list[int]:
        """Both."""
        return sorted(self.certain + self.possible)


class TensorChanges:
    """Compares tensors with what they were; `current` gives them, always in the same order, None where one is gone."""

    def __init__(self, current: Callable[[], Sequence[torch.Tensor | None]]) -> None:
        self._current = current
        self._tensors: list[torch.Tensor | None] = []
        self._views: list[torch.Tensor | None] = []  # samples, seen in the tensors' own memory; None: not to be had
        self._memory: dict[int, Any] = {}  # the same, of those in this machine's memory
        self._addresses: list[int] = []
        self._versions: list[int] = []
        self._on_devices: dict[torch.device, list[torch.Tensor]] = {}  # the views into other devices' memory
        self._starts: list[int] = []  # where each tensor's samples begin among those of its device
        self._samples: dict[torch.device, torch.Tensor] = {}
        self._bytes: list[bytes] = []  # of those in this machine's memory, in their order
        self._order: dict[int, int] = {}
        self._copies: dict[int, torch.Tensor] = {}
        self.remember()

    def remember(self) -> None:
        """What the tensors hold now is what they are compared with."""
        tensors = list(self._current())
        if not tensors:
            return
        addresses = [0 if t is None else t.data_ptr() for t in tensors]
        if addresses != self._addresses:
            self._views = [None if t is None else samples(t) for t in tensors]
            self._on_devices, self._starts = self._by_device()
            self._memory = {n: _memory(v) for n, v in enumerate(self._views) if v is not None and v.is_cpu}
            self._order = {number: place for place, number in enumerate(self._memory)}
            self._copies |= {n: t for n, t in enumerate(tensors) if t is not None and self._views[n] is None}
        self._tensors, self._addresses = tensors, addresses
        self._versions = [0 if t is None else t._version for t in tensors]
        self._samples, self._bytes = self._take_samples(), self._take_bytes()
        for number in self._copies:
            held = tensors[number]
            if held is not None:
                self._copies[number] = held.detach().clone()

    def found(self) -> Changed:
        """What has changed since."""
        tensors = list(self._current())
        if not tensors:
            return Changed([], [])
        versions = [0 if t is None else t._version for t in tensors]
        addresses = [0 if t is None else t.data_ptr() for t in tensors]
        untouched = versions == self._versions and addresses == self._addresses and not self._copies
        if untouched and self._take_bytes() == self._bytes and self._same_on_devices():
            return Changed([], [])
        changed = Changed([], [])
        for number, tensor in enumerate(tensors):
            if tensor is not None:
                self._compare(number, tensor, changed)
        for number in changed.all:
            held = self._tensors[number]
            if held is not None:
                self._copies.setdefault(number, held)  # a true copy from the next `remember` on
        return changed

    def _compare(self, number: int, tensor: torch.Tensor, changed: Changed) -> None:
        before = self._copies.get(number)
        moved = tensor.data_ptr() != self._addresses[number]
        if before is not None:
            if before.shape != tensor.shape or not torch.equal(bits(before), bits(tensor)):
                changed.certain.append(number)
        elif not self._same_samples(number, samples(tensor) if moved else self._views[number]):
            changed.certain.append(number)
        elif moved or tensor._version != self._versions[number]:
            changed.possible.append(number)

    def _same_samples(self, number: int, now: torch.Tensor | None) -> bool:
        view = self._views[number]
        if view is None or now is None or now.device != view.device:
            return False
        if number in self._memory:
            return bool(_memory(now).tobytes() == self._bytes[self._order[number]])
        start = self._starts[number]
        before = self._samples[view.device][start : start + view.numel()]
        return torch.equal(before, now.to(before.dtype))

    def _by_device(self) -> tuple[dict[torch.device, list[torch.Tensor]], list[int]]:
        views: dict[torch.device, list[torch.Tensor]] = {}
        ends, starts = Counter[torch.device](), []
        for view in self._views:
            if view is None or view.is_cpu:
                starts.append(0)
                continue
            starts.append(ends[view.device])
            ends[view.device] += view.numel()
            views.setdefault(view.device, []).append(view)
        return views, starts

    def _take_bytes(self) -> list[bytes]:
        return [array.tobytes() for array in self._memory.values()]

    def _take_samples(self) -> dict[torch.device, torch.Tensor]:
        return {device: torch.cat(views) for device, views in self._on_devices.items()}

    def _same_on_devices(self) -> bool:
        return all(torch.equal(new, self._samples[device]) for device, new in self._take_samples().items())


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's elements as integers, to be compared bit by bit."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.view(INTEGERS[tensor.element_size()])


def _memory(view: torch.Tensor) -> Any:
    """The same elements as numpy's array: for so few, copying one takes less than an operation of torch's."""
    return view.numpy()


def samples(tensor: torch.Tensor) -> torch.Tensor | None:
    """Some elements of a tensor, evenly spread, in its own memory; None when its memory is not in one piece."""
    whole = bits(tensor)
    dense = whole.permute(sorted(range(whole.dim()), key=whole.stride, reverse=True))
    if not dense.is_contiguous():
        return None
    flat = dense.view(-1)
    return flat[:: max(1, flat.numel() // SAMPLES)]
