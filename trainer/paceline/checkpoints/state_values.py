"""A state_dict's values as bytes and back: numbers, texts, tensors, arrays, and lists, tuples and dicts of these.

The bytes are a safetensors file: the tensors, and under one name a JSON text that says where each stands. Nothing is
ever unpickled.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors.torch import load, save

from paceline_core.errors import CheckpointDamaged

SHAPE = "value"  # the name of the JSON
PLAIN = (type(None), bool, int, str)
DEEPEST = 100


def encode(value: Any) -> bytes:
    """The value as bytes. Raises TypeError for one that is none of these, and names where it stands."""
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(_written(value, tensors, "", 0), allow_nan=False).encode()
    return save(tensors | {SHAPE: torch.frombuffer(bytearray(text), dtype=torch.uint8)})


def decode(data: bytes) -> Any:
    """The value that `encode` was given; tensors are on the CPU. Raises CheckpointDamaged."""
    try:
        tensors = load(data)
        shape = json.loads(bytes(tensors.pop(SHAPE).tolist()))
        return _read(shape, tensors)
    except Exception as error:  # safetensors has an exception of its own for each kind of damage
        raise CheckpointDamaged(f"not a saved state: {error}") from error


def _written(value: Any, tensors: dict[str, torch.Tensor], path: str, depth: int) -> Any:
    if depth > DEEPEST:
        raise TypeError(f"{path}: is nested more than {DEEPEST} deep")
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, torch.Tensor):
        return {"tensor": _keep(value.detach().cpu(), tensors)}
    if isinstance(value, Mapping):
        pairs = [[_written(k, tensors, path, depth + 1), _written(v, tensors, f"{path}[{k!r}]", depth + 1)]
                 for k, v in value.items()]  # fmt: skip
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        items = [_written(v, tensors, f"{path}[{i}]", depth + 1) for i, v in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if type(value).__module__ == "numpy":
        array = torch.from_numpy(value.reshape(value.shape or 1))
        return {"array" if value.shape else "number": _keep(array, tensors)}
    raise TypeError(f"{path or 'it'}: a {type(value).__qualname__} cannot be saved: give numbers, texts, tensors, and "
                    "lists, tuples and dicts of these")  # fmt: skip


def _keep(tensor: torch.Tensor, tensors: dict[str, torch.Tensor]) -> str:
    name = str(len(tensors))
    tensors[name] = tensor.contiguous().clone()
    return name


def _array(tensor: torch.Tensor) -> Any:
    return tensor.numpy()


def _read(shape: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(shape, dict):
        return shape
    ((kind, held),) = shape.items()
    readers: dict[str, Callable[[], Any]] = {
        "float": lambda: float(held),
        "tensor": lambda: tensors[held],
        "array": lambda: _array(tensors[held]),
        "number": lambda: _array(tensors[held]).item(),
        "list": lambda: [_read(v, tensors) for v in held],
        "tuple": lambda: tuple(_read(v, tensors) for v in held),
        "dict": lambda: {_read(k, tensors): _read(v, tensors) for k, v in held},
    }
    return readers[kind]()
