"""`python -m paceline_operator`: look after the trainings of a cluster, or of one namespace, until told to stop."""

import asyncio
import logging
import os
import signal
import sys

from kubernetes.aio import client, config
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock
from prometheus_client import CollectorRegistry

from paceline_operator import handlers, web
from paceline_operator.cluster import Cluster, Key
from paceline_operator.health import Health
from paceline_operator.progress import Poller
from paceline_operator.reconcile import Reconciler
from paceline_operator.settings import Settings, read
from paceline_operator.workqueue import WorkQueue

LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS = 15, 10, 2
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
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    health = Health()
    async with client.ApiClient() as api:
        runner = await web.serve(settings.web, CollectorRegistry(), health)
        work = asyncio.create_task(
            _lead(api, settings, health) if settings.leader_election else _work(api, settings, health)
        )
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        ended = work.done()
        work.cancel()
        results = await asyncio.gather(work, return_exceptions=True)
        stopped.cancel()
        await runner.cleanup()
    if ended:
        log.error("the operator ends: %s", results[0] or "its lease was lost")
    return 1 if ended else 0


async def _lead(api: client.ApiClient, settings: Settings, health: Health) -> None:
    """Work while this process holds the lease."""
    lock = LeaseLock(settings.lease, settings.namespace, settings.identity, api)
    work: asyncio.Task[None] | None = None

    async def begin() -> None:
        nonlocal work
        work = asyncio.create_task(_work(api, settings, health))
        await work

    async def end() -> None:
        if work:
            work.cancel()

    log.info("%s waits for the lease %s/%s", settings.identity, settings.namespace, settings.lease)
    await LeaderElection(Config(lock, LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS, begin, end)).run()


async def _work(api: client.ApiClient, settings: Settings, health: Health) -> None:
    """Watch, poll, resync and reconcile until cancelled, or until one of them breaks."""
    cluster = Cluster(api)
    queue: WorkQueue[Key] = WorkQueue()
    poller = Poller(settings.poll_seconds, queue.add)
    reconciler = Reconciler(cluster, poller, settings)
    log.info("looking after trainings in %s", settings.watch or "all namespaces")
    async with asyncio.TaskGroup() as group:
        group.create_task(queue.run(reconciler.reconcile))
        group.create_task(poller.run())
        group.create_task(handlers.resync(cluster, queue, health, settings))
        group.create_task(handlers.watch(queue, health, settings))


if __name__ == "__main__":
    sys.exit(main())
