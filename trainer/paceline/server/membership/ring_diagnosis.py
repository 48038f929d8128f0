"""Who broke a ring? Its workers only know that they waited in vain, so the coordinator asks them all."""

import threading
from typing import Any

from paceline.server.membership.membership import Membership
from paceline.wire.channel import Channel
from paceline.wire.frames import UNREADABLE, FrameKind, Header
from paceline_core import limits
from paceline_core.errors import PeerLost, ProtocolError
from paceline_core.launch import Launch

ANSWER_SECONDS = 5.0  # a worker that is so late with its answer hangs


class RingDiagnosis:
    """Keeps a connection to every worker. When the first says that the ring broke, it asks the others if they wait too.

    Who does neither is the one that was waited for. `verdict` names it, once that is known.
    """

    def __init__(self, launch: Launch, membership: Membership) -> None:
        self.verdict: str | None = None
        self._membership, self._world_size = membership, launch.world_size
        self._patience = launch.step_limit
        self._connections: dict[int, Channel] = {}
        self._answers: dict[int, int] = {}  # worker -> the step in which it waits for others; 0: it does not
        self._asked = False
        self._news = threading.Condition()

    def serve(self, channel: Channel, hello: Header, _: dict[str, Any]) -> None:
        """Keep a worker's connection until it ends, and hear the answer that comes on it."""
        worker = hello.worker
        with self._news:
            self._connections[worker] = channel
        try:
            channel.send_json(Header(FrameKind.READY, channel.training), {})
            while True:
                header = channel.header(idle=True)
                self._answered(worker, channel.json(header))
        finally:
            with self._news:
                if self._connections.get(worker) is channel:
                    del self._connections[worker]
                self._news.notify_all()

    def broken(self, worker: int, step: int, too_late: bool) -> None:
        """A worker says that the ring broke in this step. Raises PeerLost when another is found to have done it."""
        with self._news:
            self._answers[worker] = step
            self._news.notify_all()
            others, self._asked = {} if self._asked else dict(self._connections), True
        for connection in others.values():
            self._ask(connection)
        with self._news:
            self._news.wait_for(lambda: self._connections.keys() <= self._answers.keys(), ANSWER_SECONDS)
            self.verdict = self.verdict or self._who_broke_it(step, too_late)
        if self.verdict is not None:
            raise PeerLost(self.verdict)

    def _answered(self, worker: int, answer: dict[str, Any]) -> None:
        try:
            step = int(answer["step"])
        except UNREADABLE as error:
            raise ProtocolError("bad_payload", f"a WAITING that cannot be read: {error}") from error
        with self._news:
            self._answers.setdefault(worker, step)
            self._news.notify_all()

    def _ask(self, connection: Channel) -> None:
        try:
            connection.send_json(Header(FrameKind.WAITING, connection.training), {})
        except PeerLost:
            pass  # that is an answer too

    def _who_broke_it(self, step: int, too_late: bool) -> str | None:
        """A sentence that names them; None when everybody waits for everybody, so that it was the network."""
        culprits = [w for w in range(self._world_size) if self._answers.get(w, 0) < step]
        if not culprits:
            return None
        names = ", ".join(f"worker-{w}" for w in culprits)
        if self._membership.left.issuperset(culprits):
            return f"{names} left before step {step}: in a ring every worker must make the same number of steps"
        if too_late:
            return f"waited {limits.words(self._patience)} for {names}, which did not finish step {step}"
        return f"{names} broke off in step {step}"
