"""The status that people read."""

from dataclasses import replace
from typing import Any

import pytest

from paceline_core.launch import Role
from paceline_operator import observe, status
from paceline_operator.decide import decide
from paceline_operator.memory import Memory
from paceline_operator.observe import End, Trouble
from paceline_operator.status import Progress
from tests.operator.builders import Scene, a_spec

SLOW = Progress(step=12, total_steps=40, loss=0.5, slowest="worker-1", lag_share=0.9, lag_seconds=0.03, training=True)


def told(scene: Scene, progress: Progress | None = None, before: dict[str, Any] | None = None) -> dict[str, Any]:
    return status.status(scene.situation, decide(scene.situation), progress, {}, before or {})


def condition(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(c for c in found["conditions"] if c["type"] == name)


def test_a_running_training_shows_how_far_it_is_and_who_is_slow() -> None:
    found = told(Scene().running(), SLOW)
    assert (found["phase"], found["reason"], found["progress"]) == ("Running", "Training", "30%")
    assert (found["workers"]["summary"], found["slowestWorker"]) == ("2/2", "worker-1")
    straggling = condition(found, "Straggling")
    assert straggling["status"] == "True"
    assert straggling["message"] == "worker-1 makes the others wait: 90% of all waiting, 30 ms in each round"
    assert condition(found, "Finished")["status"] == "False"


@pytest.mark.parametrize(
    ("result", "true"), [("Succeeded", {"Succeeded", "Finished"}), ("Failed", {"Failed", "Finished"})]
)
def test_one_wait_is_enough_for_either_end(result: str, true: set[str]) -> None:
    scene = Scene(result=result, reason="X", message="m", completion=1.0).running()
    found = told(scene)
    assert {c["type"] for c in found["conditions"] if c["status"] == "True"} == true


def test_the_time_of_a_condition_is_that_of_its_last_change() -> None:
    scene = Scene().running()
    first = told(scene, SLOW)
    scene.now += 100
    second = told(scene, replace(SLOW, slowest=None), before=first)
    assert condition(second, "Ready")["lastTransitionTime"] == condition(first, "Ready")["lastTransitionTime"]
    assert condition(second, "Straggling")["lastTransitionTime"] > condition(first, "Straggling")["lastTransitionTime"]


def test_pods_that_cannot_start_are_told_once_for_all() -> None:
    scene = Scene(a_spec(workers=9)).running()
    trouble = Trouble("Unschedulable", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
    for ordinal in range(5):
        scene.change(f"worker-{ordinal}", phase="Pending", trouble=trouble)
    found = told(scene)
    assert found["reason"] == "Unschedulable"
    assert found["message"].startswith("worker-0, worker-1, worker-2 and 2 more: 0/3 nodes are available: 3 Insuff")
    assert found["message"].count("0/3 nodes") == 1


def test_what_is_not_known_now_stays_as_it_was_in_the_same_attempt() -> None:
    scene = Scene().running()
    before = told(scene, SLOW)
    assert told(scene, None, before)["step"] == 12
    scene.memory = replace(scene.memory, attempt=1)
    assert "step" not in told(scene, None, before)


def test_the_last_words_of_a_server_are_the_final_figures() -> None:
    scene = Scene().running()
    summary = {"step": 40, "version": 40, "loss": 0.1, "reported": {"accuracy": 0.98}, "verdict": None}
    scene.change("ps-0", phase="Succeeded", end=End(0, told={"summary": summary}))
    progress = status.last_words(list(scene.pods.values()))
    assert progress is not None
    found = told(scene, progress)
    assert (found["step"], found["progress"], found["reported"]) == (40, "100%", {"accuracy": 0.98})


def test_memory_survives_the_status() -> None:
    scene = Scene().running().fail("worker-1")
    memory = decide(scene.situation).memory
    scene.memory = memory
    found = status.status(scene.situation, decide(scene.situation), None, {}, {})
    again = Memory.from_status(found)
    assert again.failures == tuple(replace(f, time=-(-f.time // 1)) for f in memory.failures)
    assert again.delays == {s: replace(d, until=-(-d.until // 1)) for s, d in memory.delays.items()}
    assert (again.attempt, again.restarts, again.formed) == (memory.attempt, memory.restarts, memory.formed)


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


def answer(**worker: Any) -> dict[str, Any]:
    given = {"worker": 0, "state": "training", "step": 3, "total_steps": 9, "loss": 0.5, "reported": {"a": 1}}
    return {"workers": [given | worker], "verdict": None, "missing": []}


def test_a_loss_that_is_not_a_number_is_left_out() -> None:
    assert Progress.from_status(answer()).loss == 0.5
    found = Progress.from_status(answer(loss=float("nan"), reported={"a": float("inf"), "b": 2, "loss": 7}))
    assert (found.loss, found.reported, found.step) == (None, {"b": 2.0}, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"workers": 1},
        answer(step="x"),
        answer(loss="x"),
        answer(reported=[1]),
        answer() | {"verdict": {"worker": 1}},
    ],
)
def test_what_is_not_a_status_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        Progress.from_status(wrong)
