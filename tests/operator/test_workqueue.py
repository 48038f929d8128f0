"""The work queue."""

import asyncio
import random
from typing import Any

import pytest

from paceline_operator import workqueue
from paceline_operator.workqueue import WorkQueue


async def work_until_idle(queue: WorkQueue[str], work: Any) -> None:
    task = asyncio.create_task(queue.run(work))
    while len(queue):
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_burst_of_events_is_one_run_and_a_key_is_never_worked_on_twice_at_once() -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    runs: dict[str, int] = {}
    inside: set[str] = set()

    async def work(key: str) -> float | None:
        assert key not in inside
        inside.add(key)
        await asyncio.sleep(chance.random() / 100)
        inside.discard(key)
        runs[key] = runs.get(key, 0) + 1
        return None

    async def main() -> None:
        queue: WorkQueue[str] = WorkQueue()
        for _ in range(1000):
            queue.add(chance.choice("abcd"))
        running = asyncio.create_task(work_until_idle(queue, work))
        await asyncio.sleep(0.005)
        queue.add("a")  # while it is being worked on, or after: it is worked on again
        await running

    asyncio.run(main())
    assert runs == {"a": 2, "b": 1, "c": 1, "d": 1}


def test_the_queue_comes_back_when_asked_and_after_errors() -> None:
    seen: list[str] = []

    async def work(key: str) -> float | None:
        seen.append(key)
        if seen.count(key) == 1 and key == "broken":
            raise RuntimeError("a broken connection")
        return 0.05 if seen.count(key) < 3 else None

    async def main() -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.add("fine")
        queue.add("broken")
        await work_until_idle(queue, work)

    asyncio.run(main())
    assert (seen.count("fine"), seen.count("broken")) == (3, 3)


def test_times_that_no_longer_count_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training is reconciled every few seconds, and after each time once more in a week."""
    monkeypatch.setattr(workqueue, "PAUSE_SECONDS", 0.0)
    keys, runs = "abc", dict.fromkeys("abc", 0)

    async def work(key: str) -> float | None:
        runs[key] += 1
        return 7 * 86400.0

    async def main() -> None:
        queue: WorkQueue[str] = WorkQueue()
        running = asyncio.create_task(queue.run(work))
        for times in range(1, 301):
            for key in keys:
                queue.add(key)
            while min(runs.values()) < times or queue._running:
                await asyncio.sleep(0)
            assert len(queue._heap) <= 2 * len(keys) + workqueue.SPARE_ENTRIES
        assert len(queue) == len(keys), "each comes back in a week"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_a_later_time_does_not_delay_an_earlier_one() -> None:
    async def main() -> float:
        queue: WorkQueue[str] = WorkQueue()
        queue.add("a", after=60)
        queue.add("a", after=0)
        queue.add("a", after=60)
        begun = asyncio.get_running_loop().time()

        async def work(_: str) -> None:
            return None

        await work_until_idle(queue, work)
        return asyncio.get_running_loop().time() - begun

    assert asyncio.run(main()) < 30
