"""No all-reduce training succeeds whose workers end with different weights."""

import weakref

import pytest
import torch
from safetensors.torch import load_file

from paceline.server.observability.checksum_comparison import KEPT_STEPS, ChecksumComparison
from paceline.worker.all_reduce import weight_checksum
from paceline_core.errors import WeightsDiffer

from .conftest import Run

SCRIPT = """
import torch, paceline
model, critic = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)), torch.nn.Linear(2, 1)
pairs = [(m, torch.optim.SGD(m.parameters(), lr=0.01)) for m in (model, critic)]
for pair in pairs:
    assert paceline.distribute(*pair) == pair
for step in range(STEPS):
    critic(model(torch.full((3, 4), float(paceline.rank())))).square().mean().backward()
    for each, optimizer in pairs:
        optimizer.step()
        optimizer.zero_grad()
    CHANGE
END
"""


def script(steps: int = 5, change: str = "pass", end: str = "pass") -> str:
    return SCRIPT.replace("STEPS", str(steps)).replace("CHANGE", change).replace("END", end)


def told(step: int, pair: int = 0, **sums: int) -> list[dict[str, object]]:
    return [{"step": step, "pair": pair, "sums": sums}]


def test_the_minority_is_named_with_its_parameters() -> None:
    comparison = ChecksumComparison(3)
    comparison.hear(0, told(10, weight=1, bias=2))
    comparison.hear(1, told(10, weight=5, bias=2))
    comparison.hear(1, told(500, weight=5, bias=2))
    with pytest.raises(
        WeightsDiffer, match="the weights of worker-1 differ from the others' after step 10: weight; do"
    ):
        comparison.hear(2, told(10, weight=1, bias=2))


def test_of_two_workers_the_first_is_taken_for_right_and_few_parameters_are_named() -> None:
    comparison = ChecksumComparison(2)
    comparison.hear(1, told(1, a=1, b=1, c=1, d=1, e=1))
    with pytest.raises(WeightsDiffer, match=r"of worker-1 .* a, b, c and 1 more;"):
        comparison.hear(0, told(1, a=2, b=2, c=2, d=2, e=1))


def test_workers_that_agree_and_pairs_by_themselves() -> None:
    comparison = ChecksumComparison(2)
    for step in range(1, 100):
        for worker in (0, 1):
            comparison.hear(worker, told(step, weight=step))
            comparison.hear(worker, told(step, pair=1, weight=7))
    assert not comparison._steps


def test_it_does_not_grow_with_what_a_single_worker_tells() -> None:
    comparison = ChecksumComparison(2)
    for step in range(1000):
        comparison.hear(1, told(step, weight=step))
    assert len(comparison._steps) == KEPT_STEPS


@pytest.mark.parametrize("bad", [[{}], [1], [{"step": 1, "pair": 0, "sums": {"a": "x"}}], 5, [{"step": "?"}]])
def test_nonsense_is_refused(bad: object) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        ChecksumComparison(2).hear(0, bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 3, 1001])
def test_a_checksum_tells_any_single_bit(dtype: torch.dtype, count: int) -> None:
    values = torch.randn(2 * count, generator=torch.Generator().manual_seed(1)).to(dtype)
    one = values[1 : count + 1]
    (before,) = weight_checksum.checksums([one]).tolist()
    assert weight_checksum.checksums([one.clone()]).tolist() == [before]
    one.view(torch.int16)[-1] ^= 1
    assert weight_checksum.checksums([one]).tolist() != [before]


def test_weights_that_changed_since_the_step_are_seen() -> None:
    parameters = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))]
    unchanged = weight_checksum.Unchanged(parameters)
    assert unchanged
    with torch.no_grad():
        parameters[1].add_(1)
    assert not unchanged
    unchanged.note()
    assert unchanged
    parameters[0].data.copy_(torch.zeros(2))
    assert not unchanged
    unchanged.note()
    parameters[1].data.zero_()
    assert not unchanged
    unchanged.note()
    parameters[1].data = parameters[1].data.clone()
    assert not unchanged
    unchanged.note()
    assert unchanged


def test_a_model_without_elements_is_unchanged() -> None:
    assert weight_checksum.Unchanged([torch.nn.Parameter(torch.zeros(0))])


def test_what_was_looked_at_is_not_kept_alive() -> None:
    parameter = torch.nn.Parameter(torch.ones(1000))
    unchanged = weight_checksum.Unchanged([parameter])
    held = weakref.ref(parameter.untyped_storage())
    parameter.data = torch.ones(1000)
    assert held() is None
    assert not unchanged


def test_the_same_steps_on_every_worker() -> None:
    assert [step for step in range(1, 1501) if weight_checksum.due(step, 1234)] == [1, 10, 100, 500, 1000, 1234, 1500]


@pytest.mark.slow
def test_a_worker_with_other_weights_fails_the_training(run: Run) -> None:
    noise = "if step == 3 and paceline.rank() == 1: model[1].weight.data.add_(0.1)"
    outcome = run(script(change=noise), strategy="AllReduce", workers=3)
    assert outcome.code == 1, outcome.output
    assert "the weights of worker-1 differ from the others' after step 10" in outcome.output
    assert "1.weight" in outcome.result["error"]["message"]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [5, 4])  # of either; after 10 the weights are compared at once, after 8 at the end
@pytest.mark.parametrize("change", ["model[0].weight.data.zero_()", "model.half()"])
def test_a_script_may_change_the_weights_after_its_last_step(run: Run, change: str, steps: int) -> None:
    outcome = run(script(steps, end=f"if paceline.rank() == 0: {change}"), strategy="AllReduce", workers=2)
    assert outcome.code == 0, outcome.output
    first, second = (load_file(outcome.folder / name) for name in ("weights.safetensors", "weights-1.safetensors"))
    assert first.keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert second.keys() == {"weight", "bias"}
    weight = first["0.weight"]
    assert weight.dtype == torch.float16 if "half" in change else not weight.any()
    assert outcome.result["version"] == 2 * steps


@pytest.mark.slow
def test_an_optimizer_is_distributed_once(run: Run) -> None:
    outcome = run(script(end="paceline.distribute(*pairs[0])"), strategy="AllReduce", workers=2)
    assert outcome.code == 1, outcome.output
    assert "was called before with this optimizer" in outcome.output


@pytest.mark.slow
def test_the_second_model_is_compared_too(run: Run) -> None:
    other = script().replace("torch.nn.Linear(2, 1)", "torch.nn.Linear(2, 1 + paceline.rank())")
    outcome = run(other, strategy="AllReduce", workers=2)
    assert outcome.code == 1, outcome.output
    assert "worker-1 trains another model than worker-0: parameters: weight [2, 2]" in outcome.output
