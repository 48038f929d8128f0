"""Servers save, and servers that begin with what was saved train on as if nothing had been."""

import errno
import logging
import math
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paceline import metrics
from paceline.checkpoints import checkpoint_folder, checkpoint_manifest, state_values
from paceline.checkpoints.checkpoint_folder import Folder
from paceline.checkpoints.part_writer import Part, PartWriter
from paceline.server.checkpoints import checkpointing
from paceline.server.checkpoints.completion import Completion
from paceline.server.observability.checkpoint_record import CheckpointRecord
from paceline_core.errors import CheckpointDamaged, ModelMismatch, UsageError
from paceline_core.launch import Role
from paceline_core.spec import Level

from .conftest import eventually
from .inprocess import launch
from .test_between_steps import seeded
from .test_sampling import no_counting_for_others  # noqa: F401 - a fixture
from .together import Worker, saved, together

STEPS = 9
CHECKPOINT: dict[str, Any] = {"everySteps": 2, "keep": 99}
Script = Callable[[Worker], None]


def train(worker: Worker, steps: int = STEPS, width: int = 300, ready: Callable[[int], bool] = lambda _: True) -> None:
    """A batch of its own for each worker and step; the learning rate falls.

    A step begins when `ready` says so of the step before the last, whose state was sent with the last one's begin.
    """
    model = seeded(lambda: nn.Sequential(nn.Linear(20, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 2)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    worker.distribute(model, optimizer)
    for step in range(worker.session.exchanges[0].number, steps):
        optimizer.zero_grad()
        model(batch(worker.rank, step)).square().mean().backward()
        optimizer.param_groups[0]["lr"] = 0.01 * 0.9**step
        optimizer.step()
        eventually(lambda before=step: ready(before))  # type: ignore[misc]


def is_saved(folder: Path, step: int) -> bool:
    """Whether the checkpoint of this step is whole, if one is due."""
    return (
        step % 2 == 1
        or step == 0
        or (checkpoint_folder.of_step(folder / "checkpoints", step) / checkpoint_manifest.FILE).exists()
    )


def two(worker: Worker) -> None:
    """Two models, each with an optimizer."""
    models = [seeded(lambda: nn.Linear(20, 20)) for _ in range(2)]
    optimizers = [torch.optim.SGD(models[0].parameters(), 0.1, momentum=0.9), torch.optim.Adam(models[1].parameters())]
    for model, optimizer in zip(models, optimizers, strict=True):
        worker.distribute(model, optimizer)
    for step in range(worker.session.exchanges[1].number, STEPS):
        for optimizer in optimizers:
            optimizer.zero_grad()
            models[1](models[0](batch(worker.rank, step))).square().mean().backward()
            optimizer.step()


def one_in_the_other(worker: Worker) -> None:
    """Two models, of which the second has the first in it, each with an optimizer for what is its own."""
    first = seeded(lambda: nn.Linear(20, 20))
    models = [first, seeded(lambda: nn.Sequential(first, nn.Linear(20, 20)))]
    optimizers = [torch.optim.Adam(first.parameters(), 0.01), torch.optim.Adam(models[1][1].parameters(), 0.01)]
    for model, optimizer in zip(models, optimizers, strict=True):
        worker.distribute(model, optimizer)
    for step in range(worker.session.exchanges[1].number, STEPS):
        for optimizer in optimizers:
            optimizer.zero_grad()
            models[1](batch(worker.rank, step)).square().mean().backward()
            optimizer.step()


def batch(rank: int, step: int) -> torch.Tensor:
    return torch.randn(8, 20, generator=torch.Generator().manual_seed(100 * rank + step))


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def weights(folder: Path, script: Script, models: int = 1, **asked: Any) -> list[dict[str, torch.Tensor]]:
    folder.mkdir()
    together(script, folder, **asked)
    return [saved(folder, model) for model in range(models)]


def newest(folder: Path) -> Path:
    return checkpoint_folder.complete(folder / "checkpoints")[0]


@pytest.mark.parametrize(("shards", "later", "gradients"), [(1, 3, {}), (3, 2, {}), (3, 3, {"maxNorm": 0.05})])
def test_from_each_checkpoint_on_the_weights_are_the_same(
    tmp_path: Path, shards: int, later: int, gradients: dict[str, float]
) -> None:
    (expected,) = weights(tmp_path / "plain", train, shards=shards, gradients=gradients)
    saves = partial(train, ready=partial(is_saved, tmp_path / "saving"))
    (saving,) = weights(tmp_path / "saving", saves, shards=shards, gradients=gradients, checkpoint=CHECKPOINT)
    assert equal(saving, expected), "saving changes nothing"
    found = checkpoint_folder.complete(tmp_path / "saving" / "checkpoints")
    assert [int(path.name[5:]) for path in found] == [8, 6, 4, 2]
    for path in found:
        asked = {"shards": later, "gradients": gradients, "resume": str(path), "checkpoint": CHECKPOINT}
        (resumed,) = weights(tmp_path / path.name, train, **asked)
        assert equal(resumed, expected), path.name
    again = newest(tmp_path / found[-1].name)
    (resumed,) = weights(tmp_path / "again", train, shards=later, gradients=gradients, resume=str(again))
    assert equal(resumed, expected), "from a checkpoint of a training that went on from one"


@pytest.mark.parametrize("script", [two, one_in_the_other])
def test_two_models_go_on_together(tmp_path: Path, script: Script) -> None:
    expected = weights(tmp_path / "whole", script, models=2, shards=2, checkpoint={"everySteps": 6, "keep": 9})
    path = checkpoint_folder.complete(tmp_path / "whole" / "checkpoints")[-1]
    assert checkpoint_manifest.read(path).versions == (3, 3)  # type: ignore[union-attr]
    resumed = weights(tmp_path / "resumed", script, models=2, resume=str(path))
    assert all(map(equal, resumed, expected))


def test_a_checkpoint_of_the_last_step_is_awaited_and_ends_at_once(tmp_path: Path) -> None:
    (expected,) = weights(tmp_path / "whole", train, checkpoint={"everySteps": STEPS})
    (resumed,) = weights(tmp_path / "resumed", train, resume=str(newest(tmp_path / "whole")))
    assert equal(resumed, expected)


def test_time_passes_too(tmp_path: Path) -> None:
    weights(tmp_path / "whole", train, checkpoint={"everySeconds": 0.001, "keep": 99})
    assert newest(tmp_path / "whole")


def test_a_worker_that_had_left_has_left(tmp_path: Path) -> None:
    """Asynchronous: worker 1 makes three steps alone."""

    left = threading.Event()

    def script(worker: Worker) -> None:
        if worker.rank:
            train(worker, 3)
            worker.session.leave()
            worker.session.leave = lambda: None  # type: ignore[method-assign]
            left.set()
        else:
            train(worker, ready=lambda _: left.is_set())

    asked = {"strategy": "Asynchronous", "checkpoint": {"everySteps": 8}}  # when worker 0 is alone
    weights(tmp_path / "whole", script, **asked)
    path = newest(tmp_path / "whole")
    numbers = [state_values.decode((path / f"worker-{rank}.state").read_bytes())["numbers"] for rank in (0, 1)]
    assert numbers[1] == [3]
    made = [checkpoint_manifest.read(path).step]  # type: ignore[union-attr]

    def goes_on(worker: Worker) -> None:
        script(worker)
        made.append(worker.session.exchanges[0].number)

    weights(tmp_path / "resumed", goes_on, resume=str(path), **asked)
    assert sorted(made[1:]) == [3, STEPS]


@pytest.mark.parametrize("strategy", ["Asynchronous", "BackupWorkers"])
def test_where_nobody_waits_for_all_it_goes_on_and_ends(tmp_path: Path, strategy: str) -> None:
    weights(tmp_path / "whole", train, shards=2, strategy=strategy, checkpoint={"everySteps": 5, "keep": 9})
    numbers: list[int] = []

    def script(worker: Worker) -> None:
        train(worker)
        numbers.append(worker.session.exchanges[0].number)

    path = checkpoint_folder.complete(tmp_path / "whole" / "checkpoints")[-1]
    weights(tmp_path / "resumed", script, shards=3, strategy=strategy, resume=str(path))
    assert numbers == [STEPS, STEPS]


def test_a_worker_that_is_lost_is_not_waited_for(tmp_path: Path) -> None:
    asked = launch(Role.SERVER, workers=2, checkpoint=CHECKPOINT)
    away, recorded = set[int](), CheckpointRecord(metrics.of_server("digits", 0, Level.DETAILED))
    saving = Completion(asked, Folder(tmp_path), 2, 1, lambda: away, dict, recorded)
    assert saving.begin(2)
    saving.hear_part(0, {"step": 2, "versions": [2], "files": []})
    saving.hear_worker(0, 2, b"state")
    saving.look()
    assert not saving.begin(4), "one is on its way"
    away.add(1)
    saving.look()
    eventually(lambda: not saving.busy)
    saving.close()
    found = checkpoint_manifest.read(tmp_path / "step-000000002")
    assert found is not None
    assert [file.name for file in found.files] == ["worker-0.state"]


@pytest.mark.parametrize("kept", [b"its place", None])
def test_what_a_lost_worker_had_not_sent_comes_from_its_place_or_not_at_all(tmp_path: Path, kept: bytes | None) -> None:
    asked = launch(Role.SERVER, workers=2, checkpoint=CHECKPOINT)
    recorded = CheckpointRecord(metrics.of_server("digits", 0, Level.DETAILED))
    saving = Completion(asked, Folder(tmp_path), 2, 1, set, dict, recorded)
    assert saving.begin(2)
    saving.hear_part(0, {"step": 2, "versions": [2], "files": []})
    saving.hear_worker(0, 2, b"state")
    saving.replaced(1, {2: kept}.__getitem__)
    eventually(lambda: not saving.busy)
    assert saving.begin(4), "the next one is not kept waiting"
    saving.close()
    found = checkpoint_manifest.read(tmp_path / "step-000000002")
    assert (found is not None) == (kept is not None)
    if kept is not None:
        assert (tmp_path / "step-000000002/worker-1.state").read_bytes() == kept


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Make writing a file of this name fail, once."""
    names: list[str] = []
    real = checkpoint_folder.write

    def write(folder: Path, name: str, fill: Callable[[Path], object]) -> Any:
        if name in names:
            names.remove(name)
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / name))
        return real(folder, name, fill)

    monkeypatch.setattr(checkpoint_folder, "write", write)
    yield names.append
    assert not names


@pytest.mark.parametrize(
    "name",
    ["ps-0.0.parameters.safetensors", "ps-1.0.optimizer.safetensors", "worker-1.state", checkpoint_manifest.FILE],
)
def test_what_cannot_be_written_is_said_and_the_next_checkpoint_is_saved(
    tmp_path: Path, full: Callable[[str], None], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (expected,) = weights(tmp_path / "plain", train, shards=2)
    full(name)

    def said() -> bool:
        return "a checkpoint could not be saved, and the training goes on" in caplog.text

    with caplog.at_level(logging.WARNING, "paceline"):
        saves = partial(train, ready=lambda step: said() if step == 2 else is_saved(tmp_path / "saving", step))
        (saving,) = weights(tmp_path / "saving", saves, shards=2, checkpoint=CHECKPOINT)
    assert equal(saving, expected)
    assert f"step-000000002/{name}: No space left on device" in caplog.text
    kept = checkpoint_folder.complete(tmp_path / "saving" / "checkpoints")
    assert [path.name for path in kept] == ["step-000000008", "step-000000006", "step-000000004"]


def test_no_memory_for_a_copy_costs_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_memory(*_: Any) -> Any:
        raise MemoryError("cannot allocate")

    monkeypatch.setattr(checkpointing, "_copied", no_memory)
    weights(tmp_path / "saving", train, shards=2, checkpoint=CHECKPOINT)
    assert "cannot allocate" in caplog.text
    assert checkpoint_folder.complete(tmp_path / "saving" / "checkpoints") == []


def test_a_place_that_cannot_be_written_does_not_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    weights(tmp_path / "saving", train, checkpoint={"everySteps": 2, "to": str(tmp_path / "file")})
    assert "Not a directory" in caplog.text


def damaged(path: Path) -> None:
    file = path / "ps-0.0.optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize(
    ("change", "script", "more", "error", "words"),
    [
        (damaged, train, {}, CheckpointDamaged, "ps-0.0.optimizer.safetensors: is not as it was written"),
        (lambda _: None, train, {"workers": 3}, UsageError, "was saved with 2 workers, and this training has 3"),
        (lambda _: None, lambda worker: train(worker, width=301), {}, ModelMismatch, "is of another model"),
        (lambda _: None, two, {}, ModelMismatch, "is of another model"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(
    tmp_path: Path, change: Callable[[Path], None], script: Script, more: dict[str, Any],
    error: type[Exception], words: str,
) -> None:  # fmt: skip
    weights(tmp_path / "whole", train, checkpoint={"everySteps": 4})
    path = newest(tmp_path / "whole")
    change(path)
    with pytest.raises(error, match=words):
        weights(tmp_path / "resumed", script, resume=str(path), **more)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    writer = PartWriter(1, Folder(tmp_path), told.append)
    for step, value in ((2, 1.0), (4, math.nan), (6, -math.inf)):
        tensors = {"0:0": torch.ones(3), "3:5": torch.tensor([1.0, value]), "mask": torch.tensor([-math.inf])}
        writer.write(step, Part(step, 0, 1, step, tensors, [], None))
    writer.close()
    assert [it.get("error") for it in told] == [None, *2 * ["the weights are not finite: parameter 3 of model 1"]]
