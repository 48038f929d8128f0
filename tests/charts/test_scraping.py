"""The page's configurations: what Prometheus makes of them, for the pods that the operator makes."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from paceline_core.launch import Role
from paceline_operator.objects import pods
from paceline_operator.objects.pods import METRICS_PORT, Object
from tests.charts.test_chart import CHART, of_kind, render
from tests.charts.test_monitoring import on, only, snippet
from tests.operator.builders import a_spec, a_subject

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool, from Debian's package prometheus"
)
PROCESSES = 12
SIDECAR = {"name": "sidecar", "image": "example/image:1", "ports": [{"name": "metrics", "containerPort": 1}]}
PORTLESS = {"name": "portless", "image": "example/image:1"}


def in_prometheus_words(relabelings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    words = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    return [{words.get(k, k): v for k, v in relabeling.items()} for relabeling in relabelings]


def test_the_page_scrapes_as_the_monitors_do() -> None:
    spec = only(on("podMonitor"), "PodMonitor")["spec"]
    training, operator = snippet("scrape-config", "cluster")["scrape_configs"]
    (selector,) = training["kubernetes_sd_configs"][0]["selectors"]
    (present,), ((name, value),) = spec["selector"]["matchExpressions"], spec["selector"]["matchLabels"].items()
    assert selector["label"] == f"{present['key']},{name}={value}"
    assert (training["sample_limit"], training["label_limit"]) == (spec["sampleLimit"], spec["labelLimit"])
    keep, node, job = in_prometheus_words(spec["podMetricsEndpoints"][0]["relabelings"])
    assert keep in training["relabel_configs"]
    assert node in training["relabel_configs"]
    assert training["job_name"] == job["replacement"]
    assert operator["honor_labels"] is True
    service = only({}, "Service")
    assert operator["job_name"] == service["metadata"]["labels"]["app.kubernetes.io/name"]


def a_pod(role: Role, ordinal: int, level: str = "Auto", phase: str = "Running") -> Object:
    """A pod of a training whose workers have many processes, and containers beside the one that trains."""
    raw = a_spec(observability={"level": level})
    raw["workers"]["processesPerReplica"] = PROCESSES
    raw["workers"]["template"]["spec"]["containers"] += [SIDECAR, PORTLESS]
    pod = pods.pod(a_subject(raw), role, ordinal, 1, 0)
    return {**pod, "spec": {**pod["spec"], "nodeName": "node-1"}, "status": {"phase": phase}}


def the_operators_pod() -> Object:
    (deployment,) = of_kind(render(), "Deployment")
    template = deployment["spec"]["template"]
    about = {"name": "paceline-5d9f", "namespace": "paceline-system"}
    spec = {**template["spec"], "nodeName": "node-1"}
    return {"metadata": {**template["metadata"], **about}, "spec": spec, "status": {"phase": "Running"}}


def is_selected(pod: Object, selector: str) -> bool:
    """By a label selector such as `present,name=value`."""
    have = pod["metadata"]["labels"]
    wanted = [term.partition("=") for term in selector.split(",")]
    return all(name in have and (not sign or have[name] == value) for name, sign, value in wanted)


def discovered(pod: Object) -> list[dict[str, Any]]:
    """What Prometheus discovers of a pod: a target for each port of a container, one without for one that has none."""
    about = {
        "namespace": pod["metadata"]["namespace"],
        "pod_name": pod["metadata"]["name"],
        "pod_node_name": pod["spec"]["nodeName"],
        "pod_phase": pod["status"]["phase"],
    }
    out = []
    for container in pod["spec"]["containers"]:
        for port in container.get("ports") or [{"name": "", "containerPort": 80}]:
            meta = about | {"pod_container_name": container["name"], "pod_container_port_name": port["name"]}
            found = {f"__meta_kubernetes_{name}": value for name, value in meta.items()}
            out.append({"targets": [f"10.0.0.1:{port['containerPort']}"], "labels": found})
    return out


def scraped(job: dict[str, Any], pods: list[Object], folder: Path) -> list[dict[str, str]]:
    """The labels of what Prometheus scrapes of these pods, by its own relabelling."""
    (discovery,) = job["kubernetes_sd_configs"]  # which Debian's promtool does not know
    (selector,) = discovery["selectors"]
    targets = [t for pod in pods if is_selected(pod, selector["label"]) for t in discovered(pod)]
    file = folder / "prometheus.yaml"
    known = {k: v for k, v in job.items() if k != "kubernetes_sd_configs"} | {"static_configs": targets}
    file.write_text(yaml.safe_dump({"scrape_configs": [known]}))
    command = ["promtool", "check", "service-discovery", "--timeout=2s", str(file), job["job_name"]]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    kept = [t["labels"] for t in json.loads(answer.stdout) if t["labels"]]
    shown = [{name: value for name, value in t.items() if not name.startswith("__")} for t in kept]
    return sorted(shown, key=lambda t: (t["pod"], t["instance"]))


@needs_promtool
def test_every_process_of_a_running_training_is_scraped_once(tmp_path: Path) -> None:
    training, _ = snippet("scrape-config", "cluster")["scrape_configs"]
    pods = [a_pod(Role.SERVER, 0), a_pod(Role.WORKER, 0), a_pod(Role.WORKER, 1, phase="Succeeded"), the_operators_pod()]
    about = {"job": "paceline-training", "namespace": "team", "node": "node-1"}
    assert scraped(training, pods, tmp_path) == [
        about | {"pod": "digits-ps-0", "instance": f"10.0.0.1:{METRICS_PORT}"},
        *(about | {"pod": "digits-worker-0", "instance": f"10.0.0.1:{METRICS_PORT + i}"} for i in range(PROCESSES)),
    ]


@needs_promtool
def test_workers_of_an_aggregated_training_are_not_scraped(tmp_path: Path) -> None:
    training, _ = snippet("scrape-config", "cluster")["scrape_configs"]
    pods = [a_pod(role, 0, level="Aggregated") for role in (Role.SERVER, Role.WORKER)]
    assert [t["pod"] for t in scraped(training, pods, tmp_path)] == ["digits-ps-0"]


@needs_promtool
def test_the_operator_is_scraped_once(tmp_path: Path) -> None:
    _, operator = snippet("scrape-config", "cluster")["scrape_configs"]
    about = {"job": "paceline-operator", "namespace": "paceline-system", "pod": "paceline-5d9f"}
    pods = [a_pod(Role.SERVER, 0), the_operators_pod()]
    assert scraped(operator, pods, tmp_path) == [about | {"instance": "10.0.0.1:8080"}]


@needs_promtool
def test_prometheus_takes_the_configuration_for_a_local_run(tmp_path: Path) -> None:
    config = snippet("scrape-config", "local")
    config["rule_files"] = [str(CHART.parents[1] / file) for file in config["rule_files"]]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    subprocess.run(["promtool", "check", "config", tmp_path / "prometheus.yaml"], check=True, capture_output=True)
