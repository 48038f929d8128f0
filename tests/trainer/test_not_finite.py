"""A loss or weights that are not finite: said at once and at the end, in every mode; with Fail the training fails."""

import json
import math
import re
from pathlib import Path

import numpy
import pytest
import torch

from paceline import weights
from paceline.finite_gradients import PART, all_finite, first_not_finite
from paceline.local.display import summary
from paceline.model_signature import Signature, TensorInfo
from paceline.server.gradients.shard import Push, Shard
from paceline.server.observability.finiteness_record import FinitenessRecord
from paceline.views.report import command
from paceline.views.top import Options, top
from paceline_core.errors import NotFinite
from paceline_core.finiteness import MOST_IN_A_ROW
from paceline_core.modes import MODES

from .conftest import Run
from .made import a_result, a_run, a_status, a_worker
from .test_json_text import strictly

SCRIPT = """
import torch, paceline
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
model, optimizer = paceline.distribute(model, optimizer)
for step in range(1, 31):
    optimizer.zero_grad()
    loss = model(torch.ones(3, 4)).square().mean()
    if step >= 17 and paceline.rank() == 1: LINE
    loss.backward()
    optimizer.step()
    paceline.report(loss=loss)
"""
LOSS = "loss = loss + float('nan') * 0"
DIVERGES = "loss = loss * float('inf')"
QUIETLY = "optimizer.zero_grad(); loss.backward(); model[1].bias.grad.fill_(float('nan')); optimizer.step(); continue"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", MODES)
def test_it_is_said_wherever_the_training_is_shown(run: Run, strategy: str) -> None:
    asked = {"timeoutSeconds": 30, "onNonFinite": "Report"}
    outcome = run(SCRIPT.replace("LINE", DIVERGES), strategy=strategy, servers=2, gradients=asked)
    assert outcome.code == 0, outcome.output
    assert "-0] worker-1: loss is inf at step 17\n" in outcome.output, outcome.output
    assert "\nworker-1: loss is inf at step 17\n" in outcome.output
    assert "the weights are not finite: 0.weight\n" in outcome.output
    for file in (*outcome.folder.glob("*.json"), *outcome.folder.glob("traces/*.json")):
        strictly(file.read_text())
    assert outcome.result["result"] == "Succeeded"
    assert outcome.result["loss_not_finite"] == {"worker": 1, "step": 17, "value": "inf"}
    assert outcome.result["weights_not_finite"] == "0.weight"
    assert outcome.result["workers"][1]["loss"] is None  # the other may have been done before, if it waits for nobody


@pytest.mark.slow
@pytest.mark.parametrize("strategy", MODES)
def test_fail_ends_the_training_with_worker_and_step(run: Run, strategy: str) -> None:
    asked = {"timeoutSeconds": 30, "onNonFinite": "Fail"}
    outcome = run(SCRIPT.replace("LINE", LOSS), strategy=strategy, gradients=asked)
    assert outcome.code == 1, outcome.output
    assert outcome.result["error"]["message"] == "NotFinite: worker-1: loss is nan at step 17", outcome.output


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["Synchronous", "AllReduce"])
def test_a_gradient_alone_fails_it_too(run: Run, strategy: str) -> None:
    script = (
        SCRIPT.replace("LINE", QUIETLY)
        .replace("paceline.rank() == 1", "True")
        .replace("paceline.report(loss=loss)", "")
    )
    script = script.replace("range(1, 31)", "range(1, 18)")
    outcome = run(script, strategy=strategy, servers=2, gradients={"timeoutSeconds": 30, "onNonFinite": "Fail"})
    assert outcome.code == 1, outcome.output
    message = outcome.result["error"]["message"]
    assert re.fullmatch("NotFinite: (worker-.: the|the mean) gradient of 1.bias is not finite at step 17", message), (
        outcome.output
    )


