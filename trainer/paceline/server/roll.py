"""The roll: the model that the workers agree on, and which of them are here, have left or were lost."""

import threading
import time
from collections import Counter

from paceline.signature import Signature
from paceline_core.errors import ModelMismatch, PacelineError, PeerLost

GRACE_SECONDS = 10.0  # to come back after the last connection broke


class Roll:
    """Membership, for every thread; `changed` is notified of each change."""

    def __init__(self, world_size: int, patience: float, replaced: bool = False) -> None:
        self.world_size, self.patience, self._replaced = world_size, patience, replaced
        self.signature: Signature | None = None  # worker 0's
        self.failure: Exception | None = None
        self.here: set[int] = set()  # workers that ever connected
        self.left: set[int] = set()
        self.lost: dict[int, float] = {}  # and since when
        self.incarnations: dict[int, int] = {}  # the newest of each worker
        self.changed = threading.Condition()
        self._open: Counter[int] = Counter()  # connections of each worker
        self._gone: dict[int, float] = {}  # when a worker's last connection broke

    def agree(self, worker: int, signature: Signature) -> Signature:
        """Compare a worker's model with worker 0's, waiting for it. Raises ModelMismatch, PeerLost."""
        with self.changed:
            if worker == 0 and self.signature is None:
                self.signature = signature
                self.changed.notify_all()
            known = self.changed.wait_for(lambda: self.signature is not None or self.failure is not None, self.patience)
            if self.failure is not None:
                raise self.failure
            if not known or self.signature is None:
                raise PeerLost(f"waited {self.patience:g} s for worker-0, which never called paceline.distribute()")
            difference = self.signature.difference(signature)
        if difference:
            raise ModelMismatch(f"worker-{worker} trains another model than worker-0: {difference}")
        return self.signature

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
                raise PeerLost("every worker was lost")
            return len(gone) == self.world_size

    def missing(self) -> list[str]:
        """Names of the workers that never came."""
        with self.changed:
            return [f"worker-{w}" for w in range(self.world_size) if w not in self.here]


def lost(worker: int) -> PacelineError:
    """The error that ends a synchronous training when a worker does not come back."""
    return PeerLost(f"worker-{worker} was lost: its connections broke and it did not come back in {GRACE_SECONDS:g} s")
