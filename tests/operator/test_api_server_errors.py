"""An API server that is gone, busy or confused for a while ends nothing."""

import asyncio
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio import client

from paceline_operator import handlers, workqueue
from paceline_operator.kubernetes_api import leader_election
from paceline_operator.kubernetes_api.cluster import Key
from paceline_operator.kubernetes_api.watch_health import Health
from paceline_operator.observability.metrics import Metrics
from paceline_operator.settings import Settings
from paceline_operator.workqueue import WorkQueue
from tests.operator.api import KEY, Api, Operator, run


async def until(there: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not there():
            await asyncio.sleep(0.01)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short lease."""
    for name, seconds in (("LEASE_SECONDS", 30), ("RENEW_SECONDS", 15), ("RETRY_SECONDS", 1), ("TRY_SECONDS", 1)):
        monkeypatch.setattr(leader_election, name, seconds)


class Candidate:
    """An operator that leads, or waits to."""

    def __init__(self, found: client.ApiClient) -> None:
        self.works = asyncio.Event()
        self.task = asyncio.create_task(leader_election.run_as_leader(found, Settings(), self._work))

    async def _work(self) -> None:
        self.works.set()
        await asyncio.Event().wait()

    async def end(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


def leases(api: Api, method: str) -> int:
    return api.calls.count((method, "leases"))


@pytest.mark.parametrize("how", ["drops", "broken", "hangs"])
def test_a_leader_goes_on_when_the_api_server_is_away_for_less_than_the_lease(quick: None, how: str) -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        leading = Candidate(found)
        await leading.works.wait()
        before = api.requests
        setattr(api, how, True)
        await until(lambda: api.requests > before + 1)
        setattr(api, how, False)
        renewed = leases(api, "PUT")
        await until(lambda: leases(api, "PUT") > renewed)
        assert not leading.task.done()
        await leading.end()

    run(test)


def test_a_leader_ends_before_another_may_begin(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_election, "RENEW_SECONDS", 2)

    async def test(api: Api, found: client.ApiClient) -> None:
        leading = Candidate(found)
        await leading.works.wait()
        api.drops = True
        begun = asyncio.get_running_loop().time()
        async with asyncio.timeout(20):
            await leading.task
        assert asyncio.get_running_loop().time() - begun < leader_election.LEASE_SECONDS

    run(test)


def test_an_operator_that_waits_for_the_lease_waits_for_the_api_server_too(quick: None) -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        api.drops = True
        leading = Candidate(found)
        await until(lambda: api.requests > 0)
        assert not leading.works.is_set()
        api.drops = False
        async with asyncio.timeout(20):
            await leading.works.wait()
        await leading.end()

    run(test)


def test_the_lease_outlives_the_leaders_last_try() -> None:
    assert (
        leader_election.RETRY_SECONDS + leader_election.RENEW_SECONDS + leader_election.TRY_SECONDS
        <= leader_election.LEASE_SECONDS
    )


@pytest.mark.parametrize("how", ["drops", "broken", "garbled"])
def test_the_regular_list_of_all_trainings_goes_on(how: str) -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator, queue = Operator(found), WorkQueue[Key]()
        api.create()
        setattr(api, how, True)
        settings = Settings(resync_seconds=0.01)
        resyncing = asyncio.create_task(handlers.resync(operator.cluster, queue, operator.health, settings))
        await until(lambda: api.requests > 3)
        assert len(queue) == 0
        setattr(api, how, False)
        await until(lambda: len(queue) == 1)
        assert not resyncing.done()
        resyncing.cancel()

    run(test)


class Watched(ThreadingHTTPServer):
    """An API server with one training, which kopf watches; in a thread, for kopf cancels what it finds in its own."""

    daemon_threads = True

    def __init__(self, failures: int, errors: int, silent: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Watcher)
        self.failures, self.errors = failures, errors  # of lists; in watches
        self.silent = silent  # watches in which nothing happens are not even answered
        self.end = threading.Event()


class Watcher(BaseHTTPRequestHandler):
    """Answers kopf."""

    server: Watched

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path in KINDS:
            return self._answer(200, KINDS[path])
        if "watch=true" in query:
            return self._watch(path)
        if self.server.failures > 0:
            self.server.failures -= 1
            return self._answer(503, {"kind": "Status", "message": "etcdserver: leader changed"})
        items = [TRAINING] if "distributedtrainings" in path else []
        return self._answer(200, {"metadata": {"resourceVersion": "1"}, "items": items})

    def _watch(self, path: str) -> None:
        if self.server.silent and "pods" in path:
            self.server.end.wait(30)
            return
        self.send_response(200)
        self.end_headers()
        if "distributedtrainings" in path:
            if self.server.errors > 0:
                self.server.errors -= 1
                status = {"kind": "Status", "code": 500, "message": "etcdserver: no leader"}
                self.wfile.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
                return
            changed = {**TRAINING, "metadata": {**TRAINING["metadata"], "name": "changed"}}
            self.wfile.write(json.dumps({"type": "MODIFIED", "object": changed}).encode() + b"\n")
        self.wfile.flush()
        self.server.end.wait(30)

    def _answer(self, code: int, body: Any) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


def resource(name: str, kind: str) -> dict[str, Any]:
    verbs = ["get", "list", "watch", "patch"]
    return {"name": name, "singularName": kind.lower(), "kind": kind, "namespaced": True, "verbs": verbs}


def group(name: str, version: str) -> dict[str, Any]:
    served = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [served], "preferredVersion": served}


KINDS = {
    "/api": {"versions": ["v1"]},
    "/api/v1": {"resources": [resource("pods", "Pod"), resource("namespaces", "Namespace")]},
    "/apis": {"groups": [group("paceline.dev", "v1alpha1"), group("apiextensions.k8s.io", "v1")]},
    "/apis/paceline.dev/v1alpha1": {"resources": [resource("distributedtrainings", "DistributedTraining")]},
    "/apis/apiextensions.k8s.io/v1": {"resources": [resource("customresourcedefinitions", "CustomResourceDefinition")]},
}
TRAINING: dict[str, Any] = {
    "apiVersion": "paceline.dev/v1alpha1",
    "kind": "DistributedTraining",
    "metadata": {"name": KEY.name, "namespace": KEY.namespace, "uid": "u", "resourceVersion": "1"},
}


@pytest.fixture
def watched(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    server = Watched(*request.param)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "a", "user": "b"}}],
        "clusters": [{"name": "a", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
        "users": [{"name": "b", "user": {"token": "t"}}],
    }
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setattr(handlers, "LONGEST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(handlers, "WATCH_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(handlers, "END_SECONDS", 0.1)
    yield server
    server.end.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "watched", [(0, 0), (30, 0), (0, 1), (0, 3, True)], indirect=True, ids=["well", "busy", "confused", "silent"]
)
def test_the_watches_go_on(watched: Watched) -> None:
    seen: list[Key] = []

    async def work(key: Key) -> float | None:
        seen.append(key)
        return None

    async def main() -> None:
        queue, stop = WorkQueue[Key](), asyncio.Event()
        tasks = [
            asyncio.create_task(queue.run(work)),
            asyncio.create_task(handlers.watch(queue, Health(Metrics()), Settings(), stop)),
        ]
        await until(lambda: {KEY, Key("team", "changed")} <= set(seen))
        watched.end.set()
        for task in reversed(tasks):
            assert not task.done()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    assert (watched.failures, watched.errors) == (0, 0)


def test_there_is_always_another_try() -> None:
    pauses = list(itertools.islice(handlers.Backoff(), 1000))
    assert pauses == list(itertools.islice(handlers.Backoff(), 1000)), "each call begins anew"
    assert (pauses[0], max(pauses)) == (1, handlers.LONGEST_PAUSE_SECONDS)


def test_work_that_is_cancelled_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """kopf cancels all tasks of the loop that are younger than it is when it ends."""
    monkeypatch.setattr(workqueue, "PAUSE_SECONDS", 0.0)
    tasks: list[asyncio.Task[Any]] = []

    async def work(_: str) -> float | None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        if len(tasks) == 1:
            await asyncio.Event().wait()
        return None

    async def main() -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.add("a")
        running = asyncio.create_task(queue.run(work))
        await until(lambda: len(tasks) == 1)
        tasks[0].cancel()
        await until(lambda: len(tasks) == 2 and len(queue) == 0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())
