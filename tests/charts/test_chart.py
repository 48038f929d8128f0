"""The chart, rendered by Helm itself: valid for old and new Kubernetes, as the snapshot says, and strict about values."""

import re
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from helm_python import Chart

from paceline_operator import crd

CHART = Path(__file__).parents[2] / "charts/paceline"
SNAPSHOT = Path(__file__).with_name("defaults.yaml")
OLDEST, NEWEST = "1.30", "1.36"
BUILT_IN = re.compile(r"^(v1|apps/v1|policy/v1|(rbac\.authorization|networking|admissionregistration)\.k8s\.io/v1)$")


def render(values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    files = Chart.load(str(CHART)).render(values or {}, name="paceline", namespace="paceline-system")
    texts = [text for name, text in sorted(files.items()) if name.endswith(".yaml")]
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
}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("values", [{}, EVERYTHING, {"rbac": {"scope": "Namespace"}}], ids=["default", "all", "scoped"])
def test_every_object_is_valid(version: str, values: dict[str, Any]) -> None:
    for found in render(values):
        if BUILT_IN.match(found["apiVersion"]):
            kubernetes_validate.validate(found, version, strict=True)


def test_the_defaults_are_those_of_the_snapshot() -> None:
    shown = [o for o in render() if o["kind"] != "CustomResourceDefinition"]
    assert shown == list(yaml.safe_load_all(SNAPSHOT.read_text())), "python -m tests.charts.test_chart writes it anew"


def test_lint_finds_nothing() -> None:
    found = helm_python.lint(str(CHART), {}, strict=True, namespace="paceline-system")
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
    ],
)
def test_a_wrong_value_is_refused_by_its_name(values: dict[str, Any], said: str) -> None:
    with pytest.raises(helm_python.HelmError, match=said):
        Chart.load(str(CHART)).validate_schema(values)


def test_the_values_fit_on_a_few_screens() -> None:
    assert len((CHART / "values.yaml").read_text().splitlines()) < 150


if __name__ == "__main__":
    SNAPSHOT.write_text(yaml.safe_dump_all([o for o in render() if o["kind"] != "CustomResourceDefinition"]))
