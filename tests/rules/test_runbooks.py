"""The pages about alerts: of one form, with queries that Prometheus takes and panels that the dashboards have."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from paceline import metrics as trainer
from paceline_operator.observability import metrics as operator
from tests.rules.test_rules import ALERTS, RECORDS, ROOT, RUNBOOKS, metrics, promtool, recorded

PAGES = sorted(RUNBOOKS.glob("*.md"))
PARTS = ["Confirm", "Do", "When it is harmless"]


def queries(page: Path) -> list[str]:
    return re.findall(r"```promql\n(.*?)```", page.read_text(), re.DOTALL)


def titles(panels: list[dict[str, Any]]) -> Iterator[str]:
    for panel in panels:
        yield panel["title"]
        yield from titles(panel.get("panels", []))


def test_every_page_has_its_alert_and_is_in_the_index() -> None:
    assert {p.stem for p in PAGES} - {"README"} == set(ALERTS)
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\) \| (\w+) \|", (RUNBOOKS / "README.md").read_text(), re.MULTILINE)
    assert rows == [(name, name, alert["labels"]["severity"]) for name, alert in ALERTS.items()]


@pytest.mark.parametrize("name", ALERTS)
def test_a_page_has_its_parts(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text()
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == PARTS
    assert "```promql" in text


def test_queries_are_valid(tmp_path: Path) -> None:
    rules = [{"record": f"query{i}", "expr": q} for i, q in enumerate(q for p in PAGES for q in queries(p))]
    assert len(rules) >= len(PAGES)
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "pages", "rules": rules}]}))
    promtool("check", "rules", file)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_queries_ask_for_what_there_is(page: Path) -> None:
    for query in queries(page):
        assert metrics(query) <= {m.name for m in (*trainer.DECLARED, *operator.DECLARED)}
        assert recorded(query) <= set(RECORDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_panels_are_on_a_dashboard(page: Path) -> None:
    files = (ROOT / "charts/paceline/dashboards").glob("*.json")
    known = {title for file in files for title in titles(json.loads(file.read_text())["panels"])}
    sentences = re.findall(r"\bpanels? ((?:\*[^*]+\*(?:, | and )?)+)", page.read_text())
    assert {title for sentence in sentences for title in re.findall(r"\*([^*]+)\*", sentence)} <= known
