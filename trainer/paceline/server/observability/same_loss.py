"""Whether all workers report the same loss step after step, as they do when they all train on the same batches."""

import math
from collections.abc import Hashable

STEPS = 20  # in a row
FEWEST_LOSSES = 10  # different ones among them: a loss that stands still, as at 0, says nothing of the data
MOST_OPEN = 50_000  # steps that not all workers have reported yet: one report may have thousands


class SameLoss:
    """Watches the losses of `world_size` workers, each by its own step number; says so once."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._open: dict[int, dict[int, float]] = {}  # step -> worker -> loss
        self._run: list[Hashable] = []
        self._steps = self._averages = 0
        self._over = world_size < 2

    def add(self, worker: int, step: int, loss: float | None) -> bool:
        """Count a worker's loss; True when it completes the steps in a row for the first time."""
        if self._over:
            return False
        losses = self._open.setdefault(step, {})
        losses[worker] = math.nan if loss is None else float(loss)
        if len(self._open) > MOST_OPEN:
            del self._open[next(iter(self._open))]
        if len(losses) < self._world_size:
            return False
        del self._open[step]
        same = len(set(losses.values())) == 1 and math.isfinite(losses[worker])
        self._run, self._steps = [*self._run, losses[worker]][-STEPS:] if same else [], self._steps + 1
        in_a_row = len(self._run) == STEPS and len(set(self._run)) >= FEWEST_LOSSES
        self._over = in_a_row and self._averages < self._steps / 2
        if self._over:
            self._open.clear()
        return self._over

    def averaged(self) -> None:
        """The workers have averaged something: if they do so in every step, losses are the same for that reason."""
        self._averages += 1
