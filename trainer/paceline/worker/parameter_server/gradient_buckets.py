"""Watches gradients become ready, and has whole buckets sent while backward still runs.

A bucket that was sent early is a guess: clipping, unscaling or a further backward pass may change its gradients before
the step. Each gradient's identity, its version counter and a few of its bytes are kept with it and compared at the
step: not every writer raises the counter (GradScaler's kernel does not). Where one gradient has changed, all are sent
again before the push is committed, and from then on buckets wait for the step.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy
import torch

from paceline.finite_gradients import first_not_finite
from paceline.model_signature import Signature
from paceline.tensor_bytes import memory, memory_of
from paceline.worker.parameter_server.tensor_changes import samples
from paceline_core.buckets import Bucket, ShardPlan
from paceline_core.errors import UsageError
from paceline_core.modes import WITHOUT_SERVERS

Place = tuple[int, int]  # shard, bucket
Send = Callable[[int, int, list[memoryview]], None]
Flat = Any  # a gradient in one dimension, in this machine's memory: numpy's array, which Python cuts faster; or torch's
ARRAYS = {torch.float32, torch.float64}
SAMPLES = 128  # bytes of a piece of a gradient that are compared, at least
WATCHED_STEPS = 2  # in which gradients are watched even if nothing is sent early, to say what clipping means
log = logging.getLogger("paceline")


class Stamp:
    """Some gradients as they were. Holds them, so that no others can take their identity.

    `pieces` are their memory, where that is the processor's; else a few elements are read from the device.
    """

    def __init__(self, gradients: Sequence[torch.Tensor | None], pieces: Sequence[memoryview] | None) -> None:
        self._gradients = gradients
        self._versions = [0 if g is None else g._version for g in gradients]
        self._views = None if pieces is None else [_some_bytes(piece) for piece in pieces if piece]
        self._bytes = [view.tobytes() for view in self._views or ()]
        self._elements = _some_elements(gradients) if pieces is None else []

    def same(self, gradients: Sequence[torch.Tensor | None]) -> bool:
        """Whether they are these, unchanged."""
        for before, now, version in zip(self._gradients, gradients, self._versions, strict=True):
            if now is not before or (now is not None and now._version != version):
                return False
        if self._views is not None:
            return [view.tobytes() for view in self._views] == self._bytes
        return all(torch.equal(a, b) for a, b in zip(self._elements, _some_elements(gradients), strict=True))


class Finished(NamedTuple):
    """A step's gradients: numbers of the parameters without one, and of the first whose gradient is not finite."""

    absent: list[int]
    not_finite: int | None