GRADIENT = "loss = loss * float('VALUE')"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "value"), [*((mode, "nan") for mode in MODES), ("Synchronous", "1e30"), ("AllReduce", "1e30")]
)
def test_by_default_what_is_not_finite_changes_no_weight_and_its_worker_is_named(
    run: Run, strategy: str, value: str
) -> None:
    script = SCRIPT.replace("step >= 17", "20 > step >= 17").replace("LINE", GRADIENT.replace("VALUE", value))
    outcome = run(script, strategy=strategy, servers=2)
    assert outcome.code == 0, outcome.output
    assert outcome.result["weights_not_finite"] is None
    assert re.search("worker-1: the gradient of [01].(weight|bias) is not finite at step 17\n", outcome.output)
    assert outcome.result["gradients_not_finite"] == {"worker-1": 3}
    assert "worker-1: gradients were not finite in 3 steps, whose updates were left out\n" in outcome.output


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["Asynchronous", "AllReduce"])
def test_gradients_that_are_never_finite_again_end_the_training(run: Run, strategy: str) -> None:
    script = SCRIPT.replace("range(1, 31)", "range(1, 201)").replace("LINE", GRADIENT.replace("VALUE", "inf"))
    outcome = run(script, strategy=strategy)
    assert outcome.code == 1, outcome.output
    message = outcome.result["error"]["message"]
    assert re.search("gradient of [01].(weight|bias) is not finite at step", message), outcome.output


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["Synchronous", "Asynchronous"])
def test_a_worker_that_does_not_say_so_is_found_out_by_the_server(run: Run, strategy: str) -> None:
    lies = (
        "from paceline.worker.parameter_server import gradient_buckets\n"
        "gradient_buckets.first_not_finite = lambda _: None\n"
    )
    outcome = run(lies + SCRIPT.replace("LINE", GRADIENT.replace("VALUE", "nan")), strategy=strategy, servers=2)
    assert outcome.code == 1, outcome.output
    said = "worker-1: the gradient of [01].(weight|bias) is not finite at step 17, and it did not say so"
    assert re.search(said, outcome.output), outcome.output
    assert outcome.result["weights_not_finite"] is None


def test_the_place_of_the_first_gradient_that_is_not_finite() -> None:
    good, odd = torch.ones(3), torch.tensor([1.0, math.nan])
    assert first_not_finite([]) is None
    assert first_not_finite([None, torch.empty(0), good, good.half() * 60000, good.double() * 1e100]) is None
    assert first_not_finite([None, good, odd, odd]) == 2
    assert first_not_finite([good * 1e30]) == 0  # its square is not
    rows = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.tensor([[math.inf, 0.0]]), (3, 2), check_invariants=True)
    assert first_not_finite([good, rows]) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, PART - 1, PART, PART + 1, 4 * PART])
def test_an_array_is_judged_as_its_tensor(dtype: torch.dtype, count: int) -> None:
    """Its squares may overflow in their sum alone; the server looks at tensors, and they must agree."""
    most = torch.finfo(dtype).max ** 0.5
    with numpy.errstate(all="raise"):  # as a script may ask
        for scale in (0.0, 1e-30, most / count, most / count**0.5 * 0.9, most / count**0.5 * 1.1, most * 1.1):
            gradient = torch.full((count,), scale, dtype=dtype)
            assert all_finite([gradient.numpy()]) == all_finite([gradient]), scale
        for odd in (math.inf, -math.inf, math.nan):
            gradient = torch.ones(count, dtype=dtype)
            gradient[-1] = odd
            assert not all_finite([gradient.numpy()])


def a_shard(*dtypes: str) -> Shard:
    infos = tuple(TensorInfo(f"p{n}", (4,), dtype) for n, dtype in enumerate(dtypes))
    return Shard(Signature("SGD", ({"lr": 1.0},), infos, (0,) * len(infos), (), (), (), {}), 0, 1, 1 << 20)


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float16", "float16"), ("float32", "float64")])
@pytest.mark.parametrize("worker", range(3))
@pytest.mark.parametrize("absent", [frozenset[int](), frozenset({0})])
def test_a_mean_that_is_not_finite_is_the_fault_of_one_worker(
    dtypes: tuple[str, ...], worker: int, absent: frozenset[int]
) -> None:
    shard = a_shard(*dtypes)
    pushes = {w: Push(step=7, absent=absent if w == 0 else frozenset()) for w in range(3)}
    place = next(n for n, cut in enumerate(shard.buckets[0].slices) if cut.parameter == 1)

    def averaged(odd: float) -> tuple[int, int] | None:
        for w in pushes:
            for held in shard.gradients(w)[0].slices:
                held.fill_(w + 1)
        shard.gradients(worker)[0].slices[place][2] = odd
        shard.average(0, pushes)
        return shard.not_finite(0, pushes)

    assert averaged(9.0) is None
    assert averaged(math.nan) == averaged(-math.inf) == (worker, 1)


def test_a_scale_that_makes_a_gradient_infinite_is_its_workers_fault() -> None:
    shard = a_shard("float32")
    for w in range(2):
        shard.gradients(w)[0].slices[0].fill_(1e10)
    pushes = {0: Push(step=1), 1: Push(step=1, unscale=1e30)}
    shard.average(0, pushes)
    assert shard.not_finite(0, pushes) == (1, 0)


