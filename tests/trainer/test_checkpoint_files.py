"""Checkpoints as files: whole or not there, and never taken when a byte is not as it was written."""

import os
import random
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.checkpoints import checkpoint_manifest, finding, state_values
from paceline.checkpoints.checkpoint_folder import Folder
from paceline.checkpoints.checkpoint_manifest import Manifest, StoredFile
from paceline.checkpoints.checkpoint_place import CheckpointPlace
from paceline.checkpoints.object_folder import ObjectFolder
from paceline_core.errors import CheckpointDamaged

from .s3 import S3Server


@dataclass(frozen=True)
class Kept:
    """A place of checkpoints, and where its files can be changed behind its back."""

    place: CheckpointPlace
    sampled: int  # of so many bytes one is changed
    files: Path

    def on_disk(self, place: CheckpointPlace) -> Path:
        return self.files / place.absolute.removeprefix("s3://")


@pytest.fixture(params=["folder", "s3"])
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    if request.param == "folder":
        return Kept(Folder(tmp_path / "digits"), 1, tmp_path)
    server: S3Server = request.getfixturevalue("s3_server")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return Kept(ObjectFolder(f"s3://{server.bucket()}/some/where/digits"), 3, server.folder)


def saved(root: CheckpointPlace, step: int, content: bytes = b"weights") -> CheckpointPlace:
    """A checkpoint of two files."""
    where = finding.of_step(root, step)
    files = [
        where.write(name, lambda path: path.write_bytes(content + str(step).encode()))
        for name in ("ps-0.0.parameters.safetensors", "worker-0.state")
    ]
    where.commit(Manifest(step, (step,), "digits", "ab" * 32, 1.5, 1, 1, {"data/0": "7 it"}, tuple(files)))
    return where


def newest(root: CheckpointPlace) -> tuple[CheckpointPlace, list[str]]:
    found = finding.newest(root)
    assert found is not None
    return found[0], found[2]


def test_the_newest_is_found_and_what_it_says_comes_back(kept: Kept) -> None:
    for step in (5, 20, 100):
        saved(kept.place, step)
    place, found, wrong = finding.newest(kept.place) or pytest.fail("none")
    assert (place.name, found.step, found.versions, wrong) == ("step-000000100", 100, (100,), [])
    assert found.store == {"data/0": "7 it"}
    with place.local(found.files[0]) as path:
        assert path.read_bytes() == b"weights100"


def test_every_byte_that_is_changed_is_noticed_and_the_one_before_is_taken(kept: Kept) -> None:
    before, last = saved(kept.place, 5), saved(kept.place, 10)
    chance = random.Random(seed := random.randrange(1 << 30))
    print(f"seed {seed}")
    for file in sorted(kept.on_disk(last).iterdir()):
        content = file.read_bytes()
        for place in range(chance.randrange(min(kept.sampled, len(content))), len(content), kept.sampled):
            for bit in (1, 0x20, 0x80):
                changed = bytearray(content)
                changed[place] ^= bit
                file.write_bytes(changed)
                found, wrong = newest(kept.place)
                assert found == before, (file.name, place, bit)
                assert wrong, "what is passed over is named"
                assert file.name in wrong[0]
        file.write_bytes(content)
    assert newest(kept.place) == (last, [])


def test_a_file_that_is_cut_missing_longer_or_of_another_is_noticed(kept: Kept) -> None:
    before, last = saved(kept.place, 5), saved(kept.place, 10)
    other = kept.on_disk(saved(kept.place.inside("another"), 10, b"other's"))
    for file in sorted(kept.on_disk(last).iterdir()):
        content, theirs = file.read_bytes(), (other / file.name).read_bytes()
        cut = [content[:length] for length in range(0, len(content), kept.sampled)]
        for wrong_content in (*cut, content[:-1], content + b"\n", None, theirs):
            if wrong_content is None:
                file.unlink()
            else:
                file.write_bytes(wrong_content)
            assert newest(kept.place)[0] == before, (file.name, wrong_content)
        file.write_bytes(content)
    assert newest(kept.place)[0] == last


def test_a_link_is_no_file_of_a_checkpoint(tmp_path: Path) -> None:
    before, last = saved(Folder(tmp_path), 5), saved(Folder(tmp_path), 10)
    for file in sorted((tmp_path / last.name).iterdir()):
        content = file.read_bytes()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_bytes(content)
        file.unlink()
        file.symlink_to(elsewhere)
        assert newest(Folder(tmp_path))[0] == before
        file.unlink()
        file.write_bytes(content)
    assert newest(Folder(tmp_path))[0] == last


