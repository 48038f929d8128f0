"""The process group of one model and its optimizer: another takes its place when the ring is made anew."""

from collections.abc import Callable
from typing import Any

import torch

from paceline_core.errors import PacelineError


class RingGroup:
    """Hands on to the group that there is. `recover` is called with an error of it, and raises that or another.

    When it returns, there is a new group, and whoever waited asks what has become of that.
    """

    def __init__(self, made: Any, recover: Callable[[RuntimeError], None]) -> None:
        self.made, self.recover = made, recover
        self.refuses: PacelineError | None = None  # to reduce, and why

    def size(self) -> int:
        """How many workers there are."""
        return int(self.made.size())

    def rank(self) -> int:
        """This worker's number."""
        return int(self.made.rank())

    def allreduce(self, tensors: list[torch.Tensor], *how: Any) -> Any:
        """Begin to reduce them over all workers."""
        if self.refuses is not None:
            raise self.refuses
        return self.made.allreduce(tensors, *how)

    def broadcast(self, tensor: torch.Tensor, root: int) -> Any:
        """Begin to send a worker's tensor to all."""
        return self.made.broadcast(tensor, root)
