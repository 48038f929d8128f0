"""Processes that are told to end: the training saves a checkpoint first, and loses no step."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from paceline.checkpoints import checkpoint_folder
from paceline_core.modes import names

from .conftest import Outcome, command, environment, eventually, manifest
from .test_checkpoints import SCRIPT, STEPS
from .test_restarts import ended, process_of, started, steps_of

SELDOM = {"everySteps": 1000}  # so that whatever is saved was saved because of the signal
SLOW = SCRIPT.replace("    optimizer.zero_grad()", "    optimizer.zero_grad(); time.sleep(0.1)")
EXACT = names(lambda it: it.knobs.waits_for_all)
OTHERS = names(lambda it: not it.knobs.waits_for_all)
SAVED = re.compile(r"saved: step (\d+); to go on: paceline run \S+ --resume (\S+)")
TOLD = "was told to end (SIGTERM)"


def saving(strategy: str, checkpoint: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return manifest(["python", "train.py"], strategy, workers=2, servers=2, checkpoint=checkpoint or SELDOM, **spec)


def members(runner: subprocess.Popen[str]) -> dict[str, int]:
    """The processes of a run, by the names of its replicas."""
    found = {
        f"{role}-{i}": process_of(runner.pid, f"{role}-{i}") for role in ("worker", "ps", "coordinator") for i in (0, 1)
    }
    return {name: pid for name, pid in found.items() if pid is not None}


def tell(runner: subprocess.Popen[str], who: str) -> None:
    """SIGTERM to the runner, to one replica, or to all of them at once."""
    every = members(runner)
    servers = [name for name in every if not name.startswith("worker")]
    chosen = {"all": list(every), "first server": servers[:1], "last server": servers[-1:]}.get(who, [who])
    for pid in [runner.pid] if who == "runner" else [every[name] for name in chosen]:
        os.kill(pid, signal.SIGTERM)


def told_at(tmp_path: Path, asked: dict[str, Any], who: str, step: int = 6, script: str = SLOW) -> Outcome:
    """A run in which somebody was told to end after so many steps."""
    runner = started(tmp_path, asked, script)
    try:
        eventually(lambda: steps_of(tmp_path) >= step or runner.poll() is not None)
        tell(runner, who)
    finally:
        outcome = ended(runner, tmp_path)
    return outcome


def gone_on(tmp_path: Path, interrupted: Outcome) -> Outcome:
    """The run that goes on with the command that the interrupted one said."""
    said = SAVED.search(interrupted.output)
    assert said is not None, interrupted.output
    folder, told = tmp_path / "again", environment() | {"SEEN": str(tmp_path / "seen")}
    whole = command(tmp_path / "training.yaml", folder, "--resume", said[2])
    done = subprocess.run(whole, cwd=tmp_path, env=told, capture_output=True, text=True, timeout=110, check=False)
    return Outcome(done.returncode, done.stdout + done.stderr, folder)


@pytest.fixture(scope="module", params=EXACT)
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    where = tmp_path_factory.mktemp("undisturbed")
    return ended(started(where, saving(request.param), SLOW), where)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["worker-0", "worker-1", "first server", "last server", "all"])
def test_a_process_that_is_told_to_end_costs_no_step(tmp_path: Path, undisturbed: Outcome, who: str) -> None:
    outcome = told_at(tmp_path, saving(undisturbed.result["strategy"]), who)
    assert outcome.code == 0, outcome.output
    assert outcome.result["weights_sha256"] == undisturbed.result["weights_sha256"]
    (restart,) = outcome.result["restarts"]
    assert restart["alone"] == (undisturbed.result["strategy"] == "Synchronous" and who.startswith("worker-"))
    assert restart["alone"] or restart["step"] >= 6, outcome.output
    for worker in (0, 1):
        repeats = restart["alone"] and who == f"worker-{worker}"  # by itself, to be where it was
        assert (steps_of(tmp_path, worker) == STEPS) != repeats, "none was made twice"
    assert "Terminated" not in outcome.output, "the processes of DataLoaders were let be"


@pytest.mark.slow
def test_a_run_that_is_interrupted_saves_first_and_says_how_to_go_on(tmp_path: Path, undisturbed: Outcome) -> None:
    outcome = told_at(tmp_path, saving(undisturbed.result["strategy"]), "runner")
    assert (outcome.code, outcome.result["result"]) == (130, "Interrupted"), outcome.output
    assert "saving a checkpoint after the next update, before ending; Ctrl-C again ends at once" in outcome.output
    steps = steps_of(tmp_path)
    resumed = gone_on(tmp_path, outcome)
    assert resumed.code == 0, resumed.output
    assert resumed.result["weights_sha256"] == undisturbed.result["weights_sha256"]
    assert f"from step {steps} of" in resumed.output, "the last step that was made"
    assert [steps_of(tmp_path, worker) for worker in (0, 1)] == [STEPS, STEPS]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", OTHERS)
def test_a_worker_that_is_replaced_alone_has_a_checkpoint_saved_before(tmp_path: Path, strategy: str) -> None:
    outcome = told_at(tmp_path, saving(strategy), "worker-1")
    assert outcome.code == 0, outcome.output
    (restart,) = outcome.result["restarts"]
    assert (restart["replica"], restart["alone"]) == ("worker-1", True)
    assert restart["message"] == "was ended by signal SIGTERM"
    assert checkpoint_folder.complete(outcome.folder / "checkpoints"), outcome.output


@pytest.mark.slow
@pytest.mark.parametrize("who", ["runner", "first server", "all"])
@pytest.mark.parametrize("strategy", OTHERS)
def test_where_workers_do_not_wait_at_most_a_step_of_each_is_lost(tmp_path: Path, strategy: str, who: str) -> None:
    outcome = told_at(tmp_path, saving(strategy), who)
    if who == "runner":
        assert outcome.code == 130, outcome.output
        before = outcome.result["version"]
        outcome = gone_on(tmp_path, outcome)
        newest = int(outcome.output.partition("from step ")[2].partition(" ")[0])
        assert before - newest <= 2, outcome.output
    assert outcome.code == 0, outcome.output
    assert all(w["state"] == "finished" for w in outcome.result["workers"])
    assert all(restart["step"] is None or restart["step"] >= 6 for restart in outcome.result["restarts"])


STUCK = """
import os, time, torch, paceline
model = torch.nn.Linear(8, 8)
model, optimizer = paceline.distribute(model, torch.optim.SGD(model.parameters(), lr=0.01))
seen = open(f"{os.environ['SEEN']}-{paceline.rank()}", "a")
for step in range(10):
    if step == 3 and paceline.rank() == 1: time.sleep(90)
    optimizer.zero_grad()
    loss = model(torch.randn(4, 8)).square().mean()
    if step == 3: print("about to wait", file=seen, flush=True)
    loss.backward()
    optimizer.step()
    print(step, file=seen, flush=True)
