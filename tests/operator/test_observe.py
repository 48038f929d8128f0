"""Pods, as they are read from what the API server tells."""

from typing import Any

import pytest

from paceline_core.launch import Role
from paceline_operator import observe
from paceline_operator.observe import End, Trouble


def pod(**more: Any) -> dict[str, Any]:
    labels = {"paceline.dev/role": "worker", "paceline.dev/ordinal": "3", "paceline.dev/attempt": "1"}
    metadata = {"name": "digits-worker-3", "uid": "u", "creationTimestamp": "2026-11-24T10:00:00Z", "labels": labels}
    return {"metadata": metadata | more.pop("metadata", {}), "status": more}


def waiting(reason: str, message: str = "") -> list[dict[str, Any]]:
    return [{"name": "trainer", "state": {"waiting": {"reason": reason, "message": message}}}]


def ended(**state: Any) -> list[dict[str, Any]]:
    return [{"name": "trainer", "state": {"terminated": {"finishedAt": "2026-11-24T10:01:00Z", **state}}}]


@pytest.mark.parametrize(
    ("found", "field", "expected"),
    [
        (pod(phase="Pending"), "trouble", None),
        (
            pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "m"}]),
            "trouble",
            Trouble("Unschedulable", "m"),
        ),
        (pod(containerStatuses=waiting("ImagePullBackOff", "m")), "trouble", Trouble("ImagePullBackOff", "m")),
        (pod(containerStatuses=waiting("ContainerCreating")), "trouble", None),
        (pod(containerStatuses=waiting("ContainerCreating")), "creating", True),
        (pod(phase="Failed", reason="Evicted", message="m"), "disruption", Trouble("Evicted", "m")),
        (
            pod(conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}]),
            "disruption",
            Trouble("NodeLost", ""),
        ),
        (
            pod(phase="Failed", containerStatuses=ended(exitCode=137, reason="OOMKilled")),
            "end",
            End(137, "OOMKilled"),
        ),
        (
            pod(phase="Failed", containerStatuses=ended(exitCode=1, reason="Error", message='{"kind": "X"}')),
            "end",
            End(1, "Error", '{"kind": "X"}', {"kind": "X"}),
        ),
        (pod(phase="Failed", containerStatuses=ended(exitCode=1, message="[1]")), "end", End(1, "", "[1]", {})),
    ],
)
def test_a_pod_is_read_from_its_json(found: dict[str, Any], field: str, expected: Any) -> None:
    read = observe.pod(found)
    assert (read.role, read.ordinal, read.attempt) == (Role.WORKER, 3, 1)
    assert getattr(read, field) == expected


def test_last_words_that_are_nested_too_deeply_are_no_words() -> None:
    assert observe.pod(pod(phase="Failed", containerStatuses=ended(exitCode=1, message="[" * 4000))).end is not None
