"""`python -m paceline_operator`: look after the trainings of a cluster, or of one namespace, until told to stop."""

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable

from kubernetes.aio import client, config

from paceline_operator import handlers
from paceline_operator.kubernetes_api.cluster import Cluster, Key
from paceline_operator.kubernetes_api.leader_election import run_as_leader
from paceline_operator.kubernetes_api.status_poller import StatusPoller
from paceline_operator.kubernetes_api.watch_health import Health
from paceline_operator.observability import http_pages
from paceline_operator.observability.metrics import Metrics
from paceline_operator.observability.training_series import TrainingSeries
from paceline_operator.reconcile import Reconciler
from paceline_operator.settings import Settings, read
from paceline_operator.workqueue import WorkQueue

log = logging.getLogger("paceline.operator")


def main() -> int:
    """Run; 0 when told to stop, 1 when the lease was lost or something broke, so that the kubelet starts it again."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        settings = read(os.environ)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> int:
    try:
        config.load_incluster_config()  # type: ignore[no-untyped-call]
    except config.ConfigException:
        await config.load_kube_config()  # type: ignore[no-untyped-call]
    stop = asyncio.Event()
    handlers.stop_on_signals(stop)
    metrics = Metrics()
    health = Health(metrics)
    async with client.ApiClient() as api:
        runner = await http_pages.serve(settings.web, metrics, health)
        begin = _begin(api, settings, lambda: _work(Cluster(api, metrics), settings, health, metrics, stop))
        work = asyncio.create_task(begin)
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        ended = work.done() and not stop.is_set()
        work.cancel()
        results = await asyncio.gather(work, return_exceptions=True)
        stopped.cancel()
        await runner.cleanup()
    if ended:
        log.error("the operator ends", exc_info=results[0])
    return 1 if ended else 0


async def _begin(api: client.ApiClient, settings: Settings, work: Callable[[], Awaitable[None]]) -> None:
    """Work at once, or while this process holds the lease."""
    if settings.leader_election:
        await run_as_leader(api, settings, work)
    else:
        await work()


async def _work(cluster: Cluster, settings: Settings, health: Health, metrics: Metrics, stop: asyncio.Event) -> None:
    """Watch, poll, resync and reconcile until cancelled, or until one of them breaks."""
    queue: WorkQueue[Key] = WorkQueue()
    poller = StatusPoller(settings.poll_seconds, queue.add)
    series = TrainingSeries()
    metrics.registry.register(series)
    metrics.became_leader()
    reconciler = Reconciler(cluster, poller, settings, health, metrics, series)
    log.info("looking after trainings in %s", settings.watch or "all namespaces")
    async with asyncio.TaskGroup() as group:
        group.create_task(queue.run(metrics.measured("training", reconciler.reconcile)))
        group.create_task(poller.run())
        group.create_task(handlers.resync(cluster, queue, health, settings))
        group.create_task(handlers.watch(queue, health, settings, stop))


if __name__ == "__main__":
    sys.exit(main())
