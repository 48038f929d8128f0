"""Pods, as they are read from what the API server tells."""

from typing import Any

import pytest

from paceline_core.launch import Role
from paceline_operator.decisions import observe
from paceline_operator.decisions.observe import End, Trouble, seconds


def pod(**more: Any) -> dict[str, Any]:
    labels = {"paceline.dev/role": "worker", "paceline.dev/ordinal": "3", "paceline.dev/attempt": "1"}
    metadata = {"name": "digits-worker-3", "uid": "u", "creationTimestamp": "2026-11-24T10:00:00Z", "labels": labels}
    return {"metadata": metadata | more.pop("metadata", {}), "status": more}


def waiting(reason: str, message: str = "") -> list[dict[str, Any]]:
    return [{"name": "trainer", "state": {"waiting": {"reason": reason, "message": message}}}]


def sidecar() -> list[dict[str, Any]]:
    """The main container runs; another, of the name of a server's, has failed."""
    return [{"name": "server", "state": {"terminated": {"exitCode": 1}}}, {"name": "trainer", "state": {"running": {}}}]


PROXY = {"name": "proxy", "state": {"running": {}}}
PROXY_ENDED = {"name": "proxy", "state": {"terminated": {"exitCode": 0}}}
FETCH = [
    {"name": "early", "state": {"terminated": {"exitCode": 0}}},
    {"name": "fetch", "state": {"terminated": {"exitCode": 3, "reason": "Error", "message": "no such bucket"}}},
]
SCHEDULED = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-24T10:00:30Z"}
DISRUPTED = {"type": "DisruptionTarget", "status": "True", "lastTransitionTime": "2026-11-24T10:04:00Z"}
DELETED = {"deletionTimestamp": "2026-11-24T10:05:30Z", "deletionGracePeriodSeconds": 30}


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
        (
            pod(phase="Failed", containerStatuses=waiting("PodInitializing"), initContainerStatuses=FETCH),
            "end",
            End(3, "Error", "no such bucket", container="fetch"),
        ),
        (
            pod(phase="Failed", reason="UnexpectedAdmissionError", message="m"),
            "end",
            End(-1, "UnexpectedAdmissionError", "m"),
        ),
        (pod(phase="Running", initContainerStatuses=FETCH), "end", None),
        (pod(phase="Running", containerStatuses=ended(exitCode=0)), "phase", "Succeeded"),
        (pod(phase="Running", containerStatuses=[*ended(exitCode=0), PROXY]), "lingers", True),
        # all have ended, and the kubelet is about to say so of the pod
        (pod(phase="Running", containerStatuses=ended(exitCode=0)), "lingers", False),
        (pod(phase="Running", containerStatuses=[*ended(exitCode=0), PROXY_ENDED]), "lingers", False),
        (pod(phase="Running", containerStatuses=ended(exitCode=2)), "phase", "Failed"),
        (pod(phase="Running", containerStatuses=[*ended(exitCode=2), PROXY]), "runs", True),
        (pod(phase="Failed", containerStatuses=ended(exitCode=0)), "phase", "Succeeded"),  # its sidecar failed
        (pod(phase="Failed", containerStatuses=ended(exitCode=0)), "lingers", False),
        (pod(phase="Failed", containerStatuses=waiting("PodInitializing")), "lingers", False),
        (pod(phase="Failed", reason="Evicted", containerStatuses=ended(exitCode=0)), "phase", "Failed"),
        (pod(phase="Succeeded", containerStatuses=ended(exitCode=0)), "runs", False),
        (pod(phase="Running", containerStatuses=sidecar()), "phase", "Running"),
        (pod(conditions=[SCHEDULED]), "scheduled", seconds("2026-11-24T10:00:30Z")),
        (pod(conditions=[SCHEDULED | {"status": "False"}]), "scheduled", None),
        (pod(phase="Running"), "taken", None),
        (pod(metadata=DELETED), "taken", seconds("2026-11-24T10:05:00Z")),
        (pod(metadata=DELETED), "terminating", seconds("2026-11-24T10:05:30Z")),
        (pod(metadata=DELETED, conditions=[DISRUPTED]), "taken", seconds("2026-11-24T10:04:00Z")),
        (pod(conditions=[DISRUPTED | {"status": "False"}]), "taken", None),
        (pod(phase="Failed", reason="Evicted"), "taken", 0.0),
        (pod(phase="Failed", reason="Evicted", containerStatuses=ended(exitCode=137)), "stopped", True),
        (pod(metadata=DELETED, phase="Succeeded", containerStatuses=ended(exitCode=0)), "succeeded", True),
        (
            pod(
                metadata=DELETED,
                phase="Succeeded",
                containerStatuses=ended(exitCode=0, finishedAt="2026-11-24T10:05:00Z"),
            ),
            "succeeded",
            False,
        ),
    ],
)
def test_a_pod_is_read_from_its_json(found: dict[str, Any], field: str, expected: Any) -> None:
    read = observe.pod(found)
    assert (read.role, read.ordinal, read.attempt) == (Role.WORKER, 3, 1)
    assert getattr(read, field) == expected


def test_a_termination_message_that_is_nested_too_deeply_has_no_details() -> None:
    assert observe.pod(pod(phase="Failed", containerStatuses=ended(exitCode=1, message="[" * 4000))).end is not None


def event(kind: str, reason: str, time: str, **more: Any) -> dict[str, Any]:
    about = {"type": kind, "reason": reason, "message": reason.lower(), "involvedObject": {"uid": "u"}}
    return about | {"lastTimestamp": f"2026-11-24T{time}Z"} | more


OLD = event("Warning", "FailedScheduling", "09:50:00")
MOUNT = event("Warning", "FailedMount", "10:01:00")
SANDBOX = event("Warning", "FailedCreatePodSandBox", "10:02:00")
PULLING = event("Normal", "Pulling", "10:03:00")
LATEST = {"lastTimestamp": None, "eventTime": "2026-11-24T10:01:00.5Z"}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], None),
        ([OLD, PULLING], None),
        ([OLD], None),
        ([OLD | {"lastTimestamp": "2026-11-24T10:00:30Z"}], None),
        ([event("Warning", "FailedMount", "10:00:29")], None),
        ([MOUNT], "FailedMount"),
        ([MOUNT, SANDBOX], "FailedCreatePodSandBox"),
        ([SANDBOX, MOUNT, event("Normal", "SandboxChanged", "10:09:00")], "FailedCreatePodSandBox"),
        ([MOUNT, SANDBOX, PULLING], None),
        ([PULLING, event("Warning", "InspectFailed", "10:04:00")], "InspectFailed"),
        ([MOUNT | {"involvedObject": {"uid": "another"}}], None),
        ([MOUNT | LATEST], "FailedMount"),
        (
            [MOUNT | LATEST | {"series": {"count": 9, "lastObservedTime": "2026-11-24T10:09:00.5Z"}}, PULLING],
            "FailedMount",
        ),
        ([MOUNT | {"lastTimestamp": None, "eventTime": None}], None),
    ],
)
def test_the_newest_warning_that_still_matters(events: list[dict[str, Any]], expected: str | None) -> None:
    found = observe.pod(pod(phase="Pending", conditions=[SCHEDULED], containerStatuses=waiting("ContainerCreating")))
    trouble = observe.with_warning(found, events)
    assert (trouble and trouble.reason) == expected


def test_the_main_container_is_that_of_the_role() -> None:
    server = pod(phase="Running", containerStatuses=sidecar())
    server["metadata"]["labels"] = server["metadata"]["labels"] | {"paceline.dev/role": "ps"}
    assert observe.pod(server).phase == "Failed"
