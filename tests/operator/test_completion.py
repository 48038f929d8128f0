"""Completion of a training: decided right whenever the operator reconciles, whatever still runs, and tidied up."""

from dataclasses import replace
from typing import Any

import pytest

from paceline_core.launch import Role
from paceline_core.modes import MODES
from paceline_operator.decisions.decide import decide
from paceline_operator.decisions.observe import End, Trouble
from paceline_operator.decisions.persisted_state import PersistedState, numbers, ranges
from tests.operator.builders import Scene, a_spec
from tests.operator.test_decide import VICTIM, names, settle
from tests.operator.test_status import condition, status_of

FULL = {"kind": "OSError", "message": "[Errno 28] No space left on device", "victim": False}
VOLUME = {"name": "weights", "mountPath": "/var/run/paceline/output/"}
SAVES = {"template": {"spec": {"containers": [{"name": "server", "volumeMounts": [VOLUME]}]}}}


def an_end(joined: bool = True, spec: dict[str, Any] | None = None) -> Scene:
    """All scripts have ended just now; the server has not."""
    scene = Scene(spec).running()
    scene.state = replace(scene.state, joined=joined)
    return scene.succeed("worker-0", "worker-1")


def test_all_end_well() -> None:
    scene = an_end()
    assert settle(scene).requeue_after is not None
    assert scene.state.result is None, "the server writes its termination message first"
    scene.succeed("ps-0")
    settle(scene)
    assert (scene.state.result, scene.state.reason) == ("Succeeded", "TrainingSucceeded")


DONE = "all workers have ended their scripts"


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ({"loss_not_finite": None, "weights_not_finite": None}, DONE),
        (
            {"loss_not_finite": {"worker": 1, "step": 7, "value": "nan"}, "weights_not_finite": "net.weight"},
            f"{DONE}; worker-1: loss is nan at step 7; the weights are not finite: net.weight",
        ),
        ({"loss_not_finite": {"worker": "x", "step": 7, "value": "nan"}}, DONE),
        ({"loss_not_finite": {"worker": 1, "step": 7, "value": ["nan"]}, "weights_not_finite": 5}, DONE),
        ({"weights_not_finite": "a\n" + "b" * 1000}, f"{DONE}; the weights are not finite: a{'b' * 98}"),
        ("no mapping", DONE),
    ],
)
def test_a_training_that_succeeded_with_what_is_not_finite_says_so(summary: Any, message: str) -> None:
    scene = an_end().succeed("ps-0")
    scene.change("ps-0", end=End(0, details={"summary": summary}))
    settle(scene)
    assert (scene.state.result, scene.state.message) == ("Succeeded", message)


@pytest.mark.parametrize(
    ("joined", "seconds", "result", "reason"),
    [
        (False, 59, None, ""),
        (False, 61, "Failed", "NeverJoined"),
        (True, 61, None, ""),
        (True, 3599, None, ""),
        (True, 3601, "Failed", "ServersNotEnded"),
    ],
)
def test_servers_may_take_longer_to_write_weights_than_to_notice_that_nobody_comes(
    joined: bool, seconds: float, result: str | None, reason: str
) -> None:
    scene = an_end(joined)
    settle(scene)
    scene.now += seconds
    decision = settle(scene)
    assert (scene.state.result, scene.state.reason) == (result, reason)
    assert result is not None or 0 < (decision.requeue_after or 0) <= 5
    scene.succeed("ps-0")
    settle(scene)
    assert scene.state.result == (result or "Succeeded")


def test_what_is_waited_for_is_said_when_it_takes_long() -> None:
    for spec, words in ((a_spec(), "end"), (a_spec(), "write the weights and end")):
        if "write" in words:
            spec["parameterServer"] |= SAVES
        scene = an_end(spec=spec)
        settle(scene)
        assert status_of(scene)["reason"] != "ServersEnding", "this is how every training ends"
        scene.now += 10
        found = status_of(scene)
        assert (found["phase"], found["reason"]) == ("Running", "ServersEnding")
        assert found["message"] == f"all scripts have ended; waiting for ps-0 to {words}"
        assert condition(found, "Progressing")["status"] == "True"


