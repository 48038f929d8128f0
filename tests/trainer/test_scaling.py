"""Mixed precision, norms and several optimizers on a parameter server: what one process does."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paceline import optimizers
from paceline.model_signature import Signature, TensorInfo
from paceline.server.gradients.shard import Push, Shard
from paceline_core.errors import UsageError

from . import own_optimizer
from .test_between_steps import network, seeded
from .together import Worker, saved, together

STEPS = 12
WORKERS = 2


def batch(step: int, rank: int) -> torch.Tensor:
    return torch.randn(8, 20, generator=torch.Generator().manual_seed(10 * step + rank))


def amp(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[torch.Tensor],
    scaler: Any,
    unscale: bool,
    bad: bool,
) -> None:
    """One step with GradScaler on the mean of the batches' losses; a `bad` one overflows."""
    optimizer.zero_grad()
    losses = [model(x).square().mean() for x in batches]
    loss = sum(losses) / len(losses)
    scaler.scale(loss * (float("inf") if bad else 1.0)).backward()
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_a_grad_scaler_gives_one_process_weights_and_scale(
    tmp_path: Path, fused: bool, unscale: bool, overlap: bool
) -> None:
    def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)

    def script(worker: Worker) -> tuple[dict[str, torch.Tensor], float]:
        model = network()
        optimizer = optimizer_of(model)
        worker.distribute(model, optimizer)
        worker.session.exchanges[0].gradients.overlap = overlap
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=4)
        for step in range(STEPS):
            amp(model, optimizer, [batch(step, worker.rank)], scaler, unscale, bad=step == 5 and worker.rank == 1)
        return model.state_dict(), scaler.get_scale()

    found = together(script, tmp_path, WORKERS, shards=2)
    model = network()
    optimizer, scaler = optimizer_of(model), torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=4)
    for step in range(STEPS):
        amp(model, optimizer, [batch(step, rank) for rank in range(WORKERS)], scaler, unscale, bad=step == 5)
    for weights, scale in found:
        assert scale == scaler.get_scale()
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shards", [1, 3])
def test_max_norm_clips_the_mean(tmp_path: Path, shards: int) -> None:
    def script(worker: Worker) -> dict[str, torch.Tensor]:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        worker.distribute(model, optimizer)
        for step in range(STEPS):
            optimizer.zero_grad()
            model(batch(step, worker.rank)).square().mean().backward()
            optimizer.step()
        return model.state_dict()

    found = together(script, tmp_path, WORKERS, shards=shards, gradients={"maxNorm": 0.05})[1]
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        losses = [model(batch(step, rank)).square().mean() for rank in range(WORKERS)]
        (sum(losses) / WORKERS).backward()  # type: ignore[union-attr]
        assert nn.utils.clip_grad_norm_(model.parameters(), 0.05) > 0.05
        optimizer.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_local_clipping_says_once_what_it_means(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def script(worker: Worker) -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        worker.distribute(model, optimizer)
        worker.session.exchanges[0].gradients.overlap = worker.rank == 0
        for step in range(4):
            optimizer.zero_grad()
            model(batch(step, worker.rank)).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()

    with caplog.at_level(logging.WARNING, "paceline"):
        together(script, tmp_path, WORKERS)
    assert sum("gradients.maxNorm" in r.message for r in caplog.records) == WORKERS


def test_accumulated_passes_say_nothing_of_clipping(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def script(worker: Worker) -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        worker.distribute(model, optimizer)
        for step in range(4):
            optimizer.zero_grad()
            for part in range(3):
                model(batch(step, part)).square().mean().backward()
            optimizer.step()

    with caplog.at_level(logging.WARNING, "paceline"):
        together(script, tmp_path, WORKERS)
    assert not caplog.records


@pytest.mark.parametrize(("dtype", "value", "workers"), [(torch.float16, 20_000.0, 4), (torch.bfloat16, 1.0, 512)])
def test_means_of_half_precision_are_summed_in_float32(dtype: torch.dtype, value: float, workers: int) -> None:
    info = TensorInfo("p", (8,), str(dtype).removeprefix("torch."))
    shard = Shard(Signature("SGD", ({"lr": 1.0},), (info,), (0,), (), (), (), {}), 0, 1, 1 << 20)
    for worker in range(workers):
        shard.gradients(worker)[0].slices[0].fill_(value)
    shard.average(0, {w: Push() for w in range(workers)})
    assert torch.equal(shard.leaves[0][0].grad, torch.full((8,), value, dtype=dtype))


def gan(distribute: Any, rank: int, ranks: list[int]) -> tuple[nn.Module, nn.Module]:
    """A generator and a discriminator with an optimizer each, by turns."""
    generator = seeded(lambda: nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 20)))
    critic = seeded(lambda: nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.BatchNorm1d(30), nn.Linear(30, 1)))
    makes = torch.optim.Adam(generator.parameters(), lr=0.01)
    judges = torch.optim.SGD(critic.parameters(), lr=0.05, momentum=0.9)
    distribute(generator, makes)
    distribute(critic, judges)
    schedule = torch.optim.lr_scheduler.StepLR(judges, 3, 0.5)
    for step in range(STEPS):
        real, noise = batch(step, 0), batch(step, 7)[:, :4]
        judges.zero_grad()
        (critic(generator(noise).detach()).mean() - critic(real).mean()).backward()
        judges.step()
        if step % 2:
            makes.zero_grad()
            (-critic(generator(noise)).mean()).backward()
            makes.step()
        schedule.step()
    return generator, critic


