"""kopf's handlers: its watches put keys into the work queue, which calls reconcile."""

import asyncio
import logging
import signal
from collections.abc import Iterator
from typing import Any

import kopf

from paceline_operator.kubernetes_api.cluster import TEMPORARY_ERRORS, Cluster, Key
from paceline_operator.kubernetes_api.watch_health import Health, WatchHealth
from paceline_operator.objects import labels
from paceline_operator.reconcile import versions
from paceline_operator.settings import Settings
from paceline_operator.workqueue import WorkQueue

log = logging.getLogger("paceline.operator")
WATCH_SECONDS = 300  # after which a watch is begun anew, even if the connection died unnoticed
CONNECT_SECONDS = 10
WATCH_AGAIN_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 15.0
END_SECONDS = 10.0  # that kopf may take to end its tasks; it gives them 5


class Backoff:
    """Seconds between two tries of one call, without end: kopf gives up, and ends, when it runs out of them."""

    def __iter__(self) -> Iterator[float]:
        pause = 1.0
        while True:
            yield pause
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def registry(queue: WorkQueue[Key], health: Health) -> kopf.OperatorRegistry:
    """Handlers that only say what to look at: nothing is decided from an event."""
    out = kopf.OperatorRegistry()

    @kopf.on.startup(registry=out)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.watching.server_timeout = WATCH_SECONDS
        settings.watching.client_timeout = WATCH_SECONDS + 60
        settings.watching.connect_timeout = CONNECT_SECONDS
        settings.networking.error_backoffs = Backoff()

    @kopf.on.login(registry=out, retries=10, backoff=1.0)
    async def login(**given: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**given) or kopf.login_with_kubeconfig(**given)

    @kopf.on.event(labels.GROUP, labels.VERSION, labels.PLURAL, registry=out)
    async def training_changed(event: Any, namespace: str | None, name: str | None, **_: Any) -> None:
        assert namespace is not None, "trainings have one"
        assert name is not None, "and this too"
        _record_event(health.trainings, event)
        queue.add(Key(namespace, name))

    @kopf.on.event("", "v1", "pods", labels={labels.TRAINING: kopf.PRESENT}, registry=out)
    async def pod_changed(event: Any, namespace: str | None, **_: Any) -> None:
        assert namespace is not None, "pods have one"
        _record_event(health.pods, event)
        queue.add(Key(namespace, event["object"]["metadata"]["labels"][labels.TRAINING]))

    return out


def _record_event(watch: WatchHealth, event: Any) -> None:
    """Record that the watch told of an object; kopf gives no type to what is in the list that a watch begins with."""
    metadata = event["object"]["metadata"]
    version = None if event["type"] == "DELETED" else metadata["resourceVersion"]
    watch.seen(metadata["uid"], version, first=event["type"] is None)


async def watch(queue: WorkQueue[Key], health: Health, settings: Settings, stop: asyncio.Event) -> None:
    """Watch until cancelled, or until a signal tells kopf to stop: then set `stop`, for everything else."""
    scope: dict[str, Any] = {"namespaces": [settings.watch]} if settings.watch else {"clusterwide": True}
    # kopf would make up an identity from the user's name, which a container's user need not have
    scope["identity"] = settings.identity
    while not stop.is_set():
        try:
            await _run(registry=registry(queue, health), standalone=True, **scope)
            stop.set()
        except Exception:  # whatever the API server put into a watch: that etcd has no leader, say
            log.exception("the watches broke, and begin anew in %g s", WATCH_AGAIN_SECONDS)
            stop_on_signals(stop)  # kopf has put its own handlers in the place of these
            await asyncio.sleep(WATCH_AGAIN_SECONDS)


async def _run(**how: Any) -> None:
    """Run kopf until it ends, and see to it that it does.

    It cancels each task once, and waits. But a watch that still waits for its answer takes that for the end of a pause,
    if the task that waits for pauses was cancelled before it, and goes on without an end (kopf 1.45, clients/api.py).
    """
    others = asyncio.all_tasks()
    roots = set(await kopf.spawn_tasks(**how))
    running = asyncio.create_task(kopf.run_tasks(roots, ignored=others))
    try:
        await asyncio.wait(roots, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        running.cancel()
    while not (await asyncio.wait({running}, timeout=END_SECONDS))[0]:
        for task in asyncio.all_tasks() - others - roots - {running}:
            task.cancel()
    await running


def stop_on_signals(stop: asyncio.Event) -> None:
    """Set `stop` when the kubelet, or somebody at a keyboard, tells this process to end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def resync(cluster: Cluster, queue: WorkQueue[Key], health: Health, settings: Settings) -> None:
    """Reconcile every training now and then, in case a watch missed something, and notice a watch that is dead."""
    while True:
        await asyncio.sleep(settings.resync_seconds)
        try:
            items = await cluster.trainings(settings.watch)
        except TEMPORARY_ERRORS as error:
            log.warning("the trainings could not be listed, and are asked for again: %s", error)
            continue
        health.trainings.listed(versions(items))
        health.checked()
        for item in items:
            queue.add(Key(item["metadata"]["namespace"], item["metadata"]["name"]))
