"""What a server tells and exports of checkpoints: to the operator, to Prometheus, and when it fails."""

import errno
import json
import os
import re
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from paceline import cli, failure, metrics
from paceline.checkpoints import checkpoint_folder
from paceline.checkpoints.checkpoint_manifest import Manifest, StoredFile
from paceline.server.checkpoints.beginning import Beginning
from paceline.server.observability.checkpoint_record import CheckpointRecord
from paceline.server.observability.training_status import TrainingStatus
from paceline_core.errors import PeerLost, UsageError
from paceline_core.launch import Role
from paceline_core.spec import Level

from .inprocess import Served, launch
from .test_checkpoints import CHECKPOINT as EVERY_FOUR
from .test_checkpoints import a_checkpoint, a_file
from .test_saving import CHECKPOINT, is_saved, train
from .together import together

MADE = Manifest(
    150, (150,), "test", "ab", 1_800_000_000.0, 1, 2, files=(StoredFile("a", 40, ""), StoredFile("b", 2, ""))
)


def recording() -> tuple[CheckpointRecord, metrics.Instruments]:
    made = metrics.of_server("test", 0, Level.AGGREGATED)
    return CheckpointRecord(made), made


def exported(made: metrics.Instruments) -> dict[str, float]:
    """By name without the prefix, and with the labels that are not constant."""
    text = re.sub(r'server="0",training="test",?|,?server="0"|,?training="test"', "", generate_latest(made).decode())
    found = re.findall(r"^paceline_checkpoint_(\S+?)(?:\{\})? (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found if "_bucket" not in name}


def test_an_object_store_that_fails_is_a_reason_of_its_own() -> None:
    record, made = recording()
    record.failed("ps-1: s3://bucket/some/x: the store answers 503")
    assert exported(made) == {'failures_total{op="save",reason="store"}': 1}


def test_a_checkpoint_is_due_fails_and_is_saved() -> None:
    record, made = recording()
    assert record.to_json(7) == {
        "step": None, "time": None, "updates_since": None, "failed": 0, "resumed_from": None,
    }  # fmt: skip
    record.due()
    record.failed("a: No space left on device")
    record.due()
    record.failed("ps-1: it is broken")
    assert exported(made) == {
        "missed": 2, 'failures_total{op="save",reason="space"}': 1, 'failures_total{op="save",reason="io"}': 1,
    }  # fmt: skip
    record.due()
    record.saved(MADE, 0.4)
    assert record.to_json(162) == {
        "step": 150, "time": 1_800_000_000.0, "updates_since": 12, "failed": 2, "resumed_from": None,
    }  # fmt: skip
    found = exported(made)
    assert (found["missed"], found["last_success_step"], found["bytes"]) == (0, 150, 42)
    assert found["last_success_timestamp_seconds"] == 1_800_000_000.0
    assert (found['duration_seconds_count{op="save"}'], found['duration_seconds_sum{op="save"}']) == (1, 0.4)


def test_a_training_that_goes_on_knows_from_where_and_what_was_damaged() -> None:
    record, made = recording()
    record.resumed(MADE, 2.0, 1)
    assert record.to_json(0) == {
        "step": 150, "time": 1_800_000_000.0, "updates_since": 0, "failed": 0, "resumed_from": 150,
    }  # fmt: skip
    assert exported(made)['failures_total{op="restore",reason="checksum"}'] == 1
    assert exported(made)['duration_seconds_sum{op="restore"}'] == 2.0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_from_other_trouble(number: int) -> None:
    record, made = recording()
    record.failed(f"a: {os.strerror(number)}")
    assert exported(made) == {'failures_total{op="save",reason="space"}': 1}


def test_the_status_tells_of_checkpoints_if_any_are_saved() -> None:
    assert status({}).to_json()["checkpoint"]["step"] is None
    assert status(None).to_json()["checkpoint"] is None


def status(more: dict[str, object] | None) -> TrainingStatus:
    asked = launch(Role.SERVER, checkpoint=None if more is None else CHECKPOINT | more)
    return TrainingStatus(asked, metrics.of_server("test", 0, Level.DETAILED))


def test_a_server_that_fails_leaves_what_it_has_saved_if_it_has_trained(tmp_path: Path) -> None:
    it = status({})
    assert it.at_failure() == {}, "what it goes on from is told by whoever saved it"
    it.checkpoints.saved(MADE, 1.0)
    it.applied(162, {0: 0}, None)
    file = tmp_path / "termination-log"
    failure.write(PeerLost("worker-1 was lost"), str(file), it.at_failure())
    told = json.loads(file.read_text())
    assert (told["kind"], told["victim"]) == ("PeerLost", True)
    assert (told["checkpoint"]["step"], told["checkpoint"]["updates_since"]) == (150, 12)
    file.unlink()
    failure.write(RuntimeError("\N{SNOWMAN}" * 9000), str(file), it.at_failure())
    assert json.loads(file.read_text())["checkpoint"]["step"] == 150, "a long message is cut, and not this"


@pytest.mark.parametrize("strategy", ["Synchronous", "Asynchronous"])
def test_servers_do_not_write_beside_checkpoints_of_another_run(tmp_path: Path, strategy: str) -> None:
    place = tmp_path / "test"
    (place / "step-000000002").mkdir(parents=True)  # unfinished, and so none
    asked = CHECKPOINT | {"to": str(tmp_path)}
    assert Beginning.of(launch(Role.SERVER, strategy=strategy, checkpoint=asked)).restored is None
    a_checkpoint(place)
    before = sorted(place.rglob("*"))
    with pytest.raises(UsageError, match=r"has checkpoints of another run: set spec.checkpoint.resume to Auto"):
        Served(None, strategy=strategy, checkpoint=asked)
    assert sorted(place.rglob("*")) == before


def test_what_was_saved_is_told_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "saving"
    folder.mkdir()
    together(partial(train, ready=partial(is_saved, folder)), folder, shards=2, checkpoint=CHECKPOINT)
    told = json.loads((folder / "status.json").read_text())["checkpoint"]
    assert (told["step"], told["updates_since"], told["failed"], told["resumed_from"]) == (8, 1, 0, None)
    resume = str(checkpoint_folder.of_step(folder / "checkpoints", 6))
    again = tmp_path / "again"
    again.mkdir()
    together(train, again, resume=resume, checkpoint={"everySteps": 100})
    told = json.loads((again / "status.json").read_text())["checkpoint"]
    assert (told["step"], told["updates_since"], told["resumed_from"]) == (6, 3, 6)


def test_a_local_run_goes_on_by_itself_if_it_is_asked_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {**EVERY_FOUR, "to": str(tmp_path / "to"), "resume": "Auto"}
    a_checkpoint(tmp_path / "to" / "test")
    file = a_file(tmp_path, workers=3, checkpoint=asked)
    assert cli.main(["run", str(file)]) == cli.BAD_INPUT, "it does go on from there, which does not fit"
    assert "was saved with 2 workers, and this training has 3" in capsys.readouterr().err
