"""Monitoring as the chart and its page give it: monitors, rules, dashboards, and the same without their operator."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from tests.charts.test_chart import CHART, EVERYTHING, MONITORING, files, of_kind, render

PAGE = (CHART.parents[1] / "docs/monitoring.md").read_text()
RULES = CHART / "rules/paceline.yaml"
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
VALUES = {"PodMonitor": "podMonitor", "ServiceMonitor": "serviceMonitor", "PrometheusRule": "prometheusRule"}


def on(*values: str, **more: Any) -> dict[str, Any]:
    return {"monitoring": {value: {"enabled": True, **more} for value in values}}


def only(values: dict[str, Any], kind: str) -> dict[str, Any]:
    (found,) = of_kind(render(values), kind)
    return found


def snippet(kind: str, name: str) -> dict[str, Any]:
    """What stands in the page's fence after the comment `kind: name`."""
    (text,) = re.findall(rf"<!-- {kind}: {name} -->\n```yaml\n(.*?)```", PAGE, re.DOTALL)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def dashboards(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [o for o in of_kind(render(values), "ConfigMap") if "dashboard" in o["metadata"]["name"]]


def test_without_a_value_nothing_needs_a_definition_of_others() -> None:
    assert {o["kind"] for o in render()} & {*MONITORING, "ConfigMap"} == set()
    assert render(kinds=()) == render()


@pytest.mark.parametrize(("kind", "value"), VALUES.items())
def test_a_value_makes_its_object_and_needs_its_definition_alone(kind: str, value: str) -> None:
    made = [o for o in render(on(value), kinds=[kind]) if o["apiVersion"] == "monitoring.coreos.com/v1"]
    assert [(o["kind"], o["metadata"]["namespace"]) for o in made] == [(kind, "paceline-system")]


@pytest.mark.parametrize(("kind", "value"), VALUES.items())
def test_a_missing_definition_is_named_with_what_to_do(kind: str, value: str) -> None:
    with pytest.raises(helm_python.HelmError) as refusal:
        render(on(value), kinds=[k for k in MONITORING if k != kind])
    for said in (
        f"monitoring.{value}.enabled",
        f"{kind.lower()}s.monitoring.coreos.com",
        "install the Prometheus Operator",
        "docs/monitoring.md",
        f"--api-versions monitoring.coreos.com/v1/{kind}",
    ):
        assert said in str(refusal.value)


@pytest.mark.parametrize(("kind", "value"), VALUES.items())
def test_labels_are_passed_on_beside_the_charts_own(kind: str, value: str) -> None:
    given = only(on(value, labels={"release": "stack", "team": "ml"}), kind)["metadata"]["labels"]
    assert given == only(on(value), kind)["metadata"]["labels"] | {"release": "stack", "team": "ml"}
    assert given["app.kubernetes.io/instance"] == "paceline"


@pytest.mark.parametrize(
    ("kind", "value", "endpoints"),
    [("PodMonitor", "podMonitor", "podMetricsEndpoints"), ("ServiceMonitor", "serviceMonitor", "endpoints")],
)
def test_the_interval_is_prometheus_own_unless_it_is_set(kind: str, value: str, endpoints: str) -> None:
    assert [e.get("interval") for e in only(on(value), kind)["spec"][endpoints]] == [None]
    assert [e["interval"] for e in only(on(value, interval="1m30s"), kind)["spec"][endpoints]] == ["1m30s"]


@pytest.mark.parametrize(
    ("scope", "selector"),
    [("Cluster", {"any": True}), ("Namespace", {"matchNames": ["paceline-system"]})],
)
def test_trainings_are_scraped_where_the_operator_looks_after_them(scope: str, selector: dict[str, Any]) -> None:
    monitor = only({**on("podMonitor"), "rbac": {"scope": scope}}, "PodMonitor")
    assert monitor["spec"]["namespaceSelector"] == selector


def test_limits_stay_whole_numbers() -> None:
    spec = only(on("podMonitor", sampleLimit=3_000_000, labelLimit=0), "PodMonitor")["spec"]
    assert (spec["sampleLimit"], spec["labelLimit"]) == (3_000_000, 0)


def test_the_service_monitor_leads_to_the_operator() -> None:
    made = render(on("serviceMonitor"))
    (monitor,), (service,), (deployment,) = (of_kind(made, k) for k in ("ServiceMonitor", "Service", "Deployment"))
    (endpoint,), (port,) = monitor["spec"]["endpoints"], service["spec"]["ports"]
    pod = deployment["spec"]["template"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert endpoint["port"] == port["name"]
    assert port["targetPort"] in [p["name"] for p in pod["spec"]["containers"][0]["ports"]]
    assert endpoint["honorLabels"] is True


def test_rules_arrive_unchanged() -> None:
    text = RULES.read_text()
    assert "{{ $labels." in text, "nothing shows that Helm leaves the alerts' own templates alone"
    assert only(on("prometheusRule"), "PrometheusRule")["spec"] == yaml.safe_load(text)


def test_dashboards_arrive_unchanged_each_in_a_config_map_that_grafana_finds() -> None:
    found = dashboards(on("dashboards"))
    assert {name: text for o in found for name, text in o["data"].items()} == {
        f"paceline-{file.name}": file.read_text() for file in DASHBOARDS
    }
    assert len(found) == len(DASHBOARDS) > 0
    assert [o["metadata"]["labels"]["grafana_dashboard"] for o in found] == ["1"] * len(found)


def test_dashboards_carry_the_labels_and_the_folder_that_are_asked_for() -> None:
    chosen = {"grafana_dashboard": None, "team_dashboard": "yes"}  # null takes a default away
    for found in dashboards(on("dashboards", labels=chosen, annotations={"grafana_folder": "Paceline"})):
        assert "grafana_dashboard" not in found["metadata"]["labels"]
        assert found["metadata"]["labels"]["team_dashboard"] == "yes"
        assert found["metadata"]["annotations"] == {"grafana_folder": "Paceline"}


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda f: f.stem)
def test_a_dashboard_fits_where_kubectl_apply_keeps_it(file: Path) -> None:
    assert file.stat().st_size < 256 * 1024  # an annotation with a copy of the object; a ConfigMap holds 1 MiB


def test_a_release_with_everything_fits_in_helms_secret() -> None:
    chart = {str(p): p.read_text() for p in CHART.rglob("*") if p.is_file()}
    packed = base64.b64encode(gzip.compress(json.dumps([chart, files(EVERYTHING)]).encode()))
    assert len(packed) < 0.9 * 1024 * 1024


def test_annotations_for_scraping_can_be_replaced() -> None:
    annotations = lambda values: only(values, "Deployment")["spec"]["template"]["metadata"]["annotations"]  # noqa: E731
    own = {"prometheus.io/scrape": "true", "prometheus.io/port": "8080"}
    assert annotations({}) == own
    given = {"prometheus.io/scrape": "false", "a": "b"}
    assert annotations({"podAnnotations": given}) == own | given


@pytest.mark.parametrize(
    ("values", "warned"),
    [
        ({}, False),
        (on("prometheusRule", "dashboards"), False),
        (on("podMonitor"), True),
        (on("serviceMonitor"), True),
        ({**on("podMonitor"), "metrics": {"from": [{"namespaceSelector": {}}]}}, False),
    ],
)
def test_who_asks_for_scraping_that_the_network_forbids_is_told(values: dict[str, Any], warned: bool) -> None:
    assert ("metrics.from is empty" in files(values)["paceline/templates/NOTES.txt"]) is warned


def test_the_pages_values_work() -> None:
    made = render(snippet("values", "prometheus-operator") | snippet("values", "metrics.from"))
    assert {o["kind"] for o in made} > {*MONITORING, "ConfigMap"}
    (deployment,) = of_kind(made, "Deployment")
    assert "kubernetes.io/metadata.name" in json.dumps(deployment)
