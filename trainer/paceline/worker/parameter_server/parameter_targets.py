"""Where fresh parameters go: into the parameters' own memory, or beside it when that is not contiguous CPU memory."""

from collections.abc import Sequence

import torch

from paceline.tensor_bytes import memory
from paceline_core.buckets import Bucket


class Targets:
    """The flat memory of each parameter on the CPU."""

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        self._parameters = parameters
        self._flat = [_flat(p) for p in parameters]
        self._addresses = [p.data_ptr() for p in parameters]

    def refresh(self) -> None:
        """Notice parameters whose memory was replaced, as by model.to()."""
        for index, parameter in enumerate(self._parameters):
            if parameter.data_ptr() != self._addresses[index]:
                self._flat[index], self._addresses[index] = _flat(parameter), parameter.data_ptr()

    def pieces(self, bucket: Bucket) -> list[memoryview]:
        """The bucket's bytes as they are now in the parameters, padding included."""
        out, end = [], 0
        for cut in bucket.slices:
            piece = memory(self._flat[cut.parameter][cut.start : cut.stop])
            out += [memoryview(bytes(cut.offset - end)), piece]
            end = cut.offset + len(piece)
        return [*out, memoryview(bytes(bucket.nbytes - end))]

    def direct(self, bucket: Bucket) -> memoryview | None:
        """The memory to receive the bucket into, when it is a single piece."""
        if len(bucket.slices) != 1:
            return None
        cut = bucket.slices[0]
        piece = memory(self._flat[cut.parameter][cut.start : cut.stop])
        return piece if len(piece) == bucket.nbytes else None

    def store(self, bucket: Bucket, received: torch.Tensor) -> None:
        """Copy a received bucket (uint8) to its parameters."""
        for cut in bucket.slices:
            target = self._flat[cut.parameter][cut.start : cut.stop]
            end = cut.offset + target.numel() * target.element_size()
            target.copy_(received[cut.offset : end].view(target.dtype))

    def load(self) -> None:
        """Bring the CPU's copies up to date, before they are sent."""
        for flat, parameter in zip(self._flat, self._parameters, strict=True):
            if not _direct(parameter):
                flat.copy_(parameter.detach().reshape(-1))

    def finish(self) -> None:
        """Everything is here: update the parameters that lie elsewhere, and tell autograd that all have changed."""
        with torch.no_grad():
            for flat, parameter in zip(self._flat, self._parameters, strict=True):
                if not _direct(parameter):
                    parameter.copy_(flat.view(parameter.shape))
        torch.autograd.graph.increment_version(self._parameters)


def _direct(parameter: torch.Tensor) -> bool:
    return parameter.is_cpu and parameter.is_contiguous()


def _flat(parameter: torch.Tensor) -> torch.Tensor:
    if _direct(parameter):
        return parameter.detach().view(-1)
    return torch.empty(parameter.numel(), dtype=parameter.dtype, device="cpu", pin_memory=parameter.is_cuda)
