"""A Prometheus in the cluster, set up as the page says: it finds every process, and shows who is slow."""

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.dashboards.queries import Presence
from tests.charts.test_chart import CHART
from tests.charts.test_monitoring import snippet
from tests.cluster import monitoring
from tests.cluster.conftest import (
    OWN,
    ROOT,
    SETTINGS,
    SYSTEM,
    Trainings,
    helm,
    inside,
    kubectl,
    training,
    wait_for,
)
from tests.observability import grafana
from tests.observability.prometheus import Api
from tests.observability.runs import SLOW, SLOW_BY_ITSELF, WORKERS, script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
MODES = {"waits": "Synchronous", "goes-on": "Asynchronous", "ring": "AllReduce"}
ROUNDS = ("waits", "ring")
PLACE = ("namespace", "pod", "node")
GROUPS = yaml.safe_load((CHART / "rules/paceline.yaml").read_text())["groups"]
RECORDED = {rule["record"] for group in GROUPS for rule in group["rules"] if "record" in rule}
UNSEEN = {  # only when something went wrong, or after 15 minutes
    "training:paceline_stale_gradients:ratio5m",
    "training_phase:paceline_training_phase:min15m",
    "training_role_reason:paceline_training_restarts_total:max",
    "training_role_reason:paceline_training_restarts:increase1h",
}


@dataclass(frozen=True)
class Watched:
    """A Prometheus, and the trainings that it watches since then, in Unix time."""

    api: Api
    trainings: Trainings
    since: float

    def training(self, name: str) -> grafana.Viewer:
        """The dashboard of one of them."""
        return grafana.opened(self.api, "training", self.since, namespace=self.trainings.namespace, training=name)


@pytest.fixture(scope="module")
def watched(cluster: None) -> Iterator[Watched]:
    """A training in each mode with a slow worker, and the monitoring of the page."""
    if not OWN:
        pytest.skip("loads an image into the tests' own cluster")
    monitoring.load_image()
    helm("upgrade", SETTINGS | snippet("values", "metrics.from"))
    trainings, since = Trainings("test-monitoring"), time.time()
    try:
        for name, mode in MODES.items():
            trainings.apply(training(name, ["python", "-c", script(late=SLOW_BY_ITSELF)], WORKERS, strategy=mode))
        with monitoring.prometheus() as api:
            wait_for(lambda: all(_steps(trainings, name) > 20 for name in MODES), "all trainings to make steps", 300)
            yield Watched(api, trainings, since)
    finally:
        kubectl("delete", "namespace", trainings.namespace, "--wait=true", "--timeout=100s", limit=130)
        helm("upgrade", SETTINGS)


def _steps(trainings: Trainings, name: str) -> int:
    return int(trainings.status(name).get("step") or 0)


def labels_of(pod: dict[str, Any]) -> tuple[str, ...]:
    return pod["metadata"]["namespace"], pod["metadata"]["name"], pod["spec"]["nodeName"]


def test_every_process_is_found_with_namespace_pod_and_node(watched: Watched) -> None:
    wanted = {labels_of(pod) for name in MODES for pod in watched.trainings.pods(name)}
    assert len(wanted) == len(MODES) * (WORKERS + 1)

    def seen() -> set[tuple[str, ...]]:
        up = watched.api.ask(f'up{{job="paceline-training",namespace="{watched.trainings.namespace}"}} == 1')
        assert all(set(labels) == {"__name__", "instance", "job", *PLACE} for labels, _ in up)
        return {tuple(labels[name] for name in PLACE) for labels, _ in up}

    wait_for(lambda: seen() == wanted, "every process to be scraped", 30)


def test_the_operator_is_found(watched: Watched) -> None:
    ((labels, up),) = wait_for(lambda: watched.api.ask('up{job="paceline-operator"} == 1'), "the operator", 30)
    assert up == 1
    assert labels["namespace"] == SYSTEM
    assert labels["pod"].startswith("paceline-")


