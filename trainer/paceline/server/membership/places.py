"""Where each worker is: what another process needs that goes on in its place, exactly where it was."""

import threading

from paceline.wire.frames import Header
from paceline_core.errors import ProtocolError

PLACE_BYTES = 16 << 20


class Places:
    """The newest place of each worker, as it told it itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first: dict[int, int] = {}  # the incarnation of each worker that trained first
        self._held: dict[int, tuple[int, int, bytes]] = {}  # incarnation, updates made, what to go on from

    def hear(self, told: Header, data: bytes) -> None:
        """A worker tells where it is. Raises ProtocolError."""
        if len(data) > PLACE_BYTES:
            raise ProtocolError("too_large", f"a place of {len(data)} bytes; at most {PLACE_BYTES} are kept")
        with self._lock:
            before = self._held.get(told.worker)
            if before is None or (told.incarnation, told.step) >= before[:2]:
                self._held[told.worker] = told.incarnation, told.step, data

    def begins(self, worker: int, incarnation: int) -> bool:
        """A process begins as this worker: whether it takes the place of one that was here before."""
        with self._lock:
            return self._first.setdefault(worker, incarnation) < incarnation

    def of(self, worker: int, incarnation: int) -> bytes:
        """What a process of this incarnation goes on from in the place of an earlier one; b"" where there is none."""
        with self._lock:
            held = self._held.get(worker)
        return held[2] if held is not None and held[0] < incarnation else b""

    def step(self, worker: int) -> int | None:
        """The updates made where this worker's place was kept last."""
        with self._lock:
            held = self._held.get(worker)
        return None if held is None else held[1]