class GradientBuckets:
    """The gradients of this worker, cut into the buckets of the plan."""

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        signature: Signature,
        plan: Sequence[ShardPlan],
        send: Send,
        on_ready: Callable[[torch.Tensor], None],
        overlap: bool,
        checks: bool,
    ) -> None:
        self._checks = checks  # whether they are finite
        self._parameters, self._signature, self._send, self._on_ready = parameters, signature, send, on_ready
        self._buckets = {(s.ordinal, b.index): b for s in plan for b in s.buckets}
        self._members = {place: sorted({c.parameter for c in b.slices}) for place, b in self._buckets.items()}
        self._places: list[list[Place]] = [[] for _ in parameters]
        for place, members in self._members.items():
            for index in members:
                self._places[index].append(place)
        largest = max((b.nbytes for b in self._buckets.values()), default=0)
        self._zeros = memoryview(bytes(largest))
        self.overlap, self.paused = overlap, False
        self.repeats = False  # a step that was made before: nothing of it is sent
        self._steps, self._said = 0, False
        self._reset()
        for index, parameter in enumerate(parameters):
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._hook(index))

    def finish(self, rewritten: bool = False) -> Finished:
        """Send what is not there yet as it now is.

        `rewritten`: somebody is known to have changed them, as GradScaler.unscale_, even if nothing shows it.
        """
        self._flat.clear()  # copies made early may be of gradients that have changed
        changed = any(not stamp.same(self._of(place)) for place, stamp in self._stamps.items())
        if changed:
            self._say_what_clipping_means()
        if changed := changed or rewritten:
            self.overlap = False
        for place, bucket in self._buckets.items():
            if changed or place not in self._sent:
                slices = self._slices(bucket)
                self._send_bucket(place, slices, self._pieces(bucket, slices))
        odd = min((parameter for parameter in self._not_finite.values() if parameter is not None), default=None)
        self._steps += 1
        self._reset()
        return Finished([i for i, parameter in enumerate(self._parameters) if parameter.grad is None], odd)

    def _reset(self) -> None:
        self._stamps: dict[Place, Stamp] = {}
        self._sent: set[Place] = set()
        self._not_finite: dict[Place, int | None] = {}  # of what was sent last: the first such parameter
        self._left = {place: len(members) for place, members in self._members.items()}
        self._flat: dict[int, torch.Tensor] = {}
        self._passes = 0

    def _hook(self, index: int) -> Callable[[torch.Tensor], None]:
        def ready(gradient_of: torch.Tensor) -> None:
            self._on_ready(gradient_of)
            if self.paused or self.repeats or not (self.overlap or self._steps < WATCHED_STEPS):
                return
            self._flat.pop(index, None)
            for place in self._places[index]:
                self._left[place] -= 1
                if self._left[place] == 0:
                    self._complete(place)
                elif self._left[place] < 0:
                    self._passes += 1  # a further backward pass, which changes gradients without anybody's clipping

        return ready

    def _complete(self, place: Place) -> None:
        gradients, bucket = self._of(place), self._buckets[place]
        slices = self._slices(bucket)
        pieces = self._pieces(bucket, slices)
        own = self._flat.keys().isdisjoint(self._members[place])  # the pieces are the gradients' memory, and no copy
        self._stamps[place] = Stamp(gradients, pieces if own else None)
        if self.overlap:
            self._sent.add(place)
            self._send_bucket(place, slices, pieces)

    def _send_bucket(self, place: Place, slices: list[Flat | None], pieces: list[memoryview]) -> None:
        """Look at the gradients, then send: a thread that sends would keep this one from running."""
        if self._checks:
            odd = first_not_finite(slices)
            self._not_finite[place] = None if odd is None else self._buckets[place].slices[odd].parameter
        self._send(*place, pieces)

    def _of(self, place: Place) -> list[torch.Tensor | None]:
        return [self._parameters[index].grad for index in self._members[place]]

    def _say_what_clipping_means(self) -> None:
        if self._passes or self._said:
            return
        self._said = True
        log.warning(
            "gradients were changed between backward() and step(): on a parameter server clipping is done by each "
            "worker to its own gradient, before the mean is taken; to clip the mean, as one process does, set "
            "gradients.maxNorm in the file instead (docs/concepts.md)"
        )

    def _slices(self, bucket: Bucket) -> list[Flat | None]:
        """The bucket's gradients, flat and in this machine's memory."""
        flats = [(self._flattened(cut.parameter), cut) for cut in bucket.slices]
        return [None if flat is None else flat[cut.start : cut.stop] for flat, cut in flats]

    def _pieces(self, bucket: Bucket, slices: list[Flat | None]) -> list[memoryview]:
        """The bucket's bytes, straight from the gradients' memory, with zeros between and for what is absent."""
        out: list[memoryview] = []
        end = 0
        for cut, held in zip(bucket.slices, slices, strict=True):
            if cut.offset > end:
                out.append(self._zeros[: cut.offset - end])
            size = (cut.stop - cut.start) * self._parameters[cut.parameter].element_size()
            if isinstance(held, numpy.ndarray):
                out.append(memory_of(held))
            else:
                out.append(self._zeros[:size] if held is None else memory(held))
            end = cut.offset + size
        if bucket.nbytes > end:
            out.append(self._zeros[: bucket.nbytes - end])
        return out

    def _flattened(self, index: int) -> Flat | None:
        parameter = self._parameters[index]
        gradient = parameter.grad
        if gradient is None:
            return None
        if gradient.layout is not torch.strided:
            name = self._signature.parameters[index].name
            raise UsageError(
                f"the gradient of {name} is sparse: on a parameter server only dense ones can be sent; leave out "
                f"sparse=True, or use topology {WITHOUT_SERVERS}"
            )
        if gradient.is_cpu and gradient.is_contiguous() and gradient.dtype is parameter.dtype:
            own = gradient.detach()
            return own.numpy().reshape(-1) if own.dtype in ARRAYS else own.view(-1)
        if index not in self._flat:  # another device or layout: one copy for all its slices
            self._flat[index] = gradient.detach().to("cpu", parameter.dtype).contiguous().view(-1)
        return self._flat[index]


def _some_bytes(piece: memoryview) -> Any:
    """Every so-manieth byte, as numpy's array; at odd distances, so that every byte of an element has its turn."""
    return numpy.frombuffer(piece, numpy.uint8)[:: len(piece) // SAMPLES | 1]


def _some_elements(gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    """A few elements of the gradients; one tensor for each device."""
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for gradient in gradients:
        if gradient is not None and gradient.layout is torch.strided:
            some = samples(gradient)
            by_device.setdefault(gradient.device, []).append(gradient.detach().clone() if some is None else some)
    return [torch.cat([p.reshape(-1) for p in parts]) for parts in by_device.values()]
