"""The status that people read."""

from dataclasses import replace
from typing import Any

import pytest

from paceline_core.attribution import Cause
from paceline_operator.decisions import status, training_answer
from paceline_operator.decisions.decide import decide
from paceline_operator.decisions.goodput import TimeSpent
from paceline_operator.decisions.observe import End, Trouble, seconds
from paceline_operator.decisions.persisted_state import PersistedState
from paceline_operator.decisions.training_answer import SlowWorker, Straggler, TrainingProgress
from tests.operator.builders import NOW, Scene, a_spec

STRAGGLER = Straggler("worker-1", share=0.9, lag=0.03)
WHOLE = Straggler("worker-2", 0.97, 0.028, 0.042, 0.4, Cause.COMPUTE, since=1_764_000_190.0)
SLOW = TrainingProgress(step=12, total_steps=40, loss=0.5, straggler=STRAGGLER, training=True)


def status_of(
    scene: Scene, progress: TrainingProgress | None = None, before: dict[str, Any] | None = None
) -> dict[str, Any]:
    return status.status(scene.observed, decide(scene.observed), progress, {}, before or {})


def condition(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(c for c in found["conditions"] if c["type"] == name)


def test_a_running_training_shows_how_far_it_is_and_who_is_slow() -> None:
    found = status_of(Scene().running(), SLOW)
    assert (found["phase"], found["reason"], found["progress"]) == ("Running", "Training", "30%")
    assert (found["workers"]["summary"], found["slowestWorker"]) == ("2/2", "worker-1")
    straggling = condition(found, "Straggling")
    assert straggling["status"] == "True"
    assert straggling["message"] == "worker-1 makes the others wait: 90% of all waiting, 30 ms in each round"
    assert condition(found, "Finished")["status"] == "False"
    assert found["observability"] == {
        "level": "Detailed",
        "reason": "chosen for 2 workers: up to 256 Detailed, up to 2,048 Standard",
    }
    assert (found["device"], seconds(found["lastStepTime"])) == ("cpu", NOW + 60)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (
            TrainingProgress(straggler=WHOLE),
            ("True", "SlowCompute", "worker-2 makes the others wait since 16:03:10 UTC: 97% of all waiting, 28 ms in each "
             "round of 42 ms; it costs 40% of the throughput; cause: computing"),
        ),
        (
            TrainingProgress(straggler=replace(WHOLE, cause=Cause.DATA, since=None)),
            ("True", "SlowData", "worker-2 makes the others wait: 97% of all waiting, 28 ms in each round of 42 ms; it "
             "costs 40% of the throughput; cause: its data"),
        ),
        (
            TrainingProgress(straggler=replace(STRAGGLER, cause=Cause.SEND)),
            ("True", "SlowSend", "worker-1 makes the others wait: 90% of all waiting, 30 ms in each round; cause: sending"),
        ),
        (
            TrainingProgress(straggler=replace(STRAGGLER, cause=Cause.UNKNOWN, cost=0.0)),
            ("True", "SlowWorker", "worker-1 makes the others wait: 90% of all waiting, 30 ms in each round; it costs 0% "
             "of the throughput; cause: not known"),
        ),
        (
            TrainingProgress(slow_worker=SlowWorker("worker-3", stale=True, cause=Cause.COMPUTE)),
            ("False", "NobodyWaits", "worker-3 is slow and stale, but nobody waits for it; cause: computing"),
        ),
        (TrainingProgress(slow_worker=SlowWorker("worker-3", stale=False)), ("False", "NobodyWaits", "worker-3 is slow, but nobody waits for it")),
        (TrainingProgress(), ("False", "NobodyWaits", "no worker makes the others wait")),
    ],
)  # fmt: skip
def test_who_is_slow_since_when_at_what_cost_and_why(
    progress: TrainingProgress, expected: tuple[str, str, str]
) -> None:
    progress = replace(progress, step=1, training=True)
    found = status_of(Scene().running(), progress)
    straggling = condition(found, "Straggling")
    assert (straggling["status"], straggling["reason"], straggling["message"]) == expected
    slow_worker = progress.straggler or progress.slow_worker
    assert found.get("slowestWorker") == (slow_worker.worker if slow_worker else None)


