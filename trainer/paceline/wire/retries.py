"""Trying again over a new connection when one breaks."""

import time
from collections.abc import Callable
from typing import TypeVar

from paceline_core.errors import PeerLost, ProtocolError, Unreachable

T = TypeVar("T")
TRY_SECONDS, ATTEMPTS = 10.0, 5  # a network may break every connection for so long; and never fewer attempts
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 1.0  # between two attempts, from the second failure on


class Attempts:
    """Counts failures in a row, and tells when to give up."""

    def __init__(self) -> None:
        self._failures, self._until = 0, 0.0

    def failed(self, error: PeerLost | ProtocolError) -> None:
        """An attempt has failed. Raises its error when another is no use."""
        self._failures, self._until = self._failures + 1, self._until or time.monotonic() + TRY_SECONDS
        if _is_final(error) or (self._failures >= ATTEMPTS and time.monotonic() > self._until):
            raise error

    def succeeded(self) -> None:
        """An attempt has not failed: the next failure is the first of its row."""
        self._failures, self._until = 0, 0.0

    def pause(self) -> None:
        """Wait before the next attempt."""
        time.sleep(_pause(self._failures))


def persist(attempt: Callable[[], T], failed: Callable[[], None] = lambda: None) -> T:
    """What `attempt` gives, called again when its connection broke; `failed` is told. Raises its last error."""
    attempts = Attempts()
    while True:
        try:
            return attempt()
        except (PeerLost, ProtocolError) as error:
            attempts.failed(error)
        failed()
        attempts.pause()


def _is_final(error: PeerLost | ProtocolError) -> bool:
    """Whether another connection is no use: the peer said so, is away, too slow, or does not speak our protocol."""
    slow, cut = isinstance(error.__cause__, TimeoutError), isinstance(error, PeerLost) or error.reason == "truncated"
    return error.from_peer or isinstance(error, Unreachable) or slow or not cut


def _pause(failures: int) -> float:
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** (failures - 2)) if failures > 1 else 0.0
