"""The metric series of each training, made from its newest status at every scrape: nothing is counted here.

So a restart of the operator changes no value, and what belongs to a training goes with it.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from paceline_core.goodput import Loss
from paceline_core.metric_series import Metric, MetricKind
from paceline_operator.decisions import goodput
from paceline_operator.decisions.goodput import Ledger
from paceline_operator.decisions.observe import seconds
from paceline_operator.kubernetes_api.cluster import Key
from paceline_operator.observability import metrics

Status = Mapping[str, Any]
Series = tuple[Metric, tuple[str, ...], float]  # labels beside namespace and training
PHASES = ("Pending", "Running", "Restarting", "Suspended", "Succeeded", "Failed")
ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True)
class ExportedTraining:
    """What one training exports."""

    uid: str
    series: tuple[Series, ...]
    ledger: Ledger | None
    end: float | None


class TrainingSeries(Collector):
    """The trainings that the operator looks after, as it last saw them."""

    def __init__(self) -> None:
        self._exported: dict[Key, ExportedTraining] = {}
        self._lost: dict[Key, dict[str, float]] = {}  # what was exported, by reason

    def update(self, key: Key, training: Mapping[str, Any]) -> None:
        """The training as it is now; another of the same name takes its place."""
        uid, status = training["metadata"]["uid"], training.get("status", {})
        if key in self._exported and self._exported[key].uid != uid:
            self.forget(key)
        ledger = Ledger.from_status(status["goodput"]) if "goodput" in status else None
        self._exported[key] = ExportedTraining(
            uid, tuple(series(uid, status)), ledger, seconds(status.get("completionTime"))
        )

    def forget(self, key: Key) -> None:
        """The training is gone, or is no longer looked after here."""
        self._exported.pop(key, None)
        self._lost.pop(key, None)

    def collect(self) -> Iterator[Family]:
        """The series of all of them."""
        kinds = {MetricKind.COUNTER: CounterMetricFamily, MetricKind.GAUGE: GaugeMetricFamily}
        families = {m: kinds[m.kind](m.name, m.help, labels=m.labels) for m in metrics.OF_TRAINING}
        now = time.time()
        for key, exported in self._exported.items():
            for metric, labels, value in (*exported.series, *self._times(key, exported, now)):
                families[metric].add_metric((key.namespace, key.name, *labels), value)
        yield from families.values()

    def _times(self, key: Key, exported: ExportedTraining, now: float) -> Iterator[Series]:
        """The ledger, with the time since the last account where it is clear what that is.

        It may turn out to be something else, for the workers may train before the operator hears of it. Prometheus
        would take a counter that goes back for one that began anew, so it stands still instead.
        """
        if exported.ledger is None:
            return
        ledger = goodput.settled(exported.ledger, now if exported.end is None else min(now, exported.end))
        yield metrics.PRODUCTIVE, (), ledger.productive
        lost = self._lost.setdefault(key, {})
        for reason in Loss:
            lost[reason] = max(ledger.seconds.get(reason, 0.0), lost.get(reason, 0.0))
            yield metrics.BADPUT, (reason,), lost[reason]


def series(uid: str, status: Status) -> Iterator[Series]:
    """What the status of a training tells, but for the times. Pure."""
    if "phase" not in status:  # nobody has looked at it yet
        return
    if "device" in status:
        labels = (uid, status["strategy"], status["device"], status["observability"]["level"])
        yield metrics.INFO, labels, 1
    for phase in PHASES:
        yield metrics.PHASE, (phase,), status["phase"] == phase
    yield metrics.REASON, (status["reason"],), 1
    for condition in status["conditions"]:
        for state in ("True", "False"):
            yield metrics.CONDITION, (condition["type"], state), condition["status"] == state
    yield from _replicas(status)
    for role, counts in status.get("restartsByReason", {}).items():
        for reason, count in counts.items():
            yield metrics.RESTARTS, (role, reason), count
    yield from _progress(status)


def _replicas(status: Status) -> Iterator[Series]:
    for role, counts in (("worker", status.get("workers")), ("server", status.get("servers"))):
        if counts is None:
            continue
        known = {state: counts[state] for state in ("desired", "ready", "succeeded", "failed")}
        rest = known["desired"] - known["ready"] - known["succeeded"] - known["failed"]
        known["pending"] = 0 if status["phase"] in ENDED else max(0, rest)
        for state, count in known.items():
            yield metrics.REPLICAS, (role, state), count


def _progress(status: Status) -> Iterator[Series]:
    step, target, last = status.get("step"), status.get("totalSteps"), seconds(status.get("lastStepTime"))
    if step is not None:
        yield metrics.STEP, (), step
    if last is not None:
        yield metrics.LAST_STEP, (), last
    if step is None or not target:
        return
    yield metrics.TARGET, (), target
    yield metrics.PROGRESS, (), step / target
    told = status.get("goodput", {})
    made, spent = told.get("step", 0), sum(told.get("told", {}).values())
    if made and spent and last is not None and status["phase"] not in ENDED:
        yield metrics.COMPLETION, (), last + (target - step) * spent / made
