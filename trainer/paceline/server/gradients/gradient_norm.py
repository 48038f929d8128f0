"""The norm of a gradient that lies on several shards: each tells its part to shard 0, which tells all the whole."""

import threading
from collections.abc import Callable
from typing import Any

from paceline.wire.frames import UNREADABLE
from paceline_core import limits
from paceline_core.errors import PeerLost, ProtocolError

Key = tuple[int, int]  # pair, version that the update makes


class Norms:
    """Parts of squared norms on their way together, and the sums on their way back."""

    def __init__(self, shards: int, timeout: float) -> None:
        self._shards, self._timeout = shards, timeout
        self._parts: dict[Key, dict[int, float]] = {}
        self._sums: dict[Key, float] = {}
        self._news = threading.Condition()
        self.give: Callable[[Key, float], None] = lambda *_: None  # shard 0: to the followers

    def add(self, shard: int, key: Key, squares: float) -> None:
        """Shard 0: one shard's part; the sum, in the order of shards, goes to all once every part is here."""
        with self._news:
            parts = self._parts.setdefault(key, {})
            parts[shard] = squares
            if len(parts) < self._shards:
                return
            del self._parts[key]
        total = sum(parts[k] for k in sorted(parts))
        self.give(key, total)
        self.known(key, total)

    def known(self, key: Key, squares: float) -> None:
        """The sum is here."""
        with self._news:
            self._sums[key] = squares
            self._news.notify_all()

    def total(self, key: Key) -> float:
        """Wait for the sum. Raises PeerLost."""
        with self._news:
            if not self._news.wait_for(lambda: key in self._sums, self._timeout):
                raise PeerLost(f"waited {limits.words(self._timeout)} for another shard's part of the gradient's norm")
            return self._sums.pop(key)


def norm_to_wire(key: Key, squares: float) -> dict[str, Any]:
    """A norm, as JSON."""
    return {"pair": key[0], "version": key[1], "squares": squares.hex()}  # may be infinite, or no number


def norm_from_wire(value: dict[str, Any]) -> tuple[Key, float]:
    """Read a norm. Raises ProtocolError."""
    try:
        return (int(value["pair"]), int(value["version"])), float.fromhex(value["squares"])
    except UNREADABLE as error:
        raise ProtocolError("bad_payload", f"not a norm: {error}") from error