def test_that_all_have_joined_is_persisted_once_the_training_has_said_so() -> None:
    scene = Scene().running()
    joined = replace(scene.observed, joined=True)
    assert decide(joined).state.joined
    scene.state = decide(joined).state
    scene.succeed("worker-0", "worker-1").now += 61
    settle(scene)
    assert scene.state.result is None
    assert not scene.state.next_attempt(scene.now).joined


def test_a_server_that_fails_in_saving_is_a_failure() -> None:
    scene = an_end().fail("ps-0", details=FULL)
    settle(scene)
    assert scene.state.result is None
    assert scene.state.broken is not None
    assert scene.state.broken.message == "ps-0 failed: OSError: [Errno 28] No space left on device"
    assert (scene.state.restarts, names(settle(scene))) == (1, ["ps-0", "worker-0", "worker-1"])
    scene.pods.clear()
    scene.now += 10
    assert len(settle(scene).create) == 3, "everything begins anew"
    last = an_end(spec=a_spec(runPolicy={"backoffLimit": 0})).fail("ps-0", details=FULL)
    settle(last)
    assert (last.state.result, last.state.reason) == ("Failed", "ScriptFailed")


def test_of_several_servers_the_one_that_failed_first_is_named() -> None:
    scene = an_end(spec=a_spec(servers=2)).fail("ps-1", details=VICTIM | {"message": "ps-0 was lost"})
    assert settle(scene).requeue_after == 1.0
    scene.fail("ps-0", details=FULL)
    settle(scene)
    assert scene.state.broken is not None
    assert scene.state.broken.replica == "ps-0"


@pytest.mark.parametrize(("saves", "result"), [(False, "Succeeded"), (True, None)])
def test_a_server_that_is_taken_away_at_the_end_matters_if_it_had_weights_to_write(
    saves: bool, result: str | None
) -> None:
    spec = a_spec()
    spec["parameterServer"] |= SAVES if saves else {}
    scene = an_end(spec=spec)
    scene.change("ps-0", disruption=Trouble("Evicted", "a drain"), terminating=scene.now + 30, taken=scene.now)
    settle(scene)
    assert scene.state.result is None, "it may still end in its time of grace"
    scene.fail("ps-0", code=137)
    settle(scene)
    assert scene.state.result == result
    assert (scene.state.broken is not None) == saves
    assert scene.state.restarts == 0


def test_a_server_that_hangs_on_a_lost_node_is_not_waited_for_beyond_its_grace() -> None:
    scene = an_end()
    scene.change("ps-0", terminating=scene.now + 30, taken=scene.now)
    scene.now += 31
    settle(scene)
    assert scene.state.result == "Succeeded"


@pytest.mark.parametrize("strategy", MODES)
@pytest.mark.parametrize("how", ["gone", "deleted"])
def test_the_pod_of_an_ended_worker_may_go(strategy: str, how: str) -> None:
    scene = Scene(a_spec(strategy=strategy)).running().succeed("worker-0")
    settle(scene)
    assert scene.state.ended == {0}
    scene.now += 100
    if how == "gone":
        del scene.pods["worker-0"]
    else:
        scene.change("worker-0", terminating=scene.now, taken=scene.now)
    decision = settle(scene)
    assert (scene.state.failures, decision.create, scene.state.result) == ((), (), None)
    found = status_of(scene)
    assert (found["workers"]["succeeded"], found["workers"]["summary"]) == (1, "2/2")
    scene.succeed("worker-1", "coordinator-0" if strategy == "AllReduce" else "ps-0")
    settle(scene)
    assert scene.state.result == "Succeeded"


def test_a_training_whose_workers_pods_are_all_gone_has_still_ended() -> None:
    scene = an_end()
    settle(scene)
    for name in ("worker-0", "worker-1"):
        del scene.pods[name]
    scene.succeed("ps-0")
    settle(scene)
    assert scene.state.result == "Succeeded"
    assert status_of(scene)["workers"]["summary"] == "2/2"


def test_the_next_attempt_begins_with_no_ended_worker() -> None:
    scene = Scene().running().succeed("worker-0")
    settle(scene)
    scene.fail("worker-1")
    settle(scene)
    scene.pods.clear()
    scene.now += 10
    assert len(settle(scene).create) == 3
    assert (scene.state.attempt, scene.state.ended, scene.state.ended_time) == (1, frozenset(), None)


