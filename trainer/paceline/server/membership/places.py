"""Where each worker is: what another process needs that goes on in its place, exactly where it was.

Of each the newest place is kept and the one before: who goes on repeats a step of every optimizer at least, because
what a script does between a step and the place after it (weights that it clips) is not in what the servers hold.
"""

import threading
from typing import NamedTuple

from paceline.wire.frames import Header

KEPT = 2  # places of one worker


class KeptPlace(NamedTuple):
    """One place: after `step` updates, of so many optimizers."""

    incarnation: int
    step: int
    optimizers: int
    data: bytes


class Places:
    """The newest places of each worker, as it told them itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: dict[int, int] = {}  # the incarnation of each worker that trained last
        self._held: dict[int, list[KeptPlace]] = {}  # the newest last

    def hear(self, told: Header, data: bytes) -> None:
        """A worker tells where it is; without data, that its place is not kept any more."""
        with self._lock:
            held = self._held.setdefault(told.worker, [])
            if held and (told.incarnation, told.step) < held[-1][:2]:
                return
            if not data:
                held.clear()
                return
            place = KeptPlace(told.incarnation, told.step, told.bucket, data)
            held[:] = [*(before for before in held if before.step < told.step), place][-KEPT:]

    def begins(self, worker: int, incarnation: int) -> bool:
        """A process begins as this worker, or connects anew: whether it takes the place of an earlier one just now."""
        with self._lock:
            before = self._newest.get(worker, incarnation)
            self._newest[worker] = max(before, incarnation)
        return before < incarnation

    def of(self, worker: int, incarnation: int, made: int) -> bytes:
        """What a process of this incarnation goes on from in the place of an earlier one; b"" where there is none.

        `made`: the updates that were made meanwhile.
        """
        with self._lock:
            earlier = [place for place in self._held.get(worker, ()) if place.incarnation < incarnation]
        before = [place for place in earlier if place.step + place.optimizers <= made]
        return (before or earlier)[-1].data if earlier else b""

    def at(self, worker: int, step: int) -> bytes | None:
        """The place of a worker after so many updates, if it is kept."""
        with self._lock:
            return next((place.data for place in self._held.get(worker, ()) if place.step == step), None)
