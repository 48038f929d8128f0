"""What each step leaves behind: a row for the run's log, metrics, and the answer to paceline.last_step()."""

import time
from dataclasses import dataclass

from paceline.metrics import WorkerMetrics
from paceline.worker.clock import PhaseClock
from paceline.worker.observer import Observer
from paceline.worker.reporter import Reporter


@dataclass(frozen=True)
class LastStep:
    """What came of a step.

    `version` counts the updates that the model now holds; `staleness` is the delay of this worker's gradient, in
    updates; `accepted` is False when it was rejected, for `reason`.
    """

    version: int
    staleness: int
    accepted: bool
    reason: str


class Steps:
    """Records steps as they end."""

    def __init__(self, metrics: WorkerMetrics, reporter: Reporter, clock: PhaseClock, observer: Observer) -> None:
        self._metrics, self._reporter, self._clock, self._observer = metrics, reporter, clock, observer
        self._bytes = {"sent": 0, "received": 0}
        self.last: LastStep | None = None

    def finish(self, number: int, last: LastStep, latency: float) -> None:
        """Step `number` has ended; `latency` is its gradient latency in seconds."""
        wall, phases = self._clock.end_step()
        self._observer.step_ended(phases)
        self.last = last
        metrics, now = self._metrics, time.time()
        metrics.latency.observe(latency)
        for phase, seconds in phases.items():
            metrics.phase(phase).inc(seconds)
        metrics.steps.inc()
        metrics.step.set(number)
        metrics.last_step.set(now)
        self._reporter.row(
            {
                "step": number,
                "version": last.version,
                "time": now,
                "latency": latency,
                "wall": wall,
                "phases": phases,
                "staleness": last.staleness,
                "accepted": last.accepted,
                "reason": last.reason,
            }
        )

    def count_bytes(self, direction: str, total: int) -> None:
        """So many payload bytes since the start; a connection made anew begins at 0."""
        more = total - self._bytes[direction]
        self._bytes[direction] = total
        if more > 0:
            self._metrics.bytes.labels(**self._metrics.labels, direction=direction).inc(more)
