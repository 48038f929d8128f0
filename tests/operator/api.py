"""A small API server over real HTTP, with as much of Kubernetes as the operator talks to."""

import asyncio
import itertools
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from kubernetes.aio import client

from paceline_operator.decisions import observe
from paceline_operator.decisions.persisted_state import exact, text
from paceline_operator.decisions.training_answer import TrainingProgress
from paceline_operator.kubernetes_api import status_poller
from paceline_operator.kubernetes_api.cluster import Cluster, Key
from paceline_operator.kubernetes_api.status_poller import StatusPoller
from paceline_operator.kubernetes_api.watch_health import Health
from paceline_operator.objects import labels
from paceline_operator.observability.metrics import Metrics
from paceline_operator.observability.training_series import TrainingSeries
from paceline_operator.reconcile import Reconciler
from paceline_operator.settings import Settings
from tests.operator.builders import a_spec

KEY = Key("team", "digits")
TIME = text(time.time() - 100)  # when the kubelet did what it did, for all tests
Object = dict[str, Any]


class Api:
    """What is stored, and what was asked."""

    def __init__(self) -> None:
        self.trainings: dict[Key, Object] = {}
        self.pods: dict[str, Object] = {}
        self.others: dict[str, dict[str, Object]] = {}  # by plural and name: services, secrets ...
        self.events: list[tuple[str, str, str]] = []  # type, reason, message
        self.pod_events: list[Object] = []  # events about pods, of the scheduler and kubelets
        self.calls: list[tuple[str, str]] = []  # method and plural
        self.refusals: dict[str, tuple[int, str, str]] = {}  # code, reason and message, by the plural of what is made
        self.writes = 0  # of a status
        self.requests = 0  # of any kind
        self.broken = False
        self.drops = False  # connections, without an answer
        self.hangs = False
        self.garbled = False  # as by a proxy
        self.answer: Any = None  # of server 0, at /status
        self.asked = 0  # how often
        self._numbers = itertools.count(1)

    def create(self, key: Key = KEY, **more: Any) -> Object:
        """A training; one of that name is gone."""
        number = str(next(self._numbers))
        metadata = {"name": key.name, "namespace": key.namespace, "uid": f"uid-{number}", "generation": 1}
        training = {"apiVersion": "paceline.dev/v1alpha1", "kind": labels.KIND, "spec": a_spec(**more)}
        self.trainings[key] = {**training, "metadata": {**metadata, "resourceVersion": number}}
        return self.trainings[key]

    def change(self, path: str, value: Any, key: Key = KEY) -> None:
        """A user edits a field of the specification."""
        *folders, last = path.split(".")
        place = self.trainings[key]["spec"]
        for name in folders:
            place = place.setdefault(name, {})
        place[last] = value
        self._touch(self.trainings[key])

    def status(self, key: Key = KEY) -> Object:
        return dict(self.trainings[key].get("status", {}))

    def age(self, seconds: float, key: Key = KEY) -> None:
        """Everything that the status tells of happened so much earlier."""
        status = self.trainings[key]["status"]
        names = ("startTime", "attemptTime", "until")
        for place in (status, *status["delays"]):
            place |= {name: text((observe.seconds(place[name]) or 0.0) - seconds) for name in names if name in place}
        ledger = status["goodput"]
        ledger["accountedTime"] = exact((observe.seconds(ledger["accountedTime"]) or 0.0) - seconds)

    def start(self, *names: str) -> None:
        """The kubelet starts pods; all of them if none is named."""
        for name in names or tuple(self.pods):
            self._pod(name, "Running", {"running": {"startedAt": TIME}})

    def make(self, *names: str) -> None:
        """The kubelet makes the containers of pods, and is not ready."""
        for name in names:
            self._pod(name, "Pending", {"waiting": {"reason": "ContainerCreating"}})

    def end(self, *names: str, code: int = 0, message: str = "") -> None:
        """The main containers of pods end."""
        for name in names:
            state = {"exitCode": code, "message": message, "finishedAt": TIME}
            self._pod(name, "Failed" if code else "Succeeded", {"terminated": state})

    def collect(self) -> None:
        """The garbage collector takes what belonged to trainings that are gone."""
        uids = {t["metadata"]["uid"] for t in self.trainings.values()}
        for kind in (self.pods, *self.others.values()):
            for name, item in list(kind.items()):
                if all(r["uid"] not in uids for r in item["metadata"].get("ownerReferences", [{"uid": None}])):
                    del kind[name]

    def _pod(self, name: str, phase: str, state: Object) -> None:
        pod = self.pods[name]
        main = next(c["name"] for c in pod["spec"]["containers"] if c["name"] in ("trainer", "server"))
        pod["status"] = {
            "phase": phase,
            "podIP": "127.0.0.1",
            "conditions": [{"type": "Ready", "status": str(phase == "Running")}],
            "containerStatuses": [{"name": main, "state": state}],
        }
        self._touch(pod)

    def _touch(self, item: Object) -> None:
        item["metadata"]["resourceVersion"] = str(next(self._numbers))

    async def handle(self, request: web.Request) -> web.Response:
        """Answer any request."""
        if request.path == "/status":
            self.asked += 1
            return web.json_response(self.answer) if self.answer is not None else web.Response(status=503)
        self.requests += 1
        body = json.loads(await request.read() or b"null")
        while self.hangs:
            await asyncio.sleep(0.01)
        if self.drops:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if self.broken:
            return failure(500, "InternalError", "it is broken")
        if self.garbled:
            return web.Response(text="<html>")
        if request.path.endswith(f"/{labels.VERSION}/{labels.PLURAL}"):
            return web.json_response({"items": list(self.trainings.values())})
        namespace, kind, *more = request.path.split("/namespaces/")[-1].split("/")
        self.calls.append((request.method, kind))
        if request.method == "POST" and kind in self.refusals:
            return failure(*self.refusals[kind])
        if kind == labels.PLURAL:
            return self._training(request.method, Key(namespace, (more or [body["metadata"]["name"]])[0]), body)
        if kind == "pods":
            return self._pods(request, (more or [""])[0], body)
        if kind == "events":
            return self._events(request, body)
        return self._other(request.method, self.others.setdefault(kind, {}), more, body, "dryRun" in request.query)

    def _training(self, method: str, key: Key, body: Any) -> web.Response:
        found = self.trainings.get(key)
        if method == "POST" and found is None:
            found = self.trainings[key] = body
        if found is None:
            return failure(404, "NotFound", "there is none")
        if method == "POST" and found is not body:
            return failure(409, "AlreadyExists", "it is there")
        if method == "PUT":
            if body["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]:
                return failure(409, "Conflict", "it has changed")
            self.writes += 1
            found["status"] = body["status"]
            self._touch(found)
        if method == "DELETE":
            del self.trainings[key]
        return web.json_response(found)

    def _pods(self, request: web.Request, name: str, body: Any) -> web.Response:
        if request.method == "GET":
            key, _, wanted = request.query.get("fieldSelector", request.query.get("labelSelector", "")).partition("=")
            pods = [p for _, p in sorted(self.pods.items()) if (p["metadata"] | p["metadata"].get("labels", {}))
                    .get(key.removeprefix("metadata.")) == wanted]  # fmt: skip
            return web.json_response({"items": pods})
        if request.method == "DELETE":
            return web.json_response(self.pods.pop(name, {}))
        name = body["metadata"]["name"]
        if name in self.pods:
            return failure(409, "AlreadyExists", "it is there")
        body["metadata"] |= {"uid": f"pod-{next(self._numbers)}", "creationTimestamp": TIME}
        self.pods[name] = body
        self._touch(body)
        return web.json_response(body, status=201)

    def _events(self, request: web.Request, body: Any) -> web.Response:
        if request.method == "POST":
            self.events.append((body["type"], body["reason"], body["message"]))
            return web.json_response(body, status=201)
        uid = request.query["fieldSelector"].partition("=")[2]
        return web.json_response({"items": [e for e in self.pod_events if e["involvedObject"]["uid"] == uid]})

    def _other(
        self, method: str, there: dict[str, Object], path: list[str], body: Any, dry_run: bool = False
    ) -> web.Response:
        name = path[0] if path else body["metadata"]["name"]
        if method == "POST" and name in there:
            return failure(409, "AlreadyExists", f"{name} is there")
        if method != "POST" and name not in there:
            return failure(404, "NotFound", f"there is no {name}")
        if method == "PATCH":
            there[name] = there[name] | body
        elif method in ("POST", "PUT") and not dry_run:
            there[name] = body
        return web.json_response(body if dry_run else there[name])


def failure(code: int, reason: str, message: str) -> web.Response:
    """A Status object."""
    return web.json_response({"kind": "Status", "code": code, "reason": reason, "message": message}, status=code)


class Operator:
    """One life of an operator: a new one remembers nothing."""

    def __init__(self, api: client.ApiClient, settings: Settings | None = None) -> None:
        self.metrics, self.series = Metrics(), TrainingSeries()
        self.metrics.registry.register(self.series)
        self.health, self.poller = Health(self.metrics), StatusPoller(0.02, lambda _: None)
        self.cluster = Cluster(api, self.metrics)
        given = settings or Settings()
        self.reconciler = Reconciler(self.cluster, self.poller, given, self.health, self.metrics, self.series)

    @property
    def progress(self) -> TrainingProgress | None:
        return self.poller._known.get(KEY)

    async def reconcile(self, times: int = 4, key: Key = KEY) -> None:
        """Reconcile, as often as it takes for one thing to lead to the next."""
        for _ in range(times):
            await self.metrics.measured("training", self.reconciler.reconcile)(key)

    async def ask(self, enough: Callable[[], bool]) -> None:
        """Ask server 0 again and again, until it is enough."""
        asking = asyncio.create_task(self.poller.run())
        try:
            async with asyncio.timeout(20):
                while not enough():
                    assert not asking.done(), "the asking has ended"
                    await asyncio.sleep(0.01)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def poll_until_step(self, step: int) -> None:
        """Ask server 0 until it has told of this step, and reconcile."""
        await self.ask(lambda: self.progress is not None and self.progress.step == step)
        await self.reconcile(1)


@asynccontextmanager
async def serving(api: Api) -> AsyncIterator[client.ApiClient]:
    """The API server, and server 0 of every training, on one port."""
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    if socket.has_dualstack_ipv6():
        await web.TCPSite(runner, "::1", port).start()
    own, status_poller.METRICS_PORT = status_poller.METRICS_PORT, port
    try:
        async with client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{port}")) as found:
            yield found
    finally:
        status_poller.METRICS_PORT = own
        await runner.cleanup()


def run(test: Callable[[Api, client.ApiClient], Awaitable[None]]) -> None:
    """Run a test with an API server of its own."""

    async def main() -> None:
        api = Api()
        async with serving(api) as found:
            await test(api, found)

    asyncio.run(main())


def answer(step: int, **more: Any) -> dict[str, Any]:
    worker = {"state": "training", "step": step, "total_steps": 40, "loss": 0.5, "reported": {}}
    spent = {"productive": step / 100, "lost": {"straggler": step / 300, "startup": 2.0}}
    workers = [{**worker, "worker": i} for i in range(2)]
    return {"workers": workers, "verdict": None, "missing": [], "goodput": spent} | more


def words(step: int = 40) -> str:
    told = answer(step)
    return json.dumps(
        {"summary": {"step": step, "loss": 0.1, "reported": {}, "verdict": None, "goodput": told["goodput"]}}
    )


async def running(api: Api, operator: Operator, step: int = 10) -> None:
    """A training whose pods were made 10 s ago, and whose workers have made some steps."""
    await operator.reconcile()
    api.age(10)
    api.start()
    await operator.reconcile()
    api.answer = answer(step)
    await operator.poll_until_step(step)


async def finished(api: Api, operator: Operator) -> None:
    api.end("digits-worker-0", "digits-worker-1")
    api.end("digits-ps-0", message=words())
    await operator.reconcile()
