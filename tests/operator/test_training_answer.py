"""What a training tells of itself is read with care: pods are not trusted."""

import json
from dataclasses import replace
from typing import Any

import pytest

from paceline_core.attribution import Cause
from paceline_operator.decisions import training_answer
from paceline_operator.decisions.goodput import TimeSpent
from paceline_operator.decisions.training_answer import SlowWorker, Straggler, TrainingProgress
from tests.operator.builders import Scene
from tests.operator.test_status import STRAGGLER, status_of

AT = 1_764_000_000.0
GOODPUT = {"seconds": 9.0, "productive": 5.0, "lost": {"startup": 3.0, "straggler": 1.0}}
FOUND = {
    "worker": 1,
    "lag_share": 0.9,
    "lag_seconds": 0.03,
    "round_seconds": 0.05,
    "cost": 0.4,
    "cause": "data",
    "since": 9,
}


def said(**worker: Any) -> dict[str, Any]:
    given = {"worker": 0, "state": "training", "step": 3, "total_steps": 9, "loss": 0.5, "reported": {"a": 1}}
    return {"workers": [given | worker], "verdict": None, "missing": []}


def test_an_answer_of_an_older_trainer_is_understood() -> None:
    found = TrainingProgress.from_status(said() | {"verdict": {"worker": 1, "lag_share": 0.9, "lag_seconds": 0.03}}, AT)
    assert found == TrainingProgress(3, 9, 0.5, {"a": 1.0}, STRAGGLER, None, True)
    assert found.time_spent == TimeSpent(None, 3, AT)


def test_an_answer_tells_of_time_and_verdict() -> None:
    found = TrainingProgress.from_status(said() | {"verdict": FOUND, "goodput": GOODPUT}, AT)
    assert found.straggler == Straggler("worker-1", 0.9, 0.03, 0.05, 0.4, Cause.DATA, 9.0)
    assert found.time_spent == TimeSpent({"productive": 5.0, "straggler": 1.0}, 3, AT), (
        "what was before, the operator sees itself"
    )


def test_the_slowest_of_the_slow_is_named() -> None:
    workers = [said(worker=i)["workers"][0] | {"step_seconds": i / 10, "verdicts": ["slow"]} for i in range(3)]
    workers[1] |= {"step_seconds": 9.0, "verdicts": ["slow", "stale"], "cause": "send"}
    assert TrainingProgress.from_status(said() | {"workers": workers}, AT).slow_worker == SlowWorker(
        "worker-1", True, Cause.SEND
    )


def test_a_loss_that_is_not_a_number_is_left_out() -> None:
    assert TrainingProgress.from_status(said(), AT).loss == 0.5
    found = TrainingProgress.from_status(
        said(loss=float("nan"), reported={"a": float("inf"), "b": 2, "c": None, "loss": 7}), AT
    )
    assert (found.loss, found.reported, found.step) == (None, {"b": 2.0}, 3)


ODD = [
    None,
    "x",
    "9",
    -1,
    -0.5,
    2,
    float("nan"),
    float("inf"),
    -float("inf"),
    1e300,
    10**400,
    True,
    [],
    [1],
    {},
    {"a": 1},
]


@pytest.mark.parametrize("odd", ODD, ids=lambda v: str(v)[:9])
@pytest.mark.parametrize(
    "path",
    [
        *(("verdict", name) for name in FOUND),
        *(("goodput", name) for name in GOODPUT),
        *(("goodput", "lost", name) for name in ("startup", "straggler", "made up")),
        *(
            ("workers", 0, name)
            for name in ("step", "total_steps", "loss", "reported", "cause", "verdicts", "worker", "state")
        ),
        *(("workers", 0, "reported", name) for name in ("loss", "a", "n" * 10_000)),
        *((name,) for name in ("workers", "verdict", "goodput", "missing")),
    ],
    ids=lambda path: ".".join(map(str, path))[:40],
)
def test_no_answer_breaks_a_status(path: tuple[Any, ...], odd: Any) -> None:
    """Either it is refused, or the status that comes of it is one that the API server takes."""
    whole: Any = said() | {"verdict": dict(FOUND), "goodput": json.loads(json.dumps(GOODPUT))}
    place = whole
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = odd
    try:
        progress = TrainingProgress.from_status(whole, AT)
    except training_answer.WRONG:
        return
    scene = Scene().running()
    first = status_of(scene, progress)
    scene.now += 100
    second = status_of(
        scene, replace(progress, time_spent=progress.time_spent and replace(progress.time_spent, at=scene.now)), first
    )
    json.dumps(second, allow_nan=False)
    assert 0 <= second["step"] < 2**63
    assert 0 <= second["goodput"]["productiveSeconds"] <= 160
    assert len(json.dumps(second)) < 10_000


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"workers": 1},
        said(step="x"),
        said(step=-1),
        said(step=float("inf")),
        said(loss="x"),
        said(reported=[1]),
        said() | {"verdict": {"worker": 1}},
        said() | {"verdict": FOUND | {"lag_share": float("nan")}},
        [],
        None,
    ],
)
def test_what_is_not_a_status_is_refused(wrong: Any) -> None:
    with pytest.raises(training_answer.WRONG):
        TrainingProgress.from_status(wrong, AT)
