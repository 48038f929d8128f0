"""What a worker that fails knew of its steps is in the table, in steps.csv and in its trace."""

import csv
import json
import time
from pathlib import Path

import pytest

from paceline.views.report import command
from paceline.worker.observability import reporter
from paceline.worker.observability.reporter import Reporter
from paceline_core.modes import MODES

from .conftest import Run, eventually
from .inprocess import Served, Trainee
from .made import a_result, a_run, a_status

SCRIPT = """
import os, signal, sys, time, torch, paceline
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
model, optimizer = paceline.distribute(model, optimizer)
for step in range(1, 30):
    optimizer.zero_grad()
    loss = model(torch.ones(3, 4)).sum()
    loss.backward()
    optimizer.step()
    paceline.report(loss=step)
    if step == 5 and paceline.rank() == 1:
        HOW
    if step == 5:
        time.sleep(60)  # with nothing to do when the runner ends it
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raise ValueError('at five')", "sys.exit('at five')"])
@pytest.mark.parametrize("strategy", MODES)
def test_the_last_steps_are_known(run: Run, strategy: str, how: str) -> None:
    outcome = run(SCRIPT.replace("HOW", how), strategy=strategy)
    assert outcome.code == 1
    assert "at five" in outcome.result["error"]["message"], outcome.output
    with (outcome.folder / "steps.csv").open(newline="") as file:
        rows = [(row["worker"], row["step"], float(row["loss"])) for row in csv.DictReader(file)]
    assert [r for r in rows if r[0] == "1"] == [("1", str(step), step) for step in range(1, 6)]
    assert [r for r in rows if r[0] == "0"] == [("0", str(step), step) for step in range(1, 6)]
    assert [(w["step"], w["loss"]) for w in outcome.result["workers"]] == [(5, 5.0), (5, 5.0)]
    trace = json.loads((outcome.folder / "traces/worker-1.json").read_text())
    assert max(span[3] for span in trace["spans"]) == 5


def test_telling_the_rest_takes_no_longer_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer must not keep a worker from ending."""
    monkeypatch.setattr(reporter, "REST_SECONDS", 0.1)
    served = Served(tmp_path)
    trainee = Trainee(served.address)
    trainee.steps(range(1))
    hangs = reporter.threading.Event()
    monkeypatch.setattr(Reporter, "_tell", lambda *_: hangs.wait(30))
    began = time.monotonic()
    trainee.session.tell_rest()
    assert time.monotonic() - began < 5
    hangs.set()
    served.stop()


def test_rows_wait_for_a_loss_only_where_one_comes(tmp_path: Path) -> None:
    served = Served(tmp_path)
    trainee = Trainee(served.address)
    status = served.service.training_status
    trainee.steps(range(3))
    eventually(lambda: status.to_json()["workers"][0]["step"] == 3)  # nothing is reported: the last row waits no more
    trainee.session.leave()
    served.stop()


@pytest.mark.parametrize(
    ("result", "version", "said"),
    [
        ("Succeeded", 0, "No step was made."),
        ("Failed", 0, "No worker told of a step before the run ended."),
        ("Interrupted", 7, "No worker told of a step before the run ended. The servers made 7 updates."),
    ],
)
def test_a_report_says_no_more_than_it_was_told(tmp_path: Path, result: str, version: int, said: str) -> None:
    status = a_status(version=version)
    page, _ = command.page(a_run(tmp_path / "run", result=a_result(status, result), status=status))
    assert said in page
    assert ("No step was made" in page) == (result == "Succeeded")
