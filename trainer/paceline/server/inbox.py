"""A worker's push (or join) on its way in, over one or more lanes."""

import threading
from typing import Any

from paceline_core.errors import ProtocolError

Key = tuple[int, int]  # incarnation, step


class Inbox:
    """Which buckets and commits have come of one worker's current push.

    A push that is complete is never written again, however often it is sent: from then on its buffer belongs to the
    executor, which first sums it and then keeps the reply in it.
    """

    def __init__(self, buckets: int, lanes: int) -> None:
        self._buckets, self._lanes = buckets, lanes
        self._lock = threading.Lock()
        self.lane_locks = [threading.Lock() for _ in range(lanes)]  # held while a lane's bytes are being received
        self._key: Key = (-1, -1)
        self._received: set[int] = set()
        self._committed: set[int] = set()
        self._complete = False
        self.payload: dict[str, Any] = {}

    def wants(self, key: Key) -> bool:
        """Whether bytes of this push are to be kept. Raises ProtocolError for a push that is over."""
        with self._lock:
            if key < self._key:
                raise ProtocolError("outdated", f"step {key[1]} of incarnation {key[0]} was over before")
            if key > self._key:
                self._key, self._received, self._committed, self._complete = key, set(), set(), False
            return not self._complete

    def received(self, bucket: int) -> None:
        """A bucket is here whole."""
        with self._lock:
            self._received.add(bucket)

    def commit(self, key: Key, lane: int, needs_buckets: bool = True) -> bool:
        """A lane has sent everything; True for the one call that completes the push. Raises ProtocolError."""
        if not self.wants(key):
            return False
        with self._lock:
            self._committed.add(lane)
            if len(self._committed) < self._lanes:
                return False
            if needs_buckets and len(self._received) < self._buckets:
                raise ProtocolError("incomplete", f"a push of {len(self._received)} of {self._buckets} buckets")
            self._complete = True
            return True