def test_gradients_whose_norms_are_finite_make_no_fault_together() -> None:
    shard = a_shard("float32", "float32")
    for held in shard.gradients(0)[0].slices:
        held.fill_(7e18)  # of each the norm's square is finite, of both together it is not
    pushes = {0: Push(step=1)}
    shard.average(0, pushes)
    whole = shard.gradients(0)[0].values
    assert whole is not None
    assert not all_finite([whole])
    assert shard.not_finite(0, pushes) is None


def test_steps_in_a_row_are_counted() -> None:
    record = FinitenessRecord(fails=False)
    for step in (*range(1, MOST_IN_A_ROW), *range(200, 200 + MOST_IN_A_ROW - 1)):
        record.hear_gradient(1, step, "a")
        record.demand(())
    record.hear_gradient(1, 200 + MOST_IN_A_ROW - 1, "a")
    with pytest.raises(NotFinite, match=r"worker-1: gradients were not finite in 100 steps in a row; .* at step 200"):
        record.demand(())


def test_only_the_first_loss_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    record = FinitenessRecord(fails=False)
    for worker, step, loss in ((0, 1, 0.5), (1, 1, None), (1, 2, math.inf), (0, 2, math.nan), (1, 3, math.nan)):
        record.hear_loss(worker, {"step": step, "loss": loss, "version": 10 * step + worker})
    record.hear_weights("a")
    record.hear_weights("b")
    record.demand(())
    said = ["worker-1: loss is inf at step 2", "worker-0: loss is nan at step 2", "the weights are not finite: a"]
    assert [r.getMessage() for r in caplog.records] == said
    told = {"worker": 0, "step": 2, "value": "nan"}
    assert record.to_json() == {"loss_not_finite": told, "weights_not_finite": "a", "gradients_not_finite": {}}
    assert record.losses.keys() == {0, 1}


def test_fail_names_the_first() -> None:
    record = FinitenessRecord(fails=True)
    record.demand(range(4))
    record.hear_loss(3, {"step": 9, "version": 30, "loss": -math.inf})
    for worker in (0, 1, 2):
        record.demand(range(4))  # another may have told of none yet, and have an earlier one
        record.hear_loss(worker, {"step": 9, "version": 29 if worker == 1 else 31, "loss": math.nan})
    with pytest.raises(NotFinite, match="worker-1: loss is nan at step 9"):
        record.demand(range(4))
    with pytest.raises(NotFinite, match="worker-1: loss is nan at step 9"):
        record.demand(())
    record = FinitenessRecord(fails=True)
    record.hear_weights("a")
    with pytest.raises(NotFinite, match="the weights are not finite: a"):
        record.demand(range(4))


@pytest.mark.parametrize(
    ("trained", "untrained", "named"),
    [
        ({"a": torch.ones(2)}, {"mask": torch.full((2, 2), -math.inf), "count": torch.ones(1, dtype=torch.int64)}, None),
        ({"a": torch.ones(2), "b": torch.tensor([1.0, math.inf])}, {"c": torch.tensor(math.nan)}, "b"),
        ({"a": torch.ones(2)}, {"running_mean": torch.tensor([math.nan])}, "running_mean"),
        ({"a": torch.tensor([math.nan], dtype=torch.bfloat16)}, {}, "a"),
        ({"a": torch.tensor([complex(math.nan, 1)])}, {}, "a"),
        ({"a": torch.tensor([math.nan]).to(torch.float8_e5m2)}, {}, "a"),
        ({"a": torch.empty(0)}, {}, None),
    ],
)  # fmt: skip
def test_the_first_tensor_is_named(trained: dict, untrained: dict, named: str | None) -> None:
    assert weights.first_not_finite(trained.items(), untrained.items()) == named


def test_what_shows_a_run_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = {"worker": 2, "step": 17, "value": "nan"}
    workers = [
        a_worker(0),
        a_worker(1),
        a_worker(2, loss=None, loss_not_finite={"step": 17, "value": "nan"}),
        a_worker(3),
    ]
    found = a_status(workers, loss_not_finite=odd)
    result = a_result(found, loss_not_finite=odd, weights_not_finite="0.weight")
    run = a_run(tmp_path / "run", result=result, status=found)
    said = ["worker-2: loss is nan at step 17", "the weights are not finite: 0.weight"]
    assert summary({**result, "folder": "x"})[2:4] == said
    top(run, Options(once=True))
    shown = capsys.readouterr().out
    assert all(line in shown for line in [*said, "loss nan at step 17"])
    page, _ = command.page(run)
    assert all(line in page for line in ["worker-2: loss is nan at step 17.", "The weights are not finite: 0.weight."])
    assert 'class="headline warn"' in page
    assert json.loads((tmp_path / "run/result.json").read_text())["result"] == "Succeeded"