def test_when_none_is_whole_that_is_said(kept: Kept) -> None:
    assert finding.newest(kept.place.inside("nothing")) is None
    (kept.on_disk(saved(kept.place, 5)) / "worker-0.state").unlink()
    with pytest.raises(CheckpointDamaged, match=r"worker-0\.state: is missing"):
        finding.newest(kept.place)


def test_a_manifest_that_names_files_elsewhere_is_refused(kept: Kept) -> None:
    for name in ("../x", "", "..", "checkpoint.json"):
        where = finding.of_step(kept.place, 1)
        made = Manifest(1, (1,), "digits", "ab", 1.5, 1, 1, {}, (StoredFile(name, 1, "00"),))
        kept.on_disk(where).mkdir(parents=True, exist_ok=True)
        (kept.on_disk(where) / checkpoint_manifest.FILE).write_text(made.to_text())
        with pytest.raises(CheckpointDamaged, match="outside its folder"):
            where.manifest()


def test_the_newest_are_kept_and_what_was_left_unfinished_goes(kept: Kept) -> None:
    for step in (5, 10, 15):
        saved(kept.place, step)
    for unfinished in (7, 20):
        finding.of_step(kept.place, unfinished).write("x", lambda path: path.touch())
    kept.place.prune(2)
    names = {p.name for p in kept.on_disk(kept.place).iterdir() if any(p.iterdir())}
    assert names == {"step-000000010", "step-000000015", "step-000000020"}


def test_what_is_unfinished_is_discarded_and_a_whole_one_is_not(kept: Kept) -> None:
    unfinished = finding.of_step(kept.place, 4)
    unfinished.write("x", lambda path: path.write_bytes(b"x"))
    unfinished.discard()
    assert not (kept.on_disk(unfinished) / "x").exists()
    whole = saved(kept.place, 8)
    whole.discard()
    assert newest(kept.place) == (whole, [])
    whole.begin()
    assert kept.place.complete() == []
    assert saved(kept.place, 8) == newest(kept.place)[0], "another attempt saves the same step"


EVENTS = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "shutil.rmtree",
    "os.chmod",
    "os.scandir",
    "os.listdir",
}


def killed_while_saving(root: Path, most: int) -> bool:
    """Whether a process that saves one more checkpoint, and removes the old one, is killed after so many operations."""
    child = os.fork()
    if child == 0:
        seen = iter(range(most))

        def count(event: str, arguments: tuple[object, ...]) -> None:
            if event in EVENTS and str(root) in str(arguments) and next(seen, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        saved(Folder(root), 15)
        Folder(root).prune(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


def test_killed_at_every_file_operation_of_a_save_a_whole_checkpoint_stays(tmp_path: Path) -> None:
    most, killed = 0, True
    while killed:
        root = tmp_path / f"at-{most}"
        saved(Folder(root), 10)
        killed = killed_while_saving(root, most)
        assert newest(Folder(root))[1] == [], "nothing that is half there is taken for a checkpoint"
        assert newest(Folder(root))[0].name in ("step-000000010", "step-000000015")
        saved(Folder(root), 20)
        Folder(root).prune(1)
        assert [p.name for p in root.iterdir()] == ["step-000000020"], "what was left goes with the next"
        most += 1
    assert most > 10


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_states_come_back_as_they_were(value: Any) -> None:
    assert state_values.decode(state_values.encode(value)) == value


def test_tensors_and_arrays_come_back_as_they_were() -> None:
    given_state = {
        "tensor": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
        "empty": torch.empty(0, 3),
        "array": np.arange(4, dtype=np.float64),
        "number": np.float32(0.5),
        "odd": [float("inf"), float("nan")],
        3: (1, (2,)),
    }
    found = state_values.decode(state_values.encode(given_state))
    assert torch.equal(found["tensor"], given_state["tensor"])
    assert found["tensor"].dtype == torch.bfloat16
    assert found["empty"].shape == (0, 3)
    assert (found["array"] == given_state["array"]).all()
    assert (found["number"], found["odd"][0], found[3]) == (0.5, float("inf"), (1, (2,)))
    assert found["odd"][1] != found["odd"][1]


@pytest.mark.parametrize(("value", "where"), [(object(), "it: a object"), ({"a": [1, {2}]}, r"\['a'\]\[1\]: a set")])
def test_what_cannot_be_saved_is_named(value: object, where: str) -> None:
    with pytest.raises(TypeError, match=where):
        state_values.encode(value)


def test_a_saved_state_that_was_changed_is_refused() -> None:
    data = state_values.encode({"a": torch.ones(3)})
    chance = random.Random(seed := random.randrange(1 << 30))
    print(f"seed {seed}")
    for _ in range(200):
        with pytest.raises(CheckpointDamaged):
            state_values.decode(data[: chance.randrange(len(data))])
