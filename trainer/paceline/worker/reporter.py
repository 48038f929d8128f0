"""Tells shard 0 (or the coordinator) about this worker's steps, off the critical path."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from paceline.signature import Signature
from paceline.wire import endpoint
from paceline.wire.channel import Channel
from paceline.wire.frames import Header, Kind
from paceline.wire.retries import persist
from paceline.worker.record import Record, Row
from paceline_core import telemetry
from paceline_core.errors import PacelineError
from paceline_core.launch import Launch
from paceline_core.spec import Level

PERIOD_SECONDS = {Level.DETAILED: 0.5, Level.STANDARD: 2.0, Level.AGGREGATED: 5.0}
CLOCK_SECONDS, CLOCK_TRIES = 30.0, 5  # between two comparisons of clocks; exchanges in each
LIMIT_SECONDS = 10.0
log = logging.getLogger("paceline")


class Reporter:
    """Collects rows and reported values; a thread records them and sends them on, a few times a second.

    A value may be a tensor: it is read in that thread, so that a GPU need not be waited for in the training loop.
    """

    def __init__(
        self,
        launch: Launch,
        signature: Signature,
        total_steps: int | None,
        record: Record,
        compared: Callable[[float], None],
    ) -> None:
        self._launch, self._signature, self._total = launch, signature, total_steps
        self._record, self._compared = record, compared
        self._period = PERIOD_SECONDS[telemetry.level(launch.spec)]
        self._training = bytes.fromhex(launch.training_id)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._rows: list[Row] = []
        self._values: dict[str, Any] = {}
        self._loss: Any = None  # reported before the step that it belongs to had ended
        self._given_up = False
        self._compare_at = 0.0
        patience = launch.spec.run_policy.start_timeout_seconds
        self._channel: Channel | None = persist(lambda: self._connect(patience))
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def row(self, row: Row) -> None:
        """A step has ended."""
        with self._lock:
            row.loss = self._loss
            self._rows.append(row)
            self._loss = None

    def report(self, values: dict[str, Any]) -> None:
        """The script reports values; `loss` belongs to the step just ended, or else to the one that comes."""
        values = {k: v.detach() if hasattr(v, "detach") else v for k, v in values.items()}
        with self._lock:
            if "loss" in values:
                if self._rows and self._rows[-1].loss is None:
                    self._rows[-1].loss = values["loss"]
                else:
                    self._loss = values["loss"]
            self._values.update(values)

    def leave(self) -> None:
        """Send what is left, and say goodbye."""
        self._stop.set()
        self._thread.join(timeout=LIMIT_SECONDS)
        self._flush(everything=True)
        self._tell(Kind.LEAVE, {})
        if self._channel:
            self._channel.close()

    def _tell(self, kind: Kind, value: dict[str, Any]) -> None:
        """Send a frame, over a new connection if the old one broke; a LEAVE is answered."""
        try:
            persist(lambda: self._try_to_tell(kind, value))
        except PacelineError as error:
            log.warning("%s could not be sent: %s", kind.name, error)
            self._given_up = True

    def _try_to_tell(self, kind: Kind, value: dict[str, Any]) -> None:
        try:
            if self._channel is None:
                self._channel = self._connect(LIMIT_SECONDS)
            self._channel.send_json(self._header(kind), value)
            if kind is Kind.LEAVE:
                self._channel.control(Kind.READY)
        except PacelineError:
            if self._channel:
                self._channel.close()
            self._channel = None
            raise

    def _connect(self, patience: float) -> Channel:
        channel = endpoint.connect(
            self._launch.servers[0], self._training, "ps-0", self._launch.tls,
            patience, self._launch.spec.run_policy.start_timeout_seconds,
        )  # fmt: skip
        asked = {"role": "worker", "channel": "report", "signature": self._signature.to_json()}
        channel.introduce(self._header(Kind.HELLO), {**asked, "total_steps": self._total})
        channel.patience(LIMIT_SECONDS)
        return channel

    def _run(self) -> None:
        while not self._stop.wait(self._period):
            self._flush()
            self._compare_clocks()

    def _flush(self, everything: bool = False) -> None:
        """Record and send the rows, but keep the last for its loss to come, and those the device has not finished."""
        with self._lock:
            count = len(self._rows) if everything else max(0, len(self._rows) - 1)
            ready = next((i for i, row in enumerate(self._rows[:count]) if not row.settle(everything)), count)
            rows, self._rows = self._rows[:ready], self._rows[ready:]
            values, self._values = self._values, {}
        told = self._record.steps(rows)
        reported = self._record.reported(values)
        if (told or reported) and not self._given_up:
            self._tell(Kind.REPORT, {"rows": told, "reported": reported})

    def _compare_clocks(self) -> None:
        """How far the receiver's clock is ahead of this one: of several exchanges the quickest, as NTP does."""
        if self._channel is None or time.monotonic() < self._compare_at:
            return
        self._compare_at = time.monotonic() + CLOCK_SECONDS
        try:
            found = [self._exchange_times(self._channel) for _ in range(CLOCK_TRIES)]
        except (PacelineError, EOFError, KeyError, TypeError, ValueError):
            self._channel.close()
            self._channel = None  # made anew with the next report
            return
        self._compared(min(found)[1])

    def _exchange_times(self, channel: Channel) -> tuple[float, float]:
        """Seconds that one exchange took, and the difference of the clocks that it shows."""
        asked = time.time()
        channel.send_json(self._header(Kind.CLOCK), {})
        told = float(channel.control(Kind.VALUE)["time"])
        answered = time.time()
        return answered - asked, told - (asked + answered) / 2

    def _header(self, kind: Kind) -> Header:
        return Header(kind, self._training, self._launch.ordinal, self._launch.incarnation)
