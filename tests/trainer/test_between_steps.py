"""What a script does to the parameters, to the optimizer's state and to buffers between two steps is carried out."""

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paceline.worker.parameter_server.tensor_changes import TensorChanges
from paceline_core.errors import UsageError

from .together import Worker, saved, together

STEPS = 6
Script = Callable[[nn.Module, torch.optim.Optimizer, int, int], None]  # after each step: model, optimizer, rank, step


SEEDED = threading.Lock()  # the workers are threads, and torch's generator is one for all


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with SEEDED:
        torch.manual_seed(3)
        return make()


def network() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(20, 300), nn.Tanh(), nn.Linear(300, 2)))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, after: Script, rank: int) -> None:
    """Steps on the same batch on every worker, so that one process does the same."""
    for step in range(STEPS):
        optimizer.zero_grad()
        x = torch.randn(8, 20, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        after(model, optimizer, rank, step)


def nothing(*_: Any) -> None:
    pass


def loads(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    if step == 2:
        model.load_state_dict({k: v + 0.5 for k, v in model.state_dict().items()})


def writes_through_data(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    for parameter in model.parameters():
        parameter.data.clamp_(-0.05, 0.05)


def replaces_data(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    if step == 3:
        model[0].weight.data = torch.full((300, 20), 0.01)


def empties_a_row(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    with torch.no_grad():
        model[0].weight[7].zero_()


def averages_for_a_test(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict({k: v * 0 for k, v in kept.items()})
    model.load_state_dict(kept)


def loads_at_the_end(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    if step == STEPS - 1:
        model.load_state_dict({k: v * 0 + 7 for k, v in model.state_dict().items()})


def optimizer_goes_back(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    if step == 1:
        optimizer.kept = copy.deepcopy(optimizer.state_dict())  # type: ignore[attr-defined]
    if step == 3:
        optimizer.load_state_dict(optimizer.kept)  # type: ignore[attr-defined]


def zeroes_momentum(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, step: int) -> None:
    if step == 3:
        empty = torch.optim.Adam(model.parameters(), lr=0.02)
        optimizer.load_state_dict(empty.state_dict())


@pytest.mark.parametrize("strategy", ["Synchronous", "Asynchronous"])
@pytest.mark.parametrize(
    "after",
    [nothing, loads, writes_through_data, replaces_data, empties_a_row, averages_for_a_test, loads_at_the_end,
     optimizer_goes_back, zeroes_momentum],
)  # fmt: skip
def test_a_script_changes_weights_or_state(tmp_path: Path, after: Script, strategy: str) -> None:
    workers = 2 if strategy == "Synchronous" else 1

    def script(worker: Worker) -> dict[str, torch.Tensor]:
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        worker.distribute(model, optimizer)
        train(model, optimizer, after, worker.rank)
        return model.state_dict()

    expected = network()
    train(expected, torch.optim.Adam(expected.parameters(), lr=0.01), after, 0)
    for found in (*together(script, tmp_path, workers, shards=2, strategy=strategy), saved(tmp_path)):
        for name, tensor in expected.state_dict().items():
            assert torch.equal(found[name], tensor), (name, (found[name] - tensor).abs().max())


def test_a_layer_made_anew_at_random_is_worker_0s(tmp_path: Path) -> None:
    def script(worker: Worker) -> dict[str, torch.Tensor]:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        worker.distribute(model, optimizer)
        train(model, optimizer, nothing, worker.rank)
        with torch.no_grad():
            model[2].weight.fill_(worker.rank + 1.0)
        train(model, optimizer, nothing, worker.rank)
        return model.state_dict()

    for found in (*together(script, tmp_path), saved(tmp_path)):
        assert torch.equal(found["2.weight"], torch.ones(2, 300))


def test_a_change_by_one_worker_alone_is_refused_by_name(tmp_path: Path) -> None:
    def script(worker: Worker) -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        worker.distribute(model, optimizer)
        train(model, optimizer, nothing, worker.rank)
        if worker.rank == 1:
            with torch.no_grad():
                model[2].bias.fill_(1.0)
        train(model, optimizer, nothing, worker.rank)

    with pytest.raises(UsageError, match=r"worker-1 changed 2\.bias between two steps"):
        together(script, tmp_path)


@pytest.mark.parametrize("order", ["before distribute", "after distribute"])
@pytest.mark.parametrize(
    "kind",
    [torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad, torch.optim.NAdam, torch.optim.ASGD, torch.optim.Rprop],
)
def test_save_and_resume_as_without_interruption(tmp_path: Path, kind: Any, order: str) -> None:
    settings: dict[str, Any] = {"lr": 0.01} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    file = tmp_path / "checkpoint.pt"

    def begin(worker: Worker) -> None:
        model = network()
        optimizer = kind(model.parameters(), **settings)
        worker.distribute(model, optimizer)
        train(model, optimizer, nothing, worker.rank)
        if worker.rank == 0:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)

    def go_on(worker: Worker) -> dict[str, torch.Tensor]:
        model = network()
        optimizer = kind(model.parameters(), **settings)
        if order == "after distribute":
            worker.distribute(model, optimizer)
        checkpoint = torch.load(file, weights_only=True)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        if order == "before distribute":
            worker.distribute(model, optimizer)
        train(model, optimizer, nothing, worker.rank)
        return model.state_dict()

    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    together(begin, tmp_path / "first", shards=2)
    found = together(go_on, tmp_path / "second", shards=2)[1]
    model = network()
    optimizer = kind(model.parameters(), **settings)
    for _ in range(2):
        train(model, optimizer, nothing, 0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor), (name, (found[name] - tensor).abs().max())


def test_copies_and_pickles_hold_nothing_of_paceline(tmp_path: Path) -> None:
    def script(worker: Worker) -> tuple[bytes, Any, dict[Any, Any]]:
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        worker.distribute(model, optimizer)
        train(model, optimizer, nothing, worker.rank)
        return pickle.dumps(optimizer), copy.deepcopy(optimizer), optimizer.state_dict()

    data, copied, state = together(script, tmp_path)[0]
    assert b"paceline" not in data
    assert type(copied) is torch.optim.Adam
    for it in (copied, pickle.loads(data)):
        assert it.state_dict()["state"][0]["step"] == STEPS
        assert torch.equal(it.state_dict()["state"][0]["exp_avg"], state["state"][0]["exp_avg"])


def test_a_group_added_late_is_refused(tmp_path: Path) -> None:
    def script(worker: Worker) -> None:
        model, late = network(), nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        worker.distribute(model, optimizer)
        optimizer.add_param_group({"params": late.parameters()})

    with pytest.raises(UsageError, match=r"give the optimizer all parameters before"):
        together(script, tmp_path, workers=1)


class Assigns(nn.Module):
    """Its buffer is another tensor after each forward; a large one never changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 2)
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("mask", torch.ones(1 << 16))
        self.norm = nn.BatchNorm1d(2)
        self.teacher = nn.Linear(20, 2).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.seen + x.mean()
        with torch.no_grad():
            self.teacher.weight.lerp_(self.layer.weight, 0.1)
        return self.norm(self.layer(x) + self.teacher(x)) * self.mask[0]


def test_buffers_belong_to_their_names_and_travel_when_they_change(tmp_path: Path) -> None:
    sent: list[int] = []

    def script(worker: Worker) -> dict[str, torch.Tensor]:
        model = seeded(Assigns)
        optimizer = torch.optim.SGD([*model.layer.parameters(), *model.norm.parameters()], lr=0.1)
        worker.distribute(model, optimizer)
        before = worker.session.exchanges[0].traffic[0]
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(torch.randn(8, 20) + worker.rank).square().mean().backward()
            optimizer.step()
        if worker.rank == 0:
            sent.append(worker.session.exchanges[0].traffic[0] - before)
        return {k: v.clone() for k, v in model.state_dict().items()}

    first, second = together(script, tmp_path)
    found = saved(tmp_path)
    assert first["seen"].abs().sum() > 0
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor), name
        assert torch.equal(found[name], tensor), name
    assert sent[0] < 1 << 18, "the mask of 256 KiB travelled"


def test_buffers_come_from_the_lowest_worker_that_is_there(tmp_path: Path) -> None:
    def script(worker: Worker) -> torch.Tensor:
        model = seeded(lambda: nn.Sequential(nn.Linear(20, 4), nn.BatchNorm1d(4)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        worker.distribute(model, optimizer)
        for _ in range(3 if worker.rank == 0 else 60):
            model(torch.full((8, 20), float(worker.rank))).sum().backward()
            optimizer.step()
        return model[1].running_mean.clone()

    late = together(script, tmp_path)[1]
    expected = seeded(lambda: nn.Linear(20, 4))
    assert torch.allclose(late, expected(torch.ones(1, 20))[0], atol=0.05), "BatchNorm stood still"
    assert torch.equal(saved(tmp_path)["1.running_mean"], late)


def test_changes_are_noticed_whoever_writes() -> None:
    tensors = [torch.arange(1000.0), torch.ones(4, 5).t(), torch.zeros(3, dtype=torch.bfloat16), torch.tensor(5), None]
    it = TensorChanges(lambda: tensors)
    assert it.found().all == []
    tensors[2].data.fill_(float("nan"))  # type: ignore[union-attr]
    assert it.found() == ([2], [])
    it.remember()
    assert it.found().all == [], "NaN is what it was"
    tensors[0][501] = 1.0  # type: ignore[index]
    tensors[3] = torch.tensor(5)
    assert it.found() == ([], [0, 3])
    it.remember()
    tensors[0].data[502] = 1.0  # type: ignore[union-attr]
    assert it.found() == ([0], []), "once noticed, a tensor is compared whole"
