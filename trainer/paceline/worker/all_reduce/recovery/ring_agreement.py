"""How far each worker of a broken ring is, and what follows from that for all of them. Pure.

A reduction, or an exchange of buffers, that any worker has completed counts: the others take what came of it. Nobody
can be more than one ahead, for each needs all.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self


class What(StrEnum):
    """What one worker gives another, of one pair of a model and an optimizer."""

    MODEL = "model"  # and the optimizer's state
    BUFFERS = "buffers"  # the small ones of the last exchange
    MEANS = "means"  # of the last reduction


@dataclass(frozen=True)
class Position:
    """How far one worker is; of each pair a number."""

    updates: list[int]  # made by the optimizer
    passes: list[int]  # reductions completed
    holds: list[bool]  # whether it has the means of the last of them
    exchanges: list[int]  # the last of which it has the small buffers
    ask_after: int  # the step after which to ask for a checkpoint
    obstacle: str | None = None  # why its part cannot be repeated

    def to_json(self) -> dict[str, Any]:
        """As it is sent."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError for what is none."""
        return cls(**value)


@dataclass(frozen=True)
class Gift:
    """What `source` gives `receiver`."""

    what: What
    source: int
    receiver: int


class Agreement:
    """What all workers make of all positions; who takes a lost one's place, a newcomer, has none."""

    def __init__(self, members: Mapping[int, Position | None]) -> None:
        self._known = {worker: it for worker, it in sorted(members.items()) if it is not None}
        self._newcomers = [worker for worker, it in sorted(members.items()) if it is None]

    def obstacle(self) -> str | None:
        """Why they cannot go on, if they cannot."""
        known = list(self._known.values())
        if not known:
            return "no worker is left that has the weights"
        if found := next((it.obstacle for it in known if it.obstacle), None):
            return found
        if len({len(it.updates) for it in known}) > 1:
            return "the workers have not called paceline.distribute() equally often"
        return next((why for pair in range(len(known[0].updates)) if (why := self._obstacle_of(pair))), None)

    def updates(self, pair: int) -> int:
        """The updates that the workers' weights will have when they go on."""
        return max(it.updates[pair] for it in self._known.values())

    def passes(self, pair: int) -> int:
        """The reductions that count as made."""
        return max(it.passes[pair] for it in self._known.values())

    def exchanges(self, pair: int) -> int:
        """The exchanges of buffers that count as made."""
        return max(it.exchanges[pair] for it in self._known.values())

    def ask_after(self) -> int:
        """The step after which the workers that are farthest ask for a checkpoint."""
        return max(self._known.values(), key=lambda it: sum(it.updates)).ask_after

    def gifts(self, pair: int) -> list[Gift]:
        """In the order in which they are given: all newcomers need, and what others have not completed."""
        model = self._first(lambda it: it.updates[pair] == self.updates(pair))
        buffers = self._first(lambda it: it.exchanges[pair] == self.exchanges(pair))
        means = self._holder(pair)
        out = []
        for worker in sorted([*self._known, *self._newcomers]):
            it = self._known.get(worker)
            if it is None:
                out.append(Gift(What.MODEL, model, worker))
            if it is None or it.exchanges[pair] < self.exchanges(pair):
                out.append(Gift(What.BUFFERS, buffers, worker))
            if means is not None and (it is None or it.passes[pair] < self.passes(pair)):
                out.append(Gift(What.MEANS, means, worker))
        return out

    def _obstacle_of(self, pair: int) -> str | None:
        known = self._known.values()
        if self.passes(pair) and self._holder(pair) is None:
            return "nobody has the mean gradients of the last reduction any more"
        behind = min(min(it.passes[pair] - self.passes(pair), it.updates[pair] - self.updates(pair)) for it in known)
        return "some workers are more than a step behind" if behind < -1 else None

    def _holder(self, pair: int) -> int | None:
        """Who has the means of the last reduction."""
        reached = self.passes(pair)
        return next((w for w, it in self._known.items() if it.passes[pair] == reached and it.holds[pair]), None)

    def _first(self, fits: Any) -> int:
        return next(worker for worker, it in self._known.items() if fits(it))
