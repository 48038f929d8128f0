"""The ledger of productive and lost time: everything adds up to the wall time, whenever answers come."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_operator.decisions.goodput import PRODUCTIVE, Ledger, Stage, TimeSpent, account, settled

START = 1_764_000_000.0
PENDING, STARTUP, RESTART, TRAINING, STOPPED = Stage
Observation = tuple[float, Stage, TimeSpent | None]


def spent(step: int, at: float | None, **seconds: float) -> TimeSpent:
    return TimeSpent(seconds, step, None if at is None else START + at)


def after(*observations: Observation) -> Ledger:
    """The ledger after observations at so many seconds from the start, each by an operator that was started for it."""
    ledger = Ledger(START)
    for seconds, stage, said in observations:
        ledger = account(ledger, stage, START + seconds, said)
        ledger = Ledger.from_status(json.loads(json.dumps(ledger.to_status())))
    return ledger


def parts(ledger: Ledger) -> dict[str, float]:
    return {reason: seconds for reason, seconds in ledger.seconds.items() if seconds}


FIRST: tuple[Observation, ...] = ((4, STARTUP, None), (12, TRAINING, spent(20, 12, productive=2)))
HISTORIES: dict[str, tuple[tuple[Observation, ...], dict[str, float]]] = {
    "nothing is accounted while the stage stays": (((100, PENDING, None),), {}),
    "pods run": (((4, STARTUP, None),), {"pending": 4}),
    "the workers train since before the operator heard of it": (FIRST, {"pending": 4, "startup": 6, "productive": 2}),
    "the first step takes long": (
        ((4, STARTUP, None), (60, TRAINING, spent(1, 60))),
        {"pending": 4, "startup": 56},
    ),
    "the split is what the training tells": (
        (*FIRST, (17, TRAINING, spent(40, 17, productive=4, straggler=2, data=1))),
        {"pending": 4, "startup": 6, "productive": 4, "straggler": 2, "data": 1},
    ),
    "an observation without news": (
        (*FIRST, (13, TRAINING, spent(20, 12, productive=2)), (14, TRAINING, None)),
        {"pending": 4, "startup": 6, "productive": 2},
    ),
    "unanswered polls": (
        (*FIRST, (17, STARTUP, None), (22, TRAINING, spent(90, 22, productive=8, straggler=4))),
        {"pending": 4, "startup": 6, "productive": 8, "straggler": 4},
    ),
    "an operator that was away from the first pods on": (
        ((3600, TRAINING, spent(90, 3600, productive=3000, data=500)),),
        {"pending": 100, "productive": 3000, "data": 500},
    ),
    "a process whose clock runs at half the speed": (
        (*FIRST, (22, TRAINING, spent(90, 22, productive=4, straggler=3))),
        {"pending": 4, "startup": 6, "productive": 6, "straggler": 6},
    ),
    "a process that says nothing of its time": (
        ((4, STARTUP, None), (9, TRAINING, TimeSpent(None, 3, START + 9)), (14, TRAINING, TimeSpent(None, 9, START + 14))),
        {"pending": 4, "startup": 5, "productive": 5},
    ),
    "the end": (
        (*FIRST, (15, TRAINING, spent(40, None, productive=4, shutdown=0.5)), (17, STOPPED, None)),
        {"pending": 4, "startup": 6, "productive": 4, "shutdown": 3},
    ),
    "the end, with termination message alone": (
        ((4, STARTUP, None), (17, STOPPED, spent(40, None, productive=8, shutdown=1))),
        {"pending": 4, "startup": 4, "productive": 8, "shutdown": 1},
    ),
    "the end without termination message": ((*FIRST, (15, STOPPED, None)), {"pending": 4, "startup": 6, "productive": 2, "shutdown": 3}),
    "finished is finished": (
        (*FIRST, (15, STOPPED, None), (500, STOPPED, spent(99, None, productive=90))),
        {"pending": 4, "startup": 6, "productive": 2, "shutdown": 3},
    ),
    "a failure before anything has trained": (((4, RESTART, None), (9, PENDING, None)), {"pending": 4}),
    "a restart is one until it trains": (
        (*FIRST, (14, RESTART, None), (20, PENDING, None), (30, STARTUP, None), (45, TRAINING, spent(5, 45, productive=3))),
        {"pending": 4, "startup": 6, "productive": 2, "restart": 30, "rework": 3},
    ),
    "rework ends at the step of the earlier attempt": (
        (*FIRST, (14, RESTART, None), (45, TRAINING, spent(40, 45, productive=2, straggler=2))),
        {"pending": 4, "startup": 6, "productive": 3, "restart": 29, "rework": 2, "straggler": 1},
    ),
    "what was told before the failure was noticed counts": (
        (*FIRST, (18, RESTART, spent(40, 16, productive=6))),
        {"pending": 4, "startup": 6, "productive": 6, "restart": 2},
    ),
    "the old attempt's servers may say more while they are taken away": (
        (*FIRST, (14, RESTART, None), (16, RESTART, spent(41, 16, productive=5))),
        {"pending": 4, "startup": 6, "productive": 2, "restart": 2},
    ),
    "a suspension counts as nothing, and its steps are repeated": (
        (*FIRST, (14, STOPPED, None), (1000, STOPPED, None), (2000, PENDING, None), (2003, STARTUP, None),
         (2010, TRAINING, spent(10, 2010, productive=3))),
        {"pending": 7, "startup": 10, "productive": 2, "shutdown": 2, "rework": 3},
    ),
    "a clock that goes back": (
        ((4, STARTUP, None), (3, PENDING, None), (2, STARTUP, None), (8, RESTART, None)),
        {"pending": 4, "startup": 4},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HISTORIES)
def test_where_the_time_went(name: str) -> None:
    observations, expected = HISTORIES[name]
    assert parts(after(*observations)) == pytest.approx(expected)


def test_time_that_is_not_accounted_yet_can_be_told() -> None:
    ledger = after((4, STARTUP, None))
    assert parts(settled(ledger, START + 9)) == {"pending": 4, "startup": 5}
    assert parts(settled(ledger, START + 2)) == {"pending": 4}
    training = after(*FIRST)
    assert settled(training, START + 90) == training, "only the training knows"


def test_the_share_is_shown() -> None:
    found = after(*FIRST, (22, TRAINING, spent(90, 22, productive=12))).to_status()
    assert (found["ratio"], found["summary"], found["productiveSeconds"]) == (0.5455, "55%", 12)
    assert found["lostSeconds"] == {"pending": 4, "startup": 6}
    assert found["accountedTime"] == "2025-11-24T16:00:22.000Z"
    assert "ratio" not in Ledger(START).to_status()


class Process:
    """Server 0 of one attempt: counts its own time, on a clock that need not be right."""

    def __init__(self, speed: float) -> None:
        self.speed, self.spent, self.step = speed, dict[str, float](), 0

    def live(self, seconds: float, reason: str) -> None:
        self.spent[reason] = self.spent.get(reason, 0.0) + seconds * self.speed
        self.step += int(seconds)


SECONDS = st.floats(0, 1000, allow_nan=False).map(lambda x: round(x, 4))
MOVES = st.sampled_from(["wait", "run", "train", "train", "train", "poll", "poll", "fail", "suspend", "resume"])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_everything_adds_up_to_the_wall_time(data: st.DataObject) -> None:
    """Any sequence of stages, answers (late, missing, from clocks that go wrong) and restarts of the operator."""
    now = START
    ledger, stage, process, stopped, paused_since = Ledger(START), PENDING, Process(1.0), 0.0, 0.0
    for _ in range(data.draw(st.integers(1, 40))):
        move, length = data.draw(MOVES), data.draw(SECONDS)
        said: TimeSpent | None = None
        now += length
        if stage is STOPPED:
            if move != "resume":
                continue
            stopped += now - paused_since
            stage, process = PENDING, Process(1.0)
        elif move == "train":
            process.live(length, data.draw(st.sampled_from([PRODUCTIVE, "straggler", "data", "rework"])))
        elif move == "poll":
            at = now - data.draw(st.floats(0, 10))
            said = TimeSpent(dict(process.spent) if data.draw(st.booleans()) else None, process.step, at)
            stage = TRAINING if said.begun and stage is not RESTART else stage
        elif move == "run" and stage is PENDING:
            stage = STARTUP
        elif move == "fail":
            stage = PENDING if stage is RESTART else RESTART
            process = Process(data.draw(st.sampled_from([0.5, 1.0, 1.0, 2.0])))
        elif move == "suspend":
            stage, paused_since = STOPPED, now
        before = ledger
        ledger = account(ledger, stage, now, said)
        if data.draw(st.booleans()):  # the operator is started anew, or forgets what it did not write
            ledger = Ledger.from_status(json.loads(json.dumps(ledger.to_status())))
        assert all(ledger.seconds.get(r, 0.0) >= s - 1e-9 for r, s in before.seconds.items()), (
            "time is never taken back"
        )
        assert ledger.until <= now + 1e-3
    if stage is STOPPED:
        stopped += now - paused_since
    last = TimeSpent(dict(process.spent), process.step, None) if data.draw(st.booleans()) else None
    ledger = account(ledger, STOPPED, now, last)
    assert ledger.total == pytest.approx(now - START - stopped, abs=0.01)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(SECONDS, st.sampled_from([PRODUCTIVE, "straggler", "data"]), st.booleans()), min_size=1))
def test_the_ledger_agrees_with_the_training(stretches: list[tuple[float, str, bool]]) -> None:
    """Whatever polls are answered, the end is exactly what the training told, and the rest was startup and shutdown."""
    process, ledger, now = Process(1.0), account(Ledger(START), STARTUP, START + 3), START + 10
    for length, reason, answered in stretches:
        process.live(length, reason)
        now += length
        said = TimeSpent(dict(process.spent), process.step, now) if answered else None
        ledger = account(ledger, TRAINING if said and said.begun else STARTUP, now, said)
    ledger = account(ledger, STOPPED, now, TimeSpent(dict(process.spent), process.step, None))
    expected: dict[str, Any] = {**process.spent, "pending": 3.0, "startup": 7.0}
    found = parts(ledger)
    for reason in {*expected, *found}:
        assert found.get(reason, 0.0) == pytest.approx(expected.get(reason, 0.0), abs=0.002 * len(stretches)), reason


def test_the_ledger_is_not_edited() -> None:
    ledger = after(*FIRST)
    copy = replace(ledger, seconds=dict(ledger.seconds), told=dict(ledger.told))
    account(ledger, RESTART, START + 90, spent(99, 90, productive=70))
    assert ledger == copy
