"""The model that the workers agree on, and which of them are here, have left or were lost."""

import threading
import time
from collections import Counter
from collections.abc import Callable

from paceline.model_signature import Signature
from paceline.wire.channel import Channel
from paceline_core import limits
from paceline_core.errors import ModelMismatch, PacelineError, PeerLost

PRESENCE_SECONDS = 1.0  # between two looks whether who waits is still there
GRACE_SECONDS = 10.0  # to come back after the last connection broke
SILENT_END = "if it was neither killed nor cut off, its script ended by os._exit() or os.exec*(): let it return"


class Membership:
    """For every thread; `changed` is notified of each change."""

    def __init__(self, world_size: int, patience: float, replaced: bool = False) -> None:
        self.world_size, self.patience, self._replaced = world_size, patience, replaced
        self.signatures: dict[int, Signature] = {}  # worker 0's, of each pair of a model and an optimizer
        self.failure: Exception | None = None
        self.here: set[int] = set()  # workers that ever connected
        self.left: set[int] = set()
        self.lost: dict[int, float] = {}  # and since when
        self.incarnations: dict[int, int] = {}  # the newest of each worker
        self.changed = threading.Condition()
        self._open: Counter[int] = Counter()  # connections of each worker
        self._gone: dict[int, float] = {}  # when a worker's last connection broke

    def wait_for(self, condition: Callable[[], bool], seconds: float, peer: Channel) -> bool:
        """Wait until something holds; False after so many seconds. Raises PeerLost when `peer`, who waits, is gone."""
        limit = time.monotonic() + seconds
        with self.changed:
            while not self.changed.wait_for(condition, min(PRESENCE_SECONDS, limit - time.monotonic())):
                if time.monotonic() >= limit:
                    return False
                if peer.is_broken():
                    raise PeerLost(f"{peer.peer} is gone")
            return True

    def agree(self, worker: int, signature: Signature, peer: Channel, pair: int = 0) -> Signature:
        """Compare a worker's model with worker 0's, waiting for it. Raises ModelMismatch, PeerLost."""
        with self.changed:
            if worker == 0:
                self.signatures.setdefault(pair, signature)
                self.changed.notify_all()
            known = self.wait_for(lambda: pair in self.signatures or self.failure is not None, self.patience, peer)
            if self.failure is not None:
                raise self.failure
            if not known:
                which = f" a {_ordinal(pair + 1)} time" if pair else ""
                waited = f"waited {limits.words(self.patience)} for worker-0"
                raise PeerLost(f"{waited}, which never called paceline.distribute(){which}")
            agreed = self.signatures[pair]
            difference = agreed.difference(signature)
        if difference:
            raise ModelMismatch(f"worker-{worker} trains another model than worker-0: {difference}")
        return agreed

    def connected(self, worker: int, incarnation: int) -> None:
        """A connection of this worker was opened. A new incarnation has not left, whatever became of the one before."""
        with self.changed:
            if incarnation > self.incarnations.get(worker, 0):
                self.left.discard(worker)
            self.incarnations[worker] = max(incarnation, self.incarnations.get(worker, 0))
            self.lost.pop(worker, None)
            self._open[worker] += 1
            self.here.add(worker)
            self._gone.pop(worker, None)
            self.changed.notify_all()

    def disconnected(self, worker: int) -> None:
        """A connection of this worker ended; the last one starts the time of grace."""
        with self.changed:
            self._open[worker] -= 1
            if self._open[worker] == 0 and worker not in self.left:
                self._gone[worker] = time.monotonic()

    def is_newest(self, worker: int, incarnation: int) -> bool:
        """Whether no other process has taken the place of this one."""
        with self.changed:
            return incarnation >= self.incarnations.get(worker, 0)

    def leave(self, worker: int, incarnation: int) -> None:
        """This worker is done, unless another process has taken its place meanwhile."""
        with self.changed:
            if self.is_newest(worker, incarnation):
                self.left.add(worker)
                self.changed.notify_all()

    def away(self) -> dict[int, str]:
        """The workers that will not come again, and why."""
        with self.changed:
            lost = {} if self._replaced else dict.fromkeys(self.lost, "was lost")
            return lost | dict.fromkeys(self.left, "has left")

    def absent(self) -> set[int]:
        """The workers that have left, or were lost and have not come back: now nobody need wait for them."""
        with self.changed:
            return self.left | self.lost.keys()

    def gone_for_good(self) -> set[int]:
        """The workers that have left; for who was lost another comes, or the training ends."""
        with self.changed:
            return set(self.left)

    def presence(self, seconds: float) -> tuple[set[int], set[int]]:
        """The workers that may make further steps, and those that have had no connection for so long."""
        with self.changed:
            limit = time.monotonic() - seconds
            absent = {w for w, since in self._gone.items() if since < limit} | self.lost.keys()
            return set(range(self.world_size)) - self.left - absent, absent - self.left

    def overdue(self) -> list[int]:
        """Workers whose time of grace is over; each is named once."""
        with self.changed:
            limit = time.monotonic() - GRACE_SECONDS
            out = [w for w, since in self._gone.items() if since < limit and w not in self.left]
            for worker in out:
                del self._gone[worker]
                self.lost[worker] = time.monotonic()
            self.changed.notify_all()
            return out

    def not_replaced(self) -> list[int]:
        """Lost workers in whose place nobody has come for as long as one waits for others to join."""
        with self.changed:
            limit = time.monotonic() - self.patience
            return [w for w, since in self.lost.items() if since < limit]

    def fail(self, error: Exception) -> None:
        """The training has failed: end every wait."""
        with self.changed:
            self.failure = self.failure or error
            self.changed.notify_all()

    def connected_workers(self) -> int:
        """How many workers have an open connection."""
        with self.changed:
            return sum(count > 0 for count in self._open.values())

    def finished(self) -> bool:
        """Whether nobody is left to serve, or to come back. Raises PeerLost when all were lost."""
        with self.changed:
            limit = time.monotonic() - (self.patience if self._replaced else 0)
            gone = self.left | {w for w, since in self.lost.items() if since <= limit}
            if len(gone) == self.world_size and not self.left:
                raise PeerLost(f"every worker was lost; {SILENT_END}")
            return len(gone) == self.world_size

    def missing(self) -> list[str]:
        """Names of the workers that never came."""
        with self.changed:
            return [f"worker-{w}" for w in range(self.world_size) if w not in self.here]


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


def lost(worker: int) -> PacelineError:
    """The error of a worker that does not come back, where the others cannot go on without it."""
    return PeerLost(
        f"worker-{worker} was lost: its connections broke and it did not come back in {GRACE_SECONDS:g} s; {SILENT_END}"
    )