"""


def in_the_long_step(tmp_path: Path, asked: dict[str, Any]) -> subprocess.Popen[str]:
    """A run of which worker 1 is in a step that takes longer than the test, and worker 0 waits for it."""
    runner = started(tmp_path, asked, STUCK)
    eventually(lambda: steps_of(tmp_path) >= 4 or runner.poll() is not None)
    return runner


@pytest.mark.slow
@pytest.mark.parametrize("strategy", EXACT)
def test_a_second_signal_ends_at_once(tmp_path: Path, strategy: str) -> None:
    runner = in_the_long_step(tmp_path, saving(strategy))
    tell(runner, "runner")
    eventually(lambda: (tmp_path / "output").read_text().count(TOLD) == 2)
    began = time.monotonic()
    tell(runner, "runner")
    outcome = ended(runner, tmp_path)
    assert outcome.code == 130, outcome.output
    assert time.monotonic() - began < 10
    assert "no checkpoint was saved" in outcome.output


@pytest.mark.slow
@pytest.mark.parametrize("strategy", EXACT)
def test_a_second_signal_ends_a_worker_that_waits_for_the_others(tmp_path: Path, strategy: str) -> None:
    """In a ring in torch's C++, where Python calls no handler."""
    runner = in_the_long_step(tmp_path, saving(strategy, runPolicy={"backoffLimit": 0}))
    pid = members(runner)["worker-0"]
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: TOLD in (tmp_path / "output").read_text())
    os.kill(pid, signal.SIGTERM)
    outcome = ended(runner, tmp_path)
    assert outcome.code == 1, outcome.output
    assert "worker-0 ends at once: it was told again" in outcome.output
    assert outcome.result["error"]["message"] == "was ended by signal SIGTERM"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", EXACT)
