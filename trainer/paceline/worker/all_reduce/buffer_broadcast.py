"""Buffers, as the statistics of BatchNorm: every worker takes those of worker 0 at each step.

They are found by their names: a module may put another tensor in a buffer's place. Small ones travel together at each
step; a large one, as a causal mask of 16 MiB, only after it changed on any worker.

Where a ring is made anew (paceline/worker/all_reduce/recovery), who lacks the small ones of an exchange takes
them from a worker that has them.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import is_not
from typing import Any

import torch
from torch.distributed import ReduceOp

from paceline_core.errors import PeerLost

SMALL_BYTES = 64 * 1024
SAMPLES = 64  # elements of a large buffer that are compared
SEARCH_STEPS = 1000  # between two searches for buffers that were registered meanwhile
NOTHING = -1  # in place of the last exchange, when other buffers are to be exchanged


@dataclass
class Place:
    """Where a buffer is: under `key` of a module's dictionary; a tensor of another shape there stays by itself."""

    name: str
    holder: dict[str, torch.Tensor | None]
    key: str
    like: torch.Tensor = field(repr=False)  # on the meta device: shape and dtype

    def tensor(self) -> torch.Tensor | None:
        """What is there now."""
        found = self.holder.get(self.key)
        fits = found is not None and found.shape == self.like.shape and found.dtype == self.like.dtype
        return found if fits else None

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self.like.numel() * self.like.element_size()


class Buffers:
    """The buffers of one model. `begin` sends them, `end` waits for them."""

    def __init__(self, model: torch.nn.Module, group: Any, device: torch.device) -> None:
        self._model, self._group, self._device = model, group, device
        self._source = group.rank() == 0
        self.exchanges = 0
        self._arriving: list[tuple[Any, _Packed]] = []
        self._changed: tuple[Any, torch.Tensor] | None = None  # of the step before, by large buffer
        self._places: list[Place] = []
        self.large_changed = False  # a large one, at any time
        self._reached = 0  # exchanges that others have completed, and the small buffers of the last of them
        self._given: torch.Tensor | None = None
        self._held = 0  # the exchange of which the small buffers are packed
        self._small: _Packed | None = None  # of that exchange
        self._coming: _Packed | None = None  # of the one in progress
        self._lay_out(list(_places(model)))
        if self._small:
            self._small.pack()

    def __bool__(self) -> bool:
        return bool(self._small or self._large)

    @torch.no_grad()
    def begin(self) -> None:
        """Begin to send worker 0's."""
        self.exchanges += 1
        if self.exchanges > self._reached:
            self._begin()

    @torch.no_grad()
    def end(self) -> None:
        """Take them."""
        if self.exchanges > self._reached:
            self._wait()
        if self.exchanges <= self._reached:
            self.take()
        elif not self._source:
            for _, packed in self._arriving:
                packed.unpack()
            self._hold()
        self._arriving.clear()

    def _begin(self) -> None:
        if self.exchanges in (2, 10, 100) or self.exchanges % SEARCH_STEPS == 0:
            self._search()
        if self._coming:
            self._send(self._coming)
            if self._source:
                self._hold()
        if self._large:
            self._send_changed()

    def _hold(self) -> None:
        """This worker has the small buffers of the exchange."""
        self._small, self._coming, self._held = self._coming, self._small, self.exchanges

    @property
    def held(self) -> int:
        """The last exchange of which this worker has all, or else NOTHING."""
        return self._held if self._small else self.exchanges

    def packed(self) -> torch.Tensor:
        """The small ones of that exchange, as bytes."""
        return self._small.flat if self._small else torch.empty(0, dtype=torch.uint8, device="cpu")

    def go_on(self, exchanges: int, reached: int, given: torch.Tensor | None) -> None:
        """So many exchanges were made here, and `reached` by others: what came of the last is `given`.

        Raises PeerLost when it is of other buffers than these.
        """
        if given is not None and len(given) != len(self.packed()):
            raise PeerLost(f"{len(given)} bytes of buffers came from another worker, and here are {len(self.packed())}")
        self.exchanges, self._reached, self._given = exchanges, reached, given

    def take(self) -> None:
        """What was given, if this is the exchange of it."""
        if self._small and self._given is not None and self.exchanges == self._reached:
            self._small.flat.copy_(self._given)
            self._small.unpack()
            self._held, self._given = self.exchanges, None

    def are_set(self) -> None:
        """All were set to those of another worker: of the small ones those of the last exchange count."""
        if self._small:
            self._small.unpack()
        self._detectors = [_ChangeDetector(p.tensor()) for p in self._large]

    def drain(self) -> None:
        """The group is broken: wait until nothing is on its way any more."""
        works = [work for work, _ in self._arriving] + ([self._changed[0]] if self._changed else [])
        for work in works:
            with suppress(RuntimeError):
                work.wait()
        self._changed = None

    def send_again(self) -> None:
        """Send over another group what was on its way, unless others have it."""
        again = [packed for _, packed in self._arriving] if self.exchanges > self._reached else []
        self._arriving = [(self._group.broadcast(packed.flat, 0), packed) for packed in again]

    def _wait(self) -> None:
        waits = True
        while waits and self.exchanges > self._reached:
            try:
                for work, _ in self._arriving:
                    work.wait()
                waits = False
            except RuntimeError as error:
                self._group.recover(error)

    def _lay_out(self, places: list[Place]) -> None:
        small = [p for p in places if p.nbytes <= SMALL_BYTES]
        self._places = places
        self._small = _Packed(small, self._device) if small else None
        self._coming = _Packed(small, self._device) if small else None
        self._large = [p for p in places if p.nbytes > SMALL_BYTES]
        self._detectors = [_ChangeDetector(p.tensor()) for p in self._large]
        self._changed = None

    def _search(self) -> None:
        """Look for new buffers; they travel once every worker has the same."""
        known = {(p.name, p.key): p for p in self._places}
        found = [known.get((p.name, p.key), p) for p in _places(self._model)]
        layout = repr([(p.name, tuple(p.like.shape), p.like.dtype) for p in found])
        digest = int.from_bytes(hashlib.sha256(layout.encode()).digest()[:7], "big")
        both = torch.tensor([digest, -digest], dtype=torch.int64, device=self._device)
        self._group.allreduce([both], ReduceOp.MAX).wait()
        greatest, least = both.tolist()
        others = len(found) != len(self._places) or any(map(is_not, found, self._places))
        if greatest == -least and others:
            self._lay_out(found)
            self._held = NOTHING

    def _send_changed(self) -> None:
        """What changed since the step before, as that step's question to all workers found; and ask anew."""
        pairs = zip(self._detectors, self._large, strict=True)
        changed = torch.stack([detector.compare(place.tensor(), self._device) for detector, place in pairs])
        self.large_changed = self.large_changed or changed.device.type != "cpu" or bool(changed.any())
        if self._changed is not None:
            work, counts = self._changed
            work.wait()
            travelling = [p for p, count in zip(self._large, counts.tolist(), strict=True) if count]
            if travelling:
                self.large_changed = True
                self._send(_Packed(travelling, self._device))
        self._changed = self._group.allreduce([changed]), changed

    def _send(self, packed: "_Packed") -> None:
        if self._source:
            packed.pack()
        self._arriving.append((self._group.broadcast(packed.flat, 0), packed))


