"""Reduces gradients over the workers by hooks on the parameters: after backward() each gradient is the mean of all.

Whoever calls what, a gradient comes to be in its parameter's `.grad`, and its hook is called. A bucket whose
parameters all have theirs is sent while backward goes on with the others; the end of the pass sends the rest, waits,
and writes the means back. Buckets travel in the order of their numbers on every worker, also on one that uses other
layers than the others do.

Of a ring that is made anew while it reduces (paceline/worker/all_reduce/recovery) a reduction is made again, or
its means come from others who had completed it: until all buckets are there no gradient has changed.

A worker's gradient is always what all have in common plus its own share since. So the mean of all gradients is right
whatever was reduced before: several backward passes, passes within no_sync(), and gradients set by hand.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from paceline.worker.all_reduce.reduction_bucket import ReductionBucket, SparseBucket, fill
from paceline.worker.own_process import OwnProcess
from paceline_core.errors import UsageError


class Waits(Protocol):
    """Who is told of a gradient that is there, and of the time in which this worker waits for the others'."""

    gradient_ready: Callable[[torch.Tensor], None]

    def begin(self) -> None:
        """This worker has all its gradients; it waits from when the last was ready."""

    def end(self) -> None:
        """The means are there."""


class Reducer:
    """The gradients of parameters that one optimizer trains. `passes` counts the reductions so far."""

    def __init__(
        self,
        parameters: Sequence[torch.Tensor],
        names: Sequence[str],
        sparse: set[torch.Tensor],
        group: Any,
        waits: Waits,
        most_bytes: int,
        overlap: bool,
    ) -> None:
        self._parameters: list[torch.Tensor] = []
        self._names: list[str] = []
        self._sparse = sparse
        self._group, self._waits, self._own = group, waits, OwnProcess()
        self._most_bytes, self._overlap = most_bytes, overlap
        self.passes, self.paused = 0, False
        self._watches = self._keeps = False
        self._first = True  # no pass has ended in this process
        self._reached = 0  # passes that others have made, which are not made again here
        self._given: Sequence[torch.Tensor] | None = None  # the means of the last of them
        self._pending = False  # gradients have come that no reduction holds
        self._queued = False  # the end of this backward pass will reduce
        self._next = 0  # the first bucket that is not sent
        self._without: list[torch.Tensor] = []  # parameters that had no gradient on any worker
        self.add(parameters, names)

    @property
    def has_sparse(self) -> bool:
        """Whether gradients of some parameters are sparse."""
        return bool(self._sparse)

    def add(self, parameters: Sequence[torch.Tensor], names: Sequence[str]) -> None:
        """Reduce the gradients of these too, from the next reduction on; not while a backward pass runs."""
        for index, parameter in enumerate(parameters, len(self._parameters)):
            _register(parameter, self._hook(index))
        self._parameters += parameters
        self._names += names
        self._plan()

    def expect(self) -> None:
        """A backward pass has begun that may end without a hook of its own: of nested passes, or of layers not used."""
        if not self._queued and not self.paused:
            self._queue()

    def settle(self, since: int) -> int:
        """Before a step: reduce what is not reduced, at least once after `since` passes; gives the passes so far.

        Raises UsageError when a parameter got a gradient that the others cannot know of.
        """
        if self._pending or self._queued or self.passes == since:
            self.reduce()
        for parameter in self._without:
            if parameter.grad is not None:
                name = self._names[next(i for i, p in enumerate(self._parameters) if p is parameter)]
                raise UsageError(
                    f"{name} was given a gradient after the gradients were reduced: set it before "
                    "backward() ends, or within paceline.no_sync()"
                )
        return self.passes

    def reduce(self) -> None:
        """Make every gradient the mean of all workers'."""
        self._waits.begin()
        with torch.no_grad():
            if self._sum():
                self._without = [bucket.parameters[i] for bucket in self._buckets for i in bucket.write()]
        self.passes += 1
        self._first = False
        self._begin()
        self._waits.end()

    def keep(self) -> None:
        """From now on keep the means of the last reduction, for workers that have not completed it."""
        self._keeps = True
        self._plan()

    def means(self) -> list[torch.Tensor] | None:
        """Those of the last reduction, a tensor for each bucket; None when they are not all kept."""
        kept = [means for bucket in self._buckets if (means := bucket.means) is not None]
        return kept if len(kept) == len(self._buckets) else None

    def go_on(self, passes: int, reached: int, given: Sequence[torch.Tensor] | None) -> None:
        """So many passes were made here, and `reached` by others, of which the last gave these means."""
        self.passes, self._reached, self._given = passes, reached, given if passes < reached else None

    def drain(self) -> None:
        """The group is broken: wait until nothing is on its way any more."""
        for bucket in self._buckets:
            bucket.drain()

    def send_again(self) -> None:
        """Send over another group what was on its way."""
        count, self._next = self._next, 0
        with torch.no_grad():
            self._launch(count)

    def watch(self) -> None:
        """From now on look at this worker's own gradients, whether they are finite."""
        self._watches = True
        self._plan()

    def own_not_finite(self) -> str | None:
        """The name of a parameter of which this worker's own gradient was not finite in the last reduction."""
        for bucket in self._buckets:
            place = bucket.own_not_finite()
            if place is not None:
                parameter = bucket.parameters[place]
                return self._names[next(i for i, p in enumerate(self._parameters) if p is parameter)]
        return None

    def _sum(self) -> bool:
        """Sum all buckets; False where others did that without this worker, and their means are not to be had."""
        if self.passes >= self._reached:
            self._launch(len(self._buckets))
            self._wait()
        if self._frozen_or_not() != self._flags:  # alike on all workers, as their scripts are
            self._plan()
            if self.passes >= self._reached:
                self._launch(len(self._buckets))
                for bucket in self._buckets:
                    bucket.wait()
        if self.passes >= self._reached:
            return True
        if self._given is None or self.passes + 1 < self._reached:
            return False
        dense = [bucket for bucket in self._buckets if isinstance(bucket, ReductionBucket)]  # sparse ones keep no means
        for bucket, means in zip(dense, self._given, strict=True):
            bucket.take(means)
        self._given = None
        return True

    def _wait(self) -> None:
        """Wait for all buckets, over another group if this one breaks, or until others have completed them."""
        waits = True
        while waits and self.passes >= self._reached:
            try:
                for bucket in self._buckets:
                    bucket.wait()
                waits = False
            except RuntimeError as error:
                self._group.recover(error)

    def _plan(self) -> None:
        """Lay out the buckets for the parameters that are trained now."""
        self._flags = self._frozen_or_not()
        trained = [p for p, flag in zip(self._parameters, self._flags, strict=True) if flag]
        dense = [p for p in trained if p not in self._sparse]
        world_size = self._group.size()
        self._buckets: list[ReductionBucket | SparseBucket] = [
            *fill(dense, world_size, self._most_bytes),
            *(SparseBucket(p, world_size) for p in trained if p in self._sparse),
        ]
        for each in self._buckets:
            each.watches, each.keeps = self._watches, self._keeps
        place = {p: number for number, bucket in enumerate(self._buckets) for p in bucket.parameters}
        self._places = [place.get(p, -1) for p in self._parameters]
        self._sizes = [len(bucket.parameters) for bucket in self._buckets]
        self._begin()

    def _begin(self) -> None:
        self._left, self._fired = list(self._sizes), bytearray(len(self._parameters))
        self._next = 0
        self._pending = self._queued = False

    def _frozen_or_not(self) -> list[bool]:
        return [p.requires_grad for p in self._parameters]

    def _hook(self, index: int) -> Callable[[torch.Tensor], None]:
        note = self._waits.gradient_ready

        def ready(parameter: torch.Tensor) -> None:  # called for each parameter in each pass: every microsecond counts
            note(parameter)
            if self.paused:
                self._pending = True
                return
            if not self._queued:
                self._queue()
            if self._fired[index]:
                self._came_again(index)
                return
            self._fired[index] = 1
            place = self._places[index]
            if place >= 0:
                self._left[place] = left = self._left[place] - 1
                if not left and place == self._next and self._overlap and not self._first:
                    self._launch_complete()

        return ready

    def _came_again(self, index: int) -> None:
        """A second gradient in one pass, which has a pass within it: buckets have to wait for the end.

        The first pass sends nothing early, to see this. Raises UsageError when it comes too late.
        """
        self._overlap = False
        if 0 <= self._places[index] < self._next:
            raise UsageError(
                f"{self._names[index]} got a second gradient in a backward pass when its first was on its way, as with "
                "reentrant checkpointing: use use_reentrant=False, or set gradients.overlap to false"
            )

    def _launch_complete(self) -> None:
        end = self._next
        while end < len(self._left) and not self._left[end]:
            end += 1
        if torch.is_grad_enabled():  # backward(create_graph=True)
            with torch.no_grad():
                self._launch(end)
        else:
            self._launch(end)

    def _launch(self, end: int) -> None:
        """Send the buckets up to `end` that are not sent."""
        if self.passes < self._reached:
            return
        self._own.demand("backward() of the model that is trained, or step() of its optimizer,")
        while self._next < end:
            bucket = self._buckets[self._next]
            try:
                bucket.launch(self._group)
            except RuntimeError as error:
                raise self._unexpected() or error from error
            self._next += 1

    def _unexpected(self) -> UsageError | None:
        for parameter, name in zip(self._parameters, self._names, strict=True):
            gradient = parameter.grad
            if gradient is not None and gradient.layout is not torch.strided and parameter not in self._sparse:
                return UsageError(
                    f"the gradient of {name} is sparse: only those of nn.Embedding and nn.EmbeddingBag can be"
                )
        return None

    def _queue(self) -> None:
        self._queued = True
        torch.autograd.Variable._execution_engine.queue_callback(self._pass_ended)

    def _pass_ended(self) -> None:
        if torch._C._current_autograd_node() is not None:
            # a pass within another, as of reentrant checkpointing: the outer one goes on, and may end without us
            self._queued, self._pending, self._overlap = False, True, False
        elif self._queued:
            self._queued = False
            if any(self._fired) or not self._gives_gradients_away():
                self.reduce()

    def _gives_gradients_away(self) -> bool:
        """Whether this pass is one of torch.autograd.grad, which leaves no gradient in a parameter."""
        trained = next((p for p in self._parameters if p.requires_grad), None)
        if trained is None:
            return True
        try:
            torch._C._will_engine_execute_node(torch.autograd.graph.get_gradient_edge(trained).node)
        except RuntimeError:  # it does not answer for the node of a leaf when "currently running autograd.grad()"
            return True
        return False


def _register(parameter: torch.Tensor, hook: Callable[[torch.Tensor], None]) -> None:
    """Also on a frozen parameter, which may be trained later: the hook stays with it."""
    frozen = not parameter.requires_grad
    parameter.requires_grad_(True)
    parameter.register_post_accumulate_grad_hook(hook)
    parameter.requires_grad_(not frozen)
