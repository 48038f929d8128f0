"""Every metric of the operator, declared once, and what records those about the operator itself.

Those about a training are made from its status at each scrape, in `training_series`. docs/metrics.md is generated
from here.
"""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from paceline_core import modes
from paceline_core.goodput import Loss
from paceline_core.metric_series import Metric, MetricKind
from paceline_operator.decisions.goodput import Ledger

C, G, H = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM
RECONCILE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
STARTUP_SECONDS = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
LIFE_SECONDS = (10, 60, 300, 900, 3600, 3 * 3600, 8 * 3600, 24 * 3600, 3 * 86400, 7 * 86400, 30 * 86400)
TRAINING = ("namespace", "training")

# The operator itself.
RECONCILE_DURATION = Metric(
    "paceline_operator_reconcile_duration_seconds",
    H,
    "Duration of one look at a training, by result: ok or error.",
    ("handler", "result"),
    RECONCILE_SECONDS,
)
RECONCILE_ERRORS = Metric(
    "paceline_operator_reconcile_errors_total",
    C,
    "Looks that ended with an error and are made again; the reason is the name of the error.",
    ("handler", "reason"),
)
LAST_WATCH_EVENT = Metric(
    "paceline_operator_last_watch_event_timestamp_seconds",
    G,
    "When the watch of this resource last told something, or when a list last showed that there was nothing that it "
    "had not told: a list is made every minute, so this is fresh when nobody changes anything too, and old when the "
    "watch is dead or the API server does not answer. In Unix time; there only while this process works.",
    ("resource",),
)
WATCH_RESTARTS = Metric(
    "paceline_operator_watch_restarts_total",
    C,
    "Times that the watch of this resource lost its place and listed anew objects that were known.",
    ("resource",),
)
LEADER = Metric("paceline_operator_is_leader", G, "1 while this process looks after trainings, 0 while it waits.")
API_ERRORS = Metric(
    "paceline_operator_api_errors_total",
    C,
    "Calls to the API server that failed, by the code of HTTP; `none` without an answer. Codes 404 and 409 are usual. "
    "Watches and the lease are not counted.",
    ("code",),
)

# One training.
INFO = Metric(
    "paceline_training_info",
    G,
    f"1; the labels tell what the training is. mode: {modes.either()}.",
    (*TRAINING, "uid", "mode", "device", "level"),
)
PHASE = Metric("paceline_training_phase", G, "1 for the phase that the training is in.", (*TRAINING, "phase"))
REASON = Metric("paceline_training_reason", G, "1; the label is status.reason.", (*TRAINING, "reason"))
CONDITION = Metric(
    "paceline_training_condition",
    G,
    "1 for the status, True or False, of each condition.",
    (*TRAINING, "condition", "status"),
)
REPLICAS = Metric(
    "paceline_training_replicas",
    G,
    "Pods of each role, worker or server: desired, ready, succeeded, failed, and pending, which is the rest.",
    (*TRAINING, "role", "state"),
)
RESTARTS = Metric(
    "paceline_training_restarts_total",
    C,
    "Failures after which the training, or a worker alone, began anew; by the role that failed and why: oom, evicted, "
    "crash, preempted, image, node, deleted.",
    (*TRAINING, "role", "reason"),
)
STEP = Metric("paceline_training_step", G, "Steps that every worker has made.", TRAINING)
TARGET = Metric(
    "paceline_training_target_steps", G, "Steps that each worker will make.", TRAINING, only="told by script"
)
PROGRESS = Metric(
    "paceline_training_progress_ratio", G, "Share of the steps that are made.", TRAINING, only="told by script"
)
COMPLETION = Metric(
    "paceline_training_estimated_completion_timestamp_seconds",
    G,
    "When the last step will be made at the present attempt's mean speed, in Unix time.",
    TRAINING,
    only="told by script",
)
LAST_STEP = Metric(
    "paceline_training_last_step_timestamp_seconds",
    G,
    "When a step was last seen to be made in the present attempt, in Unix time.",
    TRAINING,
)
PRODUCTIVE = Metric(
    "paceline_training_productive_seconds_total",
    C,
    "Time in which the training went on, over its whole life.",
    TRAINING,
)
BADPUT = Metric(
    "paceline_training_badput_seconds_total",
    C,
    "Time lost, by reason: pending, startup, restart, rework, checkpoint, straggler, data, shutdown. With the "
    "productive time it adds up to the wall time; a suspension does not count.",
    (*TRAINING, "reason"),
)

