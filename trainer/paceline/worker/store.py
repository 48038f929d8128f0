"""A torch.distributed store over Paceline's authenticated wire, for rendezvous without an open port."""

import base64
import threading
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from paceline.wire import endpoint
from paceline.wire.channel import Channel
from paceline.wire.frames import Header, Kind
from paceline.wire.retries import persist
from paceline_core.launch import Launch

MARGIN_SECONDS = 15.0


class WireStore(dist.Store):  # type: ignore[name-defined,misc]
    """The coordinator's keys. One connection, one request at a time; errors are PeerLost and name who is missing."""

    def __init__(self, launch: Launch) -> None:
        super().__init__()
        self._launch, self._lock = launch, threading.Lock()
        self._seconds = launch.spec.run_policy.start_timeout_seconds
        self._channel = persist(self._connect)

    def _connect(self) -> Channel:
        launch, training = self._launch, bytes.fromhex(self._launch.training_id)
        channel = endpoint.connect(
            launch.servers[0], training, "coordinator-0", launch.tls, self._seconds, self._seconds + MARGIN_SECONDS
        )
        channel.introduce(self._header(Kind.HELLO), {"role": "worker", "channel": "store"})
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
        self._channel.patience(MARGIN_SECONDS)
        self._ask({"op": "broken", "step": step, "too_late": too_late})

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def _ask(self, value: Mapping[str, Any]) -> Any:
        with self._lock:
            self._channel.send_json(self._header(Kind.STORE), value)
            return self._channel.control(Kind.VALUE).get("value")

    def _header(self, kind: Kind) -> Header:
        return Header(kind, bytes.fromhex(self._launch.training_id), self._launch.ordinal, self._launch.incarnation)


def _text(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else bytes(value)).decode()