def test_what_the_operator_says_of_a_training_carries_the_trainings_namespace(watched: Watched) -> None:
    said = watched.api.ask('paceline_training_phase{job="paceline-operator",phase="Running"} == 1')
    ours = {labels["training"] for labels, _ in said if labels["namespace"] == watched.trainings.namespace}
    assert ours == set(MODES)
    assert watched.api.ask('{exported_namespace!=""}') == []


@pytest.mark.parametrize("name", MODES)
def test_every_query_about_a_training_has_an_answer(watched: Watched, name: str) -> None:
    def wanted(presence: Presence) -> bool:
        return MODES[name] in presence.modes or (presence is Presence.STRAGGLER and name in ROUNDS)

    grafana.until_answered(lambda: watched.training(name).unanswered(wanted), 90)


@pytest.mark.parametrize("name", ["fleet", "operator"])
def test_every_query_about_all_has_an_answer(watched: Watched, name: str) -> None:
    wanted = lambda presence: bool(presence.modes) or presence is Presence.STRAGGLER  # noqa: E731
    grafana.until_answered(lambda: grafana.opened(watched.api, name, watched.since).unanswered(wanted))


@pytest.mark.parametrize("name", ROUNDS)
def test_the_slow_worker_is_on_top_with_its_node(watched: Watched, name: str) -> None:
    page, table = watched.training(name), "Who makes the others wait"
    worker, share, _ = page.shown(table, "Share of all waiting")[0]
    assert worker == SLOW
    assert share > 0.8
    ((worker, _, labels),) = page.shown(table, "Cost")
    assert (worker, labels["cause"]) == (SLOW, "compute")
    nodes = {labels["worker"]: labels["node"] for _, _, labels in page.shown(table, "")}
    (pod,) = [p for p in watched.trainings.pods(name) if p["metadata"]["name"] == f"{name}-worker-{SLOW}"]
    assert nodes[SLOW] == pod["spec"]["nodeName"]


def test_the_slow_worker_is_slow_and_stale_where_nobody_waits(watched: Watched) -> None:
    page = watched.training("goes-on")
    assert page.shown("Own seconds per step")[0][0] == SLOW
    assert page.shown("Staleness by worker", "worker {{worker}}")[0][0] == SLOW


def paceline(*arguments: str) -> str:
    """What the command prints that a user types."""
    done = subprocess.run(
        inside(str(ROOT / ".venv/bin/paceline"), *arguments), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", MODES)
def test_without_any_prometheus_the_command_line_names_it_too(watched: Watched, name: str, tmp_path: Path) -> None:
    where = (name, "-n", watched.trainings.namespace)
    page = paceline("top", *where)
    assert f"{f'worker-{SLOW}' if name in ROUNDS else 'nobody'} makes the others wait" in page, page
    status = json.loads(paceline("top", *where, "-o", "json"))["status"]
    said = {w["worker"]: w["verdicts"] for w in status["workers"] if w["verdicts"]}
    assert list(said) == [int(SLOW)]
    assert said[int(SLOW)][0] == ("makes the others wait" if name in ROUNDS else "slow")
    file = tmp_path / "trace.json"
    assert f"{WORKERS + 1} processes" in paceline("trace", *where, "-o", str(file))
    assert json.loads(file.read_text())["traceEvents"]


def test_every_rule_is_healthy_and_tells_of_these_trainings(watched: Watched) -> None:
    rules = [rule for group in watched.api.get("rules")["groups"] for rule in group["rules"]]
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    said = lambda record: watched.api.ask(f'{record}{{namespace="{watched.trainings.namespace}"}}')  # noqa: E731
    assert {record for record in RECORDED if not said(record)} <= UNSEEN


def test_prometheus_needs_no_more_rights(watched: Watched) -> None:
    assert "forbidden" not in kubectl("logs", "-n", monitoring.NAMESPACE, monitoring.NAME)
