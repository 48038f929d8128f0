"""Whole runs whose checkpoints are in a real S3 server: killed, gone on from, taken over, and away for a while."""

import logging
import os
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from paceline import cli
from paceline.checkpoints import finding
from paceline.checkpoints.checkpoint_place import CheckpointPlace
from paceline.checkpoints.finding import place_of
from paceline.checkpoints.object_folder import ObjectFolder

from .conftest import Outcome, Run
from .s3 import S3Server
from .test_checkpoints import CHECKPOINT, SCRIPT, STEPS, seen, to_the_end
from .test_object_store import proxy
from .test_saving import CHECKPOINT as OFTEN
from .test_saving import equal, train, weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # each is a few runs of a dozen seconds
OUTAGE_SECONDS = float(os.environ.get("PACELINE_OUTAGE_SECONDS", "15"))
DIES = (
    SCRIPT.replace("time.sleep(60)", "os.kill(os.getpid(), 9)")
    .replace("if stop == step and", 'if stop == step and not os.path.exists(os.environ["SEEN"] + "-stopped") and')
    .replace("for epoch in range(3):", "paceline.mean(1.0)\nfor epoch in range(3):")
)  # so that no worker is replaced alone


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


@pytest.mark.timeout(120 + 2 * OUTAGE_SECONDS)
def test_a_training_goes_on_while_its_store_is_away_and_says_so(
    s3_server: S3Server, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (plain,) = weights(tmp_path / "plain", lambda worker: train(worker, 80))
    caplog.set_level(logging.INFO, "paceline")
    away, back_at = threading.Event(), [0.0]
    with proxy(s3_server, lambda *_: 503 if away.is_set() else None) as it:
        monkeypatch.setenv("AWS_ENDPOINT_URL", it.endpoint)
        root = ObjectFolder(f"s3://{s3_server.bucket()}", patience=0.0)
        kept = root.inside("test")
        saved_at = {9: 2, 60: 10, 79: 60}  # at a step waits for a checkpoint of another, or a later one

        def ready(step: int) -> bool:
            """After a first checkpoint the store goes away; the training makes 40 steps before it is back."""
            if step == 10:
                back_at[0] = back_at[0] or time.monotonic() + OUTAGE_SECONDS
                away.set()
            if step == 30:
                return time.monotonic() > back_at[0] - OUTAGE_SECONDS / 2
            if step == 50:
                if time.monotonic() < back_at[0] or "it is tried again for up to" not in caplog.text:
                    return False
                away.clear()
            if step in saved_at:
                return any(int(found.name[5:]) >= saved_at[step] for found in kept.complete())
            return True

        saves = {**OFTEN, "to": root.url}
        (saving,) = weights(tmp_path / "saving", lambda worker: train(worker, 80, ready=ready), checkpoint=saves)
        found = finding.newest(kept)
    assert equal(saving, plain)
    assert "test/step-" in caplog.text
    assert "the store answers 503; it is tried again for up to" in caplog.text
    assert found is not None
    assert found[1].step >= 60, "it is saved again"
