"""Which lost worker is replaced alone, where the others wait for it."""

from dataclasses import replace

import pytest

from paceline_core.launch import Role
from paceline_operator.decisions.decide import decide
from tests.operator.builders import Scene, a_spec
from tests.operator.test_decide import VICTIM, names, settle

SAVES = {"everySteps": 50, "to": "/checkpoints"}


def waiting(replaceable: set[int]) -> Scene:
    """A training whose workers wait for one in a lost one's place."""
    scene = Scene(a_spec(workers=3, strategy="Synchronous", checkpoint=SAVES)).running()
    scene.replaceable = frozenset(replaceable)
    return scene


def test_a_worker_whose_place_is_kept_is_replaced_alone() -> None:
    scene = waiting({0, 1, 2}).fail("worker-1", code=137)
    assert names(settle(scene)) == ["worker-1"]
    del scene.pods["worker-1"]
    scene.now += 2
    assert decide(scene.observed).create == ((Role.WORKER, 1),)
    assert (scene.state.attempt, scene.state.restarts) == (0, 1)


def test_a_worker_whose_place_is_not_kept_takes_everything_with_it() -> None:
    scene = waiting({0, 2}).fail("worker-1", code=137)
    assert names(settle(scene)) == ["ps-0", "worker-0", "worker-1", "worker-2"]
    assert scene.state.restarts == 1


def test_who_waited_in_vain_is_not_replaced_one_after_the_other() -> None:
    scene = waiting({0, 1, 2}).fail("worker-0", details=VICTIM)
    scene.now += 10
    assert names(settle(scene)) == ["ps-0", "worker-0", "worker-1", "worker-2"]


@pytest.mark.parametrize(("replaceable", "created"), [({0, 1, 2}, 1), ({0, 2}, 0)])
def test_a_pod_that_has_gone_unseen_is_made_anew_where_its_place_is_kept(replaceable: set[int], created: int) -> None:
    scene = waiting(replaceable)
    del scene.pods["worker-1"]
    decision = settle(scene)
    assert len(decision.create) == created
    assert (scene.state.broken is None) == bool(created)


@pytest.mark.parametrize("joined", [True, False])
def test_what_is_not_known_yet_is_tried(joined: bool) -> None:
    """As by an operator that was just started; servers know, and fail where a worker cannot go on."""
    scene = waiting(set()).fail("worker-1", code=137)
    scene.replaceable, scene.state = None, replace(scene.state, joined=joined)
    assert (names(settle(scene)) == ["worker-1"]) == joined


def test_without_checkpoints_everything_begins_anew() -> None:
    scene = Scene(a_spec(workers=3, strategy="Synchronous")).running().fail("worker-1", code=137)
    scene.replaceable = frozenset({0, 1, 2})
    assert names(settle(scene)) == ["ps-0", "worker-0", "worker-1", "worker-2"]


def test_a_replacement_that_waits_for_its_time_is_no_second_failure() -> None:
    scene = waiting({0, 1, 2}).fail("worker-1", code=137)
    settle(scene)
    del scene.pods["worker-1"]
    scene.replaceable = frozenset({0, 2})
    settle(scene)
    assert scene.state.broken is None


def test_all_processes_of_a_pod_need_a_place() -> None:
    raw = a_spec(workers=2, strategy="Synchronous", checkpoint=SAVES)
    raw["workers"]["processesPerReplica"] = 2
    for replaceable, alone in (({0, 1, 2}, False), ({0, 1, 2, 3}, True)):
        scene = Scene(raw).running().fail("worker-1", code=137)
        scene.replaceable = frozenset(replaceable)
        assert (names(settle(scene)) == ["worker-1"]) == alone
