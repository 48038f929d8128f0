"""Processes that are killed while a run goes on: the run goes on by itself, and ends as one that nobody disturbed."""

import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paceline.checkpoints import checkpoint_folder
from paceline.checkpoints.checkpoint_manifest import Manifest
from paceline.checkpoints.restoring import Restored
from paceline_core.errors import CheckpointDamaged
from paceline_core.launch import NEWEST, Launch, Role
from paceline_core.spec import TrainingSpec

from .conftest import Outcome, Run, command, environment, eventually, manifest, write
from .test_checkpoints import CHECKPOINT, SCRIPT, STEPS

SAMPLE = int(os.environ.get("PACELINE_KILL_STEPS", "1"))  # kills; `make sweep` has more
PLACES = {
    "Synchronous": ("worker-0", "worker-1", "ps-0", "ps-1"),
    "AllReduce": ("worker-0", "worker-1", "coordinator-0"),
}


def started(tmp_path: Path, asked: dict[str, Any], script: str = SCRIPT, **told: str) -> subprocess.Popen[str]:
    file, variables = write(tmp_path, script, asked), environment() | {"SEEN": str(tmp_path / "seen")} | told
    with (tmp_path / "output").open("w") as output:
        return subprocess.Popen(
            command(file, tmp_path / "run"), cwd=tmp_path, env=variables, stdout=output, stderr=output, text=True
        )


def ended(process: subprocess.Popen[str], tmp_path: Path) -> Outcome:
    try:
        code = process.wait(110)
    finally:
        process.kill()
    return Outcome(code, (tmp_path / "output").read_text(), tmp_path / "run")


def process_of(runner: int, name: str) -> int | None:
    """The process of a replica, by its environment; None while there is none."""
    role, _, ordinal = name.rpartition("-")
    wanted = {f"PACELINE_ROLE={role}".encode(), f"PACELINE_ORDINAL={ordinal}".encode()}
    threads = Path(f"/proc/{runner}/task").iterdir()
    children = [pid for task in threads for pid in (task / "children").read_text().split()]
    for child in children:
        try:
            if wanted <= set(Path(f"/proc/{child}/environ").read_bytes().split(b"\0")):
                return int(child)
        except OSError:
            continue  # it has ended
    return None


def steps_of(tmp_path: Path, worker: int = 0) -> int:
    """How many batches a worker has seen, in all attempts."""
    file = tmp_path / f"seen-{worker}"
    return len(file.read_text().splitlines()) if file.exists() else 0


def killed_when(tmp_path: Path, runner: subprocess.Popen[str], name: str, when: Callable[[], bool]) -> None:
    eventually(lambda: when() or runner.poll() is not None)
    pid = process_of(runner.pid, name)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module", params=PLACES)
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    where = tmp_path_factory.mktemp("undisturbed")
    return ended(started(where, saving(request.param)), where)


