"""Where workers are, as shard 0 keeps it for those that go on in their place."""

from typing import Any

import pytest

from paceline.server.membership.places import Places
from paceline.wire.frames import FrameKind, Header


def told(step: int, incarnation: int = 0, worker: int = 1, optimizers: int = 1) -> Header:
    return Header(FrameKind.KEPT, b"0" * 16, worker, incarnation, step, bucket=optimizers)


def test_who_goes_on_repeats_a_step_at_least() -> None:
    places = Places()
    for step in (0, 4, 7):
        places.hear(told(step), b"%d" % step)
    assert [places.of(1, 1, made) for made in (9, 8, 7, 4)] == [b"7", b"7", b"4", b"7"]
    assert places.at(1, 7) == b"7"
    assert places.at(1, 0) is None, "two are kept"


def test_every_optimizer_repeats_one() -> None:
    places = Places()
    for step in (4, 6):
        places.hear(told(step, optimizers=2), b"%d" % step)
    assert [places.of(1, 1, made) for made in (6, 7, 8)] == [b"4", b"4", b"6"]


def test_before_the_first_update_the_beginning_is_the_place() -> None:
    places = Places()
    places.hear(told(0), b"begin")
    assert places.of(1, 1, 0) == b"begin"


def test_a_process_goes_on_in_the_place_of_an_earlier_one_alone() -> None:
    places = Places()
    places.hear(told(3, incarnation=5), b"3")
    assert places.of(1, 5, 4) == b""
    assert places.of(2, 6, 4) == b""
    places.hear(told(9, incarnation=4), b"late, of one whose place was taken")
    assert places.of(1, 6, 10) == b"3"


def test_it_takes_the_place_once_however_often_it_connects() -> None:
    places = Places()
    assert [places.begins(1, its) for its in (2, 2, 5, 5, 5, 7)] == [False, False, True, False, False, True]


def test_a_place_that_has_grown_too_large_is_forgotten() -> None:
    places = Places()
    places.hear(told(3), b"3")
    places.hear(told(5), b"")
    assert places.of(1, 1, 6) == b""


SEQUENCES: dict[
    str, tuple[int, list[Any], list[int]]
] = {  # optimizers; "ask", or an optimizer that steps; steps of places
    "a step for each batch": (1, ["ask", 0, "ask", 0, "ask", "ask"], [0, 1, 2]),
    "four batches for a step": (1, ["ask", "ask", "ask", "ask", 0, "ask", "ask", "ask", "ask", 0, "ask"], [0, 1, 2]),
    "two steps with a batch": (1, ["ask", 0, 0, "ask", 0, 0, "ask"], [0, 2, 4]),
    "two optimizers": (2, ["ask", 0, 1, "ask", 0, 1, "ask"], [0, 2, 4]),
    "three steps of one for each of the other": (2, ["ask", 0, "ask", 0, "ask", 0, 1, "ask", 0, "ask"], [0, 4]),
    "evaluation before training": (1, ["ask", "ask", "ask", 0, "ask"], [0, 1]),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_places_are_kept_where_a_step_has_just_ended(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from paceline.worker import own_state
    from paceline.worker.data.epochs import Pass

    class Sets:
        def places(self) -> dict[int, Any]:
            return {}

        def training(self) -> bool:
            return False

    class Trained:
        number, shared = 0, (0, 0)
        optimizer: Any = type("", (), {"param_groups": ()})()

    count, sequence, expected = SEQUENCES[name]
    monkeypatch.setattr(own_state, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(own_state, "KEEP_SECONDS_EACH", 0.0)
    monkeypatch.setattr(own_state, "KEEP_SHARE", 0)
    state, kept, trained = own_state.OwnState(Sets()), list[int](), [Trained() for _ in range(count)]  # type: ignore[arg-type]
    state.keep(lambda step, *_: kept.append(step), 2)
    state.begin(trained, lambda *_: None, b"")
    it = Pass(0, steps=1)
    for event in sequence:
        if event == "ask":
            state.asks(0, it)
        else:
            state.step_begins(event)
            trained[event].number += 1
            state.step_ended(event, 0)
    assert kept == expected
