"""A torch.distributed store over Paceline's authenticated wire, for rendezvous without an open port."""

import base64
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from paceline.wire import endpoint
from paceline.wire.channel import Channel
from paceline.wire.frames import FrameKind, Header
from paceline.wire.retries import persist
from paceline_core.errors import PacelineError
from paceline_core.launch import Launch

MARGIN_SECONDS, RECONNECT_SECONDS = 15.0, 10.0


class RendezvousStore(dist.Store):  # type: ignore[name-defined,misc]
    """The coordinator's keys. One connection, one request at a time; errors are PeerLost and name who is missing."""

    def __init__(self, launch: Launch) -> None:
        super().__init__()
        self._launch, self._lock = launch, threading.Lock()
        self._seconds = launch.start_limit
        self._number = 0  # of the last question
        self._channel: Channel | None = persist(lambda: self._connect(self._seconds))

    def _connect(self, patience: float) -> Channel:
        launch, training = self._launch, bytes.fromhex(self._launch.training_id)
        channel = endpoint.connect(
            launch.servers[0], training, "coordinator-0", launch.tls, patience, self._seconds.plus(MARGIN_SECONDS)
        )
        channel.introduce(self._header(FrameKind.HELLO), {"role": "worker", "channel": "store"})
        return channel

    def set(self, key: str, value: str | bytes) -> None:
        """Set a key."""
        self._ask({"op": "set", "key": key, "value": _text(value)})

    def get(self, key: str) -> bytes:
        """Wait for a key and give its value."""
        return base64.b64decode(self._ask({"op": "get", "key": key, "timeout": self._seconds}))

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Wait until all keys are set."""
        seconds = timeout.total_seconds() if timeout else self._seconds
        self._ask({"op": "wait", "keys": list(keys), "timeout": seconds})

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are set."""
        return bool(self._ask({"op": "check", "keys": list(keys)}))

    def add(self, key: str, amount: int) -> int:
        """Add to a counter."""
        return int(self._ask({"op": "add", "key": key, "amount": amount}))

    def compare_set(self, key: str, expected_value: str, desired_value: str) -> bytes:
        """Set a key if it has the expected value."""
        ask = {"op": "compare_set", "key": key, "expected": _text(expected_value), "desired": _text(desired_value)}
        return base64.b64decode(self._ask(ask))

    def delete_key(self, key: str) -> bool:
        """Remove a key."""
        return bool(self._ask({"op": "delete", "key": key}))

    def num_keys(self) -> int:
        """How many keys there are."""
        return int(self._ask({"op": "count"}))

    def meet(self) -> None:
        """Wait until every worker is here: a start may take longer than torch waits, which is as long as for gradients.

        Raises PeerLost, naming those that did not come.
        """
        if self.add("paceline/here", 1) == self._launch.world_size:
            self.set("paceline/all-here", "")
        self.wait(["paceline/all-here"])

    def broken(self, step: int, too_late: bool) -> None:
        """Tell that the ring broke in this step. Raises PeerLost, naming who did it, if the coordinator finds out."""
        if self._channel is not None:
            self._channel.patience(MARGIN_SECONDS)
        self._ask({"op": "broken", "step": step, "too_late": too_late})

    def takes_place(self) -> bool:
        """Whether another process was this worker before."""
        return bool(self._ask({"op": "takes_place"}))

    def regroup(self, before: int, told: Mapping[str, Any] | None) -> tuple[int, dict[int, Any]]:
        """Wait for all workers to make the next group, after that of generation `before`, if there was one.

        Gives its generation and what each worker told. Raises PeerLost, naming who did not come.
        """
        answer = self._ask({"op": "regroup", "before": before, "told": told})
        return int(answer["generation"]), {int(worker): it for worker, it in answer["members"].items()}

    def save_after(self, step: int) -> tuple[bool, int, bool]:
        """Whether all save after this step, after which to ask again, and whether none is to be made before the end."""
        answer = self._ask({"op": "save", "step": step})
        return bool(answer["save"]), int(answer["ask_after"]), bool(answer["last"])

    def saved(self, part: Mapping[str, Any]) -> None:
        """Tell what this worker has written of a checkpoint, or why it could not."""
        self._ask({"op": "saved", "part": part})

    def resumed_from(self) -> str | None:
        """Where the checkpoint is that the training goes on from."""
        where = self._ask({"op": "resume"})
        return None if where is None else str(where)

    def close(self) -> None:
        """End the connection."""
        if self._channel is not None:
            self._channel.close()

    def _ask(self, value: Mapping[str, Any]) -> Any:
        with self._lock:
            self._number += 1
            return persist(lambda: self._try(value))

    def _try(self, value: Mapping[str, Any]) -> Any:
        try:
            if self._channel is None:
                self._channel = self._connect(RECONNECT_SECONDS)
            self._channel.send_json(replace(self._header(FrameKind.STORE), step=self._number), value)
            return self._channel.control(FrameKind.VALUE).get("value")
        except PacelineError:
            if self._channel is not None:
                self._channel.close()
            self._channel = None
            raise

    def _header(self, kind: FrameKind) -> Header:
        return Header(kind, bytes.fromhex(self._launch.training_id), self._launch.ordinal, self._launch.incarnation)


def _text(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else bytes(value)).decode()