def test_a_straggler_stands_while_nothing_is_heard_and_ends_with_the_attempt() -> None:
    scene = Scene().running()
    first = status_of(scene, SLOW)
    assert condition(status_of(scene, None, first), "Straggling") == condition(first, "Straggling")
    assert (
        condition(status_of(scene, TrainingProgress(step=13, training=True), first), "Straggling")["status"] == "False"
    )
    for change in ({"attempt": 1}, {"suspended": True}, {"result": "Failed", "completion": NOW + 60}):
        other = Scene().running()
        other.state = replace(scene.state, **change)  # type: ignore[arg-type]
        assert condition(status_of(other, None, first), "Straggling")["status"] == "False", change


def test_an_operator_that_was_just_started_does_not_say_that_workers_join() -> None:
    scene = Scene().running()
    first = status_of(scene, SLOW)
    assert status_of(scene, None, first)["reason"] == "Training"
    assert status_of(scene, TrainingProgress(step=0), first)["reason"] == "WorkersJoining", "heard so"
    scene.state = replace(scene.state, attempt=1)
    scene.running()
    assert status_of(scene, None, first)["reason"] == "WorkersJoining"


def test_the_time_of_the_last_step_is_when_the_count_last_changed() -> None:
    scene = Scene().running()
    joining = status_of(scene, TrainingProgress(step=0))
    assert "lastStepTime" not in joining, "a training that has not begun is not stalled"
    first = status_of(scene, SLOW, joining)
    scene.now += 100
    again = status_of(scene, SLOW, first)
    assert again["lastStepTime"] == first["lastStepTime"]
    moved = status_of(scene, replace(SLOW, step=13), again)
    assert seconds(moved["lastStepTime"]) == scene.now
    scene.state = replace(scene.state, attempt=1)
    assert "lastStepTime" not in status_of(scene, None, moved)


def test_lost_time_is_kept_from_the_first_pods_to_the_end() -> None:
    scene = Scene().running()
    scene.now = NOW + 5
    scene.change("worker-1", phase="Pending", ready=False)
    pending = status_of(scene)
    assert (pending["goodput"]["stage"], pending["goodput"]["lostSeconds"]) == ("pending", {})
    scene.now = NOW + 20
    scene.change("worker-1", phase="Running", ready=True)
    started = status_of(scene, None, pending)
    assert (started["goodput"]["stage"], started["goodput"]["lostSeconds"]) == ("startup", {"pending": 20})
    scene.now = NOW + 50
    compiling = status_of(scene, replace(SLOW, time_spent=TimeSpent({}, 0, scene.now)), started)
    assert compiling["goodput"]["stage"] == "startup", "all have joined, but no step is made yet"
    spent = {"productive": 6.0, "straggler": 4.0}
    training = status_of(scene, replace(SLOW, time_spent=TimeSpent(spent, 12, scene.now)), started)
    assert training["goodput"]["lostSeconds"] == {"pending": 20, "startup": 20, "straggler": 4}
    assert training["goodput"]["summary"] == "12%"
    scene.state = replace(scene.state, result="Succeeded", completion=NOW + 59.4)
    end = status_of(scene, replace(SLOW, time_spent=TimeSpent(spent | {"productive": 10.0}, 40, None)), training)
    assert end["goodput"]["lostSeconds"] == {"pending": 20, "startup": 20, "straggler": 4, "shutdown": 6}
    assert end["goodput"]["accountedTime"].startswith(end["completionTime"].rstrip("Z")), "whole seconds, like the end"
    assert end["goodput"]["productiveSeconds"] == 10


def test_a_training_that_can_never_run_loses_no_more_time() -> None:
    scene = Scene()
    before = status_of(scene)
    failed = status.refused(1, NOW + 90, before, "InvalidSpec", ["no"])
    assert (failed["phase"], failed["goodput"]["stage"]) == ("Failed", "stopped")
    assert failed["goodput"]["lostSeconds"] == {"pending": 90}
    waits = status.refused(1, NOW + 90, before, "PodRefused", ["no"], waits=True)
    assert (waits["phase"], waits["goodput"]) == ("Pending", before["goodput"])
    assert {c["type"] for c in waits["conditions"] if c["status"] == "True"} == {"Progressing"}