def saving(strategy: str) -> dict[str, Any]:
    return manifest(["python", "train.py"], strategy, workers=2, servers=2, checkpoint=CHECKPOINT)


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.timeout(60 + 60 * SAMPLE)
def test_whatever_is_killed_the_run_goes_on_and_ends_with_the_same_weights(
    tmp_path: Path, undisturbed: Outcome
) -> None:
    seed = int(os.environ.get("PACELINE_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    chance = random.Random(seed)
    slow = SCRIPT.replace("    optimizer.zero_grad()", "    optimizer.zero_grad(); time.sleep(0.02)")
    strategy = undisturbed.result["strategy"]
    for number in range(SAMPLE):
        folder = tmp_path / str(number)
        folder.mkdir()
        name, step = chance.choice(PLACES[strategy]), chance.randrange(1, STEPS)
        print(f"killed around step {step}: {name}")
        runner = started(folder, saving(strategy), slow)
        killed_when(folder, runner, name, lambda: steps_of(folder) >= step)  # noqa: B023 - of this round
        outcome = ended(runner, folder)
        assert outcome.code == 0, outcome.output
        assert outcome.result["weights_sha256"] == undisturbed.result["weights_sha256"]
        assert outcome.result["restarts"] or step > STEPS - 4, "it was killed, and not at the end"
        for restart in outcome.result["restarts"]:
            alone = strategy == "Synchronous" and name.startswith("worker-")
            assert (restart["replica"], restart["alone"]) == (name, alone)
            assert "SIGKILL" in restart["message"]
            assert restart["step"] is None or restart["step"] <= step + 1
            assert (folder / "run/attempt-1/logs").is_dir() != alone
            assert f"{name}: was ended by signal SIGKILL" in outcome.output


@pytest.mark.slow
def test_a_run_goes_on_as_often_as_it_may_and_says_where_from(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    counted = "        step += 1\n"
    dies = SCRIPT.replace(
        counted,
        f"{counted}        time.sleep(0.1)\n        if epoch == 1 and step in (3, 13): os.kill(os.getpid(), 9)\n",
    )
    outcome = run(dies, workers=2, strategy="AllReduce", checkpoint={"everySteps": 10}, runPolicy={"backoffLimit": 2})
    assert outcome.code == 1
    assert [restart["step"] for restart in outcome.result["restarts"]] == [10, 10]
    assert "goes on from the checkpoint of step 10 (restart 2 of 2)" in outcome.output
    goodput = outcome.result["goodput"]
    assert goodput["lost"]["restart"] > 0
    assert goodput["seconds"] == pytest.approx(outcome.result["duration_seconds"], abs=0.5)
    assert goodput["productive"] + sum(goodput["lost"].values()) == pytest.approx(goodput["seconds"])


@pytest.mark.slow
def test_a_scripts_own_error_is_not_tried_again(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    outcome = run(
        SCRIPT.replace("        step += 1\n", "        step += 1\n        if step == 9: raise RuntimeError('mine')\n"),
        workers=2, servers=1, checkpoint=CHECKPOINT,
    )  # fmt: skip
    assert outcome.code == 1
    assert outcome.result["restarts"] == []
    assert "mine" in outcome.result["error"]["message"]


@pytest.mark.slow
def test_an_asynchronous_worker_that_was_killed_is_replaced_alone(tmp_path: Path) -> None:
    asked = manifest(["python", "train.py"], strategy="Asynchronous", workers=2)
    slow = SCRIPT.replace("    optimizer.zero_grad()", "    optimizer.zero_grad(); time.sleep(0.02)")
    runner = started(tmp_path, asked, slow)
    killed_when(tmp_path, runner, "worker-1", lambda: steps_of(tmp_path, 1) >= 5)
    outcome = ended(runner, tmp_path)
    assert outcome.code == 0, outcome.output
    (restart,) = outcome.result["restarts"]
    assert (restart["replica"], restart["alone"]) == ("worker-1", True)
    assert "It is replaced (restart 1 of 3); the others go on" in outcome.output
    assert all(w["state"] == "finished" for w in outcome.result["workers"])


DIES = """
import os, signal, time, torch, paceline
model = torch.nn.Linear(8, 8)
model, optimizer = paceline.distribute(model, torch.optim.SGD(model.parameters(), lr=0.01))
first = paceline.rank() == 1 and not os.path.exists("died")
for step in range(40):
    optimizer.zero_grad()
    model(torch.randn(4, 8)).square().mean().backward()
    time.sleep(0.05 if step < 30 else 0.2)  # the others' last steps are made after its return
    optimizer.step()
    if first and step == 5:
        open("died", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_checkpoint_does_not_wait_for_what_a_lost_worker_was_asked_for(tmp_path: Path) -> None:
    asked = manifest(["python", "train.py"], strategy="Asynchronous", workers=2, checkpoint={"everySteps": 1})
    outcome = ended(started(tmp_path, asked, DIES), tmp_path)
    assert outcome.code == 0, outcome.output
    (restart,) = outcome.result["restarts"]
    assert (restart["replica"], restart["alone"]) == ("worker-1", True)
    newest = checkpoint_folder.complete(outcome.folder / "checkpoints")[0]
    assert int(newest.name[5:]) > outcome.result["version"] - 10, outcome.output


def test_the_newest_checkpoint_of_the_training_itself_is_found_and_damaged_ones_are_passed_over(tmp_path: Path) -> None:
    launch = Launch(
        Role.SERVER, 0, "test", "00" * 16, TrainingSpec.model_validate(manifest(["true"], checkpoint={"everySteps": 1, "to": str(tmp_path)})["spec"]), ("127.0.0.1:1",),
        resume=NEWEST,
    )  # fmt: skip
    assert Restored.of(launch) is None
    for step in (4, 8):
        path = checkpoint_folder.of_step(tmp_path / "test", step)
        path.mkdir(parents=True)
        checkpoint_folder.commit(path, Manifest(step, (step,), "test", "ab", 1.5, 1, 2))
    found = Restored.of(launch)
    assert found is not None
    assert (found.manifest.step, found.passed_over) == (8, [])
    written = path / "checkpoint.json"
    written.write_text(written.read_text().replace("1.5", "2.5"))
    found = Restored.of(launch)
    assert found is not None
    assert found.manifest.step == 4
    assert str(written) in found.passed_over[0]
    (tmp_path / "test/step-000000004/checkpoint.json").write_text("{}")
    with pytest.raises(CheckpointDamaged, match="step-000000004"):
        Restored.of(launch)
