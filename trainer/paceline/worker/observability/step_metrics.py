"""What the reporter's thread writes down of each step: metrics, and the row that is sent to server 0."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from paceline import metrics
from paceline.metrics import Instruments
from paceline.worker.observability.cuda_events import DeviceClock, Marks, with_device_times
from paceline.worker.observability.phase_clock import Step
from paceline_core.metric_series import Metric


class LastStep(NamedTuple):
    """What came of a step.

    `version` counts the updates that the model now holds; `staleness` is the delay of this worker's gradient, in
    updates; `accepted` is False when it was rejected, for `reason`.
    """

    version: int
    staleness: int
    accepted: bool
    reason: str


@dataclass(slots=True)
class StepRow:
    """A step that has ended: made while the training waits. `settle`, in another thread, works out the rest."""

    number: int
    step: Step
    last: LastStep
    latency: float  # seconds
    traffic: tuple[int, int]  # payload bytes sent and received so far
    device: DeviceClock
    marks: Marks
    sending: float = 0.0  # share of the wait in which this worker was still sending
    norm: Any = None  # of the gradients, if it was sampled in this step
    loss: Any = None
    ended: float = field(init=False)  # Unix time
    phases: dict[str, float] = field(init=False)  # in seconds, with the device's own times

    def settle(self, now: bool = False) -> bool:
        """Work out the phases; False while the device has not finished them, unless it has to be `now`."""
        times = self.device.read(self.marks) if self.marks else None
        if times is None and "ready" in self.marks and not now:
            return False
        self.ended = time.time() - (time.perf_counter() - self.step.end)
        phases = self.step.phases()
        if self.sending:
            moved = self.sending * phases.get("wait", 0.0)
            phases["wait"] = phases.get("wait", 0.0) - moved
            phases["send"] = phases.get("send", 0.0) + moved
        self.phases = with_device_times(phases, *times) if times else phases
        return True


class StepMetrics:
    """Counts steps into the worker's metrics."""

    def __init__(self, instruments: Instruments, device: DeviceClock, gradient_bytes: int) -> None:
        self._metrics, self._device, self._gradient_bytes = instruments, device, gradient_bytes
        self._traffic = (0, 0)

    def steps(self, rows: Sequence[StepRow]) -> list[dict[str, Any]]:
        """Count settled steps, each metric once for all of them; gives them as they are sent."""
        if rows:
            self._count(rows)
        return [_told(row) for row in rows]

    def _count(self, rows: Sequence[StepRow]) -> None:
        it, phases, moved = self._metrics, Counter[str](), [0, 0]
        for row in rows:
            it.observe(metrics.LATENCY, row.latency)
            phases.update(row.phases)
            moved = [m + max(0, new - old) for m, new, old in zip(moved, row.traffic, self._traffic, strict=True)]
            self._traffic = row.traffic
            if row.norm is not None:
                self._number("gradient", metrics.NORM, float(row.norm))
        for phase, seconds in metrics.phases_at(it.level, phases).items():
            it.add(metrics.PHASE, seconds, phase)
        for direction, amount in zip(("sent", "received"), moved, strict=True):
            it.add(metrics.BYTES, amount, direction)
        it.add(metrics.STEPS, len(rows))
        it.add(metrics.RAW_BYTES, self._gradient_bytes * len(rows))
        it.set(metrics.STEP, rows[-1].number)
        it.set(metrics.LAST_STEP, rows[-1].ended)

    def reported(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Values that the script reported, as numbers."""
        numbers = {name: float(value) for name, value in values.items()}
        if "loss" in numbers:
            self._number("loss", metrics.LOSS, numbers["loss"])
        for state, size in self._device.memory().items():
            self._metrics.set(metrics.MEMORY, size, state)
        return numbers

    def _number(self, where: str, gauge: Metric, value: float) -> None:
        if math.isfinite(value):
            self._metrics.set(gauge, value)
        else:
            self._metrics.add(metrics.NONFINITE, 1, where)


def _told(row: StepRow) -> dict[str, Any]:
    """A step as it is sent."""
    return {
        "step": row.number,
        "version": row.last.version,
        "time": row.ended,
        "loss": None if row.loss is None else float(row.loss),
        "latency": row.latency,
        "wall": row.step.wall,
        "phases": row.phases,
        "staleness": row.last.staleness,
        "accepted": row.last.accepted,
        "reason": row.last.reason,
    }
