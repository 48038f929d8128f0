"""This worker's connection to what all workers hold in common: the store of shard 0 or of the coordinator."""

import logging
import threading
from collections.abc import Mapping
from typing import Any

from torch.utils.data import get_worker_info

from paceline.wire import endpoint
from paceline.wire.channel import Channel
from paceline.wire.frames import FrameKind, Header
from paceline.wire.retries import persist
from paceline.worker.own_process import OwnProcess
from paceline_core.errors import PacelineError, UsageError
from paceline_core.launch import Launch

MARGIN_SECONDS = 15.0  # the server's limit passes first, because its error names who was waited for
RECONNECT_SECONDS = 10.0
log = logging.getLogger("paceline")


class StoreClient:
    """Asks the store, over one connection that is made when it is first needed; a broken one is made anew.

    Every question may be asked again without harm. Raises PeerLost and UsageError, as the store does.
    """

    def __init__(self, launch: Launch, patience: float | None = None) -> None:
        self._launch, self._lock, self._own = launch, threading.Lock(), OwnProcess()
        self._training = bytes.fromhex(launch.training_id)
        self._patience = patience  # for a connection, if not that of a start
        self._start_seconds = launch.start_limit
        self._seconds = max(self._start_seconds, launch.step_limit).plus(MARGIN_SECONDS)
        self._channel: Channel | None = None
        self._calls, self.used = 0, False

    @property
    def world_size(self) -> int:
        """How many workers share the store."""
        return self._launch.world_size

    @property
    def rank(self) -> int:
        """This worker's number."""
        return self._launch.ordinal

    def gather(self, what: str, value: str) -> list[str]:
        """Every worker's value, in rank order; `what` is the function that the script called."""
        with self._lock:
            self._calls += 1
            ask = {"op": "gather", "call": self._calls, "what": what, "value": value}
            return [str(v) for v in self._ask(ask)]

    def first(self, name: str, value: str, waits_for: str) -> str:
        """What worker 0 said first under this name; of worker 0 that is `value`, unless it was replaced."""
        ask = {"op": "first", "name": name, "value": value, "waits_for": waits_for}
        with self._lock:
            return str(self._ask(ask))

    def differs_from(self, name: str, text: str) -> int | None:
        """The worker that said something else than `text` under this name, if there is one; nobody is waited for."""
        with self._lock:
            found = self._ask({"op": "agree", "name": name, "text": text})
            return None if found is None else int(found)

    def ending(self, checkpoint: int, ends: bool) -> tuple[bool, int]:
        """Whether no checkpoint is to be waited for (any more), and the newest that is whole (0: none).

        `checkpoint` is the one for which this worker has sent its state, 0 for none; then one is made if it `ends`.
        """
        with self._lock:
            answer = self._ask({"op": "ending", "step": checkpoint, "ends": ends})
            return bool(answer["over"]), int(answer["saved"])

    def close(self, leave: bool) -> None:
        """End the connection; with `leave`, tell that this worker is done."""
        with self._lock:
            try:
                if self.used and leave:
                    self._ask({"op": "leave"})
            except PacelineError as error:
                log.warning("the end of this worker could not be told: %s", error)
            self._drop()

    def _ask(self, ask: Mapping[str, Any]) -> Any:
        if not self._own or get_worker_info() is not None:
            raise UsageError(
                "paceline.all_gather(), mean() and shard() are for the script's own process, and were called in one "
                "of its DataLoader's processes"
            )
        return persist(lambda: self._try(ask))

    def _try(self, ask: Mapping[str, Any]) -> Any:
        try:
            if self._channel is None:
                self._channel = self._connect()
            self._channel.send_json(self._header(FrameKind.STORE), ask)
            answer = self._channel.control(FrameKind.VALUE)
            value = answer.get("value")
            while answer.get("more"):
                answer = self._channel.control(FrameKind.VALUE)
                value = [*(value or ()), *answer["value"]]
            return value
        except PacelineError:
            self._drop()
            raise

    def _connect(self) -> Channel:
        launch = self._launch
        patience = self._patience or (RECONNECT_SECONDS if self.used else self._start_seconds)
        channel = endpoint.connect(
            launch.servers[0], self._training, launch.first_server, launch.tls, patience, self._seconds
        )
        channel.introduce(self._header(FrameKind.HELLO), {"role": "worker", "channel": "store"})
        self.used = True
        return channel

    def _drop(self) -> None:
        if self._channel:
            self._channel.close()
        self._channel = None

    def _header(self, kind: FrameKind) -> Header:
        return Header(kind, self._training, self._launch.ordinal, self._launch.incarnation)
