"""Whose change counts, and when: cases in which a change was once lost, undone or taken from the wrong worker."""

import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paceline.model_signature import Signature, TensorInfo
from paceline.server.gradients.shard import Push, Shard
from paceline_core.errors import UsageError

from .test_between_steps import network, nothing, seeded, train
from .together import Worker, saved, together


def swap(model: nn.Module) -> None:
    """As an evaluation with averaged weights: what was there is put back."""
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict({k: v * 0 for k, v in kept.items()})
    model.load_state_dict(kept)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    optimizer.zero_grad()
    x = torch.randn(8, 20, generator=torch.Generator().manual_seed(seed))
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("rows", [10, 200_000])
def test_unscaled_gradients_that_are_nearly_all_zero(tmp_path: Path, rows: int) -> None:
    def run(distribute: Any) -> torch.Tensor:
        model = seeded(lambda: nn.Embedding(rows, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        distribute(model, optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(model(torch.tensor([3, 7])).square().sum()).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        return model.weight[3].detach().clone()

    found = together(lambda worker: run(worker.distribute), tmp_path, 1)[0]
    torch.testing.assert_close(found, run(lambda *_: None))


def test_an_early_leavers_swap_does_not_undo_what_the_others_train(tmp_path: Path) -> None:
    def script(worker: Worker) -> dict[str, torch.Tensor]:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        worker.distribute(model, optimizer)
        for number in range(2 if worker.rank == 0 else 8):
            step(model, optimizer, number)
        if worker.rank == 0:
            swap(model)
        return {k: v.clone() for k, v in model.state_dict().items()}

    last = together(script, tmp_path)[1]
    for name, tensor in saved(tmp_path).items():
        assert torch.equal(last[name], tensor), name


@pytest.mark.parametrize("strategy", ["Synchronous", "Asynchronous"])
def test_a_private_change_after_the_last_step_is_not_saved(tmp_path: Path, strategy: str) -> None:
    stepped = threading.Barrier(2)  # where worker 0 has left before, worker 1 is the lowest

    def script(worker: Worker) -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        worker.distribute(model, optimizer)
        step(model, optimizer)
        stepped.wait(20)
        if worker.rank == 1:
            with torch.no_grad():
                model[0].weight.fill_(3.0)

    together(script, tmp_path, strategy=strategy)
    assert torch.equal(saved(tmp_path)["0.weight"], network()[0].weight)


def test_a_swap_for_an_evaluation_does_not_undo_the_others_updates(tmp_path: Path) -> None:
    """Asynchronous: worker 0 swaps while worker 1 makes three updates."""
    turns = [threading.Event() for _ in range(2)]

    def script(worker: Worker) -> None:
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        worker.distribute(model, optimizer)

        def update() -> None:
            model.weight.grad = torch.ones(1, 1)
            optimizer.step()

        if worker.rank == 0:
            update()
            swap(model)
            turns[0].set()
            turns[1].wait(30)
            update()
        else:
            turns[0].wait(30)
            for _ in range(3):
                update()
            turns[1].set()

    together(script, tmp_path, strategy="Asynchronous")
    assert saved(tmp_path)["weight"].item() == -5.0


def test_a_parameter_put_in_anothers_place_is_refused(tmp_path: Path) -> None:
    def script(worker: Worker) -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        worker.distribute(model, optimizer)
        model[0].weight = nn.Parameter(torch.zeros(300, 20))
        optimizer.param_groups[0]["params"] = list(model.parameters())
        step(model, optimizer)

    with pytest.raises(UsageError, match="the optimizer was given other parameters"):
        together(script, tmp_path, 1)


@pytest.mark.parametrize("way", ["clear", "assign"])
def test_an_emptied_state_is_emptied_on_the_servers(tmp_path: Path, way: str) -> None:
    def run(distribute: Any) -> nn.Module:
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        distribute(model, optimizer)
        for number in range(6):
            step(model, optimizer, number)
            if number == 2 and way == "clear":
                optimizer.state.clear()
            elif number == 2:
                optimizer.state = defaultdict(dict)
        return model

    found = together(lambda worker: run(worker.distribute).state_dict(), tmp_path, shards=2)[0]
    for name, tensor in run(lambda *_: None).state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_writing_into_the_servers_state_is_refused(tmp_path: Path) -> None:
    def script(worker: Worker) -> None:
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        worker.distribute(model, optimizer)
        step(model, optimizer)
        optimizer.state[model[0].weight] = {"step": torch.tensor(5.0)}
        step(model, optimizer)

    with pytest.raises(UsageError, match=r"use optimizer\.state_dict\(\), change what it gives"):
        together(script, tmp_path, 1)


def test_a_frozen_parameter_changed_on_one_worker_is_refused(tmp_path: Path) -> None:
    def script(worker: Worker) -> None:
        model = network()
        model[0].requires_grad_(False)
        optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
        worker.distribute(model, optimizer)
        train(model, optimizer, nothing, worker.rank)
        if worker.rank == 1:
            model[0].bias.fill_(5.0)
        train(model, optimizer, nothing, worker.rank)

    with pytest.raises(UsageError, match=r"worker-1 changed 0\.bias between two steps"):
        together(script, tmp_path)


def test_a_buffer_changed_on_one_worker_is_given_back(tmp_path: Path) -> None:
    def script(worker: Worker) -> float:
        model = network()
        model.register_buffer("scale", torch.ones(3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        worker.distribute(model, optimizer)
        step(model, optimizer)
        if worker.rank == 1:
            model.scale.fill_(5.0)
        step(model, optimizer)
        return float(model.scale.sum())

    assert together(script, tmp_path) == [3.0, 3.0]


def test_frozen_weights_loaded_with_the_values_they_had_travel_once(tmp_path: Path) -> None:
    def script(worker: Worker) -> list[int]:
        model = seeded(lambda: nn.Sequential(nn.Linear(20, 3000), nn.Linear(3000, 2)))
        model[0].requires_grad_(False)
        optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
        worker.distribute(model, optimizer)
        sent = []
        for number in range(5):
            before = worker.session.exchanges[0].traffic[0]
            step(model, optimizer, number)
            sent.append(worker.session.exchanges[0].traffic[0] - before)
            if number == 1:
                model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
        return sent

    first, _ = together(script, tmp_path)
    assert first[2] > 200_000 > max(first[1], first[3], first[4])


def test_a_model_within_another_is_trained_by_its_own_optimizer(tmp_path: Path) -> None:
    def run(distribute: Any) -> nn.Module:
        encoder, head = seeded(lambda: nn.Linear(20, 30)), seeded(lambda: nn.Linear(30, 2))
        whole = nn.Sequential(encoder, head)
        slow, fast = torch.optim.SGD(encoder.parameters(), lr=0.01), torch.optim.Adam(head.parameters(), lr=0.01)
        distribute(encoder, slow)
        distribute(whole, fast)
        for number in range(5):
            x = torch.randn(8, 20, generator=torch.Generator().manual_seed(number))
            slow.zero_grad()
            fast.zero_grad()
            whole(x).square().mean().backward()
            slow.step()
            fast.step()
        return whole

    for found in together(lambda worker: run(worker.distribute).state_dict(), tmp_path):
        for name, tensor in run(lambda *_: None).state_dict().items():
            assert torch.equal(found[name], tensor), name


def test_scaled_gradients_keep_their_precision() -> None:
    info = TensorInfo("p", (1,), "float64")
    shard = Shard(Signature("SGD", ({"lr": 1.0},), (info,), (0,), (), (), (), {}), 0, 1, 1 << 20)
    for worker in range(2):
        shard.gradients(worker)[0].slices[0].fill_(2.0 * (1 + 1e-12))
    shard.average(0, {w: Push(unscale=0.5) for w in range(2)})
    gradient = shard.leaves[0][0].grad
    assert gradient is not None
    assert gradient.item() == 1 + 1e-12
