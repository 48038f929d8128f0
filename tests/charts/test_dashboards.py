"""The dashboards: current, complete, and about metrics and labels that are there. `promtool` reads every query."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as schema

from charts.dashboards import DASHBOARDS, Query, __main__, filled, queries
from charts.dashboards.layout import Dashboard
from paceline import metrics as trainer
from paceline_core.metric_series import Metric, MetricKind
from paceline_operator.observability import metrics as operator

ROOT = Path(__file__).parents[2]
RULES = yaml.safe_load((ROOT / "charts/paceline/rules/paceline.yaml").read_text())["groups"]
RECORDED = [rule["record"] for group in RULES for rule in group["rules"] if "record" in rule]
ALERTS = {rule["alert"] for group in RULES for rule in group["rules"] if "alert" in rule}
# Of NVIDIA's DCGM exporter. Prometheus puts `exported_` before a label that it adds itself.
GPU = ("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_PROF_SM_ACTIVE", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "DCGM_FI_DEV_XID_ERRORS")
GPU_LABELS = {"gpu", "exported_namespace", "exported_pod"}
SCRAPE_LABELS = {"namespace", "pod", "node"}
NAME = r"\b(?:[a-z_]+:)?(?:paceline_|DCGM_)[\w:]*"
# There is a recorded series for each of these: where panels are open, it is to be used instead.
RAW = (
    "paceline_worker_gradient_latency_seconds",
    "paceline_server_worker_lag_seconds_total",
    "paceline_server_round_duration_seconds",
    "paceline_server_apply_seconds",
    "paceline_training_productive_seconds_total",
    "paceline_training_restarts_total",
)

each_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.name)
each_query = pytest.mark.parametrize("query", list(queries()), ids=lambda q: f"{q.dashboard}: {q.panel}")


def panels(dashboard: Dashboard) -> list[dict[str, Any]]:
    """Every panel as Grafana reads it, those of collapsed rows too."""
    top = dashboard.json()["panels"]
    return [p for panel in top for p in (panel["panels"] if panel["type"] == "row" else [panel])]


def opened(dashboard: Dashboard) -> list[dict[str, Any]]:
    return [p for p in dashboard.json()["panels"] if p["type"] != "row"]


def declared() -> dict[str, tuple[MetricKind, set[str]]]:
    """MetricKind and labels of each series that a declared metric makes."""
    out: dict[str, tuple[MetricKind, set[str]]] = {}
    for owner, found in (("worker", trainer.WORKER), ("server", trainer.SERVER)):
        for metric in found:
            out |= series(metric, {"training", owner})
    for metric in operator.DECLARED:
        out |= series(metric, set())
    return out


def series(metric: Metric, constant: set[str]) -> dict[str, tuple[MetricKind, set[str]]]:
    labels = {*metric.labels, *constant} | SCRAPE_LABELS
    if metric.kind is not MetricKind.HISTOGRAM:
        return {metric.name: (metric.kind, labels)}
    plain = {f"{metric.name}_{part}": (metric.kind, labels) for part in ("sum", "count")}
    return plain | {f"{metric.name}_bucket": (metric.kind, {*labels, "le"})}


def known() -> dict[str, set[str]]:
    """The labels of all series that there are, those of a recorded one after its name's first part."""
    recorded = {name: {*name.partition(":")[0].split("_"), "namespace"} for name in RECORDED}
    gpus = dict.fromkeys(GPU, SCRAPE_LABELS | GPU_LABELS)
    return {name: labels for name, (_, labels) in declared().items()} | recorded | gpus


def differences(wanted: Any, found: Any, path: str = "") -> Iterator[str]:
    """What of the one is not in the other."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            yield from differences(value, found.get(key, "nothing"), f"{path}.{key}")
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for one, other in zip(wanted, found, strict=True):
            yield from differences(one, other, path)
    elif wanted != found:
        yield path


def test_the_files_are_current() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "charts.dashboards", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_a_file_that_is_out_of_date_or_of_no_dashboard_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(__main__, "FOLDER", tmp_path / "dashboards")
    __main__.write()
    assert __main__.stale() == []
    (tmp_path / "dashboards/fleet.json").write_text("{}")
    (tmp_path / "dashboards/old.json").write_text("{}")
    assert [path.name for path in __main__.stale()] == ["fleet.json", "old.json"]


def unknown(given: Any) -> set[str]:
    """The keys that get lost when Grafana's own types read a dashboard."""
    plugins.register_default_plugins()
    return set(differences(given, json.loads(JSONEncoder().encode(schema.Dashboard.from_json(given)))))


@each_dashboard
def test_grafana_knows_every_key(dashboard: Dashboard) -> None:
    given = json.loads(json.dumps(dashboard.json()))
    # Not in the schema: a copy of the query that Grafana's editor shows, and what Prometheus' annotations add.
    beside = {".templating.list.definition", *(f".annotations.list.{k}" for k in ("titleFormat", "textFormat", "step"))}
    assert unknown(given) == beside
    given["panels"][1]["options"]["textMoode"] = "name"
    assert unknown(given) == {*beside, ".panels.options.textMoode"}


