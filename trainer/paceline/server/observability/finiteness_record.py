"""The first loss of each worker, and the first weights, that were not finite."""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from paceline_core import finiteness
from paceline_core.errors import NotFinite
from paceline_core.finiteness import MOST_IN_A_ROW

log = logging.getLogger("paceline")


@dataclass(frozen=True)
class OddLoss:
    """A loss that is not finite: `value` is its text, because JSON has no such numbers.

    `version` counts the updates that there were after that step.
    """

    version: int
    worker: int
    step: int
    value: str

    def __str__(self) -> str:
        return finiteness.of_loss(self.worker, self.step, self.value)


@dataclass
class OddGradients:
    """A worker's steps in which its gradient was not finite."""

    steps: int = 0
    in_a_row: int = 0
    last: int = 0  # step
    began: str = ""


class FinitenessRecord:
    """Says each once in the log. With `fails`, `demand` raises NotFinite after that.

    The first loss is that of the lowest version, from which the others have theirs, and not the one that is heard of
    first: what workers report comes some time later.
    """

    def __init__(self, fails: bool) -> None:
        self._fails = fails
        self.losses: dict[int, OddLoss] = {}  # by worker
        self.weights: str | None = None  # the name of a tensor
        self.gradients: dict[int, OddGradients] = {}  # by worker
        self._newest: dict[int, int] = {}  # version of each worker's last step

    @property
    def first(self) -> OddLoss | None:
        """The first loss."""
        return min(self.losses.values(), key=lambda odd: odd.version, default=None)

    def hear_loss(self, worker: int, row: Mapping[str, Any]) -> None:
        """A step of a worker. Raises KeyError, TypeError, ValueError: workers are not trusted."""
        loss, before = row.get("loss"), self.first
        version = self._newest[worker] = int(row["version"])
        if loss is None or math.isfinite(float(loss)) or worker in self.losses:
            return
        self.losses[worker] = OddLoss(version, worker, int(row["step"]), str(float(loss)))
        if self.first is not before:
            log.warning("%s", self.first)

    def hear_gradient(self, worker: int, step: int, name: str) -> None:
        """A worker's gradient of a step is not finite; `name`: of the first parameter of which it is not."""
        odd = self.gradients.setdefault(worker, OddGradients())
        if not odd.steps or step != odd.last + 1:
            odd.began, odd.in_a_row = finiteness.of_gradient(worker, step, name), 0
        if not odd.steps:
            log.warning("%s", odd.began)
        odd.steps, odd.in_a_row, odd.last = odd.steps + 1, odd.in_a_row + 1, step

    def hear_weights(self, name: str) -> None:
        """A tensor of the weights at the end is not finite."""
        if self.weights is None:
            self.weights = name
            log.warning("%s", finiteness.of_weights(name))

    def demand(self, training: Iterable[int]) -> None:
        """Raise NotFinite if the specification asks for that and something was not finite.

        Of a loss only when nobody can have an earlier one: all workers that are `training` have told of that version.
        """
        for worker, odd in self.gradients.items():
            if odd.in_a_row >= (1 if self._fails else MOST_IN_A_ROW):
                raise NotFinite(odd.began if self._fails else finiteness.of_many(worker, odd.in_a_row, odd.began))
        first = self.first
        if self._fails and first and all(self._newest.get(w, 0) >= first.version for w in training):
            raise NotFinite(str(first))
        if self._fails and self.weights:
            raise NotFinite(finiteness.of_weights(self.weights))

    def to_json(self) -> dict[str, Any]:
        """What /status says of it, as a whole."""
        first = self.first
        told = {"worker": first.worker, "step": first.step, "value": first.value} if first else None
        steps = {f"worker-{worker}": odd.steps for worker, odd in sorted(self.gradients.items())}
        return {"loss_not_finite": told, "weights_not_finite": self.weights, "gradients_not_finite": steps}
