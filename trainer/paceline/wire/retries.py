"""Trying again over a new connection when one breaks."""

import time
from collections.abc import Callable
from typing import TypeVar

from paceline_core.errors import PeerLost, ProtocolError, Unreachable

T = TypeVar("T")
TRY_SECONDS, ATTEMPTS = 10.0, 5  # a network may break every connection for so long; and never fewer attempts
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 1.0  # between two attempts, from the second failure on


def persist(attempt: Callable[[], T], failed: Callable[[], None] = lambda: None) -> T:
    """What `attempt` gives, called again when its connection broke; `failed` is told. Raises its last error."""
    failures, until = 0, 0.0
    while True:
        try:
            return attempt()
        except (PeerLost, ProtocolError) as error:
            failures, until = failures + 1, until or time.monotonic() + TRY_SECONDS
            if _is_final(error) or (failures >= ATTEMPTS and time.monotonic() > until):
                raise
        failed()
        time.sleep(_pause(failures))


def _is_final(error: PeerLost | ProtocolError) -> bool:
    """Whether another connection is no use: the peer said so, is away, too slow, or does not speak our protocol."""
    slow, cut = isinstance(error.__cause__, TimeoutError), isinstance(error, PeerLost) or error.reason == "truncated"
    return error.from_peer or isinstance(error, Unreachable) or slow or not cut


def _pause(failures: int) -> float:
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** (failures - 2)) if failures > 1 else 0.0