def test_what_has_ended_is_persisted_in_few_letters() -> None:
    assert ranges([]) == ""
    assert ranges([7, 0, 1, 2, 9, 10]) == "0-2,7,9-10"
    assert ranges(range(10_000)) == "0-9999"
    for some in ([], [3], [0, 1, 5], range(100)):
        assert numbers(ranges(some)) == frozenset(some)
    state = PersistedState(start=1.0, ended=frozenset({0, 1, 4}), ended_time=9.0, joined=True)
    assert PersistedState.from_status(state.to_status()) == state


SIDECAR = {"lingers": True, "ready": False}


@pytest.mark.parametrize("policy", ["None", "Running", "All"])
def test_a_sidecar_that_runs_on_does_not_hold_up_the_end(policy: str) -> None:
    scene = Scene(a_spec(runPolicy={"cleanPodPolicy": policy})).running()
    for name in ("worker-0", "worker-1"):
        scene.succeed(name).change(name, **SIDECAR)
    scene.succeed("ps-0").change("ps-0", **SIDECAR)
    decision = settle(scene)
    assert scene.state.result == "Succeeded"
    everything = ["ps-0", "worker-0", "worker-1"]
    assert names(decision) == {"None": [], "Running": everything, "All": everything}[policy]


def test_a_failure_is_noticed_beside_a_sidecar() -> None:
    scene = Scene().running().fail("worker-0", code=3).change("worker-0", **SIDECAR)
    assert len(names(settle(scene))) == 3
    assert scene.state.restarts == 1
    scene = Scene(a_spec(strategy="Asynchronous")).running().fail("worker-0", code=3).change("worker-0", **SIDECAR)
    assert names(settle(scene)) == ["worker-0"], "it is replaced"


@pytest.mark.parametrize(
    ("policy", "result", "removed"),
    [
        ("None", "Failed", []),
        ("Running", "Failed", ["ps-0", "worker-2"]),
        ("All", "Failed", ["ps-0", "worker-0", "worker-1", "worker-2"]),
        ("None", "Succeeded", []),
        ("Running", "Succeeded", ["ps-0"]),
        ("All", "Succeeded", ["ps-0", "worker-0", "worker-1", "worker-2"]),
    ],
)
def test_the_policy_says_which_pods_go_at_either_end(policy: str, result: str, removed: list[str]) -> None:
    scene = Scene(a_spec(workers=3, runPolicy={"cleanPodPolicy": policy, "backoffLimit": 0})).running()
    scene.succeed("worker-0")
    if result == "Failed":
        scene.fail("worker-1", code=3)
    else:
        scene.succeed("worker-1", "worker-2", "ps-0")
    decision = settle(scene)
    assert (scene.state.result, names(decision)) == (result, removed)
    for name in removed:
        scene.change(name, terminating=scene.now + 30)
    assert decide(scene.observed).delete == ()


@pytest.mark.parametrize(
    ("policy", "lingers", "shown"),
    [("None", True, True), ("Running", False, True), ("Running", True, False), ("All", False, False)],
)
def test_logs_are_pointed_to_only_if_they_stay(policy: str, lingers: bool, shown: bool) -> None:
    scene = Scene(a_spec(runPolicy={"cleanPodPolicy": policy, "backoffLimit": 0})).running()
    scene.fail("worker-1", code=3).change("worker-1", lingers=lingers)
    settle(scene)
    assert ("kubectl logs -n team digits-worker-1" in scene.state.message) == shown


def test_the_logs_of_an_init_container_are_named() -> None:
    scene = Scene(a_spec(runPolicy={"backoffLimit": 0})).running()
    scene.change("worker-1", phase="Failed", end=End(3, message="no such bucket", container="fetch"))
    settle(scene)
    assert scene.state.reason == "InitContainerFailed"
    assert scene.state.message.startswith("worker-1's init container fetch ended with exit code 3: no such bucket. ")
    assert scene.state.message.endswith("kubectl logs -n team digits-worker-1 -c fetch")


def test_pods_of_a_new_worker_are_not_mistaken_for_ended_ones() -> None:
    scene = Scene(a_spec(workers=3, strategy="Asynchronous")).running().succeed("worker-2")
    settle(scene)
    scene.fail("worker-1")
    settle(scene)
    del scene.pods["worker-1"], scene.pods["worker-2"]
    scene.now += 10
    assert settle(scene).create == ((Role.WORKER, 1),)
