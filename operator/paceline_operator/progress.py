"""Asks each running training how far it is, at the read-only /status of its shard 0 or coordinator."""

import asyncio
import json
import logging
from collections.abc import Callable

import aiohttp

from paceline_operator.cluster import Key
from paceline_operator.objects import METRICS_PORT
from paceline_operator.status import Progress

ASK_SECONDS = 3.0
AT_ONCE = 50
LIMIT_BYTES = 32 << 20  # 10,000 workers tell about 10 MiB
log = logging.getLogger("paceline.operator")


class Poller:
    """Knows the newest progress of the trainings that it was told to follow; tells `changed` of news."""

    def __init__(self, period: float, changed: Callable[[Key], None]) -> None:
        self._period, self._changed = period, changed
        self._followed: dict[Key, str] = {}  # where to ask
        self._known: dict[Key, Progress] = {}
        self._limit = asyncio.Semaphore(AT_ONCE)

    def follow(self, key: Key, host: str | None) -> Progress | None:
        """Ask this host from now on (nobody, if None), and give what is known of the training."""
        if host is None:
            self.forget(key)
            return None
        if self._followed.get(key) != host:
            self._known.pop(key, None)
            self._followed[key] = host
        return self._known.get(key)

    def forget(self, key: Key) -> None:
        """Ask no more."""
        self._followed.pop(key, None)
        self._known.pop(key, None)

    async def run(self) -> None:
        """Ask all, again and again, until cancelled."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ASK_SECONDS)) as session:
            while True:
                async with asyncio.TaskGroup() as group:
                    for key, host in list(self._followed.items()):
                        group.create_task(self._ask(session, key, host))
                    group.create_task(asyncio.sleep(self._period))

    async def _ask(self, session: aiohttp.ClientSession, key: Key, host: str) -> None:
        async with self._limit:
            try:
                async with session.get(f"http://{host}:{METRICS_PORT}/status") as response:
                    body = await response.content.read(LIMIT_BYTES)
                found = Progress.from_status(json.loads(body))
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                log.debug("%s: no progress from %s: %s", key, host, error)
                return
            except (ValueError, KeyError, TypeError, AttributeError) as error:  # pods are not trusted
                log.warning("%s: %s answers something that is not a status: %s", key, host, error)
                return
        if self._followed.get(key) == host and self._known.get(key) != found:
            self._known[key] = found
            self._changed(key)
