"""The operator's decisions as tables: what is persisted, created and removed."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_core.launch import Role
from paceline_core.modes import MODES
from paceline_core.spec import TrainingSpec
from paceline_operator.decisions.decide import decide
from paceline_operator.decisions.decision import Decision
from paceline_operator.decisions.observe import End, Trouble
from paceline_operator.decisions.persisted_state import TRAINING, PersistedState
from tests.operator.builders import NOW, Scene, a_spec

VICTIM = {"kind": "PeerLost", "message": "worker-1 was lost", "victim": True}
NAN = {"kind": "RuntimeError", "message": "loss is nan", "victim": False}


def settle(scene: Scene) -> Decision:
    """Decide until the state changes no more."""
    for _ in range(20):
        decision = decide(scene.observed)
        if decision.state == scene.state:
            return decision
        acts = (*decision.create, *decision.delete, *decision.kill)
        assert not acts, "first persist, then act"
        scene.state = decision.state
    raise AssertionError("it never settles")


def names(decision: Decision) -> list[str]:
    return sorted(p.replica for p in decision.delete)


def test_at_first_the_time_is_persisted_and_then_all_pods_are_made() -> None:
    scene = Scene()
    scene.state = PersistedState()
    first = decide(scene.observed)
    assert (first.state.start, first.create) == (scene.now, ())
    scene.state = first.state
    assert decide(scene.observed).create == ((Role.SERVER, 0), (Role.WORKER, 0), (Role.WORKER, 1))


def test_only_missing_pods_are_made_while_the_attempt_forms() -> None:
    scene = Scene()
    scene.add(Role.SERVER, 0)
    scene.add(Role.WORKER, 1)
    assert decide(scene.observed).create == ((Role.WORKER, 0),)


@pytest.mark.parametrize("strategy", ["Synchronous", "AllReduce"])
@pytest.mark.parametrize("how", ["fails", "is deleted", "is gone"])
def test_without_one_worker_the_others_begin_anew(strategy: str, how: str) -> None:
    scene = Scene(a_spec(strategy=strategy)).running()
    if how == "fails":
        scene.fail("worker-1")
    elif how == "is deleted":
        scene.change("worker-1", terminating=scene.now + 30)
    else:
        del scene.pods["worker-1"]
    decision = settle(scene)
    assert scene.state.restarts == (how == "fails")
    assert len(names(decision)) == {"fails": 3, "is deleted": 2, "is gone": 2}[how]
    scene.pods.clear()
    assert decide(scene.observed).requeue_after == pytest.approx(1, abs=1.1), "a delay"
    scene.now += 2
    assert settle(scene).create == tuple(
        (p.role, p.ordinal) for p in Scene(a_spec(strategy=strategy)).running().pods.values()
    )
    assert scene.state.attempt == 1


def test_an_asynchronous_worker_is_replaced_alone_with_growing_delays() -> None:
    scene = Scene(a_spec(workers=3, strategy="Asynchronous", runPolicy={"backoffLimit": 9})).running()
    for count, delay in enumerate((1, 2, 4, 8), start=1):
        scene.fail("worker-1").change("worker-1", uid=f"u{count}")
        assert names(settle(scene)) == ["worker-1"]
        del scene.pods["worker-1"]
        assert decide(scene.observed).requeue_after == pytest.approx(delay, abs=1)
        assert decide(scene.observed).create == ()
        scene.now += delay
        assert decide(scene.observed).create == ((Role.WORKER, 1),)
        scene.add(Role.WORKER, 1)
    assert (scene.state.attempt, scene.state.restarts) == (0, 4)


def test_a_server_of_an_asynchronous_training_takes_everything_with_it() -> None:
    scene = Scene(a_spec(strategy="Asynchronous")).running()
    scene.fail("ps-0").fail("worker-0", details=VICTIM)
    assert names(settle(scene)) == ["ps-0", "worker-0", "worker-1"]
    assert scene.state.broken is not None
    assert scene.state.broken.replica == "ps-0"


def test_victims_wait_for_the_failure_that_made_them_victims() -> None:
    scene = Scene().running()
    scene.fail("worker-0", details=VICTIM)
    assert decide(scene.observed).requeue_after == 1.0
    assert settle(scene).delete == ()
    scene.fail("worker-1", details=NAN)
    settle(scene)
    assert scene.state.broken is not None
    assert scene.state.broken.message.startswith("worker-1 failed: RuntimeError: loss is nan")


def test_victims_of_a_pod_that_never_started_name_it() -> None:
    scene = Scene().running()
    scene.change("worker-1", phase="Pending", trouble=Trouble("Unschedulable", "0/1 nodes are available"))
    scene.fail("worker-0", details=VICTIM)
    scene.now += 10
    settle(scene)
    assert scene.state.broken is not None
    assert scene.state.broken.reason == "Unschedulable"


@pytest.mark.parametrize(
    ("change", "reason", "counted"),
    [
        ({"phase": "Failed", "disruption": Trouble("Evicted", "low on memory")}, "Evicted", False),
        ({"phase": "Failed", "disruption": Trouble("NodeLost", "taint")}, "NodeLost", False),
        ({"phase": "Running", "disruption": Trouble("Preempted", "a greater priority")}, "Preempted", False),
        ({"phase": "Running", "terminating": NOW + 90}, "PodDeleted", False),
    ],
)
def test_what_the_cluster_does_is_not_counted(change: dict[str, Any], reason: str, counted: bool) -> None:
    scene = Scene(a_spec(runPolicy={"backoffLimit": 0})).running().change("worker-1", **change)
    settle(scene)
    assert scene.state.broken is not None
    assert (scene.state.broken.reason, scene.state.broken.counted) == (reason, counted)
    assert scene.state.result is None


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        ("Synchronous", "ps-0"),
        ("Synchronous", "worker-1"),
        ("Asynchronous", "ps-0"),
        ("AllReduce", "coordinator-0"),
        ("AllReduce", "worker-1"),
    ],
)
def test_a_pod_that_went_while_the_operator_was_away_is_why_the_others_failed(strategy: str, name: str) -> None:
    scene = Scene(a_spec(strategy=strategy, runPolicy={"backoffLimit": 0})).running()
    del scene.pods[name]
    for other in scene.pods:
        scene.fail(other, details=VICTIM)
    scene.now += 10
    settle(scene)
    assert scene.state.result is None
    assert scene.state.broken is not None
    assert (scene.state.broken.replica, scene.state.broken.reason) == (name, "PodDeleted")
    assert scene.state.restarts == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"disruption": Trouble("Evicted", "a drain"), "taken": NOW + 50}, "Evicted"),
        ({"terminating": NOW + 80, "taken": NOW + 50}, "PodDeleted"),
        ({"disruption": Trouble("Evicted", "a drain"), "terminating": NOW + 80, "taken": NOW + 50}, "Evicted"),
        ({"disruption": Trouble("Evicted", "low on memory"), "taken": 0.0}, "Evicted"),
    ],
)
@pytest.mark.parametrize("victims", [True, False])
def test_a_server_that_ended_in_order_when_it_was_told_to_did_not_end_well(
    change: dict[str, Any], reason: str, victims: bool
) -> None:
    scene = Scene(a_spec(runPolicy={"backoffLimit": 0})).running().succeed("ps-0").change("ps-0", **change)
    if victims:
        scene.fail("worker-0", details=VICTIM).fail("worker-1", details=VICTIM)
        scene.now += 10
    settle(scene)
    assert scene.state.broken is not None
    assert (scene.state.broken.replica, scene.state.broken.reason) == ("ps-0", reason)
    assert scene.state.restarts == 0


@pytest.mark.parametrize(("taken", "ended"), [(NOW + 61, True), (NOW + 60, False), (NOW + 50, False)])
def test_a_worker_that_ended_before_it_was_taken_away_has_ended_well(taken: float, ended: bool) -> None:
    """A script may end in order when it is told to."""
    scene = Scene(a_spec(strategy="Asynchronous")).running().succeed("worker-1")
    scene.change("worker-1", terminating=taken + 30, taken=taken, disruption=Trouble("Evicted", "a drain"))
    decision = settle(scene)
    assert scene.state.ended == ({1} if ended else set())
    assert [f.reason for f in scene.state.failures] == ([] if ended else ["Evicted"])
    assert decision.create == ()


def test_a_script_that_failed_before_its_pod_was_taken_away_has_failed() -> None:
    scene = Scene().running().fail("worker-1", details=NAN)
    scene.change("worker-1", terminating=scene.now + 40, taken=scene.now + 10)
    settle(scene)
    assert scene.state.broken is not None
    assert (scene.state.broken.reason, scene.state.restarts) == ("ScriptFailed", 1)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"phase": "Failed", "end": End(137, "OOMKilled")}, "oom"),
        ({"phase": "Failed", "end": End(1)}, "crash"),
        ({"phase": "Failed", "end": End(1, details=NAN)}, "crash"),
        ({"disruption": Trouble("Evicted", "")}, "evicted"),
        ({"disruption": Trouble("Preempted", "")}, "preempted"),
        ({"disruption": Trouble("NodeShutdown", "")}, "node"),
        ({"terminating": NOW + 90}, "deleted"),
    ],
)
@pytest.mark.parametrize(("replica", "role"), [("worker-1", "worker"), ("ps-0", "server")])
def test_restarts_are_counted_by_role_and_reason(change: dict[str, Any], kind: str, replica: str, role: str) -> None:
    scene = Scene().running().change(replica, **change)
    settle(scene)
    assert scene.state.restarts_by_reason == {role: {kind: 1}}


def test_a_failure_that_nothing_begins_anew_after_is_no_restart() -> None:
    scene = Scene(a_spec(runPolicy={"backoffLimit": 0})).running().fail("worker-1")
    settle(scene)
    assert scene.state.restarts_by_reason == {}


def test_after_the_last_restart_the_training_has_failed() -> None:
    scene = Scene(a_spec(runPolicy={"backoffLimit": 0})).running().fail("worker-1", code=3)
    settle(scene)
    assert (scene.state.result, scene.state.reason) == ("Failed", "ExitCode")
    assert "kubectl logs -n team digits-worker-1" in scene.state.message
    decision = decide(scene.observed)
    assert names(decision) == ["ps-0", "worker-0"], "the failed pod stays for its logs"


def test_an_error_that_would_come_again_is_not_tried_again() -> None:
    details = {"kind": "ModelMismatch", "message": "worker-1 trains another model", "victim": False}
    scene = Scene().running().fail("worker-1", details=details)
    settle(scene)
    assert (scene.state.result, scene.state.restarts) == ("Failed", 1)
    assert "Another attempt would fail alike" in scene.state.message


@pytest.mark.parametrize(
    ("policy", "removed"), [("None", []), ("Running", ["ps-0"]), ("All", ["ps-0", "worker-0", "worker-1"])]
)
def test_at_the_end_the_policy_says_which_pods_go(policy: str, removed: list[str]) -> None:
    scene = Scene(a_spec(runPolicy={"cleanPodPolicy": policy})).running()
    scene.succeed("worker-0", "worker-1")
    assert decide(scene.observed).state.result is None, "the server writes its termination message first"
    scene.succeed("ps-0")
    decision = settle(scene)
    assert (scene.state.result, names(decision)) == ("Succeeded", removed)


def test_deadline_and_time_to_live() -> None:
    scene = Scene(a_spec(runPolicy={"activeDeadlineSeconds": 100, "ttlSecondsAfterFinished": 50})).running()
    assert decide(scene.observed).requeue_after == pytest.approx(40)
    scene.now = NOW + 101
    decision = settle(scene)
    assert (scene.state.result, scene.state.reason) == ("Failed", "DeadlineExceeded")
    assert names(decision) == ["ps-0", "worker-0", "worker-1"]
    assert not decision.remove
    scene.now += 51
    assert decide(scene.observed).remove


def test_suspension_removes_pods_and_resumption_begins_anew() -> None:
    scene = Scene(a_spec(runPolicy={"suspend": True})).running()
    assert len(settle(scene).delete) == 3
    scene.pods.clear()
    assert settle(scene).create == ()
    scene.spec = TrainingSpec.model_validate(a_spec())
    scene.now += 100
    assert len(settle(scene).create) == 3
    assert (scene.state.attempt, scene.state.start) == (1, scene.now), "the deadline counts from here"


def test_a_pod_that_does_not_go_is_killed() -> None:
    scene = Scene().running()
    scene.change("worker-1", terminating=scene.now + 30)
    assert settle(scene).kill == ()
    scene.now += 91
    assert [p.replica for p in decide(scene.observed).kill] == ["worker-1"]


def test_pods_of_an_earlier_attempt_go_first() -> None:
    scene = Scene().running()
    scene.state = replace(scene.state, attempt=1, formed=False)
    decision = decide(scene.observed)
    assert len(decision.delete) == 3
    assert decision.create == ()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_restarts_of_the_operator_change_nothing(data: st.DataObject) -> None:
    """The persisted state goes through the status and back at every step, and counts each failure once."""
    strategy = data.draw(st.sampled_from(sorted(MODES)))
    limit = data.draw(st.integers(0, 3))
    scene = Scene(a_spec(strategy=strategy, runPolicy={"backoffLimit": limit})).running()
    failed = 0
    for _ in range(data.draw(st.integers(1, 25))):
        if scene.state.result:
            break
        running = [n for n, p in scene.pods.items() if p.phase == "Running"]
        if running and data.draw(st.booleans()):
            name = data.draw(st.sampled_from(running))
            failed += 1
            scene.fail(name).change(name, uid=f"u{failed}")
        decision = decide(scene.observed)
        written = decision.state.to_status() | {"phase": decision.state.result or "Running"}
        scene.state = PersistedState.from_status(written | {"reason": decision.state.reason})
        if decide(replace(scene.observed, state=decision.state)).state == decision.state:
            for pod in decision.delete:
                del scene.pods[pod.replica]
            for role, ordinal in decision.create:
                scene.add(role, ordinal, uid=f"new-{scene.now}-{role}-{ordinal}")
        scene.now += data.draw(st.integers(1, 20))
        assert scene.state.restarts <= min(failed, limit + 1)
        assert (scene.state.result == "Failed") == (scene.state.restarts > limit)
    assert len({f.uid for f in scene.state.failures}) == len(scene.state.failures)
    assert all(f.scope == TRAINING or MODES[strategy].knobs.replaces_alone for f in scene.state.failures)
