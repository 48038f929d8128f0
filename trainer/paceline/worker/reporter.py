"""Tells shard 0 (or the coordinator) about this worker's steps, off the critical path."""

import logging
import threading
from collections.abc import Callable
from typing import Any

from paceline.signature import Signature
from paceline.wire import endpoint
from paceline.wire.channel import Channel
from paceline.wire.frames import Header, Kind
from paceline_core.errors import PacelineError
from paceline_core.launch import Launch

PERIOD_SECONDS = 0.5
LIMIT_SECONDS = 10.0
log = logging.getLogger("paceline")


class Reporter:
    """Collects rows and reported values; a thread sends them a few times a second.

    A value may be a tensor: it is read in that thread, so that a GPU need not be waited for in the training loop.
    """

    def __init__(self, launch: Launch, signature: Signature, total_steps: int | None, observe: Callable[[float], None]):
        self._launch, self._signature, self._total, self._observe = launch, signature, total_steps, observe
        self._training = bytes.fromhex(launch.training_id)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._rows: list[dict[str, Any]] = []
        self._values: dict[str, Any] = {}
        self._loss: Any = None  # reported before the step that it belongs to had ended
        self._given_up = False
        self._channel: Channel | None = self._connect(launch.spec.run_policy.start_timeout_seconds)
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def row(self, row: dict[str, Any]) -> None:
        """A step has ended."""
        with self._lock:
            self._rows.append({**row, "loss": self._loss})
            self._loss = None

    def report(self, values: dict[str, Any]) -> None:
        """The script reports values; `loss` belongs to the step just ended, or else to the one that comes."""
        values = {k: v.detach() if hasattr(v, "detach") else v for k, v in values.items()}
        with self._lock:
            if "loss" in values:
                if self._rows and self._rows[-1]["loss"] is None:
                    self._rows[-1]["loss"] = values["loss"]
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
        for attempt in range(2):
            try:
                if self._channel is None:
                    self._channel = self._connect(LIMIT_SECONDS)
                self._channel.send_json(self._header(kind), value)
                if kind is Kind.LEAVE:
                    self._channel.control(Kind.READY)
                return
            except (PacelineError, EOFError) as error:
                if self._channel:
                    self._channel.close()
                self._channel = None
                if attempt:
                    log.warning("%s could not be sent: %s", kind.name, error)
                    self._given_up = True

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
        while not self._stop.wait(PERIOD_SECONDS):
            self._flush()

    def _flush(self, everything: bool = False) -> None:
        """Send the rows, but keep the last for its loss to come."""
        with self._lock:
            count = len(self._rows) if everything else max(0, len(self._rows) - 1)
            rows, self._rows = self._rows[:count], self._rows[count:]
            values, self._values = self._values, {}
        for row in rows:
            row["loss"] = None if row["loss"] is None else float(row["loss"])
        reported = {name: float(value) for name, value in values.items()}
        if "loss" in reported:
            self._observe(reported["loss"])
        if (rows or reported) and not self._given_up:
            self._tell(Kind.REPORT, {"rows": rows, "reported": reported})

    def _header(self, kind: Kind) -> Header:
        return Header(kind, self._training, self._launch.ordinal, self._launch.incarnation)
