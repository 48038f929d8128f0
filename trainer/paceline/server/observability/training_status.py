"""Who makes whom wait: joins arrivals (on this process's clock) and the workers' reports into one status."""

import logging
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paceline import metrics
from paceline.metrics import Instruments
from paceline.server.observability.checkpoint_record import CheckpointRecord
from paceline.server.observability.finiteness_record import FinitenessRecord
from paceline.server.observability.same_loss import MOST_OPEN, STEPS, SameLoss
from paceline.server.observability.step_log import StepLog
from paceline.server.observability.verdicts import Verdicts
from paceline.server.observability.worker_statistics import WorkerStatistics, mean, new_workers
from paceline_core.attribution import Lags, Round, by_arrival, by_wait
from paceline_core.goodput import Goodput, Loss
from paceline_core.launch import Launch
from paceline_core.spec import OnNonFinite

REPORTED = 20  # values that a summary holds
FEW_REPEATS, REPEATED_SECONDS = 2, 60.0  # in a lost worker's place: so many steps, or what took so long
ACCOUNT_SECONDS = 1.0  # between two accounts of verdict and goodput
log = logging.getLogger("paceline")


class TrainingStatus:
    """Collects, and answers /status. Safe to call from any thread."""

    def __init__(self, launch: Launch, instruments: Instruments) -> None:
        spec = launch.spec
        self.training, self.topology = launch.training, str(spec.topology)
        self.strategy, self._in_ring, self._knobs = spec.mode, spec.ring, spec.knobs
        self.workers = new_workers(spec.world_size)
        self.version, self.finished = 0, False
        self.lags = Lags()
        self._metrics = instruments
        self._started = time.monotonic()
        early = 0.0 if launch.started is None else max(0.0, time.time() - launch.started)
        self._goodput = Goodput(self._started - early)
        for reason in (
            Loss if launch.ordinal == 0 else ()
        ):  # there from the beginning, so that the first seconds of each are seen to grow
            instruments.add(metrics.LOST, 0.0, str(reason))
        self._verdicts = Verdicts(self.lags, self.workers, self._knobs.waits_for_all)
        self._training = 0  # workers that train now
        self._updated = self._accounted = 0.0  # when the last update was made, and the last account
        self._since = (0.0, 0, 0)  # at the last account: time lost by waiting, gradients applied, rejected
        self._last_round = 0.0
        self._waits: dict[int, dict[int, tuple[float, float]]] = {}  # ring: step -> worker -> (wait, wall)
        self._same_loss = SameLoss(spec.world_size)
        self._finiteness = FinitenessRecord(fails=spec.gradients.on_non_finite is OnNonFinite.FAIL)
        self._saves = spec.checkpoint is not None
        self.checkpoints = CheckpointRecord(instruments)
        self._lock = threading.Lock()
        self.has_gathered = False  # whether workers have exchanged values
        self.servers_end = False  # whether one was told to, with which everything begins anew
        self._kept_at: dict[int, float] = {}  # when each worker's place was kept
        self._log = StepLog(launch.output if launch.ordinal == 0 else None)

    def state(self, worker: int, state: str, total_steps: int | None = None) -> None:
        """A worker joined, finished or was lost."""
        with self._lock:
            it = self.workers[worker]
            self._training += (state == "training") - (it.state == "training")
            it.state, it.total_steps = state, total_steps or it.total_steps

    def went_on(self, worker: int, step: int) -> None:
        """A worker goes on from a checkpoint, in which it has made so many steps."""
        with self._lock:
            it = self.workers[worker]
            it.step = max(it.step, step)

    def kept(self, worker: int, step: int | None) -> None:
        """Where a worker was after so many updates is kept for one in its place; None: it is not, any more."""
        with self._lock:
            self.workers[worker].kept_step, self._kept_at[worker] = step, time.monotonic()

    def replaceable(self, worker: int) -> bool:
        """Whether another can go on where this worker was, and soon.

        Not once workers have gathered values: what was said before would be asked of the others again.
        """
        with self._lock:
            return self._replaceable(worker)

    def _replaceable(self, worker: int) -> bool:
        step = self.workers[worker].kept_step
        if step is None or self.has_gathered or self.servers_end or self.workers[worker].state == "finished":
            return False
        return self.version - step <= FEW_REPEATS or self._updated - self._kept_at[worker] <= REPEATED_SECONDS

    def applied(self, version: int, delays: Mapping[int, int], arrivals: Mapping[int, float] | None) -> None:
        """An update was decided; `arrivals` (time.monotonic) of its pushes when it was a round of all."""
        with self._lock:
            self.version = version
            for worker, delay in delays.items():
                self.workers[worker].applied += 1
                self._metrics.add(metrics.APPLIED, 1, str(worker))
                self._delayed(worker, delay)
            if arrivals and len(arrivals) > 1:
                now, before = max(arrivals.values()), self._last_round
                self._last_round = now
                if before:
                    self._round(by_arrival(arrivals, before, now))
            self._account(time.monotonic())

    def rejected(self, worker: int, reason: str, delay: int) -> None:
        """A push was rejected."""
        with self._lock:
            self.workers[worker].rejected[reason] += 1
            self._metrics.add(metrics.REJECTED, 1, str(worker), reason)
            self._delayed(worker, delay)
            self._account(time.monotonic())

    def report(self, worker: int, rows: Sequence[dict[str, Any]], reported: Mapping[str, float]) -> None:
        """A worker's steps since its last report.

        Raises OSError, and KeyError, TypeError, ValueError for bad rows.
        """
        with self._lock:
            self._log.write(worker, rows)
            self.workers[worker].report(rows, reported, self._knobs.repeats)
            self._metrics.set(metrics.LAST_SEEN, time.time(), str(worker))
            for row in rows:
                self._metrics.observe(metrics.TRAINING_LATENCY, row["latency"])
                self._compare_loss(worker, row)
                self._finiteness.hear_loss(worker, row)
            if rows:
                latest = self.workers[worker].steps.latency_mean_and_max()
                for stat, value in zip(("mean", "max"), latest, strict=True):
                    self._metrics.set(metrics.WORKER_LATENCY, value, str(worker), stat)
            if self._in_ring:
                for row in rows:
                    self._ring(worker, row)

    def gradient_not_finite(self, worker: int, step: int, name: str) -> None:
        """A worker's gradient of a parameter is not finite: the update is left out."""
        with self._lock:
            self._finiteness.hear_gradient(worker, step, name)

    def weights_not_finite(self, name: str) -> None:
        """A tensor of the weights is not finite at the end."""
        with self._lock:
            self._finiteness.hear_weights(name)

    def demand_finite(self) -> None:
        """Raise NotFinite if a loss or weights were not, and the specification asks that the training fails then."""
        with self._lock:
            self._finiteness.demand([w for w, it in self.workers.items() if it.state == "training"])

    def gathered(self) -> None:
        """Every worker has given a value to all the others."""
        with self._lock:
            self.has_gathered = True
            self._same_loss.averaged()

    def end(self) -> None:
        """The training is over: from here on nothing is accounted for."""
        with self._lock:
            if not self.finished:
                self.finished = True
                if self._updated > self._accounted:
                    self._divide(self._updated)
                self._tell_goodput(lambda: self._goodput.ended(time.monotonic()))

    def to_json(self) -> dict[str, Any]:
        """What /status answers."""
        with self._lock:
            recent, said = self._verdicts.verdict(time.time()), self._verdicts.of_workers()
            return {
                "training": self.training,
                "topology": self.topology,
                "strategy": self.strategy,
                "level": str(self._metrics.level),
                "version": self.version,
                "finished": self.finished,
                "uptime_seconds": time.monotonic() - self._started,
                "missing": [w for w, it in self.workers.items() if it.state == "waiting"],
                "workers": [self._worker(w, it, said.get(w, ([], None))) for w, it in self.workers.items()],
                "verdict": recent,
                "overall_verdict": self._verdicts.overall(),
                "goodput": self._goodput.to_json(),
                "checkpoint": self.checkpoints.to_json(self.version) if self._saves else None,
                **self._finiteness.to_json(),
            }

    def summary(self) -> dict[str, Any]:
        """The end of the training in a few hundred bytes: Kubernetes keeps 4096 of a termination message."""
        status = self.to_json()
        losses = [w["loss"] for w in status["workers"] if w["loss"] is not None]
        return {
            "step": max(w["step"] for w in status["workers"]),
            "version": status["version"],
            "loss": statistics.fmean(losses) if losses else None,
            "reported": dict([item for w in status["workers"] for item in w["reported"].items()][:REPORTED]),
            "verdict": status["overall_verdict"],
            "goodput": status["goodput"],
            "checkpoint": status["checkpoint"],
            "loss_not_finite": status["loss_not_finite"],
            "weights_not_finite": status["weights_not_finite"],
        }

    def at_failure(self) -> dict[str, Any]:
        """What a failed server leaves beside its reason: what it has saved, if it has made an update."""
        with self._lock:
            return {"checkpoint": self.checkpoints.to_json(self.version)} if self._saves and self.version else {}

    def close(self) -> None:
        """Flush the log of steps."""
        self._log.close()

    def _compare_loss(self, worker: int, row: Mapping[str, Any]) -> None:
        if self._same_loss.add(worker, int(row["step"]), row.get("loss")):
            log.warning(
                "all workers have reported the same loss for %d steps: do they all read the same data? "
                "see paceline.shard",
                STEPS,
            )

    def _delayed(self, worker: int, delay: int) -> None:
        smoothed = self.workers[worker].delayed(delay, contended=self._training == len(self.workers))
        self._metrics.observe(metrics.DELAY, delay)
        self._metrics.set(metrics.WORKER_DELAY, smoothed, str(worker))

    def _round(self, it: Round) -> None:
        self.lags.add(it)
        for worker, lag in it.lags.items():
            self._metrics.add(metrics.LAG, lag, str(worker))
        self._metrics.add(metrics.LAST_ARRIVALS, 1, str(it.last))
        self._metrics.observe(metrics.ROUND, it.seconds)
        self._metrics.observe(metrics.SPREAD, it.spread)

    def _ring(self, worker: int, row: Mapping[str, Any]) -> None:
        """Join the workers' waits in the same step, which come one after the other, into a round."""
        waits = self._waits.setdefault(row["step"], {})
        waits[worker] = (row["phases"].get("wait", 0.0), row["wall"])
        if len(self._waits) > MOST_OPEN:
            del self._waits[next(iter(self._waits))]
        if len(waits) < len(self.workers):
            return
        self._waits.pop(row["step"], None)
        now = time.monotonic()
        self.version = max(self.version, row["step"])
        self._metrics.set(metrics.VERSION, self.version)
        if len(waits) > 1:
            seconds = statistics.median(wall for _, wall in waits.values())
            self._round(by_wait({w: wait for w, (wait, _) in waits.items()}, seconds, now))
        for each in waits:
            self.workers[each].applied += 1
            self._metrics.add(metrics.APPLIED, 1, str(each))
        self._account(now)

    def _account(self, now: float) -> None:
        """Once a second: divide the time since the last account, and find who is slow."""
        self._updated = now
        if now - self._accounted < ACCOUNT_SECONDS:
            return
        self._divide(now)
        self._metrics.clear(metrics.STRAGGLER)
        found = self._verdicts.verdict(time.time())
        if found:
            self._metrics.set(metrics.STRAGGLER, found["cost"], str(found["worker"]), found["cause"])

    def _divide(self, now: float) -> None:
        """Account for the time since the last account."""
        shares = self._shares(now - self._accounted)
        self._tell_goodput(lambda: self._goodput.trained(now, shares))
        self._accounted = now

    def _shares(self, seconds: float) -> dict[Loss, float]:
        """Which shares of the last `seconds` were lost."""
        workers = self.workers.values()
        now = (self.lags.whole.waited, sum(w.applied for w in workers), sum(w.rejected.total() for w in workers))
        waited, applied, rejected = (b - a for a, b in zip(self._since, now, strict=True))
        self._since = now
        training = [w.steps.data_share() for w in workers if len(w.steps)]
        data = statistics.median(training) if training else 0.0
        if self._knobs.waits_for_all:
            straggler = min(1.0, waited / seconds)
            return {Loss.STRAGGLER: straggler, Loss.DATA: (1 - straggler) * data}
        redone = rejected / (applied + rejected) if rejected else 0.0
        return {Loss.DATA: data, Loss.REWORK: (1 - data) * redone}

    def _tell_goodput(self, change: Callable[[], None]) -> None:
        """Change the goodput, and count what it grew by."""
        productive, lost = self._goodput.productive, dict(self._goodput.lost)
        change()
        self._metrics.add(metrics.PRODUCTIVE, self._goodput.productive - productive)
        for reason, seconds in self._goodput.lost.items():
            self._metrics.add(metrics.LOST, seconds - lost.get(reason, 0.0), str(reason))

    def _worker(self, worker: int, it: WorkerStatistics, said: tuple[list[str], str | None]) -> dict[str, Any]:
        lags = self.lags.recent
        total, odd = sum(lags.lag.values()), self._finiteness.losses.get(worker)
        return {
            "worker": worker,
            "state": it.state,
            "step": it.step,
            "total_steps": it.total_steps,
            "kept_step": it.kept_step if self._replaceable(worker) else None,
            "loss": it.loss,
            "step_seconds": it.steps.wall(),
            "latency_seconds": it.steps.latency(),
            "lag_seconds": lags.lag[worker] / lags.rounds if lags.rounds else None,
            "lag_share": lags.lag[worker] / total if total > 0 else None,
            "last_arrivals": lags.last[worker],
            "staleness": mean(it.staleness),
            "applied": it.applied,
            "rejected": it.rejected.total(),
            "rejected_by_reason": dict(it.rejected),
            "phases": it.steps.phases(),
            "reported": it.reported,
            "loss_not_finite": {"step": odd.step, "value": odd.value} if odd else None,
            "verdicts": said[0],
            "cause": said[1],
        }
