"""Who is named, and why: tables and models over rounds."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_core.attribution import (
    FEWEST_ROUNDS,
    MOST_ROUNDS,
    WINDOW_SECONDS,
    Cause,
    Lags,
    by_arrival,
    by_wait,
    cause,
    outstanding,
    own_seconds,
)


def rounds(
    lags: Lags, arrivals: dict[int, float], count: int = FEWEST_ROUNDS, period: float = 1.0, start: float = 0.0
) -> float:
    """`count` rounds alike; gives the time of the last."""
    for number in range(1, count + 1):
        at = start + number * period
        shifted = {w: at - max(arrivals.values()) + t for w, t in arrivals.items()}
        lags.add(by_arrival(shifted, at - period, at))
    return start + count * period


@pytest.mark.parametrize(
    ("arrivals", "named"),
    [
        ({0: 0.0, 1: 0.01, 2: 0.02, 3: 0.4}, 3),  # one is late by 40 % of the round
        ({0: 0.0, 1: 0.0, 2: 0.0, 3: 0.19}, None),  # all lag is its, but it is below a fifth of the round
        ({0: 0.0, 1: 0.0, 2: 0.0, 3: 0.21}, 3),
        ({0: 0.0, 1: 0.0, 2: 0.4, 3: 0.4}, None),  # two share it
        ({0: 0.0, 1: 0.5}, 1),
        ({0: 0.3, 1: 0.3, 2: 0.3}, None),
    ],
)
def test_a_worker_is_named_for_most_of_a_lag_that_matters(arrivals: dict[int, float], named: int | None) -> None:
    lags = Lags()
    rounds(lags, arrivals)
    found = lags.recent.verdict()
    assert (found.worker if found else None) == named


def test_the_verdict_tells_lag_and_cost() -> None:
    lags = Lags()
    rounds(lags, {0: 0.0, 1: 0.1, 2: 0.2, 3: 0.6})
    found = lags.recent.verdict()
    assert found is not None
    assert found.lag_seconds == pytest.approx(0.45)  # after the median, 0.15
    assert found.lag_share == pytest.approx(0.45 / 0.5)
    assert found.cost == pytest.approx(0.4)  # of each second, until worker 2 is the last


def test_nobody_is_named_after_too_few_rounds() -> None:
    lags = Lags()
    rounds(lags, {0: 0.0, 1: 0.9}, FEWEST_ROUNDS - 1)
    assert lags.recent.verdict() is None
    rounds(lags, {0: 0.0, 1: 0.9}, 1)
    assert lags.recent.verdict() is not None


def test_what_is_old_is_forgotten_in_the_window_but_not_in_the_whole() -> None:
    lags = Lags()
    end = rounds(lags, {0: 0.0, 1: 0.0, 2: 0.9}, 100, period=1.0)
    rounds(lags, {0: 0.0, 1: 0.0, 2: 0.0}, int(WINDOW_SECONDS) + 2, period=1.0, start=end)
    assert lags.recent.verdict() is None
    assert lags.whole.verdict() is not None
    assert lags.recent.last[2] == 0 or lags.recent.rounds == sum(lags.recent.last.values())


@given(st.lists(st.tuples(st.lists(st.floats(0, 5), min_size=3, max_size=3), st.floats(0.01, 30)), max_size=80))
def test_the_window_is_the_sum_of_its_rounds(given_rounds: list[tuple[list[float], float]]) -> None:
    lags, at, kept = Lags(), 0.0, []
    for times, seconds in given_rounds:
        at += seconds
        each = by_arrival(dict(enumerate(times)), at - seconds, at)
        lags.add(each)
        kept.append(each)
        while len(kept) > MOST_ROUNDS or (len(kept) > FEWEST_ROUNDS and kept[0].at < at - WINDOW_SECONDS):
            kept.pop(0)
    assert lags.recent.rounds == len(kept)
    assert lags.whole.rounds == len(given_rounds)
    for worker in range(3):
        assert lags.recent.lag[worker] == pytest.approx(sum(r.lags[worker] for r in kept), abs=1e-6)
        assert lags.recent.last[worker] == sum(r.last == worker for r in kept)
    assert lags.recent.seconds == pytest.approx(sum(r.seconds for r in kept), abs=1e-6)


@given(st.dictionaries(st.integers(0, 20), st.floats(0, 10), min_size=2))
def test_a_rounds_lags_are_what_the_definition_says(times: dict[int, float]) -> None:
    median = statistics.median(times.values())
    arrived, waited = by_arrival(times, 0.0, 10.0), by_wait(times, 10.0, 10.0)
    assert arrived.lags == {w: max(0.0, t - median) for w, t in times.items()}
    assert waited.lags == {w: max(0.0, median - t) for w, t in times.items()}
    assert times[arrived.last] == max(times.values())
    assert times[waited.last] == min(times.values())
    assert min(arrived.gap, waited.gap, arrived.waited, waited.waited) >= 0
    assert arrived.spread == pytest.approx(waited.spread)


USUAL = {"data": 0.01, "forward": 0.1, "backward": 0.2, "encode": 0.001, "send": 0.01, "wait": 0.1, "receive": 0.02}


@pytest.mark.parametrize(
    ("more", "late", "expected"),
    [
        ({"data": 0.2}, 0.2, Cause.DATA),
        ({"forward": 0.1, "backward": 0.1}, 0.2, Cause.COMPUTE),
        ({"other": 0.2}, 0.2, Cause.COMPUTE),  # the script's own work between Paceline's marks
        ({"send": 0.2}, 0.2, Cause.SEND),
        ({"encode": 0.2}, None, Cause.SEND),
        ({"data": 0.2, "send": 0.05}, None, Cause.DATA),
        ({"wait": 0.2}, 0.2, Cause.UNKNOWN),  # nothing of its own is longer
        ({"data": 0.05}, 0.2, Cause.UNKNOWN),  # too little to explain it
        ({}, 0.2, Cause.UNKNOWN),
    ],
)
def test_the_cause_is_the_part_that_is_longer(more: dict[str, float], late: float | None, expected: Cause) -> None:
    phases = {w: dict(USUAL) for w in range(4)}
    phases[2] = {p: USUAL.get(p, 0.0) + more.get(p, 0.0) for p in {*USUAL, *more}}
    assert cause(2, phases, late) is expected


def test_there_is_no_cause_without_others() -> None:
    assert cause(0, {0: USUAL}) is Cause.UNKNOWN
    assert cause(1, {0: USUAL}) is Cause.UNKNOWN


def test_what_a_worker_does_by_itself_is_all_but_waiting() -> None:
    assert own_seconds(USUAL) == pytest.approx(sum(USUAL.values()) - 0.12)


@given(st.lists(st.one_of(st.none(), st.floats(0, 100)), max_size=12), st.floats(0, 5))
def test_who_stands_out_is_told_by_the_median_of_the_others(values: list[float | None], least: float) -> None:
    expected = set()
    for worker, value in enumerate(values):
        others = [v for w, v in enumerate(values) if w != worker and v is not None]
        if value is not None and others:
            usual = statistics.median(others)
            if value > 1.25 * usual and value - usual > least:
                expected.add(worker)
    assert outstanding(dict(enumerate(values)), least) == expected
