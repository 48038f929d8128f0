"""The definition, and what `kubectl get` shows."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from paceline_operator.decisions.goodput import TimeSpent
from paceline_operator.decisions.training_answer import CheckpointTold
from paceline_operator.definition import crd
from tests.operator.builders import Scene, a_spec
from tests.operator.test_status import SLOW, status_of


def walk(node: dict[str, Any], path: str = "") -> Any:
    yield path, node
    for name, each in node.get("properties", {}).items():
        yield from walk(each, f"{path}.{name}")
    if "items" in node:
        yield from walk(node["items"], f"{path}[]")


def test_every_field_of_the_definition_is_described() -> None:
    schema = yaml.safe_load(crd.text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    bare = [p for p, n in walk(schema) if not n.get("description") and p != ".metadata" and not p.endswith("[]")]
    assert bare == []


ROOT = Path(__file__).parents[2]


def at(path: str, resource: dict[str, Any]) -> Any:
    """What a column shows."""
    value: Any = resource
    for name in path.removeprefix(".").split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def test_what_kubectl_get_shows() -> None:
    scene = Scene(a_spec(checkpoint={"everySteps": 5, "to": "/checkpoints"})).running()
    before = status_of(scene)
    scene.now += 60
    spent = TimeSpent({"productive": 40.0}, 12, scene.now)
    progress = replace(SLOW, time_spent=spent, checkpoint=CheckpointTold(10, scene.now))
    resource = {"metadata": {"creationTimestamp": "2026-11-24T10:00:00Z"}, "status": status_of(scene, progress, before)}
    columns = crd.crd()["spec"]["versions"][0]["additionalPrinterColumns"]
    row = {c["name"]: at(c["jsonPath"], resource) for c in columns}
    wide = {c["name"] for c in columns if c["priority"]}
    assert {name: value for name, value in row.items() if name not in wide} == {
        "Strategy": "Synchronous",
        "Phase": "Running",
        "Workers": "2/2",
        "Step": 12,
        "Progress": "30%",
        "Slowest": "worker-1",
        "Reason": "Training",
        "Age": "2026-11-24T10:00:00Z",
    }
    assert {name: row[name] for name in wide} == {
        "Servers": "1/1",
        "Loss": 0.5,
        "Goodput": "33%",
        "Checkpoint": 10,
        "Restarts": 0,
        "Message": "all workers train",
    }
    kinds = {"string": str, "integer": int, "number": float, "date": str}
    assert all(isinstance(row[c["name"]], kinds[c["type"]]) for c in columns)


def test_what_kubectl_get_shows_of_one_that_nobody_has_looked_at() -> None:
    columns = crd.crd()["spec"]["versions"][0]["additionalPrinterColumns"]
    new = {"metadata": {"creationTimestamp": "2026-11-24T10:00:00Z"}}
    assert [c["name"] for c in columns if at(c["jsonPath"], new) is not None] == ["Age"]


def test_the_columns_are_those_of_the_guide() -> None:
    columns = crd.crd()["spec"]["versions"][0]["additionalPrinterColumns"]
    shown = ["NAME", *(c["name"].upper() for c in columns if not c["priority"])]
    page = (ROOT / "docs/kubernetes.md").read_text()
    header = re.search(r"^NAME .*$", page, re.MULTILINE)
    assert header is not None
    assert header[0].split() == shown