def test_nobody_waits_longer_than_the_time_of_grace(tmp_path: Path, strategy: str) -> None:
    asked = saving(strategy)
    asked["spec"]["workers"]["template"]["spec"]["terminationGracePeriodSeconds"] = 2
    runner = in_the_long_step(tmp_path, asked)
    began = time.monotonic()
    tell(runner, "all")
    eventually(
        lambda: all(name not in members(runner) for name in ("worker-0", "worker-1")) or runner.poll() is not None
    )
    assert 1.6 <= time.monotonic() - began < 15
    tell(runner, "runner") if runner.poll() is None else None
    outcome = ended(runner, tmp_path)
    assert "ends without a checkpoint: none was whole within 1.6 s" in outcome.output


@pytest.mark.slow
def test_nothing_is_waited_for_when_there_is_nothing_to_save(tmp_path: Path) -> None:
    script = STUCK.replace(
        "for step in range(10):", "print('here', file=seen, flush=True); time.sleep(90)\nfor step in ():"
    )
    runner = started(tmp_path, saving("Synchronous"), script)
    eventually(lambda: steps_of(tmp_path) and steps_of(tmp_path, 1))
    began = time.monotonic()
    tell(runner, "runner")
    outcome = ended(runner, tmp_path)
    assert outcome.code == 130, outcome.output
    assert time.monotonic() - began < 12
    assert outcome.output.count("ends: nothing to save") == 2


OWN = """
import signal
def mine(*_):
    print("mine", flush=True)
    raise SystemExit(7)
"""


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_scripts_own_handler_stays_its_own(tmp_path: Path, before: bool) -> None:
    sets, place = "signal.signal(signal.SIGTERM, mine)\n", "torch.manual_seed(100"
    script = OWN + (sets + SLOW if before else SLOW.replace(place, sets + place))
    outcome = told_at(tmp_path, saving("Synchronous", runPolicy={"backoffLimit": 0}), "worker-1", script=script)
    assert outcome.code == 1, outcome.output
    assert "[worker-1] mine" in outcome.output
    assert f"worker-1 {TOLD}" not in outcome.output


FORKS = """
import multiprocessing
for method in ("fork", "spawn"):
    process = multiprocessing.get_context(method).Process(target=time.sleep, args=(60,))
    process.start()
    process.terminate()
    process.join()
    print(method, process.exitcode, flush=True)
"""


@pytest.mark.slow
def test_a_process_that_the_script_ends_is_not_the_worker(tmp_path: Path) -> None:
    main = "if __name__ == '__main__':\n" + "".join(
        f"    {line}\n" for line in (STUCK.replace("90", "0") + FORKS).splitlines()
    )
    outcome = ended(started(tmp_path, saving("Synchronous"), main), tmp_path)
    assert outcome.code == 0, outcome.output
    assert outcome.output.count("fork -15") == outcome.output.count("spawn -15") == 2
    assert TOLD not in outcome.output


@pytest.mark.slow
def test_without_checkpoints_a_run_ends_as_ever(tmp_path: Path) -> None:
    asked = saving("Synchronous")
    del asked["spec"]["checkpoint"]
    outcome = told_at(tmp_path, asked, "runner")
    assert outcome.code == 130, outcome.output
    assert TOLD not in outcome.output
    assert not re.search("sav(ed|ing)", outcome.output)
