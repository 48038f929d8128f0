"""Who makes whom wait: joins arrivals (on this process's clock) and the workers' reports into one status.

*Arrival lag* of a worker in a round: how long after the median arrival its gradient arrived. In a ring nobody receives,
so a worker's lag is how much less than the median it waited for the others in the same step.
"""

import csv
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPORTED = 20  # values that a summary holds
WINDOW = 200  # rounds, and steps of each worker, that count as recent
FEWEST_ROUNDS = 20  # before a verdict
SHARE = 0.5  # of all waiting, caused by one worker, before it is named
LAG_OF_ROUND = 0.2  # its lag against the round's duration, before it is named
SLOW = 1.5  # times the median of the other workers' own computing, before a worker is called slow
STEP_COLUMNS = ("worker", "step", "version", "time", "loss", "latency", "wall", "staleness", "accepted", "reason")
PHASES = ("data", "forward", "backward", "encode", "send", "wait", "receive", "apply", "checkpoint", "other")
COMPUTING = ("data", "forward", "backward")


@dataclass
class WorkerRecord:
    """What is known of one worker."""

    state: str = "waiting"
    total_steps: int | None = None
    rows: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    staleness: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    contended: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))  # staleness while all took part
    applied: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    reported: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """One synchronous update: each worker's lag and the time since the update before, in seconds."""

    lags: Mapping[int, float]
    seconds: float


class Lags:
    """Lag summed over the recent rounds and over the whole run."""

    def __init__(self) -> None:
        self.recent: deque[Round] = deque(maxlen=WINDOW)
        self.total: Counter[int] = Counter()
        self.rounds, self.seconds = 0, 0.0

    def add(self, lags: Mapping[int, float], seconds: float) -> None:
        """Count one round."""
        self.recent.append(Round(lags, seconds))
        self.rounds, self.seconds = self.rounds + 1, self.seconds + seconds
        for worker, lag in lags.items():
            self.total[worker] += lag  # type: ignore[assignment]

    def window(self) -> tuple[Counter[int], int, float]:
        """Lag by worker, rounds and seconds of the recent rounds."""
        total: Counter[int] = Counter()
        for each in self.recent:
            for worker, lag in each.lags.items():
                total[worker] += lag  # type: ignore[assignment]
        return total, len(self.recent), sum(r.seconds for r in self.recent)


def arrival_lags(arrivals: Mapping[int, float]) -> dict[int, float]:
    """Each worker's time after the median arrival, in seconds, at least 0."""
    median = statistics.median(arrivals.values())
    return {worker: max(0.0, at - median) for worker, at in arrivals.items()}


def ring_lags(waits: Mapping[int, float]) -> dict[int, float]:
    """How much less than the median each worker waited, in seconds, at least 0."""
    median = statistics.median(waits.values())
    return {worker: max(0.0, median - wait) for worker, wait in waits.items()}


def verdict(lag: Mapping[int, float], rounds: int, seconds: float) -> dict[str, Any] | None:
    """The worker that makes the others wait: most of all lag, and a lag that matters against the round."""
    total = sum(lag.values())
    if rounds < FEWEST_ROUNDS or total <= 0 or len(lag) < 2:
        return None
    worker = max(lag, key=lambda w: lag[w])
    share, each, duration = lag[worker] / total, lag[worker] / rounds, seconds / rounds
    if share <= SHARE or each <= LAG_OF_ROUND * duration:
        return None
    return {"worker": worker, "lag_share": share, "lag_seconds": each, "round_seconds": duration}


