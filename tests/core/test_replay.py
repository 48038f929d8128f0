"""A recorded order is followed exactly, however the pushes arrive."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_core.errors import ReplayError
from paceline_core.replay import Entry, entries, follow
from paceline_core.spec import ParameterServer
from paceline_core.state_machine import Action, Event, Joined, Knobs, Left, Pushed, Reject, Reply, start
from paceline_core.strategies import STRATEGIES

KNOBS = Knobs(quorum=1, greatest_delay=2)
WORKERS = 3


def record(order: list[int]) -> tuple[list[Entry], list[object]]:
    state, log, actions = start(KNOBS, WORKERS), [], []
    for event in [Joined(w, 0) for w in range(WORKERS)]:
        state, done = state.advance(event)
        log += entries(done, event)
    version, step = [0] * WORKERS, [0] * WORKERS
    for worker in order:
        step[worker] += 1
        event = Pushed(worker, 0, step[worker], version[worker])
        state, done = state.advance(event)
        version[worker] = state.version
        log += entries(done, event)
        actions += done
    return log, actions


@settings(max_examples=300, deadline=None)
@given(order=st.lists(st.integers(0, WORKERS - 1), max_size=30), data=st.data())
def test_replay_repeats_the_decisions_in_any_order_of_arrival(order: list[int], data: st.DataObject) -> None:
    log, expected = record(order)
    state, done = follow(log, KNOBS, WORKERS), []
    for worker in range(WORKERS):
        state, _ = state.advance(Joined(worker, 0))
    version, step, left = [0] * WORKERS, [0] * WORKERS, [order.count(w) for w in range(WORKERS)]
    free = {w for w in range(WORKERS) if left[w]}
    while free:
        worker = data.draw(st.sampled_from(sorted(free)))
        free.remove(worker)
        step[worker], left[worker] = step[worker] + 1, left[worker] - 1
        state, actions = state.advance(Pushed(worker, 0, step[worker], version[worker]))
        done += actions
        for action in actions:
            if isinstance(action, Reply | Reject):
                version[action.worker] = action.version
                if left[action.worker]:
                    free.add(action.worker)
    assert done == expected


class Script:
    """What each worker's script does: so many steps, then it leaves; an event comes when the last was answered."""

    def __init__(self, steps: list[int]) -> None:
        self.left, self.step, self.version = list(steps), [0] * len(steps), [0] * len(steps)
        self.free = set(range(len(steps)))

    def event(self, worker: int) -> Event:
        self.free.remove(worker)
        if not self.left[worker]:
            return Left(worker, 0)
        self.left[worker], self.step[worker] = self.left[worker] - 1, self.step[worker] + 1
        return Pushed(worker, 0, self.step[worker], self.version[worker])

    def hear(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Reply | Reject):
                self.version[action.worker] = action.version
                self.free.add(action.worker)


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=300, deadline=None)
@given(steps=st.lists(st.integers(0, 6), min_size=2, max_size=4), data=st.data())
def test_a_run_of_every_strategy_is_followed_to_its_end(strategy: str, steps: list[int], data: st.DataObject) -> None:
    """Workers leave at different times; whoever leaves may be the one that the others' update waited for."""
    knobs = ParameterServer(strategy=strategy).knobs(len(steps))

    def joined(state: Any) -> Any:
        for worker in range(len(steps)):
            state, _ = state.advance(Joined(worker, 0))
        return state

    live, script, expected = joined(start(knobs, len(steps))), Script(steps), []
    log = [Entry("join", 0, w, 0, 0, 0, "") for w in range(len(steps))]
    while script.free:
        event = script.event(data.draw(st.sampled_from(sorted(script.free))))
        live, actions = live.advance(event)
        script.hear(actions)
        log += entries(actions, event)
        expected += actions
    again, script, done = joined(follow(log, knobs, len(steps))), Script(steps), []
    while script.free:
        again, actions = again.advance(script.event(data.draw(st.sampled_from(sorted(script.free)))))
        script.hear(actions)
        done += actions
    assert done == expected


def test_who_leaves_before_its_recorded_steps_is_named() -> None:
    state = follow(record([0, 1, 0])[0], KNOBS, WORKERS)
    for worker in range(WORKERS):
        state, _ = state.advance(Joined(worker, 0))
    state, _ = state.advance(Pushed(0, 0, 1, 0))
    with pytest.raises(ReplayError, match="worker-0 left, but made step 2 in the recorded run"):
        state.advance(Left(0, 0))


def test_a_push_that_was_not_recorded_is_named() -> None:
    log, _ = record([0, 1])
    state = follow(log, KNOBS, WORKERS)
    for worker in range(WORKERS):
        state, _ = state.advance(Joined(worker, 0))
    state, _ = state.advance(Pushed(0, 0, 1, 0))
    state, _ = state.advance(Pushed(1, 0, 1, 0))
    with pytest.raises(ReplayError, match="step 1 of worker-2"):
        state.advance(Pushed(2, 0, 1, 0))


def test_a_run_of_other_workers_is_refused() -> None:
    with pytest.raises(ReplayError, match="4 workers"):
        follow(record([])[0], KNOBS, 4)
