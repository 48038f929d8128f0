"""Finds gradients that are not finite: whose norm is infinite or not a number.

One pass over the memory, without a copy. A norm that overflows float32 counts as infinite, though each element may be
finite: its square, which Adam and others keep, is not.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy
import torch

PART = 10_000  # elements up to which BLAS takes a dot product without starting threads
DOTTED = (torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)  # their norms are taken in float32


def first_not_finite(gradients: Sequence[Any | None]) -> int | None:
    """The place of the first gradient whose norm is not finite; None when all are, or there are none.

    A gradient is a tensor, or an array of numpy of one dimension. On a GPU it waits for the device.
    """
    if all_finite([g for g in gradients if g is not None]):
        return None
    return next((place for place, g in enumerate(gradients) if g is not None and not all_finite([g])), None)


def all_finite(gradients: Sequence[Any]) -> bool:
    """Whether the norm of each is finite: on a GPU one call and one answer for those of a dtype."""
    groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    arrays: list[Any] = []
    with torch.no_grad():
        for gradient in gradients:
            if isinstance(gradient, numpy.ndarray):
                arrays.append(gradient)
                continue
            values = gradient.coalesce().values() if gradient.is_sparse else gradient
            if values.is_cpu and values.dtype in DOTTED and values.is_contiguous():
                flat = values.view(-1)
                if not math.isfinite(torch.dot(flat, flat)):  # takes half as long as a norm
                    return False
            else:
                groups.setdefault((values.device, values.dtype), []).append(values)
        for (_, dtype), members in groups.items():
            norms = torch._foreach_norm(members, 2, torch.float32 if dtype in HALVES else None)
            if not all(map(math.isfinite, torch.stack(norms).tolist())):
                return False
    return not arrays or _arrays_finite(arrays)


def _arrays_finite(arrays: Sequence[Any]) -> bool:
    """By numpy's dot product, which takes less than torch's to be called."""
    with numpy.errstate(all="ignore"):
        return all(math.isfinite(_squares(array)) for array in arrays)


def _squares(array: Any) -> Any:
    """Their sum, in the gradient's own type, as torch takes it."""
    if len(array) <= PART:
        return array.dot(array)
    total = array.dtype.type(0)
    for start in range(0, len(array), PART):
        part = array[start : start + PART]
        total += part.dot(part)
    return total
