"""The chart, rendered by Helm itself: valid for old and new Kubernetes, as the snapshot says, and strict about values."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, _native

from paceline_operator import helm_test
from paceline_operator.definition import crd

CHART = Path(__file__).parents[2] / "charts/paceline"
SNAPSHOT = Path(__file__).with_name("defaults.yaml")
OLDEST, NEWEST = "1.30", "1.36"
BUILT_IN = re.compile(r"^(v1|apps/v1|policy/v1|(rbac\.authorization|networking|admissionregistration)\.k8s\.io/v1)$")


MONITORING = ("PodMonitor", "ServiceMonitor", "PrometheusRule")


def files(values: dict[str, Any] | None = None, kinds: Sequence[str] = MONITORING) -> dict[str, str]:
    """What `helm template --api-versions` says for a cluster with these kinds of the Prometheus Operator."""
    known = [f"monitoring.coreos.com/v1/{kind}" for kind in kinds]
    options = {"name": "paceline", "namespace": "paceline-system", "api_versions": known}
    chart = Chart.load(str(CHART))  # whose own render() does not pass on `api_versions`, which Helm's library knows
    text = _native.call_string("helm_render", chart._raw(), json.dumps(values or {}), json.dumps(options))
    rendered: dict[str, str] = json.loads(text)
    return rendered


def render(values: dict[str, Any] | None = None, kinds: Sequence[str] = MONITORING) -> list[dict[str, Any]]:
    texts = [text for name, text in sorted(files(values, kinds).items()) if name.endswith(".yaml")]
    return [d for text in texts for d in yaml.safe_load_all(text) if d]


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [o for o in objects if o["kind"] == kind]


EVERYTHING = {
    "replicas": 2,
    "imagePullSecrets": [{"name": "registry"}],
    "nodeSelector": {"a": "b"},
    "tolerations": [{"operator": "Exists"}],
    "priorityClassName": "high",
    "metrics": {"from": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]},
    "serviceAccount": {"annotations": {"a": "b"}},
    "podLabels": {"a": "b"},
    "podAnnotations": {"a": "b"},
    "monitoring": {
        "podMonitor": {"enabled": True, "labels": {"a": "b"}, "interval": "30s"},
        "serviceMonitor": {"enabled": True, "labels": {"a": "b"}, "interval": "30s"},
        "prometheusRule": {"enabled": True, "labels": {"a": "b"}},
        "dashboards": {"enabled": True, "labels": {"a": "b"}, "annotations": {"a": "b"}},
    },
}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("values", [{}, EVERYTHING, {"rbac": {"scope": "Namespace"}}], ids=["default", "all", "scoped"])
def test_every_object_is_valid(version: str, values: dict[str, Any]) -> None:
    built_in = [found for found in render(values) if BUILT_IN.match(found["apiVersion"])]
    assert {"Deployment", "ServiceAccount"} <= {found["kind"] for found in built_in}
    for found in built_in:
        kubernetes_validate.validate(found, version, strict=True)


def test_the_defaults_are_those_of_the_snapshot() -> None:
    shown = [o for o in render() if o["kind"] != "CustomResourceDefinition"]
    assert shown == list(yaml.safe_load_all(SNAPSHOT.read_text())), "python -m tests.charts.test_chart writes it anew"


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["default", "all"])
def test_lint_finds_nothing(values: dict[str, Any]) -> None:
    found = helm_python.lint(str(CHART), values, strict=True, namespace="paceline-system")
    assert found["errors"] == []


def test_the_definition_is_kept_or_left_out_as_asked() -> None:
    (kept,) = of_kind(render(), "CustomResourceDefinition")
    assert kept["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert {k: v for k, v in kept.items() if k != "metadata"} == {k: v for k, v in crd.crd().items() if k != "metadata"}
    (free,) = of_kind(render({"crds": {"keep": False}}), "CustomResourceDefinition")
    assert "annotations" not in free["metadata"]
    assert of_kind(render({"crds": {"enabled": False}}), "CustomResourceDefinition") == []


def test_in_one_namespace_nothing_is_granted_cluster_wide() -> None:
    objects = render({"rbac": {"scope": "Namespace"}})
    assert of_kind(objects, "ClusterRole") == []
    assert of_kind(objects, "ClusterRoleBinding") == []
    (deployment,) = of_kind(objects, "Deployment")
    environment = {e["name"]: e.get("value") for e in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert environment["PACELINE_OPERATOR_WATCH"] == "paceline-system"


def test_a_disruption_budget_comes_with_the_second_replica() -> None:
    assert of_kind(render(), "PodDisruptionBudget") == []
    assert len(of_kind(render({"replicas": 2}), "PodDisruptionBudget")) == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replica": 2}, "replica"),
        ({"rbac": {"scope": "World"}}, "scope"),
        ({"replicas": "two"}, "replicas"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"operator": {"pollSeconds": 0}}, "pollSeconds"),
        ({"podAnnotations": {"prometheus.io/scrape": False}}, "podAnnotations"),
        ({"monitoring": {"podMonitors": {"enabled": True}}}, "podMonitors"),
        ({"monitoring": {"podMonitor": {"interval": "30"}}}, "interval"),
        ({"monitoring": {"podMonitor": {"sampleLimit": -1}}}, "sampleLimit"),
        ({"monitoring": {"serviceMonitor": {"enabled": "yes"}}}, "enabled"),
        ({"monitoring": {"prometheusRule": {"interval": "30s"}}}, "interval"),
        ({"monitoring": {"dashboards": {"labels": {"grafana_dashboard": 1}}}}, "grafana_dashboard"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(values: dict[str, Any], said: str) -> None:
    with pytest.raises(helm_python.HelmError, match=said):
        Chart.load(str(CHART)).validate_schema(values)


def test_the_test_takes_images_of_ones_own_and_their_secrets() -> None:
    values = {"trainer": {"image": "r/trainer:2"}, "imagePullSecrets": [{"name": "registry"}, {"name": "other"}]}
    (pod,) = of_kind(render(values), "Pod")
    assert pod["spec"]["imagePullSecrets"] == values["imagePullSecrets"]
    given = helm_test.arguments(pod["spec"]["containers"][0]["args"])
    assert (given.namespace, given.name, given.image) == ("paceline-system", "paceline-test", "r/trainer:2")
    assert given.image_pull_secret == ["registry", "other"]
    (plain,) = of_kind(render(), "Pod")
    assert helm_test.arguments(plain["spec"]["containers"][0]["args"]).image_pull_secret == []


def test_a_second_release_can_leave_out_what_belongs_to_the_whole_cluster() -> None:
    values = {"rbac": {"scope": "Namespace"}, "crds": {"enabled": False, "admissionPolicy": False}}
    namespaced = {o["metadata"].get("namespace") for o in render(values)}
    assert namespaced == {"paceline-system"}
    page = " ".join((CHART.parents[1] / "docs/kubernetes.md").read_text().split())
    assert "--set rbac.scope=Namespace --set crds.enabled=false --set crds.admissionPolicy=false" in page


def test_the_values_fit_on_a_few_screens() -> None:
    assert len((CHART / "values.yaml").read_text().splitlines()) < 150


if __name__ == "__main__":
    SNAPSHOT.write_text(yaml.safe_dump_all([o for o in render() if o["kind"] != "CustomResourceDefinition"]))
