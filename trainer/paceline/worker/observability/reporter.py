"""Tells shard 0 (or the coordinator) about this worker's steps, off the critical path."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from paceline.model_signature import Signature
from paceline.wire import endpoint
from paceline.wire.channel import Channel
from paceline.wire.frames import PLACE_LIMIT, FrameKind, Header
from paceline.wire.retries import persist
from paceline.worker.observability.reported_values import ReportedValues
from paceline.worker.observability.step_metrics import StepMetrics, StepRow
from paceline_core import metric_series
from paceline_core.errors import PacelineError
from paceline_core.launch import Launch
from paceline_core.spec import Level

T = TypeVar("T")
PERIOD_SECONDS = {Level.DETAILED: 0.5, Level.STANDARD: 2.0, Level.AGGREGATED: 5.0}
CLOCK_SECONDS, CLOCK_TRIES = 30.0, 5  # between two comparisons of clocks; exchanges in each
LIMIT_SECONDS = 10.0
MOST_ROWS = 5000  # in one frame
REST_SECONDS = 2.0  # for the last rows of a worker that fails
log = logging.getLogger("paceline")


class Reporter:
    """Collects rows and reported values; a thread records them and sends them on, a few times a second.

    A value may be a tensor on a GPU: it is read in that thread, and not waited for in the training loop.
    """

    def __init__(
        self,
        launch: Launch,
        signature: Signature,
        total_steps: int | None,
        step_metrics: StepMetrics,
        compared: Callable[[float], None],
    ) -> None:
        self._launch, self._signature, self._total = launch, signature, total_steps
        self._step_metrics, self._compared = step_metrics, compared
        self._period = PERIOD_SECONDS[metric_series.level(launch.spec)]
        self._training = bytes.fromhex(launch.training_id)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._rows: list[StepRow] = []
        self._values: dict[str, Any] = {}
        self._checked = ReportedValues()
        self._not_finite: list[str] = []  # names of tensors
        self._odd_gradients: list[tuple[int, str]] = []  # steps, and names of parameters
        self._weights: list[Callable[[], Mapping[str, Any]]] = []
        self._states: list[tuple[int, bytes]] = []  # for checkpoints, by their numbers
        self._place: tuple[int, int, bytes] | None = None  # the newest, not told yet
        self._went_on = 0  # a step that is not told yet
        self.repeats = False  # what was reported before, by another process in this worker's place
        self._wake = threading.Event()
        self._loss: Any = None  # reported before the step that it belongs to had ended
        self._given_up = self._fails = False
        self._knows_loss = False  # whether the script reports it
        self._compare_at, self._said, self._number = 0.0, "", 0
        patience = launch.start_limit
        self._channel: Channel | None = persist(lambda: self._connect(patience))
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def row(self, row: StepRow) -> None:
        """A step has ended."""
        with self._lock:
            row.loss = self._loss
            self._rows.append(row)
            self._loss = None

    def report(self, values: dict[str, Any]) -> None:
        """The script reports values, of which numbers count.

        `loss` belongs to the step just ended, or else to the one that comes.
        """
        values = self._checked.checked(values)
        if self.repeats:
            return
        with self._lock:
            if "loss" in values:
                self._knows_loss = True
                if self._rows and self._rows[-1].loss is None:
                    self._rows[-1].loss = values["loss"]
                else:
                    self._loss = values["loss"]
            self._values.update(values)

    def weights(self, told: Callable[[], Mapping[str, Any]]) -> None:
        """The weights' checksums after a step; `told` reads them, which may take until the device has them."""
        with self._lock:
            self._weights.append(told)

    def weights_not_finite(self, name: str) -> None:
        """A tensor of the weights is not finite at the end."""
        with self._lock:
            self._not_finite.append(name)

    def gradient_not_finite(self, step: int, name: str) -> None:
        """This worker's own gradient of a parameter is not finite."""
        with self._lock:
            self._odd_gradients.append((step, name))

    def went_on(self, step: int) -> None:
        """This worker goes on from a checkpoint, in which it has made so many steps."""
        with self._lock:
            self._went_on = step
        self._wake.set()

    def send_state(self, checkpoint: int, state: bytes) -> None:
        """Send this worker's state for a checkpoint, soon."""
        with self._lock:
            self._states.append((checkpoint, state))
        self._wake.set()

    def keep_place(self, step: int, optimizers: int, state: bytes) -> None:
        """Tell, soon, where this worker is after so many updates of so many optimizers: another could go on there."""
        with self._lock:
            self._place = step, optimizers, state if len(state) <= PLACE_LIMIT else b""
        self._wake.set()

    def fetch_state(self) -> tuple[bytes, bool]:
        """The state that this worker goes on from; b"" when there is none. Raises PeerLost.

        And whether it is the place of another process, which the others wait for, and not a checkpoint's.
        """
        return persist(self._try_to_fetch)

    def tell_rest(self) -> None:
        """This worker fails: send what is left, for a short time at most, and stop."""
        self._fails = True
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout=REST_SECONDS)

    def leave(self) -> None:
        """Send what is left, and tell that this worker is done."""
        self._stop.set()
        self._wake.set()
        self._thread.join()  # its waits have limits
        self._try(self._flush_everything)
        self._tell(FrameKind.LEAVE, {})
        if self._channel:
            self._channel.close()

    def _tell(self, kind: FrameKind, value: dict[str, Any]) -> None:
        """Send a frame that is answered, over a new connection if the old one broke."""
        self._number += 1
        header = replace(self._header(kind), step=self._number)
        try:
            persist(lambda: self._try_to_tell(header, value))
        except PacelineError as error:
            log.warning("%s could not be sent: %s", kind.name, error)
            self._given_up = True

    def _try_to_tell(self, header: Header, value: dict[str, Any]) -> None:
        def tell(channel: Channel) -> None:
            channel.send_json(header, value)
            channel.control(FrameKind.READY)

        self._over_channel(tell)

    def _over_channel(self, exchange: Callable[[Channel], T]) -> T:
        """Send and receive over the connection, which is made anew where it broke."""
        try:
            if self._channel is None:
                self._channel = self._connect(LIMIT_SECONDS)
            return exchange(self._channel)
        except PacelineError:
            if self._channel:
                self._channel.close()
            self._channel = None
            raise

    def _connect(self, patience: float) -> Channel:
        channel = endpoint.connect(
            self._launch.servers[0], self._training, self._launch.first_server, self._launch.tls,
            patience, self._launch.start_limit,
        )  # fmt: skip
        asked = {"role": "worker", "channel": "report", "signature": self._signature.to_json()}
        channel.introduce(self._header(FrameKind.HELLO), {**asked, "total_steps": self._total})
        channel.patience(self._launch.step_limit)
        return channel

    def _run(self) -> None:
        due = time.monotonic() + self._period
        while not self._stop.is_set():
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            if self._stop.is_set():
                break
            if time.monotonic() < due and not self._is_urgent():
                self._try(self._send_place)
            else:
                self._try(self._flush, self._send_place, self._compare_clocks, self._stay_connected)
                due = time.monotonic() + self._period
        if self._fails:
            self._try(self._flush_everything)

    def _is_urgent(self) -> bool:
        with self._lock:
            return bool(self._states or self._went_on)

    def _try(self, *telling: Callable[[], None]) -> None:
        """What cannot be told is left out, with a warning: the training, and what comes later, go on."""
        try:
            for each in telling:
                each()
        except Exception as error:
            if str(error) != self._said:
                self._said = str(error)
                log.warning("some steps are not reported: %r", error)

    def _flush_everything(self) -> None:
        self._flush(everything=True)

    def _flush(self, everything: bool = False) -> None:
        """Record and send the rows, but keep the last for its loss to come, and those the device has not finished."""
        with self._lock:
            count = len(self._rows) - (not everything and self._loss_will_come())
            ready = next((i for i, row in enumerate(self._rows[:count]) if not row.settle(everything)), count)
            rows, self._rows = self._rows[:ready], self._rows[ready:]
            values, self._values = self._values, {}
            weights, self._weights = self._weights, []
            not_finite, self._not_finite = self._not_finite, []
            odd, self._odd_gradients = self._odd_gradients, []
            states, self._states = self._states, []
            went_on, self._went_on = self._went_on, 0
        told = self._step_metrics.steps(rows)
        reported = self._step_metrics.reported(values)
        if went_on and not self._given_up:
            self._tell(FrameKind.REPORT, {"rows": [], "reported": {}, "went_on": went_on})
        if (told or reported or weights or not_finite or odd) and not self._given_up:
            while len(told) > MOST_ROWS:
                self._tell(FrameKind.REPORT, {"rows": told[:MOST_ROWS], "reported": {}})
                told = told[MOST_ROWS:]
            said = {"rows": told, "reported": reported, "not_finite": not_finite, "gradients": odd}
            self._tell(FrameKind.REPORT, said | {"weights": [read() for read in weights]})
        for checkpoint, state in states:
            self._send(replace(self._header(FrameKind.SNAPSHOT), step=checkpoint), state)

    def _send_place(self) -> None:
        with self._lock:
            place, self._place = self._place, None
        if place is not None:
            step, optimizers, state = place
            self._send(replace(self._header(FrameKind.KEPT), step=step, bucket=optimizers), state)

    def _send(self, header: Header, state: bytes) -> None:
        persist(lambda: self._try_to_send(header, state))

    def _try_to_send(self, header: Header, state: bytes) -> None:
        def send(channel: Channel) -> None:
            channel.send(header, (memoryview(state),))
            channel.control(FrameKind.READY)

        self._over_channel(send)

    def _try_to_fetch(self) -> tuple[bytes, bool]:
        def fetch(channel: Channel) -> tuple[bytes, bool]:
            channel.send(self._header(FrameKind.SNAPSHOT))
            header = channel.expect(FrameKind.SNAPSHOT, FrameKind.KEPT)
            return bytes(channel.bytes(header)), header.kind is FrameKind.KEPT

        return self._over_channel(fetch)

    def _loss_will_come(self) -> bool:
        """Whether the last row may get its loss yet. Others that wait may be ended any time, and should be known."""
        if not self._rows or self._rows[-1].loss is not None:
            return False
        return self._knows_loss or time.perf_counter() - self._rows[-1].step.end < self._period

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

    def _stay_connected(self) -> None:
        """Connect anew when the connection broke, also in a long step: a worker without connections counts as lost."""
        if self._given_up or (self._channel is not None and not self._channel.is_broken()):
            return
        if self._channel is not None:
            self._channel.close()
        self._channel = None
        with suppress(PacelineError):  # the next report tells, if there is one
            self._channel = self._connect(LIMIT_SECONDS)

    def _exchange_times(self, channel: Channel) -> tuple[float, float]:
        """Seconds that one exchange took, and the difference of the clocks that it shows."""
        asked = time.time()
        channel.send_json(self._header(FrameKind.CLOCK), {})
        told = float(channel.control(FrameKind.VALUE)["time"])
        answered = time.time()
        return answered - asked, told - (asked + answered) / 2

    def _header(self, kind: FrameKind) -> Header:
        return Header(kind, self._training, self._launch.ordinal, self._launch.incarnation)
