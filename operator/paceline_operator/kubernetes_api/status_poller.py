"""Polls the read-only /status of the shard 0 or coordinator of each running training."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import aiohttp

from paceline_operator.decisions.observe import Pod
from paceline_operator.decisions.training_answer import WRONG, TrainingProgress
from paceline_operator.kubernetes_api.cluster import Key
from paceline_operator.objects.pods import METRICS_PORT

ASK_SECONDS = 3.0
AT_ONCE = 50
LIMIT_BYTES = 32 << 20  # 10,000 workers tell about 10 MiB
Asked = tuple[str, str]  # uid and address of a pod: an address may be another pod's later
log = logging.getLogger("paceline.operator")


class StatusPoller:
    """Knows the newest progress of the trainings that it was told to follow; tells `changed` of news."""

    def __init__(self, period: float, changed: Callable[[Key], None]) -> None:
        self._period, self._changed = period, changed
        self._followed: dict[Key, Asked] = {}
        self._known: dict[Key, TrainingProgress] = {}
        self._limit = asyncio.Semaphore(AT_ONCE)

    def follow(self, key: Key, server: Pod | None) -> TrainingProgress | None:
        """Ask this pod from now on (none, if None), and give what is known of the training."""
        if server is None or server.ip is None:
            self.forget(key)
            return None
        asked = (server.uid, server.ip)
        if self._followed.get(key) != asked:
            self._known.pop(key, None)
            self._followed[key] = asked
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
                    for key, asked in list(self._followed.items()):
                        group.create_task(self._ask(session, key, asked))
                    group.create_task(asyncio.sleep(self._period))

    async def _ask(self, session: aiohttp.ClientSession, key: Key, asked: Asked) -> None:
        async with self._limit:
            try:
                found = TrainingProgress.from_status(await _status(session, asked[1]), time.time())
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                log.debug("%s: no progress from %s: %s", key, asked[1], error)
                return
            except (*WRONG, RecursionError) as error:  # pods are not trusted
                log.warning("%s: %s answers something that is not a status: %s", key, asked[1], error)
                return
        if self._followed.get(key) != asked:
            return
        changed = self._known.get(key) != found
        self._known[key] = found
        if changed:
            self._changed(key)


async def _status(session: aiohttp.ClientSession, host: str) -> Any:
    """The JSON that a pod answers. Raises ValueError when it is none, or is too long."""
    body, place = bytearray(), f"[{host}]" if ":" in host else host
    async with session.get(f"http://{place}:{METRICS_PORT}/status", allow_redirects=False) as response:
        async for part in response.content.iter_any():
            body += part
            if len(body) > LIMIT_BYTES:
                raise ValueError(f"longer than {LIMIT_BYTES} bytes")
    return json.loads(body)
