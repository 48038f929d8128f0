"""A model and its optimizer in a ring, saved in shares: a fresh pair, and servers, go on from them bit for bit."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from paceline import optimizers
from paceline.checkpoints import checkpoint_folder, part_writer
from paceline.checkpoints.checkpoint_folder import Folder
from paceline.checkpoints.checkpoint_manifest import Manifest, StoredFile
from paceline.checkpoints.part_writer import PartWriter
from paceline.checkpoints.restoring import Restored
from paceline.model_signature import Signature
from paceline.server.checkpoints.filling import fill
from paceline.server.gradients.shard import Shard
from paceline.server.gradients.untrained_tensors import UntrainedTensors
from paceline.worker.all_reduce import pair_checkpoint
from paceline.worker.model_description import describe, trained_parameters
from paceline_core.errors import CheckpointDamaged, ModelMismatch
from paceline_core.launch import Launch, Role
from paceline_core.spec import TrainingSpec

from .inprocess import ID

BUCKET_MIB = 0.005
Make = Callable[[Any], torch.optim.Optimizer]


class ByRows(torch.optim.Optimizer):
    """Looks at a parameter as a whole, and keeps states of other shapes than its own, and numbers."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is None:
                continue
            state, gradient = self.state[parameter], parameter.grad
            rows = gradient.reshape(len(gradient), -1).square().mean(1)
            state["rows"] = state.get("rows", torch.zeros_like(rows)).lerp(rows, 0.1)
            state["count"] = state.get("count", 0) + 1
            state["wide"] = state.get("wide", torch.zeros_like(parameter, dtype=torch.float64)) + gradient
            scale = state["rows"].sqrt().add(1e-8).reshape(-1, *[1] * (parameter.dim() - 1))
            parameter.sub_((gradient / scale + state["wide"].float() / state["count"]) * self.param_groups[0]["lr"])


MAKE: dict[str, Make] = {name: kind for name, kind in optimizers.OPTIMIZERS.items() if name != "SGD"}
MAKE |= {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.9, nesterov=True),
    "AMSGrad": lambda parameters: torch.optim.Adam(parameters, amsgrad=True),
    "Adafactor": torch.optim.Adafactor,
    "ByRows": ByRows,
}


