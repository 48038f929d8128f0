"""Trainings in all modes, all at once, and a Prometheus that watches them."""

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from tests.cluster.conftest import cluster, trainings, wait_for
from tests.observability import grafana
from tests.observability.grafana import Viewer
from tests.observability.prometheus import Api, configured, prometheus
from tests.observability.runs import Asked, Training, end
from tests.trainer.conftest import run

__all__ = ["cluster", "run", "trainings"]
RUNS = (
    Asked("waits", "Synchronous", "compute", servers=2),
    Asked(
        "goes-on",
        "Asynchronous",
        "compute",
        more={"parameterServer": {"strategy": "Asynchronous", "asynchronous": {"maxStaleness": 100}}},
    ),
    Asked("ring", "AllReduce", "data"),
    Asked("clean", "Synchronous", more={"checkpoint": {"everySteps": 20}}),
)
START_SECONDS = 120.0
FEWEST_STEPS = 50


@dataclass(frozen=True)
class Watched:
    """The trainings, by name, and their Prometheus; `since` is when they began, in Unix time."""

    trainings: dict[str, Training]
    prometheus: Api
    since: float

    def dashboard(self, training: str, **chosen: str) -> Viewer:
        """The dashboard of one of them."""
        return grafana.opened(self.prometheus, "training", self.since, namespace=".*", training=training, **chosen)


@pytest.fixture(scope="session")
def debians() -> None:
    """Debian's Prometheus is here."""
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is missing: apt-get install prometheus")


@pytest.fixture(scope="module")
def watched(debians: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """All trainings under way, and scraped often enough for a rate."""
    folder = tmp_path_factory.mktemp("watched")
    with ExitStack() as stack:
        running: list[Training] = []
        stack.callback(end, running)
        running.extend(Training(folder / asked.name, asked) for asked in RUNS)
        wait_for(lambda: all(each.ready for each in running), "all workers to be ready", START_SECONDS)
        addresses = [urlsplit(url).netloc for each in running for url in each.metrics.values()]
        api = stack.enter_context(prometheus(folder, configured(folder, addresses)))
        for each in running:
            each.go()
        begun = time.time()
        wait_for(lambda: api.all_up(len(addresses)), "all targets to be up", 30)
        wait_for(lambda: api.ask(f"min(paceline_worker_step) > {FEWEST_STEPS}"), "the first steps of all")
        yield Watched({each.asked.name: each for each in running}, api, begun)
