"""The work queue of trainings to reconcile: merges keys, works on each one at a time, and can requeue it for later."""

import asyncio
import heapq
import itertools
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
Work = Callable[[K], Awaitable[float | None]]
PAUSE_SECONDS = 0.1  # between two reconciliations of one key, so that a burst of events is one of them
SPARE_ENTRIES = 16  # of the heap
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1.0, 60.0
log = logging.getLogger("paceline.operator")


class WorkQueue(Generic[K]):
    """Keys may be added from the start; they are worked on when `run` is called."""

    def __init__(self) -> None:
        self._due: dict[K, float] = {}  # the time that counts; older entries of the heap are skipped
        self._heap: list[tuple[float, int, K]] = []
        self._count = itertools.count()
        self._running: set[K] = set()
        self._failed: dict[K, int] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, key: K, after: float = 0.0) -> None:
        """Work on `key` after so many seconds, or earlier if that was asked for."""
        due = asyncio.get_running_loop().time() + after
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._count), key))
        if len(self._heap) > 2 * len(self._due) + SPARE_ENTRIES:  # most are times that no longer count
            self._heap = [(due, next(self._count), key) for key, due in self._due.items()]
            heapq.heapify(self._heap)
        self._changed.set()

    def __len__(self) -> int:
        return len(self._due) + len(self._running)

    async def run(self, work: Work[K]) -> None:
        """`work(key)` until cancelled; it gives the seconds after which to come back, or None."""
        try:
            while True:
                self._start_due(work)
                self._changed.clear()
                try:
                    async with asyncio.timeout(self._seconds_to_next()):  # wait_for can lose a cancellation
                        await self._changed.wait()
                except TimeoutError:
                    pass
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _seconds_to_next(self) -> float | None:
        return max(0.0, self._heap[0][0] - asyncio.get_running_loop().time()) if self._heap else None

    def _start_due(self, work: Work[K]) -> None:
        now, held = asyncio.get_running_loop().time(), []
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            due, _, key = entry
            if self._due.get(key) != due:
                continue
            if key in self._running:
                held.append(entry)
                continue
            del self._due[key]
            self._running.add(key)
            task = asyncio.create_task(self._process(key, work))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        for due, _, key in held:  # begun again when its work is done
            self._due[key] = due

    async def _process(self, key: K, work: Work[K]) -> None:
        requeue_after: float | None = 0.0  # when it is cancelled, as kopf does to all tasks when a watch breaks
        try:
            requeue_after = await self._try(key, work)
            await asyncio.sleep(PAUSE_SECONDS)
        finally:
            self._running.discard(key)
            held = self._due.pop(key, None)
            if held is not None:
                self.add(key, max(0.0, held - asyncio.get_running_loop().time()))
            if requeue_after is not None:
                self.add(key, requeue_after)
            self._changed.set()

    async def _try(self, key: K, work: Work[K]) -> float | None:
        try:
            requeue_after = await work(key)
        except Exception:
            times = self._failed[key] = self._failed.get(key, 0) + 1
            requeue_after = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** (times - 1))
            log.exception("%s: will be tried again in %g s", key, requeue_after)
        else:
            self._failed.pop(key, None)
        return requeue_after
