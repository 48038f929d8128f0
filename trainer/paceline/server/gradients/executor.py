"""Carries out the state machine's actions on one shard, in order, and tells the connections what came of them."""

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from paceline.process_trace import Update
from paceline.server.gradients.shard import Push, Shard
from paceline.server.gradients.untrained_tensors import UntrainedTensors
from paceline_core import finiteness, limits
from paceline_core.errors import NotFinite, PeerLost, UsageError
from paceline_core.finiteness import NONFINITE
from paceline_core.state_machine import Action, Admit, Apply, Reject, Reply, Save

SHOWN = 3  # names of what was changed
NORM_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm
log = logging.getLogger("paceline")


@dataclass
class ReplyProgress:
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
    untrained: dict[int, bytes] = field(default_factory=dict)  # what changed since the worker's last reply
    lowest: int = 0  # of the workers that take part
    save: int = 0  # number of the checkpoint for which the worker is to send its state
    last: bool = False  # and after which it is to make no further step
    ignored: bool = False  # what its script changed was not carried out: it is not the lowest worker
    progress: ReplyProgress = field(default_factory=ReplyProgress)


@dataclass(frozen=True)
class UpdateRules:
    """How this training updates, beside the optimizer."""

    reads_parameters: bool  # replies are read from the parameters themselves
    max_norm: float | None = None  # of the mean gradient
    checks_gradients: bool = True
    # version, squared norm here -> squared norm of the gradient on all shards
    total_norm: Callable[[int, float], float] = lambda _, here: here


