"""Whole runs whose checkpoints are in a real S3 server: killed, gone on from, and taken over by the other topology."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from paceline import cli
from paceline.checkpoints.checkpoint_place import CheckpointPlace
from paceline.checkpoints.finding import place_of

from .conftest import Outcome, Run
from .s3 import S3Server
from .test_checkpoints import CHECKPOINT, SCRIPT, STEPS, seen, to_the_end

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # each is a few runs of a dozen seconds
DIES = SCRIPT.replace("time.sleep(60)", "os.kill(os.getpid(), 9)").replace(
    "if stop == step and", 'if stop == step and not os.path.exists(os.environ["SEEN"] + "-stopped") and'
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return {it: to_the_end(tmp_path_factory.mktemp(it), it) for it in ("Synchronous", "AllReduce")}


@pytest.fixture
def place(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in (s3_server.environment() | {"SEEN": str(tmp_path / "seen"), "STOP": "1:21"}).items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3_server.bucket()}/trainings"


@pytest.mark.parametrize(("strategy", "other"), [("Synchronous", "AllReduce"), ("AllReduce", "Synchronous")])
def test_a_run_goes_on_by_itself_from_its_object_store_and_so_does_the_other_topology(
    run: Run, place: str, undisturbed: dict[str, Outcome], s3_server: S3Server, tmp_path: Path,
    strategy: str, other: str, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked = {**CHECKPOINT, "to": place}
    outcome = run(DIES, strategy=strategy, servers=2, checkpoint=asked)
    assert outcome.code == 0, outcome.output
    assert outcome.result["weights_sha256"] == undisturbed[strategy].result["weights_sha256"], outcome.output
    (restart,) = outcome.result["restarts"]
    assert f"Everything goes on from the checkpoint of step {restart['step']}" in outcome.output
    assert not (outcome.folder / "checkpoints").exists()
    assert "has checkpoints of another run: go on from them" in run(DIES, servers=2, checkpoint=asked).output

    kept = place_of(f"{place}/test")
    newest, *_, oldest = kept.complete()
    damaged = s3_server.folder / newest.absolute.removeprefix("s3://") / "ps-1.0.optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    for file in (tmp_path / "seen-0", tmp_path / "seen-1"):
        file.unlink()
    taken = run(DIES, "--resume", str(oldest), strategy=other, servers=3)
    assert taken.code == 0, taken.output
    assert taken.result["resumed_from"] == str(oldest)
    assert same(taken, undisturbed[strategy])
    for rank in (0, 1):
        assert seen(tmp_path, rank) == seen(undisturbed[strategy].folder.parent, rank)[step_of(oldest) :]
    auto = run(DIES, strategy=strategy, servers=3, checkpoint={**asked, "resume": "Auto"})
    assert auto.code == 0, auto.output
    assert f"passed over: {newest}/ps-1.0.optimizer.safetensors: is not as it was written" in auto.output
    assert auto.result["weights_sha256"] == undisturbed[strategy].result["weights_sha256"]
    assert auto.result["version"] == STEPS
    shown_and_exported(kept, oldest, tmp_path, capfd)


def step_of(place: CheckpointPlace) -> int:
    return int(place.name.rpartition("-")[2])


def same(one: Outcome, other: Outcome) -> bool:
    """Within what the order of sums changes."""
    left, right = (load_file(it.folder / "weights.safetensors") for it in (one, other))
    return all(float((left[name].double() - right[name].double()).abs().max()) < 1e-6 for name in left)


def shown_and_exported(
    kept: CheckpointPlace, oldest: CheckpointPlace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for command in ("list", "show", "verify"):
        assert cli.main(["checkpoint", command, str(kept)]) == 0
    assert f"{oldest}: as it was written" in capfd.readouterr().out
    exported = tmp_path / "exported.safetensors"
    assert cli.main(["checkpoint", "export", str(oldest), str(exported)]) == 0
    assert load_file(exported)
