"""A ring's worker as a witness: when another finds the ring broken, it tells whether it waits for others too."""

import threading
from collections.abc import Callable

from paceline.wire import endpoint
from paceline.wire.channel import Channel
from paceline.wire.frames import Header, Kind
from paceline.wire.retries import persist
from paceline_core.errors import PacelineError
from paceline_core.launch import Launch


class Witness:
    """A line to the coordinator, and a thread that answers. `waits_in`: the step in which it waits; 0: it does not."""

    def __init__(self, launch: Launch, waits_in: Callable[[], int]) -> None:
        self._launch, self._waits_in = launch, waits_in
        self._channel = persist(self._connect)
        threading.Thread(target=self._answer, name="witness", daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self._channel.close()

    def _connect(self) -> Channel:
        launch, limit = self._launch, self._launch.spec.run_policy.start_timeout_seconds
        training = bytes.fromhex(launch.training_id)
        channel = endpoint.connect(launch.servers[0], training, "coordinator-0", launch.tls, limit, limit)
        hello = Header(Kind.HELLO, training, launch.ordinal, launch.incarnation)
        channel.introduce(hello, {"role": "worker", "channel": "inquiry"})
        return channel

    def _answer(self) -> None:
        try:
            while True:
                question = self._channel.header(idle=True)
                self._channel.json(question)
                self._channel.send_json(Header(Kind.WAITING, question.training), {"step": self._waits_in()})
        except (PacelineError, EOFError):
            pass  # whoever needs the coordinator will notice that it is gone
