"""Answers for a ring's worker when another has found the ring broken: whether this one waits for others too."""

import logging
import threading
from collections.abc import Callable

from paceline.wire import endpoint
from paceline.wire.channel import Channel
from paceline.wire.frames import FrameKind, Header
from paceline.wire.retries import persist
from paceline_core.errors import PacelineError
from paceline_core.launch import Launch

log = logging.getLogger("paceline")


class DiagnosisResponder:
    """A connection to the coordinator, and a thread that answers on it.

    `waits_in`: the step in which this worker waits; 0: it does not.
    """

    def __init__(self, launch: Launch, waits_in: Callable[[], int]) -> None:
        self._launch, self._waits_in, self._closed = launch, waits_in, False
        self._channel = persist(self._connect)
        threading.Thread(target=self._answer, name="diagnosis", daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self._closed = True
        self._channel.close()

    def _connect(self) -> Channel:
        launch, limit = self._launch, self._launch.start_limit
        training = bytes.fromhex(launch.training_id)
        channel = endpoint.connect(launch.servers[0], training, "coordinator-0", launch.tls, limit, limit)
        channel.introduce(self._header(FrameKind.HELLO), {"role": "worker", "channel": "inquiry"})
        return channel

    def _answer(self) -> None:
        while not self._closed:
            try:
                question = self._channel.header(idle=True)
                self._channel.json(question)
                self._channel.send_json(self._header(FrameKind.WAITING), {"step": self._waits_in()})
            except (PacelineError, EOFError):
                if not self._connected_anew():
                    return  # whoever needs the coordinator will notice that it is gone
            except Exception as error:
                log.warning("this worker cannot say any more whether it waits for others: %r", error)
                return

    def _connected_anew(self) -> bool:
        self._channel.close()
        if self._closed:
            return False
        try:
            self._channel = persist(self._connect)
        except PacelineError:
            return False
        if self._closed:  # meanwhile
            self._channel.close()
        return True

    def _header(self, kind: FrameKind) -> Header:
        training = bytes.fromhex(self._launch.training_id)
        return Header(kind, training, self._launch.ordinal, self._launch.incarnation)
