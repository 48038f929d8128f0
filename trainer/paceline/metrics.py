"""Every metric of workers and servers, declared once. Histograms are classic, units base units, workers ordinals."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds
STALENESS_BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64, 128)  # updates


class WorkerMetrics:
    """What a worker exports."""

    def __init__(self, registry: CollectorRegistry, training: str, worker: int) -> None:
        names = ("training", "worker")
        labels = {"training": training, "worker": str(worker)}

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(f"paceline_worker_{name}", text, (*names, *more), registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"paceline_worker_{name}", text, names, registry=registry).labels(**labels)

        self.labels = labels
        self.latency = Histogram(
            "paceline_worker_gradient_latency_seconds",
            "From the last local gradient being ready until the answer with fresh parameters is usable.",
            names,
            buckets=LATENCY_BUCKETS,
            registry=registry,
        ).labels(**labels)
        self.phases = counter("phase_seconds", "Where the step's wall time went; the phases add up to it.", "phase")
        self._phases: dict[str, Counter] = {}
        self.steps = counter("steps", "Optimizer steps.").labels(**labels)
        self.samples = counter("samples", "Samples that came through paceline.shard.").labels(**labels)
        self.bytes = counter("gradient_bytes", "Payload bytes on the wire.", "direction")
        self.retries = counter("retries", "Connections that broke and were made anew.", "reason")
        self.step = gauge("step", "Steps so far.")
        self.loss = gauge("loss", "Last loss given to paceline.report.")
        self.last_step = gauge("last_step_timestamp_seconds", "When the last step ended, in Unix time.")

    def phase(self, name: str) -> Counter:
        """The seconds spent in one phase. Looked up once: `labels` costs ten times as much as counting."""
        if name not in self._phases:
            self._phases[name] = self.phases.labels(**self.labels, phase=name)
        return self._phases[name]


class ServerMetrics:
    """What a parameter server or the coordinator exports."""

    def __init__(self, registry: CollectorRegistry, training: str, server: int) -> None:
        names = ("training", "server")
        self.labels = {"training": training, "server": str(server)}

        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(f"paceline_server_{name}", text, (*names, *more), registry=registry)

        def gauge(name: str, text: str, *more: str) -> Gauge:
            return Gauge(f"paceline_server_{name}", text, (*names, *more), registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"paceline_server_{name}", text, names, buckets=buckets, registry=registry).labels(
                **self.labels
            )

        self.lag = counter("worker_lag_seconds", "Time that gradients came after the median of their round.", "worker")
        self.last_arrivals = counter("worker_last_arrivals", "Rounds in which this worker came last.", "worker")
        self.round_spread = histogram("round_spread_seconds", "From first to last arrival of a round.", LATENCY_BUCKETS)
        self.round_duration = histogram(
            "round_duration_seconds", "From the first arrival of a round to its release.", LATENCY_BUCKETS
        )  # fmt: skip
        self.applied = counter("gradients_applied", "Gradients applied.", "worker")
        self.rejected = counter("gradients_rejected", "Gradients rejected.", "worker", "reason")
        self.peers_rejected = counter("peers_rejected", "Connections ended for what they sent.", "reason")
        self.staleness = histogram("gradient_staleness_steps", "Delay of gradients, in updates.", STALENESS_BUCKETS)
        self.worker_staleness = gauge("worker_staleness_steps", "Delay of the worker's gradients (EWMA).", "worker")
        self.apply = histogram("apply_seconds", "Duration of one update.", LATENCY_BUCKETS)
        self.version = gauge("model_version", "Updates so far.").labels(**self.labels)
        self.parameter_bytes = gauge("parameter_bytes", "Bytes of parameters held here.").labels(**self.labels)
        self.connected = gauge("connected_workers", "Connections open.").labels(**self.labels)
        self.bytes = counter("bytes", "Payload bytes on the wire.", "direction")