# All trainings together.
FINISHED = Metric(
    "paceline_trainings_finished_total",
    C,
    "Trainings that this process saw to their end: Succeeded, Failed.",
    ("result",),
)
STARTUP_TIME = Metric(
    "paceline_training_startup_seconds",
    H,
    "Pending and startup time of finished trainings.",
    ("result",),
    STARTUP_SECONDS,
)
DURATION = Metric(
    "paceline_training_duration_seconds",
    H,
    "Wall time of finished trainings, suspensions not counted.",
    ("result",),
    LIFE_SECONDS,
)
OPERATOR = (
    RECONCILE_DURATION,
    RECONCILE_ERRORS,
    LAST_WATCH_EVENT,
    WATCH_RESTARTS,
    LEADER,
    API_ERRORS,
    FINISHED,
    STARTUP_TIME,
    DURATION,
)
OF_TRAINING = (
    INFO, PHASE, REASON, CONDITION, REPLICAS, RESTARTS, STEP, TARGET, PROGRESS, COMPLETION, LAST_STEP, PRODUCTIVE,
    BADPUT,
)  # fmt: skip
DECLARED: tuple[Metric, ...] = OPERATOR + OF_TRAINING


class Metrics(Collector):
    """Records what the operator does, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._families = {m: self._make(m) for m in OPERATOR}
        self._families[LEADER].set(0)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def collect(self) -> Iterator[Family]:
        """What to export: the library's `_created` series, one for each counter and histogram, are left out."""
        for family in self.registry.collect():
            family.samples = [s for s in family.samples if not s.name.endswith("_created")]
            yield family

    def became_leader(self) -> None:
        """This process looks after trainings from now on."""
        self._families[LEADER].set(1)

    def watch_alive(self, resource: str) -> None:
        """The watch is known to be alive."""
        self._families[LAST_WATCH_EVENT].labels(resource).set(time.time())

    def watch_restarted(self, resource: str) -> None:
        """The watch listed anew."""
        self._families[WATCH_RESTARTS].labels(resource).inc()

    def api_error(self, code: str) -> None:
        """A call failed."""
        self._families[API_ERRORS].labels(code).inc()

    def finished(self, status: Mapping[str, Any]) -> None:
        """A training has ended: its status is written."""
        result = status["phase"]
        self._families[FINISHED].labels(result).inc()
        if "goodput" in status:
            ledger = Ledger.from_status(status["goodput"])
            startup = sum(ledger.seconds.get(reason, 0.0) for reason in (Loss.PENDING, Loss.STARTUP))
            self._families[STARTUP_TIME].labels(result).observe(startup)
            self._families[DURATION].labels(result).observe(ledger.total)

    def measured(self, handler: str, work: Callable[[Any], Awaitable[float | None]]) -> Any:
        """The same work, with its duration and errors recorded."""

        async def measure(key: Any) -> float | None:
            begun, result = time.monotonic(), "error"
            try:
                requeue_after = await work(key)
                result = "ok"
            except Exception as error:
                self._families[RECONCILE_ERRORS].labels(handler, type(error).__name__).inc()
                raise
            finally:
                self._families[RECONCILE_DURATION].labels(handler, result).observe(time.monotonic() - begun)
            return requeue_after

        return measure

    def _make(self, metric: Metric) -> Any:
        match metric.kind:
            case MetricKind.COUNTER:
                return Counter(metric.name, metric.help, metric.labels, registry=self.registry)
            case MetricKind.GAUGE:
                return Gauge(metric.name, metric.help, metric.labels, registry=self.registry)
        return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=self.registry)
