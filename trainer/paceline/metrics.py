"""Every metric of workers and servers, declared once; docs/metrics.md is generated from here.

Histograms are classic, units base units, workers and servers ordinals. What a training exports depends on its level.
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric as Family

from paceline_core.metric_series import Metric, MetricKind, exported
from paceline_core.modes import NOT_WAITING, WAITING, names
from paceline_core.spec import Level

C, G, H = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM
DETAILED, STANDARD = Level.DETAILED, Level.STANDARD
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
FEW_SECONDS = (0.005, 0.025, 0.1, 0.5, 1, 5, 30)  # of a worker at level Standard
STALENESS = (0, 1, 2, 4, 8, 16, 32, 64, 128)  # updates
# At level Standard the phases are these four, by what they mean for whoever looks.
COARSE = {"data": "data", "send": "send", "wait": "wait", "receive": "wait"}
COMPUTE = "compute"  # all others

# Workers. Constant labels: training, worker.
LATENCY = Metric(
    "paceline_worker_gradient_latency_seconds",
    H,
    f"From the last local gradient being ready until the parameters that include it ({WAITING}) or the "
    f"answer with fresh ones ({NOT_WAITING}) can be used.",
    buckets=SECONDS,
    level=STANDARD,
)
PHASE = Metric(
    "paceline_worker_phase_seconds_total",
    C,
    "Where the steps' wall time went; the phases add up to it. At level Standard: data, compute, send, wait.",
    ("phase",),
    level=STANDARD,
)
STEPS = Metric("paceline_worker_steps_total", C, "Optimizer steps.", level=STANDARD)
STEP = Metric("paceline_worker_step", G, "Number of the last step.", level=STANDARD)
LAST_STEP = Metric(
    "paceline_worker_last_step_timestamp_seconds", G, "When the last step ended, in Unix time.", level=STANDARD
)
SAMPLES = Metric("paceline_worker_samples_total", C, "Samples that came through paceline.shard.", level=DETAILED)
BYTES = Metric(
    "paceline_worker_gradient_bytes_total",
    C,
    "Payload bytes sent and received, after encoding.",
    ("direction",),
    level=DETAILED,
)
RAW_BYTES = Metric("paceline_worker_gradient_raw_bytes_total", C, "Bytes of gradients before encoding.", level=DETAILED)
NORM = Metric(
    "paceline_worker_gradient_norm",
    G,
    "Euclidean norm of all gradients, looked at every 5 s; the last finite one.",
    level=DETAILED,
)
LOSS = Metric(
    "paceline_worker_loss", G, "Last finite loss given to paceline.report.", level=DETAILED, only="reported losses"
)
NONFINITE = Metric(
    "paceline_worker_nonfinite_total",
    C,
    "Losses, and gradient norms, that were not finite numbers.",
    ("where",),
    level=STANDARD,
)
RETRIES = Metric(
    "paceline_worker_retries_total",
    C,
    "Connections that broke and were made anew.",
    ("reason",),
    level=STANDARD,
    only="parameter server",
)
CLOCK_OFFSET = Metric(
    "paceline_worker_clock_offset_seconds",
    G,
    "The clock of server 0 or the coordinator minus this worker's, as NTP estimates it.",
    level=DETAILED,
)
MEMORY = Metric(
    "paceline_worker_device_memory_bytes",
    G,
    "Memory of the device: allocated, reserved, and the peak of what was allocated.",
    ("state",),
    level=DETAILED,
    only="GPUs",
)
INFO = Metric(
    "paceline_worker_info",
    G,
    "1; the labels tell where the worker runs and how.",
    ("device", "backend", "torch", "version", "node"),
    level=DETAILED,
)
WORKER = (
    LATENCY, PHASE, STEPS, STEP, LAST_STEP, SAMPLES, BYTES, RAW_BYTES, NORM, LOSS, NONFINITE, RETRIES, CLOCK_OFFSET,
    MEMORY, INFO,
)  # fmt: skip

# Servers and the coordinator. Constant labels: training, server. Those about rounds come from server 0 alone.
LAG = Metric(
    "paceline_server_worker_lag_seconds_total",
    C,
    "Time that a worker's gradients came after the median of their round; in a ring, waited less than the median.",
    ("worker",),
    only=WAITING,
)
LAST_ARRIVALS = Metric(
    "paceline_server_worker_last_arrivals_total",
    C,
    "Rounds in which the worker came last.",
    ("worker",),
    only=WAITING,
)
ROUND = Metric(
    "paceline_server_round_duration_seconds",
    H,
    "From one update to the next.",
    buckets=SECONDS,
    only=WAITING,
)
SPREAD = Metric(
    "paceline_server_round_spread_seconds",
    H,
    "From the first to the last arrival of a round: the price of stragglers.",
    buckets=SECONDS,
    only=WAITING,
)
STRAGGLER = Metric(
    "paceline_server_straggler_cost_ratio",
    G,
    "Share of the throughput that the worker that makes the others wait costs; there only while one is named.",
    ("worker", "cause"),
    only=WAITING,
)
APPLIED = Metric("paceline_server_gradients_applied_total", C, "Gradients applied.", ("worker",), level=STANDARD)
REJECTED = Metric("paceline_server_gradients_rejected_total", C, "Gradients rejected.", ("worker", "reason"))
PEERS_REJECTED = Metric(
    "paceline_server_peers_rejected_total",
    C,
    "Connections that were ended for what they sent or did not send.",
    ("reason",),
)
DELAY = Metric(
    "paceline_server_gradient_staleness_steps",
    H,
    "Staleness of gradients, in updates.",
    buckets=STALENESS,
    only="parameter server",
)
WORKER_DELAY = Metric(
    "paceline_server_worker_staleness_steps",
    G,
    "Staleness of the worker's gradients, in updates, smoothed.",
    ("worker",),
    level=DETAILED,
    only="parameter server",
)
MAX_STALENESS = Metric(
    "paceline_server_max_staleness_steps",
    G,
    "Greatest staleness that is applied, in updates.",
    only=", ".join(names(lambda it: it.knobs.rejects_late)),
)
LAST_SEEN = Metric(
    "paceline_server_worker_last_seen_timestamp_seconds",
    G,
    "When the worker was last heard of, in Unix time.",
    ("worker",),
    level=DETAILED,
)
APPLY = Metric("paceline_server_apply_seconds", H, "Duration of one update.", buckets=SECONDS, only="parameter server")
LOCK_WAIT = Metric(
    "paceline_server_lock_wait_seconds_total",
    C,
    "Time that updates were decided but the shard was not free to make them.",
    only="parameter server",
)
QUEUE = Metric(
    "paceline_server_queue_depth", G, "Gradients that are here whole and not yet applied.", only="parameter server"
)
CONNECTED = Metric("paceline_server_connected_workers", G, "Workers with an open connection.")
VERSION = Metric("paceline_server_model_version", G, "Updates so far.")
PARAMETER_BYTES = Metric(
    "paceline_server_parameter_bytes", G, "Bytes of parameters held here.", only="parameter server"
)
SERVER_BYTES = Metric(
    "paceline_server_bytes_total", C, "Payload bytes sent and received.", ("direction",), only="parameter server"
)
PRODUCTIVE = Metric(
    "paceline_server_productive_seconds_total", C, "Time in which the training went on, since this process began."
)
LOST = Metric(
    "paceline_server_lost_seconds_total",
    C,
    "Time lost, by reason; with the productive time it adds up to the wall time.",
    ("reason",),
)
CHECKPOINT_SECONDS = Metric(
    "paceline_checkpoint_duration_seconds",
    H,
    "Time to save a checkpoint, from its place in the order to its manifest, and to read the one to go on from.",
    ("op",),
    (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
    only="spec.checkpoint",
)
CHECKPOINT_TIME = Metric(
    "paceline_checkpoint_last_success_timestamp_seconds",
    G,
    "When the newest checkpoint was saved, in Unix time.",
    only="spec.checkpoint",
)
CHECKPOINT_STEP = Metric(
    "paceline_checkpoint_last_success_step", G, "Updates made until the newest checkpoint.", only="spec.checkpoint"
)
CHECKPOINT_BYTES = Metric(
    "paceline_checkpoint_bytes", G, "Bytes of the files of the newest checkpoint.", only="spec.checkpoint"
)
CHECKPOINT_FAILURES = Metric(
    "paceline_checkpoint_failures_total",
    C,
    "Checkpoints that could not be saved (space: no room is left; store: an object store refused, or did not answer; "
    "io: anything else), and newer ones that were passed over in going on (checksum: a file is not as it was written).",
    ("op", "reason"),
    only="spec.checkpoint",
)
CHECKPOINT_MISSED = Metric(
    "paceline_checkpoint_missed",
    G,
    "Checkpoints that were due since the newest that was saved.",
    only="spec.checkpoint",
)
TRAINING_LATENCY = Metric(
    "paceline_training_gradient_latency_seconds",
    H,
    "Gradient latency of all workers.",
    buckets=SECONDS,
    only="level Aggregated",
)
WORKER_LATENCY = Metric(
    "paceline_server_worker_gradient_latency_seconds",
    G,
    "Gradient latency of the worker's newest steps, mean and max.",
    ("worker", "stat"),
    only="level Aggregated",
)
BUILD = Metric("paceline_build_info", G, "1; the labels tell the versions.", ("version", "torch", "python"))
SERVER = (
    LAG, LAST_ARRIVALS, ROUND, SPREAD, STRAGGLER, APPLIED, REJECTED, PEERS_REJECTED, DELAY, WORKER_DELAY,
    MAX_STALENESS, LAST_SEEN, APPLY, LOCK_WAIT, QUEUE, CONNECTED, VERSION, PARAMETER_BYTES, SERVER_BYTES, PRODUCTIVE,
    LOST, CHECKPOINT_SECONDS, CHECKPOINT_TIME, CHECKPOINT_STEP, CHECKPOINT_BYTES, CHECKPOINT_FAILURES,
    CHECKPOINT_MISSED, TRAINING_LATENCY, WORKER_LATENCY, BUILD,
)  # fmt: skip
DECLARED = WORKER + SERVER


class Instruments:
    """What one process records. A metric that its level does not export is recorded nowhere, at no cost."""

    def __init__(self, declared: Sequence[Metric], constant: Mapping[str, str], level: Level) -> None:
        self.registry, self.level = CollectorRegistry(), level
        self._constant = tuple(constant.values())
        self._families = {m: self._make(m, tuple(constant)) for m in exported(declared, level)}
        self._children: dict[tuple[Metric, tuple[str, ...]], Counter | Gauge | Histogram] = {}

    def add(self, metric: Metric, amount: float = 1.0, *labels: str) -> None:
        """Count on."""
        if metric in self._families:
            self._child(metric, labels).inc(amount)  # type: ignore[union-attr]

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""
        if metric in self._families:
            self._child(metric, labels).set(value)  # type: ignore[union-attr]

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Count into a histogram."""
        if metric in self._families:
            self._child(metric, labels).observe(value)  # type: ignore[union-attr]

    def clear(self, metric: Metric) -> None:
        """Forget what was recorded."""
        if metric in self._families:
            self._families[metric].clear()
            self._children = {key: child for key, child in self._children.items() if key[0] != metric}

    def collect(self) -> Iterator[Family]:
        """What to export: the library's `_created` series, one for each counter and histogram, are left out."""
        for family in self.registry.collect():
            family.samples = [s for s in family.samples if not s.name.endswith("_created")]
            yield family

    def _child(self, metric: Metric, labels: tuple[str, ...]) -> Counter | Gauge | Histogram:
        """Looked up once: `labels` of the library costs ten times as much as counting."""
        key = (metric, labels)
        if key not in self._children:
            self._children[key] = self._families[metric].labels(*self._constant, *labels)
        return self._children[key]

    def _make(self, metric: Metric, constant: tuple[str, ...]) -> Counter | Gauge | Histogram:
        names = (*constant, *metric.labels)
        match metric.kind:
            case MetricKind.COUNTER:
                return Counter(metric.name, metric.help, names, registry=self.registry)
            case MetricKind.GAUGE:
                return Gauge(metric.name, metric.help, names, registry=self.registry)
        few = metric is LATENCY and self.level is STANDARD
        buckets = FEW_SECONDS if few else metric.buckets
        return Histogram(metric.name, metric.help, names, buckets=buckets, registry=self.registry)


def of_worker(training: str, worker: int, level: Level) -> Instruments:
    """The instruments of a worker."""
    return Instruments(WORKER, {"training": training, "worker": str(worker)}, level)


def of_server(training: str, server: int, level: Level) -> Instruments:
    """The instruments of a parameter server or of the coordinator."""
    made = Instruments(SERVER, {"training": training, "server": str(server)}, level)
    made.set(BUILD, 1, installed("paceline"), installed("torch"), platform.python_version())
    return made


def phases_at(level: Level, phases: Mapping[str, float]) -> Mapping[str, float]:
    """The phases of a step as they are exported at a level."""
    if level is not STANDARD:
        return phases
    out: dict[str, float] = {}
    for phase, seconds in phases.items():
        name = COARSE.get(phase, COMPUTE)
        out[name] = out.get(name, 0.0) + seconds
    return out


def installed(package: str) -> str:
    """The version of a package; empty if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