class _Packed:
    """Buffers of any dtype as one run of bytes. In the run, wide elements come first: so all are aligned."""

    def __init__(self, places: Sequence[Place], device: torch.device) -> None:
        self._places = sorted(places, key=lambda p: -p.like.element_size())
        self.flat = torch.zeros(sum(p.nbytes for p in places), dtype=torch.uint8, device=device)
        pieces = self.flat.split([p.nbytes for p in self._places])
        self._views = [
            piece.view(p.like.dtype).view(p.like.shape) for piece, p in zip(pieces, self._places, strict=True)
        ]

    def pack(self) -> None:
        """Copy the buffers as they now are."""
        pairs = [(v, t) for v, p in zip(self._views, self._places, strict=True) if (t := p.tensor()) is not None]
        torch._foreach_copy_([v for v, _ in pairs], [t for _, t in pairs])

    def unpack(self) -> None:
        """Set the buffers."""
        pairs = [(t, v) for v, p in zip(self._views, self._places, strict=True) if (t := p.tensor()) is not None]
        torch._foreach_copy_([t for t, _ in pairs], [v for _, v in pairs])


class _ChangeDetector:
    """What is kept of a large buffer to see that it changed: which tensor it was, its version, and some elements.

    The version alone does not tell: batch_norm leaves it as it is.
    """

    def __init__(self, tensor: torch.Tensor | None) -> None:
        self._note(tensor)

    def compare(self, tensor: torch.Tensor | None, device: torch.device) -> torch.Tensor:
        """1 on `device` if it changed since the last time, else 0; without waiting for the device."""
        reference, version, samples = self._tensor, self._version, self._samples
        self._note(tensor)
        # `reference` is to memory: a tensor object that names a buffer may be another at each call
        same = reference == self._tensor and version == self._version
        if not same or samples is None or self._samples is None:
            return torch.tensor(int(not same), dtype=torch.int64, device=device)
        return (samples != self._samples).any().to(device, torch.int64)

    def _note(self, tensor: torch.Tensor | None) -> None:
        if tensor is None:
            self._tensor, self._version, self._samples = 0, 0, None
            return
        self._tensor = tensor.data_ptr()
        self._version = 0 if tensor.is_inference() else tensor._version
        step = max(1, tensor.numel() // SAMPLES)
        flat = tensor.view(-1) if tensor.is_contiguous() else tensor.select(0, 0).reshape(-1)
        self._samples = flat[::step].clone()


def _places(model: torch.nn.Module) -> Iterator[Place]:
    seen = set()
    for prefix, module in model.named_modules():
        for key, tensor in module._buffers.items():
            if tensor is not None and tensor.numel() and id(tensor) not in seen:
                seen.add(id(tensor))
                yield Place(
                    f"{prefix}.{key}".lstrip("."), module._buffers, key, torch.empty_like(tensor, device="meta")
                )