@pytest.mark.parametrize(
    ("result", "true"), [("Succeeded", {"Succeeded", "Finished"}), ("Failed", {"Failed", "Finished"})]
)
def test_one_wait_is_enough_for_either_end(result: str, true: set[str]) -> None:
    scene = Scene(result=result, reason="X", message="m", completion=1.0).running()
    found = status_of(scene)
    assert {c["type"] for c in found["conditions"] if c["status"] == "True"} == true


def test_a_finished_training_says_when_it_will_be_deleted() -> None:
    ended = {"result": "Succeeded", "reason": "X", "message": "all went well", "completion": 1.0}
    scene = Scene(a_spec(runPolicy={"ttlSecondsAfterFinished": 60}), **ended).running()
    wanted = "all went well. It is deleted 60 s after its end, as runPolicy.ttlSecondsAfterFinished says"
    assert status_of(scene)["message"] == wanted
    assert status_of(Scene(**ended).running())["message"] == "all went well"
    again = Scene(a_spec(runPolicy={"ttlSecondsAfterFinished": 60}), **{**ended, "message": wanted}).running()
    assert status_of(again)["message"] == wanted, "it was read back from the status"


def test_the_time_of_a_condition_is_that_of_its_last_change() -> None:
    scene = Scene().running()
    first = status_of(scene, SLOW)
    scene.now += 100
    second = status_of(scene, replace(SLOW, straggler=None), before=first)
    assert condition(second, "Ready")["lastTransitionTime"] == condition(first, "Ready")["lastTransitionTime"]
    assert condition(second, "Straggling")["lastTransitionTime"] > condition(first, "Straggling")["lastTransitionTime"]


def test_pods_that_cannot_start_are_told_once_for_all() -> None:
    scene = Scene(a_spec(workers=9)).running()
    trouble = Trouble("Unschedulable", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
    for ordinal in range(5):
        scene.change(f"worker-{ordinal}", phase="Pending", trouble=trouble)
    found = status_of(scene)
    assert found["reason"] == "Unschedulable"
    assert found["message"].startswith("worker-0, worker-1, worker-2 and 2 more: 0/3 nodes are available: 3 Insuff")
    assert found["message"].count("0/3 nodes") == 1


def test_what_is_not_known_now_stays_as_it_was_in_the_same_attempt() -> None:
    scene = Scene().running()
    before = status_of(scene, SLOW)
    assert status_of(scene, None, before)["step"] == 12
    scene.state = replace(scene.state, attempt=1)
    assert "step" not in status_of(scene, None, before)


def test_the_termination_message_of_a_server_has_the_final_figures() -> None:
    scene = Scene().running()
    summary = {"step": 40, "version": 40, "loss": 0.1, "reported": {"accuracy": 0.98}, "verdict": None}
    scene.change("ps-0", phase="Succeeded", end=End(0, details={"summary": summary}))
    progress = training_answer.final_progress(list(scene.pods.values()))
    assert progress is not None
    found = status_of(scene, progress)
    assert (found["step"], found["progress"], found["reported"]) == (40, "100%", {"accuracy": 0.98})


def test_persisted_state_survives_the_status() -> None:
    scene = Scene().running().fail("worker-1")
    state = decide(scene.observed).state
    scene.state = state
    found = status.status(scene.observed, decide(scene.observed), None, {}, {})
    again = PersistedState.from_status(found)
    assert again.restarts_by_reason == state.restarts_by_reason == {"worker": {"crash": 1}}
    assert again.failures == tuple(replace(f, time=-(-f.time // 1)) for f in state.failures)
    assert again.delays == {s: replace(d, until=-(-d.until // 1)) for s, d in state.delays.items()}
    assert (again.attempt, again.restarts, again.formed) == (state.attempt, state.restarts, state.formed)


def test_a_server_that_is_told_to_end_in_the_middle_does_not_say_that_all_steps_are_made() -> None:
    scene = Scene().running()
    before = status_of(scene, SLOW)
    left = {"summary": {"step": 13, "loss": 0.4, "reported": {}, "verdict": None}}
    scene.succeed("ps-0").change("ps-0", end=End(0, details=left))
    assert status_of(scene, training_answer.final_progress(scene.observed.pods), before)["progress"] == "100%"
    scene.change("ps-0", terminating=scene.now + 30, taken=scene.now - 1)
    found = status_of(scene, training_answer.final_progress(scene.observed.pods), before)
    assert (found["step"], found["totalSteps"], found["progress"]) == (13, 40, "32%")
