"""Leader election: of several operators only the holder of a Lease works.

The holder tries for RENEW_SECONDS to renew it, and stops when that has failed for so long: at the latest
RETRY + RENEW + TRY seconds after it was last renewed, when no other process may have taken it yet.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import aiohttp
from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from paceline_operator.settings import Settings

LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS, TRY_SECONDS = 15, 10, 2, 3
log = logging.getLogger("paceline.operator")


class Lock(LeaseLock):
    """The library's lock, but for a `create` that passes its own client's validation (kubernetes 37.0)."""

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        """Create the Lease; False when another was first."""
        body = client.V1Lease(metadata=client.V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        try:
            await self.api_instance.create_namespaced_lease(namespace, body)
        except ApiException as error:
            log.info("the lease was not created: %s", error.reason)
            return False
        return True


class Election(LeaderElection):
    """The library's election, which ends when the API server does not answer; this one tries again then too."""

    async def try_acquire_or_renew(self) -> bool:
        """Whether the lease is held now; False also when the API server does not answer."""
        try:
            async with asyncio.timeout(TRY_SECONDS):
                return bool(await super().try_acquire_or_renew())
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is one of them
            log.warning("the lease could not be asked for or renewed: %s: %s", type(error).__name__, error)
            return False


async def run_as_leader(api: client.ApiClient, settings: Settings, work: Callable[[], Awaitable[None]]) -> None:
    """Work while this process holds the lease; returns when it was lost, and raises what ends the work."""
    lock = Lock(settings.lease, settings.namespace, settings.identity, api)
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def begin() -> None:
        try:
            await work()
        except Exception as error:
            ended.set_exception(error)

    async def end() -> None:
        log.error("the lease was lost")

    log.info("%s waits for the lease %s/%s", settings.identity, settings.namespace, settings.lease)
    config = Config(lock, LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS, begin, end)
    election = asyncio.create_task(Election(config).run())
    try:
        await asyncio.wait({election, ended}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            await ended
        await election
    finally:
        election.cancel()
