"""The state machine against executable models, for every strategy."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_core.spec import ParameterServer
from paceline_core.state_machine import Admit, Apply, Joined, Knobs, Left, Pushed, Reject, Repeat, Reply, start
from paceline_core.strategies import STRATEGIES

LR = 0.25


def formed(chosen: Knobs, workers: int):
    state = start(chosen, workers)
    for worker in range(workers):
        state, actions = state.advance(Joined(worker, 0))
    assert [type(a) for a in actions] == [Admit] * workers
    return state


def gradient(parameter: float, worker: int, step: int) -> float:
    return parameter * 0.5 + worker - 0.125 * step


class Worker:
    """A worker that computes from the parameters that it was last given."""

    def __init__(self, number: int) -> None:
        self.number, self.step, self.version, self.parameter, self.waits = number, 0, 0, 1.0, False

    def push(self) -> tuple[Pushed, float]:
        self.step, self.waits = self.step + 1, True
        value = gradient(self.parameter, self.number, self.step)
        return Pushed(self.number, 0, self.step, self.version), value


@settings(max_examples=2000, deadline=None)
@given(order=st.lists(st.integers(0, 3), max_size=40), bound=st.integers(0, 5))
def test_asynchronous_is_the_delayed_gradient_rule(order: list[int], bound: int) -> None:
    """P(n + 1) = P(n) - lr * g(P(n - d)), and never d > maxStaleness."""
    state = formed(Knobs(quorum=1, greatest_delay=bound), 4)
    workers, history = [Worker(i) for i in range(4)], [1.0]
    for number in order:
        push, value = workers[number].push()
        delay = len(history) - 1 - push.version
        state, actions = state.advance(push)
        if delay > bound:
            assert actions == (Reject(number, 0, push.step, "stale", len(history) - 1, delay),)
        else:
            assert value == gradient(history[len(history) - 1 - delay], number, push.step)
            history.append(history[-1] - LR * value)
            new = len(history) - 1
            assert actions == (Apply(new, (push,), 1.0), Reply(number, 0, push.step, new, delay))
        workers[number].version, workers[number].parameter = state.version, history[-1]
    assert state.version == len(history) - 1


@settings(max_examples=500, deadline=None)
@given(orders=st.lists(st.permutations(range(4)), max_size=8))
def test_synchronous_applies_everyone_in_worker_order(orders: list[list[int]]) -> None:
    state = formed(Knobs(), 4)
    for step, order in enumerate(orders, start=1):
        for position, worker in enumerate(order):
            assert state.waiting_for() == tuple(sorted(order[position:]))
            state, actions = state.advance(Pushed(worker, 0, step, step - 1))
            assert bool(actions) == (position == 3)
        assert isinstance(actions[0], Apply)
        assert [p.worker for p in actions[0].pushes] == [0, 1, 2, 3]
        assert [a.worker for a in actions[1:]] == [0, 1, 2, 3]


@settings(max_examples=500, deadline=None)
@given(order=st.lists(st.integers(0, 3), max_size=60), bound=st.integers(0, 3))
def test_clock_bound_keeps_workers_together(order: list[int], bound: int) -> None:
    state = formed(Knobs(quorum=1, clock_bound=bound), 4)
    steps, waiting = [0] * 4, [False] * 4
    for worker in order:
        if waiting[worker]:
            continue
        steps[worker], waiting[worker] = steps[worker] + 1, True
        state, actions = state.advance(Pushed(worker, 0, steps[worker], state.version))
        for action in actions:
            if isinstance(action, Reply):
                waiting[action.worker] = False
                assert action.version == state.version
        free = [s for s, w in zip(steps, waiting, strict=True) if not w]
        assert max(free, default=0) <= min(steps) + bound
    assert not all(waiting)


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_strategy_decides_each_push_once_and_answers_it(strategy: str, data: st.DataObject) -> None:
    """The contract of a strategy: random pushes, retries, departures and replacements."""
    state = formed(ParameterServer(strategy=strategy).knobs(3), 3)
    step, incarnation, applied, answered = [0] * 3, [0] * 3, [], []
    waits, gone, version = [False] * 3, [False] * 3, [0] * 3
    for _ in range(data.draw(st.integers(0, 30))):
        worker = data.draw(st.integers(0, 2))
        kind = data.draw(st.sampled_from(["push"] * 6 + ["retry", "leave", "join"]))
        if kind == "leave" and not gone[worker]:
            event, gone[worker] = Left(worker, incarnation[worker]), True
        elif kind == "join":
            incarnation[worker] += 1
            step[worker], waits[worker], gone[worker] = 0, False, False
            event = Joined(worker, incarnation[worker])
        elif kind == "retry" and step[worker] and not gone[worker]:
            event = Pushed(worker, incarnation[worker], step[worker], version[worker])
        elif kind == "push" and not waits[worker] and not gone[worker]:
            step[worker], waits[worker] = step[worker] + 1, True
            event = Pushed(worker, incarnation[worker], step[worker], version[worker])
        else:
            continue
        before = state.version
        state, actions = state.advance(event)
        for action in actions:
            match action:
                case Apply(new, pushes, _):
                    before += 1
                    assert new == before
                    applied += [(p.worker, p.incarnation, p.step) for p in pushes]
                case Reply(who, inc, number, new, _) | Reject(who, inc, number, _, new, _):
                    answered.append((who, inc, number))
                    if inc == incarnation[who]:
                        waits[who], version[who] = False, new
                case Admit(who, _, new):
                    version[who] = new
                case Repeat():
                    assert kind == "retry"
        assert before == state.version
    assert len(set(applied)) == len(applied)
    assert len(set(answered)) == len(answered)
    for worker in range(3):
        if waits[worker] and not gone[worker]:
            assert worker not in state.waiting_for()


def test_a_departure_completes_the_round() -> None:
    state = formed(Knobs(), 3)
    for worker in (0, 2):
        state, _ = state.advance(Pushed(worker, 0, 1, 0))
    state, actions = state.advance(Left(1, 0))
    assert isinstance(actions[0], Apply)
    assert [p.worker for p in actions[0].pushes] == [0, 2]


def test_a_push_of_an_older_incarnation_is_refused() -> None:
    state = formed(Knobs(quorum=1), 2)
    state, actions = state.advance(Joined(1, 1))
    assert actions == (Admit(1, 1, 0),)
    state, actions = state.advance(Pushed(1, 0, 1, 0))
    assert [a.reason for a in actions if isinstance(a, Reject)] == ["incarnation"]
