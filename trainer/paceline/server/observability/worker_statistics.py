"""What is known of each worker: its newest steps, and what came of its gradients."""

import statistics
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from paceline_core.attribution import PHASES

MOST_STEPS, FEWEST_STEPS, ALL_STEPS = 200, 20, 200_000  # kept of a worker: at most, at least; and of all together
FEWEST_FOR_VERDICT = 5
MOST_REPORTED, NAME_LENGTH = 100, 100  # values that a script reports, and characters of a name
EWMA_WEIGHT = 0.1  # of the newest delay in a worker's staleness


class RecentSteps:
    """The newest steps of a worker, with their sums kept up to date: 10,000 workers are read every second."""

    def __init__(self, most: int) -> None:
        self._steps: deque[tuple[float, ...]] = deque()  # wall, latency, then each phase
        self._most = most
        self._sums = [0.0] * (2 + len(PHASES))

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row. Raises KeyError, TypeError, ValueError: workers are not trusted."""
        phases = row["phases"]
        step = (float(row["wall"]), float(row["latency"]), *(float(phases.get(p, 0.0)) for p in PHASES))
        self._steps.append(step)
        self._sums = [a + b for a, b in zip(self._sums, step, strict=True)]
        if len(self._steps) > self._most:
            gone = self._steps.popleft()
            self._sums = [a - b for a, b in zip(self._sums, gone, strict=True)]

    def phases(self) -> dict[str, float]:
        """The mean of each phase, in seconds."""
        return {p: max(0.0, s) / len(self) for p, s in zip(PHASES, self._sums[2:], strict=True)} if self._steps else {}

    def wall(self) -> float | None:
        """The median wall time of a step."""
        return statistics.median(s[0] for s in self._steps) if self._steps else None

    def latency(self) -> float | None:
        """The median gradient latency."""
        return statistics.median(s[1] for s in self._steps) if self._steps else None

    def latency_mean_and_max(self) -> tuple[float, float]:
        """Of the gradient latency."""
        return self._sums[1] / len(self), max(s[1] for s in self._steps)

    def data_share(self) -> float:
        """The share of the time that went into waiting for data."""
        return max(0.0, self._sums[2 + PHASES.index("data")]) / self._sums[0] if self._sums[0] > 0 else 0.0


@dataclass
class WorkerStatistics:
    """One worker."""

    steps: RecentSteps
    state: str = "waiting"  # waiting, training, finished, lost
    total_steps: int | None = None
    step: int = 0  # of the script: what was repeated is not counted
    repeated: int = 0
    kept_step: int | None = None  # updates made where it was last, as kept for one in its place
    loss: float | None = None
    staleness: deque[int] = field(default_factory=lambda: deque(maxlen=MOST_STEPS))
    contended: deque[int] = field(default_factory=lambda: deque(maxlen=MOST_STEPS))  # while all took part
    smoothed: float | None = None  # staleness
    applied: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    reported: dict[str, float] = field(default_factory=dict)

    def delayed(self, delay: int, contended: bool) -> float:
        """A gradient had this staleness; gives the smoothed one."""
        self.staleness.append(delay)
        if contended:
            self.contended.append(delay)
        before = float(delay) if self.smoothed is None else self.smoothed
        self.smoothed = before + EWMA_WEIGHT * (delay - before)
        return self.smoothed

    def report(self, rows: Iterable[Mapping[str, Any]], reported: Mapping[str, float], repeats: bool) -> None:
        """Its steps since the last report. With `repeats` one that was rejected comes again, and counts once.

        Raises as `RecentSteps.add` does.
        """
        for row in rows:
            self.steps.add(row)
            self.repeated += repeats and not row["accepted"]
            self.step, self.loss = int(row["step"]) - self.repeated, row.get("loss")
        for name, value in reported.items():
            if len(self.reported) < MOST_REPORTED or name in self.reported:
                self.reported[str(name)[:NAME_LENGTH]] = float(value)

    def phases(self) -> dict[str, float]:
        """The mean of each phase; empty while there are too few steps for a verdict."""
        return self.steps.phases() if len(self.steps) >= FEWEST_FOR_VERDICT else {}


def new_workers(count: int) -> dict[int, WorkerStatistics]:
    """Workers 0 to count - 1; the more there are, the fewer steps are kept of each."""
    most = max(FEWEST_STEPS, min(MOST_STEPS, ALL_STEPS // count))
    return {w: WorkerStatistics(RecentSteps(most)) for w in range(count)}


def mean(values: Iterable[float]) -> float | None:
    """The mean, if there are values."""
    found = list(values)
    return statistics.fmean(found) if found else None
