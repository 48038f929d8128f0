"""What each step leaves behind: a row for the record, a trace, and the answer to paceline.last_step()."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from paceline import metrics
from paceline.worker.observability.measuring import Measuring
from paceline.worker.observability.phase_hooks import Observer
from paceline.worker.observability.reporter import Reporter
from paceline.worker.observability.step_metrics import LastStep, StepRow

NORM_SECONDS = 5.0  # between two samples of the gradients' norm, which costs a pass over them


class StepRecords:
    """Notes steps as they end: as little as possible, because the training waits meanwhile."""

    def __init__(self, measuring: Measuring, reporter: Reporter, observer: Observer) -> None:
        self._metrics, self._clock = measuring.metrics, measuring.clock
        self._injected_delay, self._trace = measuring.injected_delay, measuring.trace
        self._reporter, self._observer = reporter, observer
        self._norm_at = 0.0
        self._norm: Any = None
        self.last: LastStep | None = None

    def finish(
        self, number: int, last: LastStep, latency: float, traffic: tuple[int, int], sending: float = 0.0
    ) -> None:
        """Step `number` has ended; `latency` is its gradient latency in seconds, `sending` a share of its wait.

        `traffic`: payload bytes sent and received since the start, or since a connection was made anew.
        """
        step = self._clock.end_step()
        self.last = last
        device, norm = self._observer.device, self._norm
        self._reporter.row(StepRow(number, step, last, latency, traffic, device, device.end_step(), sending, norm))
        self._norm = None
        self._trace.step(number, step.marks, step.end)
        self._injected_delay.step_ended(step)
        self._observer.step_ended()

    def sample_norm(self, parameters: Sequence[torch.Tensor]) -> None:
        """Now and then work out the norm of the gradients; it is read elsewhere, when the device has it."""
        if time.monotonic() < self._norm_at or self._metrics.level is not metrics.DETAILED:
            return
        self._norm_at = time.monotonic() + NORM_SECONDS
        gradients = [p.grad for p in parameters if p.grad is not None and p.grad.layout is torch.strided]
        self._norm = torch.nn.utils.get_total_norm(gradients) if gradients else None
