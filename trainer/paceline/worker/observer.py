"""Measures the phases of a step from the outside: hooks on the model, marks by the loader and by optimizer.step()."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from paceline.worker.clock import PhaseClock
from paceline_core.launch import Slowdown

OWN = ("data", "forward", "backward")  # phases in which this worker works by itself


class Observer:
    """Marks forward and backward on the clock, and slows the worker down when that was asked for."""

    def __init__(self, model: torch.nn.Module, clock: PhaseClock, slowdown: str | None) -> None:
        self.clock = clock
        self._slowdown = Slowdown.parse(slowdown) if slowdown else None
        self._own_seconds, self._slept = 0.0, 0.0
        self.last_ready: float | None = None  # when the last gradient was ready (time.perf_counter)
        model.register_forward_pre_hook(self._forward)
        model.register_forward_hook(self._forward_done)

    def step_ended(self, phases: Mapping[str, float]) -> None:
        """Remember how much this worker computed, for a slowdown by a factor."""
        self._own_seconds = max(0.0, sum(phases.get(p, 0.0) for p in OWN) - self._slept)
        self._slept, self.last_ready = 0.0, None

    def gradient_ready(self, _: torch.Tensor) -> None:
        """A gradient is ready; the last one of a step ends its backward phase."""
        self.last_ready = time.perf_counter()

    def backward_ended(self) -> None:
        """End the backward phase at the moment when the last gradient was ready; what came after is the script's."""
        if self.clock.phase == "backward" and self.last_ready is not None:
            self.clock.enter("other", at=self.last_ready)

    def _forward(self, *_: Any) -> None:
        if not torch.is_grad_enabled():
            return
        self.backward_ended()
        self.clock.enter("forward")
        if self._slowdown:
            pause = self._slowdown.seconds + (self._slowdown.factor - 1) * self._own_seconds
            time.sleep(pause)
            self._slept += pause

    def _forward_done(self, _: torch.nn.Module, __: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        tensor = next(_tensors(output), None)
        if tensor is None:
            self.clock.enter("other")
        else:
            tensor.register_hook(self._backward)

    def _backward(self, _: torch.Tensor) -> None:
        self.clock.enter("backward")


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
