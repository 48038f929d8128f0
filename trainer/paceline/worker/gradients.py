"""Watches gradients become ready, and hands whole buckets to the lanes while backward still runs.

A bucket that was sent early is a guess: clipping, unscaling or a further backward pass may change its gradients before
the step. Every gradient's identity and version counter are kept with it and compared at the step; what has changed is
sent again before the push is committed. After the first wrong guess buckets wait for the step.
"""

from collections.abc import Callable, Sequence

import torch

from paceline.memory import memory
from paceline.signature import Signature
from paceline_core.buckets import Bucket, Shard
from paceline_core.errors import UsageError

Place = tuple[int, int]  # shard, bucket
Send = Callable[[int, int, list[memoryview]], None]


class Stamp:
    """A gradient and its version counter. Holds the gradient, so that no other can take its identity."""

    def __init__(self, gradient: torch.Tensor | None) -> None:
        self.gradient = gradient
        self._version = 0 if gradient is None else gradient._version

    def same(self, other: "Stamp") -> bool:
        """Whether the gradient is unchanged."""
        return self.gradient is other.gradient and self._version == other._version


class Gradients:
    """The gradients of this worker, cut into the buckets of the plan."""

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        signature: Signature,
        plan: Sequence[Shard],
        send: Send,
        on_ready: Callable[[torch.Tensor], None],
        overlap: bool,
    ) -> None:
        self._parameters, self._signature, self._send, self._on_ready = parameters, signature, send, on_ready
        self._buckets = {(s.ordinal, b.index): b for s in plan for b in s.buckets}
        self._places: list[list[Place]] = [[] for _ in parameters]
        for place, bucket in self._buckets.items():
            for index in {cut.parameter for cut in bucket.slices}:
                self._places[index].append(place)
        self._sizes = {place: len({c.parameter for c in b.slices}) for place, b in self._buckets.items()}
        largest = max((b.nbytes for b in self._buckets.values()), default=0)
        self._zeros = memoryview(bytes(largest))
        self.overlap, self.paused = overlap, False
        self._reset()
        for index, parameter in enumerate(parameters):
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._hook(index))

    def finish(self) -> list[int]:
        """Send what is not there yet as it now is; gives the parameters that have no gradient."""
        stamps = [self._stamp(i) for i in range(len(self._parameters))]
        self._flat.clear()  # copies made early may be of gradients that have changed
        for place, bucket in self._buckets.items():
            sent = self._sent.get(place)
            if sent and all(a.same(stamps[c.parameter]) for a, c in zip(sent, bucket.slices, strict=True)):
                continue
            if sent is not None:
                self.overlap = False
            self._send(*place, self._pieces(bucket))
        self._reset()
        return [i for i, stamp in enumerate(stamps) if stamp.gradient is None]

    def _reset(self) -> None:
        self._sent: dict[Place, list[Stamp]] = {}
        self._left = dict(self._sizes)
        self._flat: dict[int, torch.Tensor] = {}

    def _hook(self, index: int) -> Callable[[torch.Tensor], None]:
        def ready(gradient_of: torch.Tensor) -> None:
            self._on_ready(gradient_of)
            if self.paused or not self.overlap:
                return
            self._flat.pop(index, None)
            for place in self._places[index]:
                self._left[place] -= 1
                if self._left[place] == 0:
                    bucket = self._buckets[place]
                    self._sent[place] = [self._stamp(c.parameter) for c in bucket.slices]
                    self._send(*place, self._pieces(bucket))

        return ready

    def _stamp(self, index: int) -> Stamp:
        return Stamp(self._parameters[index].grad)

    def _pieces(self, bucket: Bucket) -> list[memoryview]:
        """The bucket's bytes, straight from the gradients' memory, with zeros between and for what is absent."""
        out: list[memoryview] = []
        end = 0
        for cut in bucket.slices:
            if cut.offset > end:
                out.append(self._zeros[: cut.offset - end])
            flat = self._flattened(cut.parameter)
            size = (cut.stop - cut.start) * self._parameters[cut.parameter].element_size()
            out.append(self._zeros[:size] if flat is None else memory(flat[cut.start : cut.stop]))
            end = cut.offset + size
        if bucket.nbytes > end:
            out.append(self._zeros[: bucket.nbytes - end])
        return out

    def _flattened(self, index: int) -> torch.Tensor | None:
        parameter = self._parameters[index]
        gradient = parameter.grad
        if gradient is None:
            return None
        if gradient.layout is not torch.strided:
            name = self._signature.parameters[index].name
            raise UsageError(f"the gradient of {name} is sparse: only dense ones can be sent (sparse=False)")
        if gradient.is_cpu and gradient.is_contiguous() and gradient.dtype is parameter.dtype:
            return gradient.detach().view(-1)
        if index not in self._flat:  # another device or layout: one copy for all its slices
            self._flat[index] = gradient.detach().to("cpu", parameter.dtype).contiguous().view(-1)
        return self._flat[index]
