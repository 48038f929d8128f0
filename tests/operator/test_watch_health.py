"""Health of the watches."""

import pytest

from paceline_operator.kubernetes_api.watch_health import WatchHealth
from paceline_operator.observability.metrics import Metrics
from tests.operator.builders import value


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def a_watch() -> tuple[WatchHealth, Clock, Metrics]:
    clock, metrics = Clock(), Metrics()
    return WatchHealth("pods", metrics, clock), clock, metrics


def test_a_watch_that_is_dead_is_noticed() -> None:
    watch, clock, _ = a_watch()
    watch.seen("a", "1")
    for version in ("1", "2", "3", "3"):
        watch.listed({"a": version})
        assert watch.problem is None, "the watch may be a little late"
        clock.now += 20
    watch.listed({"a": "3"})
    assert watch.problem == "the watch did not tell of 1 changed pods"
    watch.seen("a", "3")
    assert watch.problem is None


def test_an_object_that_is_gone_says_nothing_of_the_watch() -> None:
    watch, clock, _ = a_watch()
    watch.listed({"a": "1"})
    clock.now += 100
    watch.listed({"b": "2"})
    clock.now += 100
    assert watch.problem is None


def heard(metrics: Metrics) -> float | None:
    return value(metrics, "paceline_operator_last_watch_event_timestamp_seconds", resource="pods")


def test_the_watch_is_fresh_when_a_list_shows_nothing_new() -> None:
    watch, clock, metrics = a_watch()
    assert heard(metrics) is None
    watch.checked()
    quiet = heard(metrics)
    assert quiet is not None, "nothing was listed, and nothing was missed"
    for _ in range(2):
        watch.listed({"a": "1"})
        clock.now += 60
    watch.checked()
    assert heard(metrics) == quiet, "it is dead"
    watch.seen("a", "1")
    again = heard(metrics)
    assert again is not None
    assert again > quiet


@pytest.mark.parametrize(
    ("told", "restarts"),
    [
        ("a b c", 0),  # the list that the first watch begins with
        ("a b c a b c", 1),
        ("a b c c a b c a", 2),
        ("a b +d d a b", 1),  # an object that came after the list
        ("a -a a", 0),
        ("a -a +b b b", 2),
        ("a b d a b d", 1),
    ],
)
def test_lists_of_known_objects_are_restarts_of_the_watch(told: str, restarts: int) -> None:
    """`a` is in a list, `+a` is told by the watch, `-a` is gone."""
    watch, _, metrics = a_watch()
    for word in told.split():
        watch.seen(word.strip("+-"), None if word[0] == "-" else "1", first=word[0] not in "+-")
    assert (value(metrics, "paceline_operator_watch_restarts_total", resource="pods") or 0) == restarts
