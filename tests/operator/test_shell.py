"""The shell around the decisions: the queue, the health, the settings, the definition."""

import asyncio
import random
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from kubernetes.aio import client

from paceline_operator import crd, settings, web, workqueue
from paceline_operator.goodput import Told
from paceline_operator.health import Health, Watch
from paceline_operator.metrics import Metrics
from paceline_operator.workqueue import WorkQueue
from tests.operator.api import Api, Operator, answer, run, running
from tests.operator.builders import Scene, value
from tests.operator.test_status import SLOW, told


async def work_until_idle(queue: WorkQueue[str], work: Any) -> None:
    task = asyncio.create_task(queue.run(work))
    while len(queue):
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_burst_of_events_is_one_look_and_a_key_is_never_looked_at_twice_at_once() -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    looks: dict[str, int] = {}
    inside: set[str] = set()

    async def work(key: str) -> float | None:
        assert key not in inside
        inside.add(key)
        await asyncio.sleep(chance.random() / 100)
        inside.discard(key)
        looks[key] = looks.get(key, 0) + 1
        return None

    async def main() -> None:
        queue: WorkQueue[str] = WorkQueue()
        for _ in range(1000):
            queue.add(chance.choice("abcd"))
        running = asyncio.create_task(work_until_idle(queue, work))
        await asyncio.sleep(0.005)
        queue.add("a")  # while it is being looked at, or after: it is looked at again
        await running

    asyncio.run(main())
    assert looks == {"a": 2, "b": 1, "c": 1, "d": 1}


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
    """A training is looked at every few seconds, and after each look once more in a week."""
    monkeypatch.setattr(workqueue, "PAUSE_SECONDS", 0.0)
    keys, looks = "abc", dict.fromkeys("abc", 0)

    async def work(key: str) -> float | None:
        looks[key] += 1
        return 7 * 86400.0

    async def main() -> None:
        queue: WorkQueue[str] = WorkQueue()
        running = asyncio.create_task(queue.run(work))
        for times in range(1, 301):
            for key in keys:
                queue.add(key)
            while min(looks.values()) < times or queue._running:
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


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def a_watch() -> tuple[Watch, Clock, Metrics]:
    clock, metrics = Clock(), Metrics()
    return Watch("pods", metrics, clock), clock, metrics


def test_a_watch_that_is_dead_is_noticed() -> None:
    watch, clock, _ = a_watch()
    watch.seen("a", "1")
    for version in ("1", "2", "3", "3"):
        watch.listed({"a": version})
        assert watch.problem is None, "the watch may be a little late"
        clock.now += 20
    watch.listed({"a": "3"})
    assert watch.problem == "the watch did not tell of 1 changed pods"
    watch.seen("a", "3")
    assert watch.problem is None


def test_an_object_that_is_gone_says_nothing_of_the_watch() -> None:
    watch, clock, _ = a_watch()
    watch.listed({"a": "1"})
    clock.now += 100
    watch.listed({"b": "2"})
    clock.now += 100
    assert watch.problem is None


def heard(metrics: Metrics) -> float | None:
    return value(metrics, "paceline_operator_last_watch_event_timestamp_seconds", resource="pods")


def test_the_watch_is_fresh_when_a_list_shows_nothing_new() -> None:
    watch, clock, metrics = a_watch()
    assert heard(metrics) is None
    watch.checked()
    quiet = heard(metrics)
    assert quiet is not None, "nothing was listed, and nothing was missed"
    for _ in range(2):
        watch.listed({"a": "1"})
        clock.now += 60
    watch.checked()
    assert heard(metrics) == quiet, "it is dead"
    watch.seen("a", "1")
    again = heard(metrics)
    assert again is not None
    assert again > quiet


@pytest.mark.parametrize(
    ("told", "restarts"),
    [
        ("a b c", 0),  # the list that the first watch begins with
        ("a b c a b c", 1),
        ("a b c c a b c a", 2),
        ("a b +d d a b", 1),  # an object that came after the list
        ("a -a a", 0),
        ("a -a +b b b", 2),
        ("a b d a b d", 1),
    ],
)
def test_lists_of_known_objects_are_restarts_of_the_watch(told: str, restarts: int) -> None:
    """`a` is in a list, `+a` is told by the watch, `-a` is gone."""
    watch, _, metrics = a_watch()
    for word in told.split():
        watch.seen(word.strip("+-"), None if word[0] == "-" else "1", first=word[0] not in "+-")
    assert (value(metrics, "paceline_operator_watch_restarts_total", resource="pods") or 0) == restarts


