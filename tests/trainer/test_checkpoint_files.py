"""Checkpoints as files: whole or not there, and never taken when a byte is not as it was written."""

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.checkpoints import checkpoint_folder, checkpoint_manifest, state_values
from paceline.checkpoints.checkpoint_manifest import Manifest, StoredFile
from paceline_core.errors import CheckpointDamaged


def saved(root: Path, step: int, content: bytes = b"weights") -> Path:
    """A checkpoint of two files."""
    where = checkpoint_folder.of_step(root, step)
    files = [
        checkpoint_folder.write(where, name, lambda path: path.write_bytes(content + str(step).encode()))
        for name in ("ps-0.0.parameters.safetensors", "worker-0.state")
    ]
    made = Manifest(step, (step,), "digits", "ab" * 32, 1.5, 1, 1, {"data/0": "7 it"}, tuple(files))
    checkpoint_folder.commit(where, made)
    return where


def newest(root: Path) -> tuple[Path, list[str]]:
    found = checkpoint_folder.newest(root)
    assert found is not None
    return found[0], found[2]


def test_the_newest_is_found_and_what_it_says_comes_back(tmp_path: Path) -> None:
    for step in (5, 20, 100):
        saved(tmp_path, step)
    path, found, wrong = checkpoint_folder.newest(tmp_path) or pytest.fail("none")
    assert (path.name, found.step, found.versions, wrong) == ("step-000000100", 100, (100,), [])
    assert found.store == {"data/0": "7 it"}


def test_every_byte_that_is_changed_is_noticed_and_the_one_before_is_taken(tmp_path: Path) -> None:
    before, last = saved(tmp_path, 5), saved(tmp_path, 10)
    for file in sorted(last.iterdir()):
        content = file.read_bytes()
        for place in range(len(content)):
            for bit in (1, 0x20, 0x80):
                changed = bytearray(content)
                changed[place] ^= bit
                file.write_bytes(changed)
                path, wrong = newest(tmp_path)
                assert path == before, (file.name, place, bit)
                assert wrong, "what is passed over is named"
                assert file.name in wrong[0]
        file.write_bytes(content)
    assert newest(tmp_path) == (last, [])


def test_a_file_that_is_cut_missing_longer_a_link_or_of_another_is_noticed(tmp_path: Path) -> None:
    before, last = saved(tmp_path, 5), saved(tmp_path, 10)
    other = saved(tmp_path / "another", 10, b"other's")
    for file in sorted(last.iterdir()):
        content, theirs = file.read_bytes(), (other / file.name).read_bytes()
        cut = [content[:length] for length in range(len(content))]
        for wrong_content in (*cut, content + b"\n", None, theirs):
            if wrong_content is None:
                file.unlink()
            else:
                file.write_bytes(wrong_content)
            assert newest(tmp_path)[0] == before, (file.name, wrong_content)
        file.unlink(missing_ok=True)
        file.symlink_to(other / file.name)
        assert newest(tmp_path)[0] == before
        file.unlink()
        file.write_bytes(content)
    assert newest(tmp_path)[0] == last


def test_when_none_is_whole_that_is_said(tmp_path: Path) -> None:
    assert checkpoint_folder.newest(tmp_path / "nothing") is None
    (saved(tmp_path, 5) / "worker-0.state").unlink()
    with pytest.raises(CheckpointDamaged, match=r"worker-0\.state: is missing"):
        checkpoint_folder.newest(tmp_path)


def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    for name in ("../x", "", "..", "checkpoint.json"):
        where = tmp_path / "step-000000001"
        where.mkdir(exist_ok=True)
        made = Manifest(1, (1,), "digits", "ab", 1.5, 1, 1, {}, (StoredFile(name, 1, "00"),))
        (where / checkpoint_manifest.FILE).write_text(made.to_text())
        with pytest.raises(CheckpointDamaged, match="outside its folder"):
            checkpoint_manifest.read(where)


def test_the_newest_are_kept_and_what_was_left_unfinished_goes(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        saved(tmp_path, step)
    for unfinished in (7, 20):
        checkpoint_folder.write(checkpoint_folder.of_step(tmp_path, unfinished), "x", lambda path: path.touch())
    checkpoint_folder.prune(tmp_path, 2)
    assert {p.name for p in tmp_path.iterdir()} == {"step-000000010", "step-000000015", "step-000000020"}


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
        saved(root, 15)
        checkpoint_folder.prune(root, 1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


def test_killed_at_every_file_operation_of_a_save_a_whole_checkpoint_stays(tmp_path: Path) -> None:
    most, killed = 0, True
    while killed:
        root = tmp_path / f"at-{most}"
        saved(root, 10)
        killed = killed_while_saving(root, most)
        assert newest(root)[1] == [], "nothing that is half there is taken for a checkpoint"
        assert newest(root)[0].name in ("step-000000010", "step-000000015")
        saved(root, 20)
        checkpoint_folder.prune(root, 1)
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
