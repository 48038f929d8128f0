"""Measures the phases of a step from the outside: hooks on the model, marks by the loader and by optimizer.step()."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from paceline.worker.module_hooks import observe
from paceline.worker.observability.cuda_events import DeviceClock
from paceline.worker.observability.injected_delay import InjectedDelay
from paceline.worker.observability.phase_clock import PhaseClock
from paceline_core.launch import Slowed


class Observer:
    """Marks forward and backward on the clock, and on the GPU's own where the model is on one."""

    def __init__(
        self,
        model: torch.nn.Module,
        parameters: Sequence[torch.Tensor],
        clock: PhaseClock,
        injected_delay: InjectedDelay,
        backward_begins: Callable[[], None] | None = None,
    ) -> None:
        self.clock, self._injected_delay = clock, injected_delay
        self.last_ready: float | None = None  # when the last gradient was ready (time.perf_counter)
        self.device = DeviceClock.of(parameters[0].device)
        self._trained = sum(p.requires_grad for p in parameters)
        self._ready = 0
        self.watch(model, backward_begins)

    def watch(self, model: torch.nn.Module, backward_begins: Callable[[], None] | None = None) -> None:
        """Mark the phases of this model, and tell when a backward pass begins at its output."""

        def backward(_: Any) -> None:
            self.clock.enter("backward")
            self.device.mark("backward")
            if backward_begins is not None:
                backward_begins()

        def forward_done(_: torch.nn.Module, __: Any, output: Any) -> None:
            self._forward_done(output, backward)

        observe(model, self._forward, forward_done)

    def step_ended(self) -> None:
        """Begin anew."""
        self.last_ready, self._ready = None, 0

    def gradient_ready(self, _: torch.Tensor) -> None:
        """A gradient is ready; the last one of a step ends its backward phase."""
        self.last_ready = time.perf_counter()
        self._ready += 1
        if self._ready == self._trained:
            self.device.mark("ready")

    def backward_ended(self) -> None:
        """End the backward phase at the moment when the last gradient was ready; what came after is the script's."""
        if self.clock.phase == "backward" and self.last_ready is not None:
            self.clock.enter("other", at=self.last_ready)

    def _forward(self, *_: Any) -> None:
        if not torch.is_grad_enabled():
            return
        self.backward_ended()
        self.clock.enter("forward")
        self.device.mark("forward")
        self._injected_delay.pause(Slowed.COMPUTE)

    def _forward_done(self, output: Any, backward: Callable[[Any], None]) -> None:
        if not torch.is_grad_enabled():
            return
        tensor = output if isinstance(output, torch.Tensor) else next(_tensors(output), None)
        if tensor is None or not tensor.requires_grad:
            self.clock.enter("other")
        elif tensor.grad_fn is not None:
            tensor.grad_fn.register_prehook(backward)  # costs less than the tensor's own hook
        else:
            tensor.register_hook(backward)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a model's output that backward can begin from."""
    if isinstance(value, torch.Tensor):
        if value.requires_grad:
            yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)
