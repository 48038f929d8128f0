"""A bound on connections that cost something before it is known who is behind them: the oldest give way."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class BoundedConnections:
    """At most `most` connections, each with at least `seconds` of its own; `ended` is told of each that gave way."""

    def __init__(self, most: int, seconds: float, ended: Callable[[], None]) -> None:
        self._most, self._seconds, self._ended = most, seconds, ended
        self._since: dict[socket.socket, float] = {}  # in the order in which they came
        self._changed = threading.Condition()

    def add(self, connection: socket.socket) -> None:
        """Hold a connection; without room it waits until one goes, or the oldest has had its time and is ended."""
        with self._changed:
            while len(self._since) >= self._most:
                oldest, since = next(iter(self._since.items()))
                left = since + self._seconds - time.monotonic()
                if left > 0:
                    self._changed.wait(left)
                    continue
                del self._since[oldest]
                _end(oldest)
                self._ended()
            self._since[connection] = time.monotonic()

    def remove(self, connection: socket.socket) -> bool:
        """It needs to be held no longer. False when it had to give way before."""
        with self._changed:
            held = self._since.pop(connection, None) is not None
            self._changed.notify_all()
            return held

    @contextmanager
    def holding(self, connection: socket.socket) -> Iterator[None]:
        """Hold a connection for a while."""
        self.add(connection)
        try:
            yield
        finally:
            self.remove(connection)


def _end(connection: socket.socket) -> None:
    """Have its thread see its end; the thread closes it."""
    try:
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # under TLS without a word of it, which might wait
    except OSError:
        pass  # it is gone already
