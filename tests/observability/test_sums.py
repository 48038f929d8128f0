"""Where the time went, of steps and of whole trainings: the parts add up to what other clocks show."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from paceline_core.attribution import PHASES
from paceline_core.goodput import Loss
from paceline_core.modes import MODES
from tests.trainer.conftest import Outcome, Run

pytestmark = pytest.mark.slow
WORKERS, STEPS = 3, 100
COUNTED = STEPS  # each when its loss is there
# Each worker keeps its own time, and in the end what it exports.
SCRIPT = f"""
import json, os, pathlib, time, urllib.request, torch, paceline
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
model, optimizer = paceline.distribute(model, torch.optim.SGD(model.parameters(), lr=0.01), total_steps={STEPS})
ends = []
for step in range({STEPS}):
    optimizer.zero_grad()
    loss = model(torch.randn(8, 32)).square().mean()
    time.sleep(0.03)
    loss.backward()
    optimizer.step()
    ends.append(time.perf_counter())
    paceline.report(loss=loss)
endpoints = pathlib.Path(os.environ["PACELINE_OUTPUT"], "endpoints.json")
url, page = json.loads(endpoints.read_text())["metrics"][f"worker-{{paceline.rank()}}"], ""
while "}} {COUNTED}.0" not in page.partition("# TYPE paceline_worker_steps_total")[2].partition("#")[0]:
    time.sleep(0.05)
    page = urllib.request.urlopen(url).read().decode()
seen = {{"ends": ends, "page": page}}
pathlib.Path(f"seen-{{paceline.rank()}}.json").write_text(json.dumps(seen))
"""


def steps(folder: Path, worker: int) -> list[dict[str, float]]:
    """The worker's steps in the run's file: wall time and phases, in seconds."""
    with (folder / "steps.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if int(row["worker"]) == worker]
    return [{name: float(row[name]) for name in ("step", "wall", *PHASES)} for row in rows]


def exported(page: str, name: str) -> dict[str, float]:
    """The series of a metric, by phase."""
    samples = [s for family in parse(page) for s in family.samples if s.name == name]
    return {s.labels.get("phase", ""): s.value for s in samples}


@pytest.mark.parametrize("mode", MODES)
def test_the_parts_add_up_to_the_whole(run: Run, tmp_path: Path, mode: str) -> None:
    outcome = run(SCRIPT, "--slow", "worker-1=send:20ms", strategy=mode, workers=WORKERS)
    assert outcome.code == 0, outcome.output
    for worker in range(WORKERS):
        seen = json.loads((tmp_path / f"seen-{worker}.json").read_text())
        check_steps(steps(outcome.folder, worker), seen)
    check_goodput(outcome)


def check_steps(rows: list[dict[str, float]], seen: dict[str, Any]) -> None:
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert sum(row[phase] for phase in PHASES) == pytest.approx(row["wall"], rel=0.02)
    by_the_script = seen["ends"][-1] - seen["ends"][0]
    assert sum(row["wall"] for row in rows[1:]) == pytest.approx(by_the_script, rel=0.02)
    counted = exported(seen["page"], "paceline_worker_phase_seconds_total")
    assert set(counted) <= set(PHASES)
    assert sum(counted.values()) == pytest.approx(sum(row["wall"] for row in rows[:COUNTED]), rel=0.02)
    assert exported(seen["page"], "paceline_worker_steps_total") == {"": COUNTED}


def check_goodput(outcome: Outcome) -> None:
    told, whole = outcome.result["goodput"], outcome.result["duration_seconds"]
    assert set(told["lost"]) <= set(Loss)
    assert told["productive"] + sum(told["lost"].values()) == pytest.approx(whole, rel=0.02)
    assert told["seconds"] == pytest.approx(whole, rel=0.02)
    assert 0.03 * STEPS * 0.7 < told["productive"] < whole
