"""Carries out the state machine's actions on one shard, in order, and tells the connections what came of them."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from paceline.server.shard import Push, Shard
from paceline.trace import Update
from paceline_core.errors import PeerLost
from paceline_core.strategy import Action, Admit, Apply, Reject, Reply


@dataclass
class Progress:
    """How many buckets are ready to be sent; shared by the workers of one round."""

    ready: int = 0


@dataclass
class Outcome:
    """What a worker's push (or join) has come to. `progress.ready` buckets of the parameters can be sent already."""

    incarnation: int
    step: int
    accepted: bool
    version: int
    delay: int = 0
    reason: str = ""
    statics: bytes = b""
    progress: Progress = field(default_factory=Progress)


class Executor:
    """One thread that owns the shard's tensors. Connections hand it pushes and wait for outcomes.

    With `live`, replies are read from the parameters themselves: nothing can be applied before every worker has its
    reply, because the next round needs all of them. Otherwise each reply is a copy in the worker's own buffer, so
    that a slow reader neither sees a mixture of versions nor makes anyone wait.
    """

    def __init__(self, shard: Shard, live: bool, observe: Callable[[Update], None]) -> None:
        self.shard, self.live = shard, live
        self._observe = observe
        self.pushes: dict[int, Push] = {}  # complete, not yet applied
        self.outcomes: dict[int, Outcome] = {}  # the last of each worker
        self.incoming: dict[int, bytes] = {}  # the buffers (as of BatchNorm) that worker 0 sent with a push
        self.frozen = b""
        self.statics = b""
        self.version = 0
        self.failure: Exception | None = None
        self._orders: queue.SimpleQueue[tuple[float, Sequence[Action]] | None] = queue.SimpleQueue()
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="executor", daemon=True)
        self._thread.start()

    def order(self, actions: Sequence[Action]) -> None:
        """Queue actions; they are carried out in the order in which they come."""
        self._orders.put((time.monotonic(), actions))

    def fail(self, error: Exception) -> None:
        """End every wait with `error`."""
        with self._news:
            self.failure = self.failure or error
            self._news.notify_all()

    def stop(self) -> None:
        """Carry out what is queued, then end."""
        self._orders.put(None)
        self._thread.join()

    def outcome(self, worker: int, incarnation: int, step: int, timeout: float) -> Outcome | None:
        """Wait for what comes of a push; None after `timeout` seconds."""

        def found() -> bool:
            last = self.outcomes.get(worker)
            return self.failure is not None or (
                last is not None and (last.incarnation, last.step) == (incarnation, step)
            )

        with self._news:
            decided = self._news.wait_for(found, timeout)
            if self.failure is not None:
                raise self.failure
            return self.outcomes[worker] if decided else None

    def ready(self, outcome: Outcome, bucket: int) -> None:
        """Wait until a bucket of the reply can be sent."""
        if outcome.progress.ready > bucket:
            return
        with self._news:
            self._news.wait_for(lambda: outcome.progress.ready > bucket or self.failure is not None)
            if self.failure is not None:
                raise self.failure

    def reply_memory(self, worker: int, bucket: int) -> memoryview:
        """Where a bucket of the worker's reply lies."""
        held = self.shard.parameters if self.live else self.shard.gradients(worker)
        return held[bucket].view

    def _run(self) -> None:
        try:
            while (order := self._orders.get()) is not None:
                self._carry_out(*order)
        except Exception as error:
            error.add_note("the update on the server failed")
            self.fail(error)

    def _carry_out(self, ordered: float, actions: Sequence[Action]) -> None:
        replies = [a for a in actions if isinstance(a, Reply)]
        for action in actions:
            match action:
                case Apply():
                    self._apply(action, {r.worker: r for r in replies}, ordered)
                case Reply() if not self._decided(action.worker, action.incarnation, action.step):
                    self._send_current(action.worker, self._accept(action))
                case Admit():
                    self.pushes.pop(action.worker, None)  # of its earlier incarnation
                    self._send_current(action.worker, Outcome(action.incarnation, 0, True, action.version))
                case Reject():
                    rejected = Outcome(
                        action.incarnation, action.step, False, action.version, action.delay, action.reason
                    )  # fmt: skip
                    self.pushes.pop(action.worker, None)
                    self._send_current(action.worker, rejected)

    def _accept(self, reply: Reply) -> Outcome:
        return Outcome(reply.incarnation, reply.step, True, reply.version, reply.delay)

    def _apply(self, action: Apply, replies: dict[int, Reply], ordered: float) -> None:
        began, progress = time.monotonic(), Progress()
        pushes = {p.worker: self.pushes.pop(p.worker) for p in action.pushes}
        answered = [p.worker for p in action.pushes if p.worker in replies]
        if 0 in pushes:
            self.statics = self.incoming.pop(0, self.statics)
        for worker in answered:
            outcome = self._accept(replies[worker])
            outcome.progress, outcome.statics = progress, self.statics
            self._publish(worker, outcome)
        for index in range(len(self.shard.buckets)):
            self.shard.update(index, pushes, action.factor)
            self._hand_out(answered, index)
            self._advance(progress)
        self.version = action.version
        arrived = [(worker, push.step, push.arrived) for worker, push in pushes.items()]
        self._observe(Update(action.version, began, time.monotonic(), began - ordered, arrived))

    def _send_current(self, worker: int, outcome: Outcome) -> None:
        outcome.statics = self.statics
        self._publish(worker, outcome)
        for index in range(len(self.shard.buckets)):
            self._hand_out([worker], index)
            self._advance(outcome.progress)

    def _hand_out(self, workers: Sequence[int], index: int) -> None:
        if not self.live:
            for worker in workers:
                self.shard.copy_for(worker, index)

    def _decided(self, worker: int, incarnation: int, step: int) -> bool:
        last = self.outcomes.get(worker)
        return last is not None and (last.incarnation, last.step) == (incarnation, step)

    def _publish(self, worker: int, outcome: Outcome) -> None:
        with self._news:
            self.outcomes[worker] = outcome
            self._news.notify_all()

    def _advance(self, progress: Progress) -> None:
        with self._news:
            progress.ready += 1
            self._news.notify_all()


def waited_for(names: Sequence[int], seconds: float) -> PeerLost:
    """The error of a wait that took too long."""
    who = ", ".join(f"worker-{n}" for n in names) or "another shard"
    return PeerLost(f"waited {seconds:g} s for {who}, which sent nothing")
