"""Reads steps.csv, of any length, into curves and sums. A line that no run writes is left out, and counted."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from paceline.files import bounded_reading
from paceline.terminal import printable
from paceline.views.report.downsampling import MOST_BINS, Curves
from paceline_core.attribution import PHASES, WAITING, by_wait

FILE = "steps.csv"
MOST_POINTS = 200_000  # of all workers' curves of one kind
FEWEST_BINS = 50
LOSS_BINS = 250  # wide, so that most hold a step of every worker
UNFINISHED = 10_000  # steps that are kept until every worker has made them
MOST_WORKERS, MOST_UNKNOWN = 20_000, 1000  # that are told apart; the second when it is not known how many there are
MOST_REASONS = 20  # of rejections, that are told apart
LATEST, LONGEST = 1e11, 1e9  # Unix time, and duration, in seconds
GREATEST_COUNT = 10**9
GREATEST_LOSS = 1e100  # a curve of greater ones has no axis
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


class StepCurves:
    """All steps of a run. The keys of `curves` are (what, worker), with what = latency, lag or staleness."""

    def __init__(self, world_size: int | None, rounds: bool) -> None:
        world_size = world_size or MOST_UNKNOWN
        self.workers: dict[int, WorkerSteps] = {}
        self.curves = Curves(max(FEWEST_BINS, min(MOST_BINS, MOST_POINTS // max(1, world_size))))
        self.loss = Curves(LOSS_BINS)
        self.began: float | None = None  # Unix time at which the first step began
        self.seconds = 0.0  # from there until the last step's end
        self.rounds = 0  # steps that every worker made
        self.unreadable = 0  # lines
        self._reasons: set[str] = set()
        self._world_size, self._has_rounds = world_size, rounds and world_size > 1
        self._waits: dict[int, dict[int, float]] = {}  # step -> worker -> seconds

    def add(self, row: Row) -> None:
        """Count a line. Raises KeyError or ValueError, before anything is counted, when it is none."""
        worker = _count(row["worker"], min(self._world_size, MOST_WORKERS) - 1)
        step, staleness = _count(row["step"]), _count(row["staleness"] or "0")
        at, wall, latency = _number(row["time"], LATEST), _number(row["wall"]), _number(row["latency"] or "0")
        phases = {phase: _number(row.get(phase) or "0") for phase in PHASES}
        loss, reason = float(row["loss"] or "nan"), self._reason(row["reason"])
        if self.began is None:
            self.began = at - wall
        time = at - self.began
        self.seconds = max(self.seconds, time)
        it = self.workers.setdefault(worker, WorkerSteps())
        it.steps, it.wall, it.latency = it.steps + 1, it.wall + wall, it.latency + latency
        it.phases.update(phases)
        it.staleness[staleness, not reason] += 1
        if reason:
            it.rejected[reason] += 1
        self.curves.add(("latency", worker), time, latency)
        self.curves.add(("staleness", worker), time, staleness)
        if abs(loss) < GREATEST_LOSS:
            self.loss.add("loss", time, loss if abs(loss) > 1 / GREATEST_LOSS else 0.0)
        if self._has_rounds:
            self._wait(step, worker, sum(phases[p] for p in WAITING), wall, time)

    def _reason(self, text: str) -> str:
        reason = printable(text, 40)
        if reason and len(self._reasons) < MOST_REASONS:
            self._reasons.add(reason)
        return reason if not reason or reason in self._reasons else "other"

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


def read(folder: Path, world_size: int | None, rounds: bool) -> StepCurves:
    """The steps of a run; none when there is no file. Raises SpecError when it is no plain file.

    `world_size` is None when it is not known; `rounds`: whether the workers go step by step together.
    """
    steps = StepCurves(world_size, rounds)
    for row in _rows(folder):
        try:
            steps.add(row)
        except (KeyError, ValueError):
            steps.unreadable += 1  # a run that was killed may have left half a line
    return steps


def _rows(folder: Path) -> Iterator[Row]:
    """The lines by the names in the first; an empty row for one that cannot be read."""
    file = bounded_reading.opened(folder, FILE)
    if file is None:
        return
    with file:
        lines = bounded_reading.lines(file)
        names = _fields(next(lines, None))
        for line in lines:
            yield dict(zip(names, _fields(line), strict=False))


def _fields(line: str | None) -> list[str]:
    try:
        return next(csv.reader([line]), []) if line else []
    except csv.Error:
        return []


def _number(text: str, most: float = LONGEST) -> float:
    value = float(text)
    if not 0 <= value <= most:  # holds for what is no number, too
        raise ValueError(f"{value} is beyond {most}")
    return value


def _count(text: str, most: int = GREATEST_COUNT) -> int:
    value = int(text)
    if not 0 <= value <= most:
        raise ValueError(f"{value} is beyond {most}")
    return value