class Aggregator:
    """Collects, and answers /status. Safe to call from any thread."""

    def __init__(self, training: str, topology: str, strategy: str, world_size: int, folder: str | None) -> None:
        self.training, self.topology, self.strategy = training, topology, strategy
        self.workers = {w: WorkerRecord() for w in range(world_size)}
        self.version, self.finished = 0, False
        self.lags = Lags()
        self._started = time.monotonic()
        self._last_round = 0.0
        self._waits: dict[int, dict[int, tuple[float, float]]] = {}  # ring: step -> worker -> (wait, wall)
        self._lock = threading.Lock()
        self._file = Path(folder, "steps.csv").open("w", newline="") if folder else None
        self._csv = csv.writer(self._file) if self._file else None
        if self._csv:
            self._csv.writerow([*STEP_COLUMNS, *PHASES])

    def state(self, worker: int, state: str, total_steps: int | None = None) -> None:
        """A worker joined, finished or was lost."""
        with self._lock:
            self.workers[worker].state = state
            self.workers[worker].total_steps = total_steps or self.workers[worker].total_steps

    def applied(
        self, version: int, delays: Mapping[int, int], arrivals: Mapping[int, float] | None
    ) -> dict[int, float]:
        """An update was decided; `arrivals` of its pushes when it was a round of all. Gives each worker's lag."""
        with self._lock:
            self.version = version
            for worker, delay in delays.items():
                self.workers[worker].applied += 1
                self._delayed(worker, delay)
            if not arrivals or len(arrivals) < 2:
                return {}
            now, before = max(arrivals.values()), self._last_round
            self._last_round = now
            lags = arrival_lags(arrivals)
            if before:
                self.lags.add(lags, now - before)
            return lags

    def rejected(self, worker: int, reason: str, delay: int) -> None:
        """A push was rejected."""
        with self._lock:
            self.workers[worker].rejected[reason] += 1
            self._delayed(worker, delay)

    def report(self, worker: int, rows: Sequence[dict[str, Any]], reported: Mapping[str, float]) -> dict[int, float]:
        """A worker's steps since its last report. Gives the lags of the ring rounds that are now complete."""
        with self._lock:
            record = self.workers[worker]
            record.rows.extend(rows)
            record.reported.update(reported)
            if self._csv and self._file:
                self._csv.writerows(
                    [worker, *(row.get(c, "") for c in STEP_COLUMNS[1:]), *(row["phases"].get(p, 0.0) for p in PHASES)]
                    for row in rows
                )
                self._file.flush()
            total: Counter[int] = Counter()
            if self.topology == "AllReduce":
                for row in rows:
                    for who, lag in self._ring(worker, row).items():
                        total[who] += lag  # type: ignore[assignment]
            return dict(total)

    def status(self) -> dict[str, Any]:
        """What /status answers."""
        with self._lock:
            lag, rounds, seconds = self.lags.window()
            recent = verdict(lag, rounds, seconds)
            return {
                "training": self.training,
                "topology": self.topology,
                "strategy": self.strategy,
                "version": self.version,
                "finished": self.finished,
                "uptime_seconds": time.monotonic() - self._started,
                "missing": [w for w, r in self.workers.items() if r.state == "waiting"],
                "workers": [self._worker(w, lag, rounds, recent) for w in self.workers],
                "verdict": recent,
                "overall_verdict": verdict(self.lags.total, self.lags.rounds, self.lags.seconds),
            }

    def summary(self) -> dict[str, Any]:
        """The end of the training in a few hundred bytes: Kubernetes keeps 4096 of a termination message."""
        status = self.status()
        losses = [w["loss"] for w in status["workers"] if w["loss"] is not None]
        return {
            "step": max(w["step"] for w in status["workers"]),
            "version": status["version"],
            "loss": statistics.fmean(losses) if losses else None,
            "reported": dict([item for w in status["workers"] for item in w["reported"].items()][:REPORTED]),
            "verdict": status["overall_verdict"],
        }

    def close(self) -> None:
        """Flush the log of steps."""
        if self._file:
            self._file.close()

    def _delayed(self, worker: int, delay: int) -> None:
        self.workers[worker].staleness.append(delay)
        if all(r.state == "training" for r in self.workers.values()):
            self.workers[worker].contended.append(delay)

    def _ring(self, worker: int, row: Mapping[str, Any]) -> dict[int, float]:
        waits = self._waits.setdefault(row["step"], {})
        waits[worker] = (row["phases"].get("wait", 0.0), row["wall"])
        self.version = max(self.version, row["step"])
        if len(waits) < len(self.workers):
            return {}
        del self._waits[row["step"]]
        lags = ring_lags({w: wait for w, (wait, _) in waits.items()}) if len(waits) > 1 else {}
        self.lags.add(lags, statistics.median(wall for _, wall in waits.values()))
        for each in waits:
            self.workers[each].applied += 1
        return lags

    def _worker(self, worker: int, lag: Mapping[int, float], rounds: int, recent: Any) -> dict[str, Any]:
        record, rows = self.workers[worker], list(self.workers[worker].rows)
        last, total = rows[-1] if rows else {}, sum(lag.values())
        return {
            "worker": worker,
            "state": record.state,
            "step": last.get("step", 0),
            "total_steps": record.total_steps,
            "loss": last.get("loss"),
            "step_seconds": _median([r["wall"] for r in rows]),
            "latency_seconds": _median([r["latency"] for r in rows]),
            "lag_seconds": lag.get(worker, 0.0) / rounds if rounds else None,
            "lag_share": lag.get(worker, 0.0) / total if total else None,
            "staleness": statistics.fmean(record.staleness) if record.staleness else None,
            "applied": record.applied,
            "rejected": sum(record.rejected.values()),
            "rejected_by_reason": dict(record.rejected),
            "phases": {p: statistics.fmean(r["phases"].get(p, 0.0) for r in rows) for p in PHASES} if rows else {},
            "reported": record.reported,
            "verdicts": self._verdicts(worker, recent),
        }

    def _verdicts(self, worker: int, recent: Any) -> list[str]:
        out = ["makes the others wait"] if recent and recent["worker"] == worker else []
        if self.strategy != "Asynchronous" or len(self.workers) < 2:
            return out
        if _stands_out(worker, {w: _own_seconds(r) for w, r in self.workers.items()}, at_least=0.002):
            out.append("slow")
            if _stands_out(worker, {w: _mean(r.contended) for w, r in self.workers.items()}, at_least=1.0):
                out.append("stale")
        return out


def _stands_out(worker: int, values: Mapping[int, float | None], at_least: float) -> bool:
    mine = values[worker]
    others = [v for w, v in values.items() if w != worker and v is not None]
    if mine is None or not others:
        return False
    usual = statistics.median(others)
    return mine > SLOW * usual and mine - usual > at_least


def _own_seconds(record: WorkerRecord) -> float | None:
    if len(record.rows) < 5:
        return None
    own = [sum(float(r["phases"].get(p, 0.0)) for p in COMPUTING) for r in record.rows]
    return statistics.median(own)


def _mean(values: Sequence[float] | deque[int]) -> float | None:
    return statistics.fmean(values) if values else None


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