@each_dashboard
def test_a_dashboard_is_found_again_and_refreshes(dashboard: Dashboard) -> None:
    made = dashboard.json()
    assert made["uid"] == f"paceline-{dashboard.name}"
    assert made["tags"] == ["paceline"]
    assert (made["refresh"], made["time"]) == ("30s", {"from": "now-1h", "to": "now"})
    assert made["schemaVersion"] >= 39  # of Grafana 11; newer ones migrate it
    assert made["templating"]["list"][0]["type"] == "datasource"
    assert {p["datasource"]["uid"] for p in panels(dashboard)} == {"${datasource}"}


@each_dashboard
def test_panels_say_what_they_show(dashboard: Dashboard) -> None:
    found = panels(dashboard)
    titles, numbers = [p["title"] for p in found], [p["id"] for p in found]
    assert len(set(titles)) == len(titles)
    assert len(set(numbers)) == len(numbers)
    for panel in found:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["noValue"], panel["title"]
        assert panel["targets"], panel["title"]


@each_dashboard
def test_few_panels_are_open_and_none_overlap(dashboard: Dashboard) -> None:
    assert len(opened(dashboard)) <= 20
    rows = [p for p in dashboard.json()["panels"] if p["type"] == "row"]
    for together in ([*rows, *opened(dashboard)], *(row["panels"] for row in rows)):
        cells = [cell for panel in together for cell in covered(**panel["gridPos"])]
        assert len(set(cells)) == len(cells)
        assert all(x < 24 for x, _ in cells)


def covered(x: int, y: int, w: int, h: int) -> Iterator[tuple[int, int]]:
    return ((column, row) for column in range(x, x + w) for row in range(y, y + h))


@each_dashboard
def test_open_panels_ask_for_recorded_series_where_there_are_some(dashboard: Dashboard) -> None:
    asked = " ".join(target["expr"] for panel in opened(dashboard) for target in panel["targets"])
    assert [name for name in RAW if re.search(rf"(?<!:){name}", asked)] == []


@each_dashboard
def test_links_lead_to_pages_and_dashboards_that_are_there(dashboard: Dashboard) -> None:
    text = json.dumps(dashboard.json())
    pages = re.findall(r"https://github.com/paceline/paceline/blob/main/([\w/.-]+)", text)
    assert [page for page in pages if not (ROOT / page).is_file()] == []
    runbooks = {m for m in re.findall(r"runbooks/(\w+)\.md", text) if m != "README"}
    assert runbooks - ALERTS == set()
    assert set(re.findall(r'"/d/([\w-]+)', text)) <= {f"paceline-{d.name}" for d in DASHBOARDS}


@each_query
def test_a_query_is_about_metrics_and_labels_that_there_are(query: Query) -> None:
    there, names = known(), re.findall(NAME, query.expr)
    assert names
    assert [name for name in names if name not in there] == []
    for name, matchers in re.findall(rf"({NAME})\{{([^}}]*)\}}", query.expr):
        assert set(re.findall(r"(\w+)(?:=|!=|=~|!~)\"", matchers)) - there[name] == set(), name
    used = re.findall(r"\b(?:by|on|group_left) \(([^)]*)\)", query.expr)
    labels = {label.strip() for group in used for label in group.split(",")} - {""}
    assert labels - set().union(*(there[name] for name in names)) == set()


@each_query
def test_only_what_counts_has_a_rate(query: Query) -> None:
    counted = {name for name, (kind, _) in declared().items() if kind is not MetricKind.GAUGE}
    rated = set(re.findall(rf"\b(?:rate|increase)\(({NAME})", query.expr))
    assert rated - counted == set()


@each_dashboard
def test_legends_and_links_name_labels_that_there_are(dashboard: Dashboard) -> None:
    for panel in panels(dashboard):
        for target in panel["targets"]:
            labels = set().union(*(known()[name] for name in re.findall(NAME, target["expr"])))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) - labels == set(), panel["title"]


@each_query
def test_variables_are_of_the_dashboard_or_of_grafana(query: Query) -> None:
    (dashboard,) = (d for d in DASHBOARDS if d.name == query.dashboard)
    own = {variable.name for variable in dashboard.variables}
    used = {name for name in Template(query.expr).get_identifiers() if not name.startswith("__")}
    assert used <= own
    assert "$" not in filled(query.expr)
    assert 'namespace=~"ml"' in filled(query.expr, namespace="ml") or "$namespace" not in query.expr


def test_promtool_reads_every_query(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not here: apt-get install prometheus")
    rules = [{"record": f"query:{at}", "expr": filled(query.expr)} for at, query in enumerate(queries())]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    run = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True)
    assert f"SUCCESS: {len(rules)} rules found" in run.stdout, run.stdout + run.stderr


def test_what_is_optional_says_why() -> None:
    found = list(queries())
    assert {q.panel for q in found if q.optional} >= {"GPU utilisation", "Retries", "Cost of the straggler"}
    assert not any(q.optional for q in found if q.panel in ("Gradient latency", "Rounds", "Staleness by worker"))
