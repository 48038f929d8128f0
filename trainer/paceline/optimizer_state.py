"""An optimizer's state as bytes: what a script's own save and resume need of the servers, which hold it.

The bytes are a safetensors file. A state that has the parameter's own shape is cut as the parameter is, and named
`parameter:start:key`; what a parameter has once (its step count) stands with each of its slices. Numbers that are not
tensors are kept as JSON, under one name. Nothing is ever unpickled.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load, save

from paceline_core.buckets import Bucket, Slice
from paceline_core.errors import ProtocolError

NUMBERS = "numbers"  # the name of the JSON
ONCE = {"step", "mu_product", "eta", "mu"}  # what torch.optim keeps once for a parameter, also for one without shape
ELEMENT_BYTES, HEADER_BYTES = 64, 1 << 20  # of state for one element of a parameter, and beside it, at most
State = Mapping[str, Any]  # of one parameter, or of one slice


def limit(buckets: Iterable[Bucket]) -> int:
    """The size that a shard's state may have, in bytes."""
    return HEADER_BYTES + ELEMENT_BYTES * sum(piece.stop - piece.start for b in buckets for piece in b.slices)


def pack(states: Iterable[tuple[Slice, State]]) -> bytes:
    """The states of some slices. Raises TypeError for a value that is neither a tensor nor JSON."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    for cut, state in states:
        for key, value in state.items():
            name = f"{cut.parameter}:{cut.start}:{key}"
            if isinstance(value, torch.Tensor):
                tensors[name] = value.detach().cpu().contiguous().clone()
            else:
                numbers[name] = value
    try:
        encoded = bytearray(json.dumps(numbers).encode())
    except TypeError as error:
        raise TypeError(f"the optimizer's state holds what is neither a tensor nor a number: {error}") from error
    return save(tensors | {NUMBERS: torch.frombuffer(encoded, dtype=torch.uint8)})


def unpack(data: bytes) -> dict[tuple[int, int], dict[str, Any]]:
    """The state of each slice, by (parameter, start). Raises ProtocolError."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    try:
        tensors = load(data)
        numbers = json.loads(bytes(tensors.pop(NUMBERS).tolist()))
        for name, value in (*tensors.items(), *numbers.items()):
            parameter, start, key = name.split(":", 2)
            found.setdefault((int(parameter), int(start)), {})[key] = value
    except Exception as error:  # safetensors has an exception of its own for each kind of damage
        raise ProtocolError("bad_payload", f"not an optimizer's state: {error}") from error
    return found


def cut(parameter: torch.Tensor, state: State, piece: Slice) -> dict[str, Any]:
    """The state of one slice of a parameter."""

    def part(key: str, value: Any) -> Any:
        whole = isinstance(value, torch.Tensor) and value.shape == parameter.shape
        alike = whole and not (value.dim() == 0 and key in ONCE)
        return value.detach().reshape(-1)[piece.start : piece.stop] if alike else value

    return {key: part(key, value) for key, value in state.items()}


def joined(parameter: torch.Tensor, slices: Sequence[tuple[int, State]]) -> dict[str, Any]:
    """A parameter's state from the states of its slices, each with its first element; on the parameter's device."""
    ordered = [state for _, state in sorted(slices, key=lambda item: item[0])]
    return {key: _whole(parameter, [state[key] for state in ordered]) for key in (ordered[0] if ordered else {})}


def _whole(parameter: torch.Tensor, parts: list[Any]) -> Any:
    first = parts[0]
    if not isinstance(first, torch.Tensor):
        return first
    if first.dim() != 1 or sum(p.numel() for p in parts) != parameter.numel():
        return first.clone()  # a step count, which torch keeps on the CPU
    return torch.cat(parts).view(parameter.shape).to(parameter.device)