class Net(nn.Module):
    """Parameters without shape, with one element and with channels last; one never used, one frozen; buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 40, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.norm, self.last = nn.BatchNorm2d(40), nn.Linear(40 * 36, 1)
        self.scale, self.unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(3))
        layout = torch.arange(16.0).view(2, 2, 2, 2).to(memory_format=torch.channels_last)
        self.frozen = nn.Parameter(layout, requires_grad=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return self.last(self.norm(self.first(x)).flatten(1)) * self.scale.sum()


def launch(ordinal: int, shares: int) -> Launch:
    spec = {
        "topology": "AllReduce",
        "workers": {"replicas": shares, "template": {"spec": {"containers": [{"name": "trainer", "command": ["x"]}]}}},
        "gradients": {"bucketMib": BUCKET_MIB},
    }
    return Launch(Role.WORKER, ordinal, "test", ID, TrainingSpec.model_validate(spec), ("127.0.0.1:1",))


def a_pair(make: Make, seed: int = 0, net: Callable[[], nn.Module] = Net) -> Any:
    """As RingOptimizer holds it, without a ring."""
    torch.manual_seed(seed)
    model = net()
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    return SimpleNamespace(model=model, optimizer=optimizer, parameters=trained_parameters(optimizer), number=0)


def train(pair: Any, steps: int) -> None:
    for _ in range(steps):
        pair.number += 1
        pair.optimizer.zero_grad()
        generator = torch.Generator().manual_seed(pair.number)
        pair.model(torch.randn(4, 3, 8, 8, generator=generator)).square().mean().backward()
        pair.optimizer.step()


def saved(root: Path, pair: Any, signature: Signature, shares: int) -> Restored:
    told: list[dict[str, Any]] = []
    for ordinal in range(shares):
        writer = PartWriter(ordinal, Folder(root), told.append)
        writer.write(pair.number, pair_checkpoint.share(launch(ordinal, shares), [pair], [signature], 0))
        writer.close()
    assert [part.get("error") for part in told] == [None] * shares
    files = tuple(StoredFile(**file) for part in told for file in part["files"])
    where = checkpoint_folder.of_step(root, pair.number)
    checkpoint_folder.commit(where, Manifest(pair.number, (pair.number,), "test", "", 0.0, shares, shares, {}, files))
    found = Restored(Folder(where))
    found.verify(shares)
    return found


def held(pair: Any) -> dict[str, Any]:
    states = {f"{i} {k}": v for i, p in enumerate(pair.parameters) for k, v in pair.optimizer.state.get(p, {}).items()}
    untrained = {"frozen": pair.model.frozen, "seen": pair.model.seen}
    return {"number": pair.number, **pair.model.state_dict(), **untrained, **states}


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    assert one.keys() == other.keys()
    return all(
        torch.equal(v, other[k]) and v.stride() == other[k].stride() and v.dtype == other[k].dtype
        if isinstance(v, torch.Tensor) and isinstance(other[k], torch.Tensor)
        else v == other[k]
        for k, v in one.items()
    )


@pytest.mark.parametrize("shares", [1, 3])
@pytest.mark.parametrize("name", MAKE)
def test_a_fresh_pair_goes_on_bit_for_bit(tmp_path: Path, name: str, shares: int) -> None:
    pair, fresh = a_pair(MAKE[name]), a_pair(MAKE[name], seed=1)
    signature = describe(pair.model, pair.optimizer)
    train(pair, 3)
    restored = saved(tmp_path, pair, signature, shares)
    train(fresh, 1)  # what it has by itself is not left over
    pair_checkpoint.restore(restored, 0, fresh.model, fresh.optimizer, signature, ())
    fresh.number = restored.version(0)
    assert alike(held(fresh), held(pair))
    train(pair, 2)
    train(fresh, 2)
    assert alike(held(fresh), held(pair))


@pytest.mark.parametrize("name", [name for name in MAKE if name in optimizers.OPTIMIZERS])
def test_servers_have_the_same_parameters_and_states(tmp_path: Path, name: str) -> None:
    pair = a_pair(MAKE[name])
    signature = describe(pair.model, pair.optimizer)
    train(pair, 3)
    restored, shards = saved(tmp_path, pair, signature, 3), 2
    for ordinal in range(shards):
        shard = Shard(signature, ordinal, shards, 9000)
        executor: Any = SimpleNamespace(shard=shard, untrained=UntrainedTensors(signature.untrained), version=0)
        fill(executor, restored, 0)
        assert executor.version == 3
        for key, piece in shard.state().items():
            index, start = map(int, key.split(":"))
            whole = pair.parameters[index].detach().reshape(-1)
            assert torch.equal(piece, whole[start : start + len(piece)])
        for cut, state in shard.optimizer_states():
            theirs = pair.optimizer.state.get(pair.parameters[cut.parameter], {})
            assert state.keys() == theirs.keys()
            for key, value in state.items():
                expected = theirs[key]
                if isinstance(value, torch.Tensor) and value.dim() and pair.parameters[cut.parameter].dim():
                    expected = expected.reshape(-1)[cut.start : cut.stop]
                assert value == expected if not isinstance(value, torch.Tensor) else torch.equal(value, expected)
        if ordinal == 0:
            assert executor.untrained.all().keys() == {info.name for info in signature.untrained}


def test_another_model_is_refused_and_what_other_optimizers_train_is_left(tmp_path: Path) -> None:
    pair, fresh = a_pair(torch.optim.Adam), a_pair(torch.optim.Adam, seed=1)
    signature = describe(pair.model, pair.optimizer)
    train(pair, 1)
    pair.model.frozen.fill_(7)
    restored = saved(tmp_path, pair, signature, 2)
    pair_checkpoint.restore(restored, 0, fresh.model, fresh.optimizer, signature, {fresh.model.frozen})
    assert fresh.model.frozen.sum() == 120
    other = describe(pair.model, torch.optim.AdamW(pair.parameters))
    with pytest.raises(ModelMismatch, match="optimizer AdamW instead of Adam"):
        pair_checkpoint.restore(restored, 0, fresh.model, fresh.optimizer, other, ())
    with pytest.raises(ModelMismatch, match="has 1 optimizers; the script distributes more"):
        pair_checkpoint.restore(restored, 1, fresh.model, fresh.optimizer, signature, ())
    half = Restored(restored.place, Manifest(1, (1,), "test", "", 0.0, 1, 2, {}, restored.manifest.files))
    with pytest.raises(CheckpointDamaged, match=r"parts of .* are missing"):
        pair_checkpoint.restore(half, 0, fresh.model, fresh.optimizer, signature, ())


def lose_a_state(pair: Any) -> None:
    pair.optimizer.state["all"] = {"count": 1}


def put_another_layer(pair: Any) -> None:
    pair.model.norm = nn.BatchNorm2d(41)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda pair: pair.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]}), "7 parameters|9 parameters"),
        (lambda pair: pair.model.register_buffer("late", torch.zeros(2)), "buffers: late"),
        (put_another_layer, "norm.weight|frozen|buffers"),
        (lose_a_state, "belongs to no parameter"),
    ],
)  # fmt: skip
def test_a_pair_that_has_changed_is_not_saved(tmp_path: Path, change: Callable[[Any], Any], words: str) -> None:
    pair, told = a_pair(torch.optim.Adam), list[dict[str, Any]]()
    signature = describe(pair.model, pair.optimizer)
    train(pair, 1)
    changed = copy.copy(pair)
    change(changed)
    writer = PartWriter(0, Folder(tmp_path), told.append)
    writer.write(1, part_writer.attempt(lambda: pair_checkpoint.share(launch(0, 1), [changed], [signature], 0)))
    writer.close()
    assert "has changed since paceline.distribute()" in told[0]["error"]
    assert any(word in told[0]["error"] for word in words.split("|"))
