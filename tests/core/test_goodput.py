"""Productive and lost time add up to the whole, whatever happens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_core.goodput import Goodput, Loss

SHARES = st.dictionaries(st.sampled_from(list(Loss)), st.floats(-0.5, 1.5), max_size=4)


@given(
    st.floats(0, 1e6),
    st.lists(st.tuples(st.floats(0, 1e4), SHARES), max_size=30),
    st.one_of(st.none(), st.floats(0, 1e4)),
)
def test_the_parts_are_the_whole(
    started: float, stretches: list[tuple[float, dict[Loss, float]]], rest: float | None
) -> None:
    it, at = Goodput(started), started
    for seconds, shares in stretches:
        at += seconds
        it.trained(at, shares)
    if rest is not None:
        at += rest
        it.ended(at)
    told = it.to_json()
    assert told["seconds"] == pytest.approx(at - started, abs=1e-6 * (1 + at))
    assert it.productive >= 0
    assert all(seconds >= 0 for seconds in it.lost.values())


def test_each_stretch_has_its_reason() -> None:
    it = Goodput(100.0)
    it.trained(130.0, {})  # the first update
    it.trained(140.0, {Loss.STRAGGLER: 0.3, Loss.DATA: 0.1})
    it.ended(145.0)
    assert it.to_json() == {
        "seconds": 45.0,
        "productive": 6.0,
        "lost": {"startup": 30.0, "straggler": 3.0, "data": 1.0, "shutdown": 5.0},
    }


def test_without_an_update_all_was_startup() -> None:
    it = Goodput(0.0)
    it.ended(7.0)
    assert it.to_json() == {"seconds": 7.0, "productive": 0.0, "lost": {"startup": 7.0}}
