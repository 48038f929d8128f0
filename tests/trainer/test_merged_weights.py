"""The files of several servers made into one by their bytes: as torch would write it."""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch

from paceline import merged_weights, weight_files, weights
from paceline.merged_weights import Stored
from paceline.model_signature import ITEM_BYTES, Signature
from paceline.worker.model_description import describe


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2).bfloat16()
        )
        self.tied = torch.nn.Linear(5, 3)
        self.tied.weight = self.body[0].weight
        self.scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.short = torch.nn.Parameter(torch.randn(7).half())
        self.nothing = torch.nn.Parameter(torch.empty(0, 4))
        for number, dtype in enumerate(ITEM_BYTES.keys() - {"complex128"}):  # which safetensors does not know
            self.register_buffer(f"buffer{number}", torch.ones(2, 3).to(getattr(torch, dtype)))


def written(folder: Path, model: torch.nn.Module, shards: int) -> Signature:
    """What so many servers leave of a model."""
    signature = describe(model, torch.optim.SGD(model.parameters(), lr=1.0))
    (folder / weight_files.signature_file()).write_text(json.dumps(signature.to_json()))
    state, parts = model.state_dict(), [dict[str, torch.Tensor]() for _ in range(shards)]
    for number, info in enumerate(signature.parameters):
        flat = state[info.name].reshape(-1)
        for shard, piece in enumerate(flat.tensor_split(shards)):
            start = sum(len(p) for p in flat.tensor_split(shards)[:shard])
            if len(piece):
                parts[shard][f"{number}:{start}"] = piece
    parts[0] |= {info.name: state[info.name] for info in signature.untrained}
    for ordinal, part in enumerate(parts):
        weights.save(part, folder / weight_files.shard_file(ordinal))
    return signature


@pytest.mark.parametrize("shards", [1, 3])
def test_it_is_the_file_that_torch_writes(tmp_path: Path, shards: int) -> None:
    torch.manual_seed(0)
    model = Model()
    written(tmp_path, model, shards)
    digest, odd = merged_weights.merge(tmp_path)
    assert odd is None
    weights.save(model.state_dict(), tmp_path / "expected.safetensors")
    expected = (tmp_path / "expected.safetensors").read_bytes()
    assert (tmp_path / weight_files.FILE).read_bytes() == expected
    assert digest == hashlib.sha256(expected).hexdigest()
    assert not list(tmp_path.glob("weights-ps-*"))
    assert merged_weights.merge(tmp_path)[0] == digest, "it is there already"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16", "complex64"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(dtype: str, value: float) -> None:
    def stored(*values: float) -> Stored:
        tensor = torch.tensor(values).to(getattr(torch, dtype))
        return Stored(dtype, (len(values),), bytes(tensor.view(torch.uint8).numpy()))

    good, odd = stored(1.0, -3e4, 0.0), stored(1.0, value)
    assert merged_weights.first_not_finite({"a": good}, {"b": good, "c": Stored("int64", (1,), b"\xff" * 8)}) is None
    assert merged_weights.first_not_finite({"a": good, "b": odd}, {}) == "b"
    assert merged_weights.first_not_finite({"a": good}, {"b": odd}) == ("b" if math.isnan(value) else None)


def test_a_missing_part_is_said(tmp_path: Path) -> None:
    written(tmp_path, torch.nn.Linear(4, 2), 2)
    (tmp_path / weight_files.shard_file(1)).unlink()
    with pytest.raises(ValueError, match="of weight there are 16 bytes, and 32 are wanted"):
        merged_weights.merge(tmp_path)
