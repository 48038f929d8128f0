"""Reads steps.csv, of any length, into curves and sums."""

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from paceline.views.curves import MOST_BINS, Curves
from paceline_core.attribution import PHASES, WAITING, by_wait

FILE = "steps.csv"
MOST_POINTS = 200_000  # of all workers' curves of one kind
FEWEST_BINS = 50
LOSS_BINS = 250  # wide, so that most hold a step of every worker
UNFINISHED = 10_000  # steps that are kept until every worker has made them
Row = Mapping[str, str]


@dataclass
class WorkerSteps:
    """What one worker did in the whole run."""

    steps: int = 0
    wall: float = 0.0  # seconds
    latency: float = 0.0
    lag: float = 0.0
    phases: Counter[str] = field(default_factory=Counter)  # seconds
    staleness: Counter[tuple[int, bool]] = field(default_factory=Counter)  # gradients by staleness and acceptance
    rejected: Counter[str] = field(default_factory=Counter)  # gradients by reason


class Steps:
    """All steps of a run. The keys of `curves` are (what, worker), with what = latency, lag or staleness."""

    def __init__(self, world_size: int, rounds: bool) -> None:
        self.workers: dict[int, WorkerSteps] = {}
        self.curves = Curves(max(FEWEST_BINS, min(MOST_BINS, MOST_POINTS // max(1, world_size))))
        self.loss = Curves(LOSS_BINS)
        self.began: float | None = None  # Unix time at which the first step began
        self.seconds = 0.0  # from there until the last step's end
        self.rounds = 0  # steps that every worker made
        self.unreadable = 0  # lines
        self._world_size, self._has_rounds = world_size, rounds and world_size > 1
        self._waits: dict[int, dict[int, float]] = {}  # step -> worker -> seconds

    def add(self, row: Row) -> None:
        """Count a line. Raises KeyError or ValueError, before anything is counted, when it is none."""
        worker, step, at = int(row["worker"]), int(row["step"]), float(row["time"])
        wall, latency, staleness = float(row["wall"]), float(row["latency"] or 0), int(row["staleness"] or 0)
        phases = {phase: float(row.get(phase) or 0) for phase in PHASES}
        loss = float(row["loss"] or "nan")
        if self.began is None:
            self.began = at - wall
        time = at - self.began
        self.seconds = max(self.seconds, time)
        it = self.workers.setdefault(worker, WorkerSteps())
        it.steps, it.wall, it.latency = it.steps + 1, it.wall + wall, it.latency + latency
        it.phases.update(phases)
        it.staleness[staleness, not row["reason"]] += 1
        if row["reason"]:
            it.rejected[row["reason"]] += 1
        self.curves.add(("latency", worker), time, latency)
        self.curves.add(("staleness", worker), time, staleness)
        if math.isfinite(loss):
            self.loss.add("loss", time, loss)
        if self._has_rounds:
            self._wait(step, worker, sum(phases[p] for p in WAITING), wall, time)

    def _wait(self, step: int, worker: int, seconds: float, wall: float, time: float) -> None:
        waits = self._waits.setdefault(step, {})
        waits[worker] = seconds
        if len(waits) == self._world_size:
            del self._waits[step]
            self.rounds += 1
            for each, lag in by_wait(waits, wall, time).lags.items():
                self.workers[each].lag += lag
                self.curves.add(("lag", each), time, lag)
        elif len(self._waits) > UNFINISHED:
            del self._waits[next(iter(self._waits))]


def read(folder: Path, world_size: int, rounds: bool) -> Steps:
    """The steps of a run; none when there is no file. `rounds`: whether the workers go step by step together."""
    steps = Steps(world_size, rounds)
    for row in _rows(folder / FILE):
        try:
            steps.add(row)
        except (KeyError, ValueError, TypeError):
            steps.unreadable += 1  # a run that was killed may have left half a line
    return steps


def _rows(path: Path) -> Iterator[Row]:
    if path.is_file():
        with path.open(newline="", errors="replace") as file:
            yield from csv.DictReader(file)