@pytest.mark.parametrize("strategy", ["Synchronous", "Asynchronous"])
def test_two_models_with_an_optimizer_each(tmp_path: Path, strategy: str) -> None:
    def script(worker: Worker) -> list[dict[str, torch.Tensor]]:
        return [m.state_dict() for m in gan(worker.distribute, worker.rank, [])]

    workers = WORKERS if strategy == "Synchronous" else 1
    ours = together(script, tmp_path, workers, shards=2, strategy=strategy)
    expected = [m.state_dict() for m in gan(lambda *_: None, 0, [])]
    for models in (*ours, [saved(tmp_path, 0), saved(tmp_path, 1)]):
        for found, wanted in zip(models, expected, strict=True):
            for name, tensor in wanted.items():
                assert torch.equal(found[name], tensor), name


def test_two_optimizers_on_one_model(tmp_path: Path) -> None:
    def train(distribute: Any) -> nn.Module:
        model = network()
        slow, fast = torch.optim.SGD(model[0].parameters(), lr=0.01), torch.optim.Adam(model[2].parameters(), lr=0.05)
        distribute(model, slow)
        distribute(model, fast)
        for step in range(STEPS):
            for optimizer in (slow, fast):
                optimizer.zero_grad()
            model(batch(step, 0)).square().mean().backward()
            for optimizer in (slow, fast):
                optimizer.step()
        return model

    def script(worker: Worker) -> dict[str, torch.Tensor]:
        return train(worker.distribute).state_dict()

    found = together(script, tmp_path, WORKERS, shards=2)
    for weights in (*found, saved(tmp_path)):
        for name, tensor in train(lambda *_: None).state_dict().items():
            assert torch.equal(weights[name], tensor), name


def test_a_parameter_of_two_optimizers_is_refused(tmp_path: Path) -> None:
    def script(worker: Worker) -> None:
        model = network()
        worker.distribute(model, torch.optim.SGD(model.parameters(), lr=0.1))
        worker.distribute(model, torch.optim.SGD(model[2].parameters(), lr=0.1))

    with pytest.raises(UsageError, match=r"2\.weight is trained by two optimizers"):
        together(script, tmp_path, 1)


def test_an_optimizer_of_ones_own_runs_when_its_name_is_allowed(tmp_path: Path) -> None:
    def train(distribute: Any) -> nn.Module:
        model = network()
        optimizer = own_optimizer.Lion(model.parameters(), lr=0.01)
        distribute(model, optimizer)
        for step in range(STEPS):
            optimizer.zero_grad()
            model(batch(step, 0)).square().mean().backward()
            optimizer.step()
        return model

    def script(worker: Worker) -> dict[str, torch.Tensor]:
        return train(worker.distribute).state_dict()

    name = f"{own_optimizer.__name__}:Lion"
    found = together(script, tmp_path, WORKERS, optimizers=[name])[0]
    for key, tensor in train(lambda *_: None).state_dict().items():
        assert torch.equal(found[key], tensor), key
    with pytest.raises(UsageError, match=r"may be allowed with `parameterServer: \{optimizers: \[\S+:Lion\]\}`"):
        together(script, tmp_path, 1)


def test_what_is_no_optimizer_is_not_built() -> None:
    with pytest.raises(UsageError, match=r"is not a torch\.optim\.Optimizer"):
        optimizers.build("os:stat_result", [{"params": []}], ["os:stat_result"])
    with pytest.raises(UsageError, match="cannot import optimizer nowhere:Lion"):
        optimizers.build("nowhere:Lion", [{"params": []}], ["nowhere:Lion"])
    with pytest.raises(UsageError, match=r"nor in parameterServer\.optimizers"):
        optimizers.build("os:system", [{"params": []}])
