"""The shell around the operator's decisions: kopf's watches put keys into the queue, which calls reconcile."""

import asyncio
import logging
from typing import Any

import kopf

from paceline_operator import labels
from paceline_operator.cluster import Cluster, Key
from paceline_operator.health import Health, Watch
from paceline_operator.reconcile import versions
from paceline_operator.settings import Settings
from paceline_operator.workqueue import WorkQueue

log = logging.getLogger("paceline.operator")
WATCH_SECONDS = 300  # after which a watch is begun anew, even if the connection died unnoticed
CONNECT_SECONDS = 10


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

    @kopf.on.login(registry=out, retries=10, backoff=1.0)
    async def login(**given: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**given) or kopf.login_with_kubeconfig(**given)

    @kopf.on.event(labels.GROUP, labels.VERSION, labels.PLURAL, registry=out)
    async def training_changed(event: Any, namespace: str | None, name: str | None, **_: Any) -> None:
        assert namespace is not None, "trainings have one"
        assert name is not None, "and this too"
        _tell(health.trainings, event)
        queue.add(Key(namespace, name))

    @kopf.on.event("", "v1", "pods", labels={labels.TRAINING: kopf.PRESENT}, registry=out)
    async def pod_changed(event: Any, namespace: str | None, **_: Any) -> None:
        assert namespace is not None, "pods have one"
        _tell(health.pods, event)
        queue.add(Key(namespace, event["object"]["metadata"]["labels"][labels.TRAINING]))

    return out


def _tell(watch: Watch, event: Any) -> None:
    """Tell of what the watch told; kopf gives no type to what is in the list that a watch begins with."""
    metadata = event["object"]["metadata"]
    version = None if event["type"] == "DELETED" else metadata["resourceVersion"]
    watch.seen(metadata["uid"], version, first=event["type"] is None)


async def watch(queue: WorkQueue[Key], health: Health, settings: Settings, stop: asyncio.Event) -> None:
    """Watch until cancelled, or until a signal tells kopf to stop: then set `stop`, for everything else."""
    scope: dict[str, Any] = {"namespaces": [settings.watch]} if settings.watch else {"clusterwide": True}
    # kopf would make up an identity from the user's name, which a container's user need not have
    scope["identity"] = settings.identity
    await kopf.operator(registry=registry(queue, health), standalone=True, **scope)
    stop.set()


async def resync(cluster: Cluster, queue: WorkQueue[Key], health: Health, settings: Settings) -> None:
    """Look at every training now and then, in case a watch missed something, and notice a watch that is dead."""
    while True:
        await asyncio.sleep(settings.resync_seconds)
        items = await cluster.trainings(settings.watch)
        health.trainings.listed(versions(items))
        health.checked()
        for item in items:
            queue.add(Key(item["metadata"]["namespace"], item["metadata"]["name"]))
