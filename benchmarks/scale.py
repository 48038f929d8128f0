"""(f) 10,000 simulated workers at level Aggregated: series, Prometheus' memory, and its slowest dashboard query."""

import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.prometheus import Prometheus
from charts.dashboards import filled, queries
from paceline import http_pages, metrics
from paceline.server.observability.training_status import TrainingStatus
from paceline_core import metric_series
from paceline_core.attribution import PHASES
from paceline_core.launch import Launch, Role
from paceline_core.spec import TrainingSpec

WORKERS, SLOW = 10_000, 1234
ROUND_SECONDS, LATE_SECONDS = 1.0, 0.6
SCRAPE_SECONDS, SECONDS = 15, 400.0
REPEATS = 3
LIMITS = {"series": 45_000, "memory": 0.5e9, "query": 1.0}


def rows() -> Iterator[str]:
    """The table, one line at a time."""
    simulation = Simulation()
    server = http_pages.serve("127.0.0.1:0", simulation.metrics, {})
    address = f"127.0.0.1:{server.server_address[1]}"
    with Prometheus({"paceline-training": [address]}, SCRAPE_SECONDS) as prometheus:
        simulation.run(SECONDS)
        yield "| what | measured | limit |"
        yield "|---|---|---|"
        found = prometheus.value('count({namespace="bench"})')
        yield f"| series of the training, with what rules record | {found:,.0f} | {LIMITS['series']:,} |"
        yield f"| Prometheus' memory, at most | {prometheus.memory() / 1e9:.2f} GB | {LIMITS['memory'] / 1e9:.1f} GB |"
        (seconds, panel), slow = _slowest(prometheus)
        yield f"| slowest dashboard query ({panel}), median of {REPEATS} | {seconds:.3f} s | {LIMITS['query']:g} s |"
        yield f"| slowest group of rules | {prometheus.rule_seconds():.2f} s | |"
        yield f"| a scrape of the server | {prometheus.value('max(scrape_duration_seconds)'):.2f} s | |"
        yield f"| worker on top of `Who is slow?` | {slow} | {SLOW} |"
    server.shutdown()
    server.server_close()


def _slowest(prometheus: Prometheus) -> tuple[tuple[float, str], str]:
    """The slowest query of all dashboards, and who is named."""
    times = []
    for query in queries():
        text = filled(query.expr, namespace=".*", training="scale", worker=str(SLOW))
        seconds = statistics.median(prometheus.ask(text)[1] for _ in range(REPEATS))
        times.append((seconds, f"{query.dashboard}: {query.panel}"))
    top, _ = prometheus.ask("topk(1, training_worker:paceline_lag_share:ratio5m)")
    return max(times), top[0]["metric"]["worker"] if top else "nobody"


class Simulation:
    """A real server's status, told of workers which are not there."""

    def __init__(self) -> None:
        container = {"name": "trainer", "command": ["true"]}
        spec = TrainingSpec.model_validate(
            {
                "topology": "ParameterServer",
                "workers": {"replicas": WORKERS, "template": {"spec": {"containers": [container]}}},
            }
        )
        launch = Launch(Role.SERVER, 0, "scale", "00" * 16, spec, ("127.0.0.1:1",))
        self.metrics = metrics.of_server("scale", 0, metric_series.level(spec))
        self._training_status = TrainingStatus(launch, self.metrics)
        self._chance = random.Random(0)

    def run(self, seconds: float) -> None:
        """Rounds and reports, for so long."""
        for worker in range(WORKERS):
            self._training_status.state(worker, "training")
        limit, step = time.monotonic() + seconds, 0
        while (now := time.monotonic()) < limit:
            step += 1
            arrivals = {w: now + self._chance.gauss(0, 0.01) for w in range(WORKERS)}
            arrivals[SLOW] += LATE_SECONDS
            self._training_status.applied(step, dict.fromkeys(range(WORKERS), 0), arrivals)
            for worker in range(step % 5, WORKERS, 5):  # at this level a worker reports every 5 s
                self._training_status.report(worker, [self._row(step)], {})
            time.sleep(max(0.0, now + ROUND_SECONDS - time.monotonic()))

    def _row(self, step: int) -> dict[str, Any]:
        phases = dict.fromkeys(PHASES, ROUND_SECONDS / len(PHASES))
        latency = 0.1 + self._chance.random() / 10
        return {
            "step": step,
            "wall": ROUND_SECONDS,
            "latency": latency,
            "phases": phases,
            "accepted": True,
            "loss": 1.0,
        }
