"""Wrong manifests, and what is said about them."""

from typing import Any

import pytest

from paceline_core.validation import problems

CONTAINER = {"name": "trainer", "command": ["python", "train.py"]}


def manifest(**changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "topology": "ParameterServer",
        "workers": {"replicas": 2, "template": {"spec": {"containers": [CONTAINER]}}},
    }
    whole = {"apiVersion": "paceline.dev/v1alpha1", "kind": "DistributedTraining", "metadata": {"name": "t"}}
    return whole | {"spec": spec | changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"topology": "Ring"},
            "spec.topology: 'Ring' is not allowed: input should be 'ParameterServer' or 'AllReduce'",
        ),
        ({"paramterServer": {}}, "spec.paramterServer: unknown field; did you mean `parameterServer`?"),
        ({"parameterServer": {"replcas": 1}}, "spec.parameterServer.replcas: unknown field; did you mean `replicas`?"),
        ({"run_policy": {}}, "spec.run_policy: unknown field; did you mean `runPolicy`?"),
        ({"parameterServer": {"strategy": "Async"}}, "spec.parameterServer.strategy: 'Async' is not allowed"),
        ({"parameterServer": {"asynchronous": {}}}, "`asynchronous` is set but strategy is Synchronous"),
        ({"allReduce": {}}, "`allReduce` is set but topology is ParameterServer"),
        ({"workers": {"replicas": 0, "template": {"spec": {"containers": [CONTAINER]}}}}, "spec.workers.replicas: 0"),
        ({"workers": {"template": {"spec": {"containers": [{"name": "x"}]}}}}, "exactly one container named `trainer`"),
        ({"workers": {"template": {"spec": {"containers": [{"name": "trainer"}]}}}}, "needs a command"),
        ({"workers": None}, "spec.workers: None is not allowed"),
        ({"gradients": {"timeoutSeconds": -1}}, "spec.gradients.timeoutSeconds: -1 is not allowed"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], message: str) -> None:
    found = [str(p) for p in problems(manifest(**changes))]
    assert any(message in text for text in found), found


def test_a_right_manifest_has_no_problems() -> None:
    assert problems(manifest()) == []
