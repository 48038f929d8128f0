"""The rules of Prometheus, by promtool: valid, right in value, and each alert fires, is silent, and has its page."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from paceline import metrics as trainer
from paceline_operator.observability import metrics as operator

ROOT = Path(__file__).parents[2]
RULES = ROOT / "charts/paceline/rules/paceline.yaml"
RUNBOOKS = ROOT / "docs/runbooks"
URL = "https://github.com/paceline/paceline/blob/main/docs/runbooks"
FILES = sorted(Path(__file__).parent.glob("*.yaml"))
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {r["alert"]: r for g in GROUPS for r in g["rules"] if "alert" in r}
RECORDS = {r["record"]: r for g in GROUPS for r in g["rules"] if "record" in r}
TESTS = {file.stem: yaml.safe_load(file.read_text())["tests"] for file in FILES}


def promtool(*arguments: str | Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing: apt-get install prometheus")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def cases(kind: str, *files: str) -> Iterator[dict[str, Any]]:
    for file in files or TESTS:
        for group in TESTS[file]:
            yield from group.get(kind, ())


def metrics(expr: str) -> set[str]:
    """The scraped series that an expression names, without what a counter or histogram adds."""
    names = set(re.findall(r"(?<![:\w])paceline_\w+(?![\w:(])", expr))
    for first, choice, last in re.findall(r'__name__=~"(\w+)\(([\w|]+)\)(\w+)"', expr):
        names |= {first + each + last for each in choice.split("|")}
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def recorded(expr: str) -> set[str]:
    """The recorded series that an expression names."""
    return set(re.findall(r"\w+:paceline_\w+:\w+", expr))


def test_the_rules_are_valid() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_rules_do_as_they_should(file: Path) -> None:
    promtool("test", "rules", file)


def test_rules_run_every_30_seconds() -> None:
    assert [g["interval"] for g in GROUPS] == ["30s"] * len(GROUPS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_is_wrong_and_leads_to_its_page(name: str) -> None:
    alert = ALERTS[name]
    assert re.fullmatch(r"Paceline[A-Z]\w+", name)
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert all(alert["annotations"].values())
    assert alert["annotations"]["runbook_url"] == f"{URL}/{name}.md"
    assert (RUNBOOKS / f"{name}.md").is_file()


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_is_seen_firing_and_silent(name: str) -> None:
    own = [c for c in cases("alert_rule_test", name) if c["alertname"] == name]
    assert any(c["exp_alerts"] for c in own)
    assert not all(c["exp_alerts"] for c in own)


def test_a_healthy_training_sets_off_no_alert() -> None:
    silent = list(cases("alert_rule_test", "healthy"))
    assert {c["alertname"] for c in silent} == set(ALERTS)
    assert not any(c["exp_alerts"] for c in silent)


@pytest.mark.parametrize("name", RECORDS)
def test_a_recording_rule_has_a_known_value(name: str) -> None:
    asked = [c for c in cases("promql_expr_test") if re.search(rf"(?<![\w:]){name}(?![\w:])", c["expr"])]
    assert any(c["exp_samples"] for c in asked)


@pytest.mark.parametrize("name", [*ALERTS, *RECORDS])
def test_what_a_rule_asks_for_is_exported(name: str) -> None:
    asked = metrics((ALERTS | RECORDS)[name]["expr"])
    assert asked <= {m.name for m in (*trainer.DECLARED, *operator.DECLARED)}


def test_every_recorded_series_that_is_asked_for_is_recorded() -> None:
    assert recorded(RULES.read_text()) == set(RECORDS)
