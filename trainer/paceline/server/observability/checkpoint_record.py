"""What has become of a training's checkpoints: the newest one, those that failed, and what is exported of them."""

import errno
import os
import threading
from typing import Any

from paceline import metrics
from paceline.checkpoints.checkpoint_manifest import Manifest
from paceline.metrics import Instruments

SAVE, RESTORE = "save", "restore"  # the label `op`
NO_ROOM = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


class CheckpointRecord:
    """Hears of checkpoints, on server 0. Safe to call from any thread."""

    def __init__(self, instruments: Instruments) -> None:
        self._metrics = instruments
        self._newest: Manifest | None = None
        self._resumed: int | None = None
        self._failed = self._missed = 0
        self._lock = threading.Lock()

    @property
    def step(self) -> int:
        """Of the newest checkpoint; 0 when there is none."""
        newest = self._newest
        return newest.step if newest else 0

    def resumed(self, found: Manifest, seconds: float, passed_over: int) -> None:
        """The training goes on from this one, which was read in so many seconds; so many newer ones are damaged."""
        with self._lock:
            self._resumed = found.step
            self._metrics.observe(metrics.CHECKPOINT_SECONDS, seconds, RESTORE)
            if passed_over:
                self._metrics.add(metrics.CHECKPOINT_FAILURES, passed_over, RESTORE, "checksum")
            self._keep(found)

    def due(self) -> None:
        """One is to be saved."""
        with self._lock:
            self._missed += 1
            self._metrics.set(metrics.CHECKPOINT_MISSED, self._missed)

    def saved(self, made: Manifest, seconds: float) -> None:
        """One is whole, so many seconds after it was ordered."""
        with self._lock:
            self._missed = 0
            self._metrics.set(metrics.CHECKPOINT_MISSED, 0)
            self._metrics.observe(metrics.CHECKPOINT_SECONDS, seconds, SAVE)
            self._keep(made)

    def failed(self, why: str) -> None:
        """One could not be saved."""
        with self._lock:
            self._failed += 1
            reason = "space" if any(text in why for text in NO_ROOM) else "store" if "://" in why else "io"
            self._metrics.add(metrics.CHECKPOINT_FAILURES, 1, SAVE, reason)

    def to_json(self, version: int) -> dict[str, Any]:
        """For /status, when so many updates have been made."""
        with self._lock:
            newest = self._newest
            return {
                "step": newest.step if newest else None,
                "time": newest.saved if newest else None,
                "updates_since": max(0, version - newest.step) if newest else None,
                "failed": self._failed,
                "resumed_from": self._resumed,
            }

    def _keep(self, newest: Manifest) -> None:
        self._newest = newest
        self._metrics.set(metrics.CHECKPOINT_STEP, newest.step)
        self._metrics.set(metrics.CHECKPOINT_TIME, newest.saved)
        self._metrics.set(metrics.CHECKPOINT_BYTES, newest.nbytes)