class Executor:
    """One thread that owns the shard's tensors. Connections hand it pushes and wait for outcomes.

    With `reads_parameters`, replies are read from the parameters themselves: nothing can be applied before every
    worker has its reply, because the next round needs all of them. Otherwise each reply is a copy in the worker's own
    buffer, so that a slow reader neither sees a mixture of versions nor makes anyone wait.
    """

    def __init__(
        self,
        shard: Shard,
        rules: UpdateRules,
        observe: Callable[[Update], None],
        save: Callable[["Executor", Save], None] = lambda *_: None,
    ) -> None:
        self.shard, self.rules, self._save = shard, rules, save
        self._observe = observe
        self.pushes: dict[int, Push] = {}  # complete, not yet applied
        self.outcomes: dict[int, Outcome] = {}  # the last of each worker
        self.sent_untrained: dict[int, tuple[int, dict[int, bytes]]] = {}  # by worker: its incarnation, what it sent
        self.final: dict[int, Push] = {}  # what workers' scripts changed after their last step
        self.untrained = UntrainedTensors(shard.signature.untrained)
        self.version = self.lowest = 0
        self._asks_last = False
        self._asking, self._asked = 0, set[int]()  # for which checkpoint workers send their states, and who was asked
        self.failure: Exception | None = None
        self._orders: queue.SimpleQueue[tuple[float, Sequence[Action]] | Future[bytes] | None] = queue.SimpleQueue()
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="executor", daemon=True)
        self._thread.start()

    def order(self, actions: Sequence[Action]) -> None:
        """Queue actions; they are carried out in the order in which they come."""
        self._orders.put((time.monotonic(), actions))

    def optimizer_state(self, timeout: float) -> bytes:
        """The optimizer's state after all that was ordered so far. Raises TimeoutError."""
        asked: Future[bytes] = Future()
        self._orders.put(asked)
        return asked.result(timeout)

    def fail(self, error: Exception) -> None:
        """End every wait with `error`."""
        with self._news:
            self.failure = self.failure or error
            self._news.notify_all()

    def stop(self) -> None:
        """Carry out what is queued, then end; what scripts changed after their last step counts from the lowest."""
        self._orders.put(None)
        self._thread.join()
        worker = min(self.final, default=0)
        last = self.final.get(worker)
        if last is not None and (last.version == self.version or not self.rules.reads_parameters):
            self.shard.install(last.changed if self.rules.reads_parameters else last.certain, last.values)
            self.untrained.take(worker, self._sent_by(worker))
        elif last is not None and last.certain:
            log.warning("what worker-%d changed after its last step is not saved: others made more steps", worker)

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
        held = self.shard.parameters if self.rules.reads_parameters else self.shard.gradients(worker)
        return held[bucket].view

    def _run(self) -> None:
        try:
            while (order := self._orders.get()) is not None:
                if isinstance(order, Future):
                    self._tell_state(order)
                else:
                    self._carry_out(*order)
        except (UsageError, NotFinite) as error:
            self.fail(error)
        except Exception as error:
            error.add_note("the update on the server failed")
            self.fail(error)

    def _tell_state(self, asked: "Future[bytes]") -> None:
        try:
            asked.set_result(self.shard.optimizer_state())
        except (TypeError, ValueError) as error:  # of an optimizer of a user's own
            asked.set_exception(UsageError(f"the optimizer's state cannot be sent: {error}"))

    def _carry_out(self, ordered: float, actions: Sequence[Action]) -> None:
        replies = [a for a in actions if isinstance(a, Reply)]
        for save in (a for a in actions if isinstance(a, Save) and a.asks):
            self._asking, self._asks_last, self._asked = save.step, save.last, set()
        for action in actions:
            match action:
                case Save():
                    self._save(self, action)
                case Apply():
                    self._apply(action, {r.worker: r for r in replies}, ordered)
                case Reply() if not self._decided(action.worker, action.incarnation, action.step):
                    self._send_current(action.worker, _accepted(action))
                case Admit():
                    self.lowest = action.lowest
                    self.pushes.pop(action.worker, None)  # of its earlier incarnation
                    self.untrained.take(action.worker, self._sent_by(action.worker, action.incarnation))
                    self._send_current(action.worker, Outcome(action.incarnation, 0, True, action.version), joined=True)
                    if not self.rules.reads_parameters:  # who goes on where it was is further than what was asked for
                        self._asked.discard(action.worker)  # it may have gone with its earlier incarnation
                case Reject():
                    self.lowest = action.lowest
                    rejected = Outcome(
                        action.incarnation, action.step, False, action.version, action.delay, action.reason
                    )  # fmt: skip
                    self._reject(action.worker, rejected)

    def _apply(self, action: Apply, replies: dict[int, Reply], ordered: float) -> None:
        began, progress = time.monotonic(), ReplyProgress()
        pushes = {p.worker: self.pushes.pop(p.worker) for p in action.pushes}
        skipped = not all(p.applicable for p in pushes.values())
        self.lowest = action.lowest
        for pushed in action.pushes:
            pushes[pushed.worker].version = pushed.version
        ignored = self._take_changes(action.version, pushes)
        answered = [p.worker for p in action.pushes if p.worker in replies]
        for worker in answered:
            outcome = _accepted(replies[worker])
            if skipped:
                outcome.accepted, outcome.reason = False, NONFINITE
            outcome.progress, outcome.ignored, outcome.lowest = progress, worker in ignored, self.lowest
            outcome.untrained = self.untrained.news(worker, touched=pushes[worker].touched)
            self._publish(worker, outcome)
        self._update(action, pushes, skipped, lambda index: self._hand_out(answered, index, progress))
        self.version = action.version
        arrived = [(worker, push.step, push.arrived) for worker, push in pushes.items()]
        self._observe(Update(action.version, began, time.monotonic(), began - ordered, arrived))

    def _update(self, action: Apply, pushes: dict[int, Push], skipped: bool, updated: Callable[[int], None]) -> None:
        """Update bucket by bucket; with a limit of the norm in two passes, because it is that of the whole gradient."""
        settings, buckets, limit = pushes[min(pushes)].settings, range(len(self.shard.buckets)), self.rules.max_norm
        scale = 1.0
        if limit is not None and not skipped:
            for index in buckets:
                self._average(index, pushes)
            here = sum(self.shard.squares(index) for index in buckets)
            scale = limit / (math.sqrt(self.rules.total_norm(action.version, here)) + NORM_EPSILON)
            scale = 1.0 if scale > 1 else scale  # of a norm that is not a number the gradients are none either
        for index in buckets:
            if not skipped:
                if limit is None:
                    self._average(index, pushes)
                self.shard.step(index, settings, action.factor, scale)
            updated(index)

    def _average(self, index: int, pushes: dict[int, Push]) -> None:
        """Raises NotFinite: workers have looked at their gradients, and one that came all the same ends the training.

        What is then in the buckets before is finite; this one, and those after it, are not updated.
        """
        self.shard.average(index, pushes)
        if self.rules.checks_gradients and (odd := self.shard.not_finite(index, pushes)):
            worker, parameter = odd
            name = self.shard.signature.parameters[parameter].name
            raise NotFinite(f"{finiteness.of_gradient(worker, pushes[worker].step, name)}, and it did not say so")

    def _sent_by(self, worker: int, incarnation: int | None = None) -> dict[int, bytes]:
        """What a worker sent beside its push; nothing where another incarnation is named."""
        its, given = self.sent_untrained.pop(worker, (0, {}))
        return given if incarnation in (None, its) else {}

    def _take_changes(self, version: int, pushes: dict[int, Push]) -> set[int]:
        """Carry out what the lowest worker's script changed since its last reply; gives the workers that are ignored.

        Where an update takes one push of each, all make the same changes: a worker alone with one is an error.
        """
        lowest, ignored = pushes.get(self.lowest), set()
        untrained = {worker: self._sent_by(worker) for worker in pushes}
        for worker, push in pushes.items():
            if worker == self.lowest:
                self._take(worker, push, untrained[worker], newest=push.version == version - 1)
            elif self.rules.reads_parameters and lowest is not None:
                self._refuse(worker, push, lowest, untrained[self.lowest])
            elif push.certain or push.loaded:
                ignored.add(worker)
        return ignored

    def _take(self, worker: int, push: Push, untrained: dict[int, bytes], newest: bool) -> None:
        """Carry out changes. One that may be none is left alone where others have updated the parameters since."""
        self.untrained.take(worker, untrained)
        self.shard.install(push.changed if newest else push.certain, push.values)
        if push.loaded:
            self.shard.load_optimizer_state(push.state)

    def _refuse(self, worker: int, push: Push, first: Push, untrained: Mapping[int, bytes]) -> None:
        signature = self.shard.signature
        names = [signature.parameters[i].name for i in sorted(push.certain - first.changed)]
        frozen = [n for n in sorted(push.touched - untrained.keys()) if n < len(signature.frozen)]
        names += [signature.frozen[n].name for n in frozen] if self.shard.ordinal == 0 else []
        if push.loaded and not first.loaded:
            names.append("its optimizer's state")
        if names:
            raise UsageError(
                f"worker-{worker} changed {', '.join(names[:SHOWN])} between two steps, and the lowest worker did not: "
                "what is common to all is changed on every worker alike (not only where rank() is "
                f"{worker})"
            )

    def _reject(self, worker: int, outcome: Outcome) -> None:
        """The gradient is not applied; what the lowest worker's script changed is carried out all the same."""
        push, untrained = self.pushes.pop(worker, None), self._sent_by(worker)
        if push is not None and worker == self.lowest:
            self._take(worker, push, untrained, newest=False)
        self._send_current(worker, outcome, touched=push.touched if push is not None else ())

    def _send_current(self, worker: int, outcome: Outcome, joined: bool = False, touched: Collection[int] = ()) -> None:
        outcome.untrained, outcome.lowest = self.untrained.news(worker, joined, touched), self.lowest
        self._publish(worker, outcome)
        for index in range(len(self.shard.buckets)):
            self._hand_out([worker], index, outcome.progress)

    def _hand_out(self, workers: Sequence[int], index: int, progress: ReplyProgress) -> None:
        if not self.rules.reads_parameters:
            for worker in workers:
                self.shard.copy_for(worker, index)
        self._advance(progress)

    def _decided(self, worker: int, incarnation: int, step: int) -> bool:
        last = self.outcomes.get(worker)
        return last is not None and (last.incarnation, last.step) == (incarnation, step)

    def _publish(self, worker: int, outcome: Outcome) -> None:
        if worker not in self._asked:
            self._asked.add(worker)
            outcome.save, outcome.last = self._asking, self._asks_last
        with self._news:
            self.outcomes[worker] = outcome
            self._news.notify_all()

    def _advance(self, progress: ReplyProgress) -> None:
        with self._news:
            progress.ready += 1
            self._news.notify_all()


def _accepted(reply: Reply) -> Outcome:
    return Outcome(reply.incarnation, reply.step, True, reply.version, reply.delay)


def waited_for(names: Sequence[int], seconds: float) -> PeerLost:
    """The error of a wait that took too long."""
    who = ", ".join(f"worker-{n}" for n in names) or "another shard"
    return PeerLost(f"waited {limits.words(seconds)} for {who}, which sent nothing")
