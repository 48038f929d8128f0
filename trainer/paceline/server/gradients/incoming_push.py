"""A worker's push (or join) on its way in, over one or more connections."""

import threading

from paceline.server.gradients.shard import Shard
from paceline.tensor_bytes import Bytes
from paceline_core.errors import ProtocolError

Key = tuple[int, int]  # incarnation, step


class IncomingPush:
    """Which buckets and commits have come of one worker's current push.

    A push that is complete is never written again, however often it is sent: from then on its buffer belongs to the
    executor, which first sums it and then keeps the reply in it.
    """

    def __init__(self, buckets: int, connections: int) -> None:
        self._buckets, self._connections = buckets, connections
        self._lock = threading.Lock()
        # each is held while bytes of its connection are being received
        self.connection_locks = [threading.Lock() for _ in range(connections)]
        self._key: Key = (-1, -1)
        self._received: set[int] = set()
        self._committed: set[int] = set()
        self._complete = False
        self.values: dict[int, Bytes] = {}  # of parameters that the script has changed, by bucket
        self.state = b""  # of the optimizer, that the script has loaded

    def wants(self, key: Key) -> bool:
        """Whether bytes of this push are to be kept. Raises ProtocolError for a push that is over."""
        with self._lock:
            if key < self._key:
                raise ProtocolError("outdated", f"step {key[1]} of incarnation {key[0]} was over before")
            if key > self._key:
                self._key, self._received, self._committed, self._complete = key, set(), set(), False
                self.values, self.state = {}, b""
            return not self._complete

    def changed_values(self, bucket: int, shard: Shard) -> Bytes:
        """Memory for a bucket of parameters that the script has changed."""
        with self._lock:
            return self.values.setdefault(bucket, shard.memory(bucket))

    def received(self, bucket: int) -> None:
        """A bucket is here whole."""
        with self._lock:
            self._received.add(bucket)

    def commit(self, key: Key, connection: int, needs_buckets: bool = True) -> bool:
        """A connection has sent everything; True for the one call that completes the push. Raises ProtocolError."""
        if not self.wants(key):
            return False
        with self._lock:
            self._committed.add(connection)
            if len(self._committed) < self._connections:
                return False
            if needs_buckets and len(self._received) < self._buckets:
                raise ProtocolError("incomplete", f"a push of {len(self._received)} of {self._buckets} buckets")
            self._complete = True
            return True
