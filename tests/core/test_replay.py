"""A recorded order is followed exactly, however the pushes arrive."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_core.errors import ReplayError
from paceline_core.replay import Entry, entries, follow
from paceline_core.strategy import Joined, Knobs, Pushed, Reject, Reply, start

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
