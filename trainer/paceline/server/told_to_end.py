"""A server that is told to end, by SIGTERM: it waits for a checkpoint first, until it is told again or time is over."""

import logging
import time
from collections.abc import Callable

log = logging.getLogger("paceline")


class ToldToEnd:
    """Counts the signals; `seconds` may be waited after the first, as long as `saved` says False."""

    def __init__(self, seconds: float, saved: Callable[[], bool]) -> None:
        self._seconds, self._saved = seconds, saved
        self._signals = 0
        self._until: float | None = None

    def __bool__(self) -> bool:
        """Whether it was told."""
        return self._signals > 0

    def hear(self, *_: object) -> None:
        """Of a signal: takes no lock, because whoever it interrupts may hold that."""
        self._signals += 1

    def ends_now(self) -> bool:
        """Whether to end; asked now and then, and never by two threads."""
        if not self._signals:
            return False
        saved, now = self._saved(), time.monotonic()
        if saved or self._signals > 1:
            return True
        if self._until is None:
            self._until = now + self._seconds
            log.info(
                "told to end (SIGTERM): saves a checkpoint, after the next update, and waits at most %.3g s for it; "
                "another SIGTERM ends it at once",
                self._seconds,
            )
        if now >= self._until:
            log.warning("ends without the checkpoint: it was not whole within %.3g s", self._seconds)
        return now >= self._until
