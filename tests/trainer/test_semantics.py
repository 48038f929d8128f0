"""One worker on one server behaves as torch alone: dtypes, accumulation, clipping, buffers, closures, hooks, GPUs."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from paceline.worker.observability.measuring import Measuring
from paceline.worker.parameter_server.session import Session
from paceline_core.errors import UsageError
from paceline_core.launch import Role

from .conftest import Run
from .inprocess import Served, launch

STEPS = 6
Step = Callable[[nn.Module, torch.optim.Optimizer, int], None]


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    model(batch(model, step)).square().mean().backward()
    optimizer.step()


def accumulated(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    for part in range(3):
        model(batch(model, 3 * step + part)).square().mean().backward()
    optimizer.step()


def clipped(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    model(batch(model, step)).square().mean().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()


def with_closure(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(batch(model, step)).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure) is not None


def replaced(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    model(batch(model, step)).square().mean().backward()
    for parameter in model.parameters():
        parameter.grad = parameter.grad * 0.5
    optimizer.step()


def batch(model: nn.Module, step: int) -> torch.Tensor:
    first = next(model.parameters())
    return torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(step)).to(first.dtype)


def network(dtype: torch.dtype, channels_last: bool = False) -> nn.Module:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    model = model.to(dtype)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def distributed(model: nn.Module, optimizer: torch.optim.Optimizer, use: Step) -> Session:
    server = Served()
    try:
        worker = launch(Role.WORKER, server.address)
        session = Session(worker, Measuring.of(worker))
        session.add(model, optimizer)
        for step in range(STEPS):
            use(model, optimizer, step)
        session.leave()
    finally:
        server.stop()
    return session


@pytest.mark.parametrize("use", [plain, accumulated, clipped, with_closure, replaced])
@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop]
)
def test_a_step_is_torchs_step(use: Step, kind: type[torch.optim.Optimizer]) -> None:
    ours, theirs = network(torch.float32), network(torch.float32)
    distributed(ours, kind(ours.parameters(), lr=0.01), use)
    optimizer = kind(theirs.parameters(), lr=0.01)
    for step in range(STEPS):
        use(theirs, optimizer, step)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("dtype", "channels_last"), [(torch.bfloat16, False), (torch.float64, False), (torch.float32, True)]
)
def test_other_dtypes_and_layouts(dtype: torch.dtype, channels_last: bool) -> None:
    ours, theirs = network(dtype, channels_last), network(dtype, channels_last)
    distributed(ours, torch.optim.SGD(ours.parameters(), lr=0.01, momentum=0.9), plain)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9)
    for step in range(STEPS):
        plain(theirs, optimizer, step)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_the_optimizer_stays_what_it_is() -> None:
    model = network(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def use(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        plain(model, optimizer, step)
        schedule.step()

    distributed(model, optimizer, use)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert calls == ["before", "after"] * STEPS
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.1**3)


def test_sparse_gradients_are_refused() -> None:
    model = nn.Embedding(10, 4, sparse=True)

    def use(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        model(torch.tensor([1, 2])).sum().backward()
        optimizer.step()

    with pytest.raises(UsageError, match="sparse"):
        distributed(model, torch.optim.SGD(model.parameters(), lr=0.1), use)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("strategy", ["Synchronous", "Asynchronous", "AllReduce"])
def test_a_model_on_a_gpu(run: Run, strategy: str) -> None:
    script = """
    import torch, paceline
    model = torch.nn.Linear(64, 64).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model, optimizer = paceline.distribute(model, optimizer)
    for step in range(10):
        optimizer.zero_grad()
        model(torch.ones(4, 64, device="cuda")).square().mean().backward()
        optimizer.step()
    """
    outcome = run(script, strategy=strategy, workers=1)
    assert outcome.code == 0, outcome.output
