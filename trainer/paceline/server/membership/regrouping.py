"""Brings the workers of a ring together again: one was lost, and another has come in its place.

Each says how far it is, and is told of all when all are there. Whoever finds the group broken that was made then asks
for the next one. No process group is kept here, and nothing of what the workers say is looked into.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paceline.server.membership.key_value_store import Asker
from paceline.server.membership.membership import Membership
from paceline_core import limits
from paceline_core.errors import PeerLost

NEWCOMER = -1  # in place of the generation that broke: of a worker that was in none


@dataclass
class Meeting:
    """The workers that make one group: of each its incarnation, the group before, and how far it is."""

    generation: int
    come: dict[int, tuple[int, int, Any]] = field(default_factory=dict)
    whole: bool = False


class Regrouping:
    """The newest group's generation, and who has come to it. The group that a training begins with is number 0."""

    def __init__(self, membership: Membership, patience: float) -> None:
        self._membership, self._patience = membership, patience
        self._meeting = Meeting(0, whole=True)
        self._first: dict[int, int] = {}  # of each worker the first process that came
        self.updates = 0  # made when the newest group was made

    def takes_place(self, asker: Asker, _: Mapping[str, Any]) -> bool:
        """Whether another process was this worker before. Each asks when it has met the others, or would have."""
        with self._membership.changed:
            return asker.incarnation > self._first.setdefault(asker.worker, asker.incarnation)

    def regroup(self, asker: Asker, ask: Mapping[str, Any]) -> dict[str, Any]:
        """A worker's group is broken, or it is in none: wait for the others. Raises PeerLost.

        The answer has the group's generation and what each of its members told, under its number.
        """
        before = int(ask["before"])
        with self._membership.changed:
            meeting = self._meeting
            if meeting.come.get(asker.worker, ())[:2] != (asker.incarnation, before):  # else it asks once more
                if meeting.whole:
                    meeting = self._meeting = Meeting(meeting.generation + 1)
                meeting.come[asker.worker] = asker.incarnation, before, ask["told"]
                self._look_whether_whole(meeting)
                self._membership.changed.notify_all()
            self._wait_until_whole(meeting, asker)
            return {
                "generation": meeting.generation,
                "members": {str(worker): told for worker, (_, _, told) in meeting.come.items()},
            }

    def _look_whether_whole(self, meeting: Meeting) -> None:
        come = meeting.come
        here = [w for w, (incarnation, _, _) in come.items() if self._membership.is_newest(w, incarnation)]
        if len(here) == self._membership.world_size:
            meeting.whole = True
            self.updates = max((_updates(told) for _, before, told in come.values() if before != NEWCOMER), default=0)

    def _wait_until_whole(self, meeting: Meeting, asker: Asker) -> None:
        membership = self._membership

        def over() -> bool:
            return meeting.whole or membership.failure is not None or bool(membership.left - meeting.come.keys())

        membership.wait_for(over, self._patience, asker.channel)
        if membership.failure is not None:
            raise membership.failure
        if meeting.whole:
            return
        missing = set(range(membership.world_size)) - meeting.come.keys()
        if left := missing & membership.left:
            raise PeerLost(f"{_names(left)} left before the others: in a ring every worker must make the same steps")
        raise PeerLost(
            f"the ring broke, and {_names(missing)}, or another in its place, did not come within "
            f"{limits.words(self._patience)}"
        )


def _updates(told: Mapping[str, Any]) -> int:
    return sum(int(number) for number in told["updates"])


def _names(workers: set[int]) -> str:
    return ", ".join(f"worker-{worker}" for worker in sorted(workers))
