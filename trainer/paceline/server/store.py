"""The coordinator of an all-reduce: a key-value store for torch.distributed's rendezvous, and the collector of reports.

It holds no parameters and needs no torch. torch's own TCPStore listens on every interface and asks nobody who they are;
this one is reached over the authenticated wire only.
"""

import base64
import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

from paceline import metrics
from paceline.server.aggregator import Aggregator
from paceline.server.door import Door
from paceline.server.inquiry import Inquiry
from paceline.server.reports import Reports
from paceline.server.roll import Roll, lost
from paceline.trace import Trace
from paceline.web import serve
from paceline.wire.channel import Channel
from paceline.wire.frames import Header, Kind
from paceline_core import telemetry
from paceline_core.errors import PeerLost, ProtocolError
from paceline_core.launch import Launch

TICK_SECONDS = 0.1
log = logging.getLogger("paceline")


class Keys:
    """The keys and their values; waits are limited and end when the training fails."""

    def __init__(self, roll: Roll) -> None:
        self._roll, self._values = roll, dict[str, bytes]()

    def set(self, key: str, value: bytes) -> None:
        """Set a key."""
        with self._roll.changed:
            self._values[key] = value
            self._roll.changed.notify_all()

    def get(self, key: str, timeout: float) -> bytes:
        """Wait for a key and give its value. Raises PeerLost."""
        self.wait([key], timeout)
        with self._roll.changed:
            return self._values[key]

    def wait(self, keys: list[str], timeout: float) -> None:
        """Wait until all keys are set. Raises PeerLost, naming the workers that have not come yet."""

        def there() -> bool:
            return self._roll.failure is not None or all(k in self._values for k in keys)

        with self._roll.changed:
            found = self._roll.changed.wait_for(there, timeout)
            if self._roll.failure is not None:
                raise self._roll.failure
        if not found:
            missing = ", ".join(self._roll.missing()) or "another worker"
            raise PeerLost(f"waited {timeout:g} s for {missing} to call paceline.distribute()")

    def add(self, key: str, amount: int) -> int:
        """Add to a counter and give its value."""
        with self._roll.changed:
            value = int(self._values.get(key, b"0")) + amount
            self._values[key] = str(value).encode()
            self._roll.changed.notify_all()
            return value

    def compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        """Set a key if it has the expected value, or is absent and `expected` is empty; gives the value it has then."""
        with self._roll.changed:
            now = self._values.get(key)
            if now == expected or (now is None and not expected):
                self._values[key] = desired
                self._roll.changed.notify_all()
            return self._values.get(key, expected)

    def delete(self, key: str) -> bool:
        """Remove a key; False when there was none."""
        with self._roll.changed:
            return self._values.pop(key, None) is not None

    def count(self) -> int:
        """How many keys there are."""
        with self._roll.changed:
            return len(self._values)

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are set."""
        with self._roll.changed:
            return all(k in self._values for k in keys)


class Coordinator:
    """The process beside the workers of an all-reduce."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.stopping = threading.Event()
        self.metrics = metrics.of_server(launch.training, 0, telemetry.level(launch.spec))
        self.trace = Trace(launch.name, time.monotonic())
        self.patience = launch.spec.run_policy.start_timeout_seconds
        self.roll = Roll(launch.world_size, self.patience)
        self.keys = Keys(self.roll)
        self.aggregator = Aggregator(launch, self.metrics)
        self.inquiry = Inquiry(launch, self.roll)
        reports = Reports(self.roll, self.aggregator, lambda *_: None, self.roll.fail)
        handlers = {"report": reports.serve, "store": self._store, "inquiry": self.inquiry.serve}
        self.door = Door(launch, handlers, self.metrics)

    def run(self) -> None:
        """Serve until every worker has left. Raises what made the training fail."""
        web = serve(
            self.launch.metrics, self.metrics, {"/status": self.aggregator.status, "/trace": self.trace.to_json}
        )
        self.door.open()
        try:
            while not self.stopping.wait(TICK_SECONDS) and not self.roll.finished():
                if self.roll.failure:
                    raise self.roll.failure
                for worker in self.roll.overdue():
                    raise PeerLost(self.inquiry.verdict) if self.inquiry.verdict else lost(worker)
                self.metrics.set(metrics.CONNECTED, self.roll.connected_workers())
        except (PeerLost, OSError) as error:
            self.roll.fail(error)
            self.door.refuse(error if isinstance(error, PeerLost) else PeerLost(f"the coordinator failed: {error}"))
            raise
        finally:
            self.aggregator.end()
            if self.launch.output:
                status = json.dumps(self.aggregator.status(), indent=1)
                Path(self.launch.output, "status.json").write_text(status)
            self.door.close()
            self.aggregator.close()
            self.trace.write(self.launch.output)
            web.shutdown()
            web.server_close()

    def _store(self, channel: Channel, hello: Header, _: dict[str, Any]) -> None:
        self.roll.connected(hello.worker, hello.incarnation)
        try:
            channel.send_json(Header(Kind.READY, channel.training), {})
            while True:
                header = channel.header(idle=True)
                if header.kind is not Kind.STORE:
                    raise ProtocolError("unexpected", f"{header.kind.name} on a store connection")
                value = self._operate(hello.worker, channel.json(header))
                channel.send_json(Header(Kind.VALUE, channel.training), {"value": value})
        finally:
            self.roll.disconnected(hello.worker)

    def _operate(self, worker: int, ask: dict[str, Any]) -> str | int | bool | None:
        try:
            timeout = min(float(ask.get("timeout", self.patience)), self.patience)
            keys = self.keys
            match str(ask["op"]):
                case "set":
                    keys.set(str(ask["key"]), base64.b64decode(ask["value"]))
                    return None
                case "get":
                    return base64.b64encode(keys.get(str(ask["key"]), timeout)).decode()
                case "wait":
                    keys.wait([str(k) for k in ask["keys"]], timeout)
                    return None
                case "check":
                    return keys.check([str(k) for k in ask["keys"]])
                case "add":
                    return keys.add(str(ask["key"]), int(ask["amount"]))
                case "compare_set":
                    expected, desired = base64.b64decode(ask["expected"]), base64.b64decode(ask["desired"])
                    return base64.b64encode(keys.compare_set(str(ask["key"]), expected, desired)).decode()
                case "delete":
                    return keys.delete(str(ask["key"]))
                case "count":
                    return keys.count()
                case "broken":
                    self.inquiry.broken(worker, int(ask["step"]), bool(ask["too_late"]))
                    return None
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError("bad_payload", f"a STORE that cannot be read: {error}") from error
        raise ProtocolError("bad_payload", f"unknown operation {ask['op']!r}")
