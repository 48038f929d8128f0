"""What the operator exports while it looks after a training in a real cluster, through Debian's Prometheus."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from charts.dashboards.queries import Presence
from tests.charts.test_monitoring import snippet
from tests.cluster.conftest import SYSTEM, Trainings, kubectl, training, wait_for
from tests.observability import grafana
from tests.observability.prometheus import Api, hurried, prometheus
from tests.observability.runs import WORKERS, script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
INTERVAL = "2s"


@contextmanager
def relay(page: Callable[[], str]) -> Iterator[str]:
    """Serves the page anew to each request; gives the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = page().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def operators_pod() -> str:
    selector = ("-l", "app.kubernetes.io/name=paceline-operator", "--field-selector=status.phase=Running")
    pods = json.loads(kubectl("get", "pods", "-n", SYSTEM, *selector, "-o", "json"))["items"]
    (name,) = [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return str(name)


def configuration(folder: Path, address: str, pod: str) -> dict[str, Any]:
    """The page's configuration for the operator, which is found here without Kubernetes' help."""
    _, job = snippet("scrape-config", "cluster")["scrape_configs"]
    found = {"targets": [address], "labels": {"namespace": SYSTEM, "pod": pod}}
    job = {k: v for k, v in job.items() if k not in ("kubernetes_sd_configs", "relabel_configs")}
    (folder / "paceline.yaml").write_text(hurried())
    return {
        "global": {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": [str(folder / "paceline.yaml")],
        "scrape_configs": [{**job, "static_configs": [found]}],
    }


def unanswered(api: Api, trainings: Trainings, since: float) -> list[str]:
    """What nobody but the operator can answer, and has no answer."""
    of_operator = lambda presence: presence is Presence.OPERATOR  # noqa: E731
    chosen = {"namespace": trainings.namespace, "training": "watched"}
    return [
        *grafana.opened(api, "operator", since).unanswered(lambda presence: bool(presence.modes)),
        *grafana.opened(api, "training", since, **chosen).unanswered(of_operator),
        *grafana.opened(api, "fleet", since, namespace=trainings.namespace).unanswered(of_operator),
    ]


def test_every_query_about_the_operator_has_an_answer(debians: None, trainings: Trainings, tmp_path: Path) -> None:
    pod, since = operators_pod(), time.time()
    page = lambda: kubectl("get", "--raw", f"/api/v1/namespaces/{SYSTEM}/pods/{pod}:8080/proxy/metrics")  # noqa: E731
    trainings.apply(training("watched", ["python", "-c", script()], WORKERS))
    with relay(page) as address, prometheus(tmp_path, configuration(tmp_path, address, pod)) as api:
        wait_for(lambda: api.ask('paceline_training_step{training="watched"} > 0'), "the first steps", 180)
        grafana.until_answered(lambda: unanswered(api, trainings, since))
        assert api.ask('{exported_namespace!=""}') == []
        rules = [rule for group in api.get("rules")["groups"] for rule in group["rules"]]
        assert [rule for rule in rules if rule["health"] != "ok"] == []
    done = subprocess.run(["promtool", "check", "metrics"], input=page(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
