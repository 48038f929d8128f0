"""The training that this process takes part in: what stands behind the public functions."""

import atexit
import logging
import sys
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch

from paceline import failure, metrics
from paceline.web import serve
from paceline.worker.exits import Exits
from paceline.worker.measuring import Measuring
from paceline.worker.patch import replace_step
from paceline.worker.record import LastStep
from paceline.worker.ring import Ring
from paceline.worker.session import Session
from paceline_core.errors import UsageError
from paceline_core.launch import Launch, Slowed
from paceline_core.spec import OnStale, Topology

log = logging.getLogger("paceline")


class Training:
    """One worker's training, from the first call of the API to the end of the script."""

    def __init__(self, launch: Launch) -> None:
        self.launch, self._measuring = launch, Measuring.of(launch)
        self.clock, self.brake = self._measuring.clock, self._measuring.brake
        self._side: Session | Ring | None = None
        self._failed = False
        self._answered = 0  # rejections for which the batch was repeated, by step
        on_stale = launch.spec.server.staleness.on_stale
        self._repeats = launch.spec.asynchronous and on_stale is OnStale.RECOMPUTE
        self._web = serve(launch.metrics, self._measuring.metrics, {"/trace": self._measuring.trace.to_json})
        self._excepthook, sys.excepthook = sys.excepthook, self._crashed
        self._exits = Exits()
        atexit.register(self._end)

    def begin(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, total_steps: int | None
    ) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """Join the training with this model and optimizer. Raises UsageError when called twice."""
        if self._side is not None:
            raise UsageError("paceline.distribute() was called before: a training has one model and one optimizer")
        if not any(group["params"] for group in optimizer.param_groups):
            raise UsageError("the optimizer has no parameters to train")
        if self.launch.spec.topology is Topology.ALL_REDUCE:
            ring = Ring(self.launch, model, optimizer, self._measuring, total_steps)
            self._side = ring
            return ring.model, optimizer
        session = Session(self.launch, model, optimizer, self._measuring, total_steps)
        self._side = session
        replace_step(optimizer, session.step)
        return model, optimizer

    def count_samples(self, count: int) -> None:
        """So many samples were handed out."""
        self._measuring.metrics.add(metrics.SAMPLES, count)

    def repeat_batch(self) -> bool:
        """Whether the batch just handed out was rejected as stale, and is to be computed again."""
        last = self.last_step()
        if not self._repeats or last is None or last.accepted or last.reason != "stale":
            return False
        number = self._side.number if isinstance(self._side, Session) else 0
        repeat, self._answered = number != self._answered, number
        return repeat

    def report(self, values: dict[str, Any]) -> None:
        """Pass values on to the live table and the run's log."""
        if self._side is None:
            raise UsageError("call paceline.distribute() before paceline.report()")
        self._side.reporter.report(values)

    def last_step(self) -> LastStep | None:
        """What came of the last step."""
        return self._side.last if self._side else None

    def no_sync(self) -> AbstractContextManager[None]:
        """Accumulate gradients without sending them."""
        if self._side is None:
            raise UsageError("call paceline.distribute() before paceline.no_sync()")
        return self._side.no_sync()

    def _crashed(self, _: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
        self._failed = True
        told = self._explain(error)
        failure.write(told, self.launch.termination_log)
        self._excepthook(type(told), told, told.__traceback__)

    def _end(self) -> None:
        """The script has ended. Only when it ended well does this worker say goodbye."""
        asked = self._exits.failed()
        if asked is not None:
            self._give_up(asked)
        if self._side is not None and not self._failed:
            self._measuring.trace.write(self.launch.output)
            self._side.leave()
        if self.brake.part is Slowed.DATA and not self.brake.used:
            log.warning("--slow data: had no effect, because the data did not come through paceline.shard()")

    def _give_up(self, asked: SystemExit) -> None:
        """The script ended itself as failed: tell its own words, or else the error that it caught."""
        self._failed = True
        told = asked if isinstance(asked.code, str) else asked.__context__
        if told is not None:  # the exit code alone is told by the parent
            failure.write(self._explain(told), self.launch.termination_log)

    def _explain(self, error: BaseException) -> BaseException:
        return self._side.explain(error) if isinstance(self._side, Ring) else error
