"""Values that workers give each other, as JSON: nothing that is received is ever run, as a pickle would be."""

import base64
import json
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch

from paceline.tensor_bytes import memory
from paceline.wire.frames import VALUE_LIMIT
from paceline_core.errors import ProtocolError, UsageError

DTYPES = {
    str(d).removeprefix("torch."): d
    for d in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool,
        torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    )
}  # fmt: skip


def encode(value: Any, what: str) -> str:
    """A value as text. Raises UsageError, naming the function `what`, when it is of another kind or too large."""
    try:
        text = json.dumps(_plain(value, what), separators=(",", ":"))
    except RecursionError as error:
        raise UsageError(f"{what}() cannot take a value that is nested so deeply") from error
    if len(text) > VALUE_LIMIT:
        raise _too_large(what, len(text))
    return text


def decode(text: str) -> Any:
    """The value that a text stands for; tensors are on the CPU. Raises ProtocolError when there is none."""
    try:
        return _value(json.loads(text))
    except (ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
        raise ProtocolError("bad_payload", f"a worker's value that cannot be read: {error}") from error


def _plain(value: Any, what: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, torch.Tensor):
        return {"tensor": _from_tensor(value, what)}
    if isinstance(value, list | tuple):
        return [_plain(v, what) for v in value]
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {"dict": {k: _plain(v, what) for k, v in value.items()}}
    kind = "a dict whose keys are not all strings" if isinstance(value, Mapping) else type(value).__qualname__
    raise UsageError(
        f"{what}() takes numbers, strings, None, tensors, and lists and dicts (with strings as keys) of these, "
        f"not {kind}"
    )


def _from_tensor(value: torch.Tensor, what: str) -> list[Any]:
    name = str(value.dtype).removeprefix("torch.")
    if name not in DTYPES or value.layout != torch.strided or value.is_meta:
        raise UsageError(f"{what}() cannot take a tensor of {value.dtype}, {value.layout}, on {value.device}")
    if value.nbytes > VALUE_LIMIT:
        raise _too_large(what, value.nbytes)
    held = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return [name, list(held.shape), base64.b64encode(memory(held)).decode()]


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_value(v) for v in plain]
    if not isinstance(plain, dict):
        return plain
    if "dict" in plain:
        return {k: _value(v) for k, v in plain["dict"].items()}
    name, shape, data = plain["tensor"]
    dtype, raw = DTYPES[name], bytearray(base64.b64decode(data, validate=True))
    if len(raw) != math.prod(shape) * dtype.itemsize or any(s < 0 for s in shape):
        raise ValueError(f"{len(raw)} bytes for a tensor of {name} and shape {shape}")
    return torch.frombuffer(raw, dtype=dtype).view(shape) if raw else torch.empty(shape, dtype=dtype, device="cpu")


def _too_large(what: str, nbytes: int) -> UsageError:
    return UsageError(
        f"{what}() is for small values: this one takes {nbytes} bytes, and {VALUE_LIMIT} are allowed (a tensor takes "
        "4/3 of its own bytes)"
    )
