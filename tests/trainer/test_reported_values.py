"""What a script reports is checked where it is reported: training goes on, whatever it is."""

import logging
import math
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paceline.worker.observability.reported_values import MOST_NAMES, ReportedValues
from paceline_core.modes import MODES

from .conftest import Run
from .inprocess import Served, Trainee


class Refuses:
    def __float__(self) -> float:
        raise RuntimeError("no number today")


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0), (0.5, 0.5), (True, 1.0), (math.inf, math.inf), (Fraction(1, 2), 0.5), (Decimal("0.5"), 0.5),
        (np.float32(0.5), 0.5), (np.array(0.5), 0.5), (np.array([[0.5]]), 0.5), (np.int64(3), 3.0), (np.True_, 1.0),
        (torch.tensor(0.5), 0.5), (torch.tensor([[0.5]], requires_grad=True), 0.5), (torch.tensor(3), 3.0),
        (torch.tensor(True), 1.0), (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.nn.Parameter(torch.ones(1)), 1.0),
    ],
)  # fmt: skip
def test_a_number_is_passed_on(value: Any, number: float, caplog: pytest.LogCaptureFixture) -> None:
    assert ReportedValues().checked({"loss": value}) == {"loss": number}
    assert not caplog.records


WRONG = {
    "a text": ("text", "is a str"),
    "a number as text": ("0.5", "is a str"),
    "bytes": (b"1", "is a bytes"),
    "None": (None, "is None"),
    "a tensor": (torch.ones(2), "is a tensor of 2 elements"),
    "an empty tensor": (torch.ones(0), "is a tensor of 0 elements"),
    "complex": (torch.ones(1, dtype=torch.complex64), "is a tensor of torch.complex64"),
    "sparse": (torch.ones(1).to_sparse(), "is a tensor of torch.float32, torch.sparse_coo"),
    "meta": (torch.ones(1, device="meta"), "on meta"),
    "an array": (np.ones(3), "is a ndarray of 3 elements"),
    "an array of texts": (np.array("text"), "is a ndarray (could not convert"),
    "a complex number": (1j, "is a complex"),
    "a list": ([1.0], "is a list"),
    "a dict": ({"a": 1.0}, "is a dict"),
    "too large": (10**400, "is a int (int too large"),
    "an object": (Refuses(), "is a Refuses (no number today)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_number_is_left_out_with_one_warning(case: str, caplog: pytest.LogCaptureFixture) -> None:
    value, said = WRONG[case]
    values = ReportedValues()
    for _ in range(3):
        assert values.checked({"loss": 0.5, "other": value}) == {"loss": 0.5}
    [line] = [r.getMessage() for r in caplog.records]
    assert f"left out: 'other' {said}" in line or ("left out: 'other' is" in line and said in line)


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31m", "\udcff", "x" * 1000])
def test_a_name_that_cannot_be_shown(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert ReportedValues().checked({name: 1.0, "val/accuracy, %": 1.0}) == {"val/accuracy, %": 1.0}
    assert len(caplog.records) == 1
    assert len(caplog.records[0].getMessage()) < 1000


def test_a_huge_dict_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    values = ReportedValues()
    for _ in range(2):
        found = values.checked({f"weight {i}": float(i) for i in range(100_000)})
        assert len(found) == MOST_NAMES
    assert [len(r.getMessage()) < 1000 for r in caplog.records] == [True]


def test_warnings_end_some_time(caplog: pytest.LogCaptureFixture) -> None:
    values = ReportedValues()
    for i in range(1000):
        values.checked({f"at step {i}": "text"})
    assert len(caplog.records) <= 10


def test_a_tensor_is_shown_as_it_was_when_it_was_reported() -> None:
    total = torch.ones(1)
    found = ReportedValues().checked({"loss": total})
    total += 1
    assert found == {"loss": 1.0}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.stop()


def test_the_reporting_goes_on(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    trainee = Trainee(served.address)
    for number in range(3):
        trainee.steps(range(number, number + 1))
        trainee.session.reporter.report({"loss": "text", "other": torch.ones(2), "good": number})
    trainee.session.reporter.report({"loss": 0.5})
    trainee.session.leave()
    [worker] = served.service.training_status.to_json()["workers"]
    assert (worker["step"], worker["loss"], worker["reported"]) == (3, 0.5, {"good": 2.0, "loss": 0.5})


SCRIPT = """
import torch, paceline
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
model, optimizer = paceline.distribute(model, optimizer)
for number in range(10):
    optimizer.zero_grad()
    loss = model(torch.ones(3, 4)).sum()
    loss.backward()
    optimizer.step()
    paceline.report(loss=loss, name="text", outputs=torch.ones(7), nothing=None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", MODES)
def test_a_training_goes_on(run: Run, strategy: str) -> None:
    outcome = run(SCRIPT, strategy=strategy)
    assert outcome.code == 0, outcome.output
    assert (
        outcome.output.count("left out: 'name' is a str, 'outputs' is a tensor of 7 elements, 'nothing' is None") == 2
    )
    # on a busy machine a worker's first gradient may be too late
    assert [w["applied"] + w["rejected"] for w in outcome.result["workers"]] == [10, 10]
    assert all(w["loss"] is not None for w in outcome.result["workers"])
    assert len((outcome.folder / "steps.csv").read_text().splitlines()) == 21
