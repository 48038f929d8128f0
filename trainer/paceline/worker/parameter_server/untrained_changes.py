"""Frozen parameters and buffers of a worker's model: sent when they changed, taken from the lowest worker.

They belong to their names, not to objects: a buffer that `forward` assigns anew is another tensor in each step.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from paceline.model_signature import Signature
from paceline.tensor_bytes import memory
from paceline.worker.model_description import uncompiled
from paceline.worker.parameter_server.tensor_changes import TensorChanges
from paceline_core.errors import UsageError

SMALL_BYTES = 64 * 1024  # a buffer that is cheaper to send than to watch
Place = tuple[dict[str, Any], str]  # the module's own table, and the key in it


class UntrainedChanges:
    """The tensors that a signature lists as frozen and as buffers, by their numbers there."""

    def __init__(self, model: torch.nn.Module, signature: Signature) -> None:
        self._infos, self._frozen = signature.untrained, len(signature.frozen)
        self._places = [_place(uncompiled(model), info.name) for info in self._infos]
        self._moving: set[int] = set()  # small buffers that changed once: taken as changed in each step
        self._left_out: set[int] = set()
        self._changes = TensorChanges(self._compared)

    def current(self) -> list[torch.Tensor | None]:
        """The tensors that stand under the names now."""
        return [table.get(key) for table, key in self._places]

    def leave_out(self, trained: Collection[torch.Tensor]) -> None:
        """Another optimizer trains these."""
        mine = enumerate(self.current())
        self._left_out |= {number for number, tensor in mine if tensor is not None and tensor in trained}
        self._changes.remember()

    def everything(self) -> dict[int, memoryview]:
        """The bytes of all."""
        return self.pack(range(len(self._places)))

    def changed(self) -> list[int]:
        """The numbers of those that have changed since the last exchange."""
        if not self._places:
            return []
        found = self._changes.found().all
        self._moving |= {n for n in found if n >= self._frozen and self._infos[n].nbytes <= SMALL_BYTES}
        return sorted(self._moving.union(found))

    def install(self, given: Mapping[int, bytes]) -> None:
        """Set them to what another worker has, and remember all as they are now."""
        if not self._places:
            return
        tensors = self.current()
        with torch.no_grad():
            for number, data in given.items():
                tensor, info = tensors[number], self._infos[number]
                if tensor is not None and number not in self._left_out and data:
                    new = torch.frombuffer(bytearray(data), dtype=getattr(torch, info.dtype))
                    tensor.copy_(new.view(info.shape))
        self._changes.remember()

    def _compared(self) -> list[torch.Tensor | None]:
        tensors = self.current()
        for number in self._moving | self._left_out:
            tensors[number] = None
        return tensors

    def pack(self, numbers: Iterable[int]) -> dict[int, memoryview]:
        """The bytes of these. Raises UsageError for one that has another shape or dtype now."""
        tensors, found = self.current(), {}
        for number in numbers:
            tensor, info = tensors[number], self._infos[number]
            if tensor is None:
                continue
            if tuple(tensor.shape) != info.shape or str(tensor.dtype) != f"torch.{info.dtype}":
                raise UsageError(
                    f"{info.name} had shape {list(info.shape)} and dtype {info.dtype} in paceline.distribute(), and "
                    f"has {list(tensor.shape)} and {tensor.dtype} now: what is common to all workers keeps its shape; "
                    "hold it in an ordinary attribute instead of a buffer"
                )
            found[number] = memory(tensor.detach().cpu().contiguous())
        return found


def _place(model: torch.nn.Module, name: str) -> Place:
    path, _, key = name.rpartition(".")
    module = model.get_submodule(path)
    return (module._buffers if key in module._buffers else module._parameters), key
