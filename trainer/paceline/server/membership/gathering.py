"""Collects one value from every worker and gives them all to each: the server's part of all_gather and mean.

Calls are matched by their order. A worker asks for the next only when it has the answer to the one before, so that two
rounds are all that is ever kept: the open one, and the last one for those that have to ask again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from paceline.server.membership.membership import Membership
from paceline.wire.channel import Channel
from paceline_core import limits
from paceline_core.errors import PacelineError, PeerLost, UsageError

Call = tuple[int, int]  # incarnation of a worker, and the number of its call


@dataclass
class GatherRound:
    """One call of every worker."""

    what: str = ""  # the function that was called
    values: dict[int, str] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)
    error: PacelineError | None = None


class Gathering:
    """The rounds; `gathered` is told of each that is complete."""

    def __init__(self, membership: Membership, patience: float, gathered: Callable[[], None]) -> None:
        self._membership, self._patience, self._gathered = membership, patience, gathered
        self._open, self._last = GatherRound(), GatherRound()

    @property
    def waiting(self) -> bool:
        """Whether a worker waits for the values of others."""
        with self._membership.changed:
            return bool(self._open.values)

    def gather(self, worker: int, call: Call, what: str, value: str, peer: Channel) -> list[str]:
        """Wait for every worker's value, in rank order. Raises PeerLost, naming who is missing, and UsageError."""
        with self._membership.changed:
            it = self._enter(worker, call, what, value)
            self._membership.wait_for(lambda: self._decided(it), self._patience, peer)
            if not self._complete(it) and self._membership.failure is not None:
                raise self._membership.failure
            if not self._complete(it) and it.error is None:
                names = ", ".join(f"worker-{w}" for w in self._missing(it))
                self._fail(it, PeerLost(f"waited {limits.words(self._patience)} for {names} to call {what}()"))
            if it.error is not None:
                raise it.error
            return [it.values[w] for w in sorted(it.values)]

    def _enter(self, worker: int, call: Call, what: str, value: str) -> GatherRound:
        for it in (self._last, self._open):
            if it.calls.get(worker) == call:
                return it  # it asks again, over a new connection
        if not self._membership.is_newest(worker, call[0]):
            raise PeerLost(f"another process has taken the place of worker-{worker}")
        if self._open.error is not None and worker in self._open.calls:
            self._open = GatherRound()  # its script has caught the error, and goes on
        it = self._open
        it.calls[worker] = call
        if it.error is None and it.values and it.what != what:
            other = next(iter(it.values))
            text = f"worker-{worker} called {what}() where worker-{other} called {it.what}(): every worker must make "
            self._fail(it, UsageError(text + "the same calls in the same order"))
        if it.error is not None:
            return it
        it.what, it.values[worker] = what, value
        if self._complete(it):
            self._open, self._last = GatherRound(), it
            self._gathered()
            self._membership.changed.notify_all()
        return it

    def _decided(self, it: GatherRound) -> bool:
        if self._complete(it) or it.error is not None or self._membership.failure is not None:
            return True
        away = self._membership.away()
        for worker in self._missing(it):
            if worker in away:
                self._fail(it, PeerLost(f"worker-{worker} {away[worker]}: it will not call {it.what}()"))
                return True
        return False

    def _complete(self, it: GatherRound) -> bool:
        return len(it.values) == self._membership.world_size

    def _missing(self, it: GatherRound) -> list[int]:
        return [w for w in range(self._membership.world_size) if w not in it.values]

    def _fail(self, it: GatherRound, error: PacelineError) -> None:
        it.error = error
        self._membership.changed.notify_all()
