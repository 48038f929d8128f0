"""all_gather and mean: what every worker has, given to each of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from paceline.worker.collectives.json_values import decode, encode
from paceline.worker.collectives.store_client import StoreClient
from paceline_core.errors import UsageError

ALL_GATHER, MEAN = "paceline.all_gather", "paceline.mean"


def all_gather(value: Any, store: StoreClient | None) -> list[Any]:
    """Every worker's value in rank order; of a worker alone, its own."""
    text = encode(value, ALL_GATHER)
    return [decode(t) for t in store.gather(ALL_GATHER, text)] if store else [value]


def mean(value: Any, store: StoreClient | None) -> Any:
    """The mean of every worker's value; of a worker alone, its own."""
    _check(value)
    text = encode(value, MEAN)
    if store is None:
        return value
    return _mean([decode(t) for t in store.gather(MEAN, text)], value)


def _check(value: Any) -> None:
    if isinstance(value, Mapping):
        for each in value.values():
            _check(each)
    elif isinstance(value, torch.Tensor):
        if not value.is_floating_point():
            raise UsageError(f"{MEAN}() takes floating-point tensors, not {value.dtype}: convert it, as by .float()")
    elif value is None or isinstance(value, str | list | tuple):
        raise UsageError(f"{MEAN}() takes a number, a tensor or a dict of these, not {type(value).__qualname__}")


def _mean(values: Sequence[Any], own: Any) -> Any:
    """In float64, summed in rank order, so that it is the same on every worker."""
    kinds = [_kind(v) for v in values]
    for rank, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise UsageError(f"worker-{rank} gave {kind} to {MEAN}(), and worker-0 {kinds[0]}")
    if isinstance(own, Mapping):
        return {k: _mean([v[k] for v in values], each) for k, each in own.items()}
    if isinstance(own, torch.Tensor):
        total = torch.stack([v.double() for v in values]).sum(0)
        return (total / len(values)).to(own.device, own.dtype)
    return sum(map(float, values)) / len(values)


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(sorted(value)) or 'nothing'}"
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype} and shape {tuple(value.shape)}"
    return "a number"
