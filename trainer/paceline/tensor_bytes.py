"""Tensors as bytes: what leaves and arrives on the wire, without copies."""

from collections.abc import Sequence
from typing import Any

import torch

from paceline.model_signature import TensorInfo
from paceline_core.buckets import Bucket


def memory(tensor: torch.Tensor) -> memoryview:
    """A contiguous CPU tensor's bytes, shared."""
    if not tensor.numel():
        return memoryview(b"")
    return memory_of(tensor.detach().view(-1).view(torch.uint8).numpy())


def memory_of(array: Any) -> memoryview:
    """A contiguous array's bytes, shared."""
    return memoryview(array).cast("B")


class Bytes:
    """The memory of one bucket, seen whole and by slice."""

    def __init__(self, bucket: Bucket, infos: Sequence[TensorInfo]) -> None:
        self.raw = torch.zeros(bucket.nbytes, dtype=torch.uint8, device="cpu")
        self.view = memory(self.raw)
        self.slices = []
        for cut in bucket.slices:
            dtype = getattr(torch, infos[cut.parameter].dtype)
            end = cut.offset + (cut.stop - cut.start) * dtype.itemsize
            self.slices.append(self.raw[cut.offset : end].view(dtype))
        dtypes = {piece.dtype for piece in self.slices}
        self.values = self.raw.view(*dtypes) if len(dtypes) == 1 else None  # all of them, where they are of one type