def test_settings_come_from_the_environment() -> None:
    found = settings.read({"PACELINE_OPERATOR_WATCH": "team", "PACELINE_OPERATOR_POLL_SECONDS": "2"})
    assert (found.watch, found.poll_seconds, found.leader_election) == ("team", 2.0, False)
    with pytest.raises(ValueError, match="POLL_SECONDS is 'soon', and must be a number of seconds"):
        settings.read({"PACELINE_OPERATOR_POLL_SECONDS": "soon"})


def walk(node: dict[str, Any], path: str = "") -> Any:
    yield path, node
    for name, each in node.get("properties", {}).items():
        yield from walk(each, f"{path}.{name}")
    if "items" in node:
        yield from walk(node["items"], f"{path}[]")


def test_every_field_of_the_definition_is_described() -> None:
    schema = yaml.safe_load(crd.text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    bare = [p for p, n in walk(schema) if not n.get("description") and p != ".metadata" and not p.endswith("[]")]
    assert bare == []


ROOT = Path(__file__).parents[2]


def at(path: str, resource: dict[str, Any]) -> Any:
    """What a column shows."""
    value: Any = resource
    for name in path.removeprefix(".").split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def test_what_kubectl_get_shows() -> None:
    scene = Scene().running()
    before = told(scene)
    scene.now += 60
    progress = replace(SLOW, told=Told({"productive": 40.0}, 12, scene.now))
    resource = {"metadata": {"creationTimestamp": "2026-11-24T10:00:00Z"}, "status": told(scene, progress, before)}
    columns = crd.crd()["spec"]["versions"][0]["additionalPrinterColumns"]
    row = {c["name"]: at(c["jsonPath"], resource) for c in columns}
    wide = {c["name"] for c in columns if c["priority"]}
    assert {name: value for name, value in row.items() if name not in wide} == {
        "Strategy": "Synchronous",
        "Phase": "Running",
        "Workers": "2/2",
        "Step": 12,
        "Progress": "30%",
        "Slowest": "worker-1",
        "Reason": "Training",
        "Age": "2026-11-24T10:00:00Z",
    }
    assert {name: row[name] for name in wide} == {
        "Servers": "1/1",
        "Loss": 0.5,
        "Goodput": "33%",
        "Restarts": 0,
        "Message": "all workers train",
    }
    kinds = {"string": str, "integer": int, "number": float, "date": str}
    assert all(isinstance(row[c["name"]], kinds[c["type"]]) for c in columns)


def test_what_kubectl_get_shows_of_one_that_nobody_has_looked_at() -> None:
    columns = crd.crd()["spec"]["versions"][0]["additionalPrinterColumns"]
    new = {"metadata": {"creationTimestamp": "2026-11-24T10:00:00Z"}}
    assert [c["name"] for c in columns if at(c["jsonPath"], new) is not None] == ["Age"]


def test_the_columns_are_those_of_the_guide() -> None:
    columns = crd.crd()["spec"]["versions"][0]["additionalPrinterColumns"]
    shown = ["NAME", *(c["name"].upper() for c in columns if not c["priority"])]
    page = (ROOT / "docs/kubernetes.md").read_text()
    header = re.search(r"^NAME .*$", page, re.MULTILINE)
    assert header is not None
    assert header[0].split() == shown


def test_the_operator_serves_on_ipv4_and_ipv6() -> None:
    async def main() -> list[int]:
        metrics = Metrics()
        runner = await web.serve(":0", metrics, Health(metrics))
        try:
            async with aiohttp.ClientSession() as session:
                places = [f"[{a[0]}]:{a[1]}" if ":" in a[0] else f"{a[0]}:{a[1]}" for a in runner.addresses]
                return [(await session.get(f"http://{place}/healthz")).status for place in places]
        finally:
            await runner.cleanup()

    assert asyncio.run(main()) == [200] * (2 if socket.has_dualstack_ipv6() else 1)


def test_a_training_is_asked_at_its_address_of_ipv6() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("there is no IPv6 here")

    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        api.create()
        await running(api, operator)
        server = api.pods["digits-ps-0"]
        server["status"]["podIP"] = "::1"
        api.answer = answer(20)
        await operator.look(1)
        await operator.hear(20)

    run(test)
