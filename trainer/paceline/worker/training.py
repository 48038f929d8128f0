"""The training that this process takes part in: what stands behind the public functions."""

import atexit
import logging
import multiprocessing.util
import sys
from contextlib import AbstractContextManager
from multiprocessing import parent_process
from types import TracebackType
from typing import Any

import torch

from paceline import failure, metrics
from paceline.http_pages import serve
from paceline.worker import script_end
from paceline.worker.all_reduce.ddp_script import DdpScript
from paceline.worker.all_reduce.ring import Ring
from paceline.worker.collectives.store_client import StoreClient
from paceline.worker.data.datasets import DataSet, DataSets
from paceline.worker.data.epochs import Pass
from paceline.worker.data.loader_kinds import batch_source
from paceline.worker.data.sharded_loader import ShardedLoader
from paceline.worker.exit_code import Exits
from paceline.worker.observability.measuring import Measuring
from paceline.worker.observability.step_metrics import LastStep
from paceline.worker.own_process import OwnProcess
from paceline.worker.own_state import OwnState
from paceline.worker.parameter_server.session import Session
from paceline.worker.preemption import Preemption
from paceline_core.errors import UsageError
from paceline_core.launch import Launch, Slowed

log = logging.getLogger("paceline")


class Training:
    """One worker's training, from the first call of the API to the end of the script."""

    def __init__(self, launch: Launch) -> None:
        self.launch, self._measuring = launch, Measuring.of(launch)
        self.clock, self.injected_delay = self._measuring.clock, self._measuring.injected_delay
        self._side: Session | Ring | DdpScript | None = None
        self.store_client = StoreClient(launch)
        self._data_sets = DataSets(self.store_client)
        self.own_state = OwnState(self._data_sets)
        self._failed = self._ended = self._warned = False
        self._own = OwnProcess()
        self._preemption: Preemption | None = None
        self.recomputes = launch.spec.knobs.repeats
        self._web = serve(launch.metrics, self._measuring.metrics, {"/trace": self._measuring.trace.to_json})
        self._excepthook, sys.excepthook = sys.excepthook, self._crashed
        self._exits = Exits()
        script_end.watch(launch.name)
        atexit.register(self._end)
        if parent_process() is not None:  # a forked process of multiprocessing ends without what atexit knows
            multiprocessing.util.Finalize(None, self._end, exitpriority=0)

    @torch.inference_mode(mode=False)  # tensors that are made within it could not be written to later
    def begin(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, total_steps: int | None
    ) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """Join the training with this model and optimizer. Raises UsageError when called twice."""
        self._own.demand("paceline.distribute()")
        if not any(group["params"] for group in optimizer.param_groups):
            raise UsageError("the optimizer has no parameters to train")
        if isinstance(self._side, DdpScript):
            raise UsageError("the script has initialized torch.distributed itself: call paceline.distribute() instead")
        if isinstance(self._side, Ring):
            self._side.add(model, optimizer)
        elif isinstance(self._side, Session):
            self._side.add(model, optimizer, total_steps)
        elif self.launch.spec.ring:
            self._side = Ring(self.launch, model, optimizer, self._measuring, total_steps, self.own_state)
        else:
            session = Session(self.launch, self._measuring, self.own_state)
            session.add(model, optimizer, total_steps)
            self._side = session
        if self._preemption is None and self.launch.spec.checkpoint is not None:
            self._preemption = Preemption(self.launch, self._side.tell_rest)
            self.own_state.hold = self._preemption.hold
        return model, optimizer

    def store(self) -> Any:
        """The store for a script that initializes torch.distributed itself, in which this worker takes part by it."""
        if self._side is None:
            self._side = DdpScript(self.launch, self._measuring)
        if not isinstance(self._side, DdpScript):
            raise UsageError("paceline.distribute() has initialized torch.distributed: use it as it is")
        return self._side.store

    def measure(self, wrapper: torch.nn.parallel.DistributedDataParallel) -> None:
        """Measure a script's own DistributedDataParallel."""
        if isinstance(self._side, DdpScript):
            self._side.measure(wrapper)

    def shard(self, loader: Any) -> ShardedLoader:
        """This worker's part of a loader's batches."""
        held = batch_source(loader, self._data_sets, self.launch.ordinal, self.launch.world_size)
        return ShardedLoader(loader, held, self)

    def count_samples(self, count: int) -> None:
        """So many samples were handed out."""
        self._measuring.metrics.add(metrics.SAMPLES, count)

    def report(self, values: dict[str, Any]) -> None:
        """Pass values on to the live table and the run's log."""
        if self._side is None:
            raise UsageError("call paceline.distribute() before paceline.report()")
        if self._own:
            self._side.reporter.report(values)
        elif not self._warned:
            self._warned = True
            log.warning("paceline.report() is left out in a process that the script's own has forked")

    def last_step(self) -> LastStep | None:
        """What came of the last step."""
        return self._side.last if self._side else None

    def asks(self, data_set: DataSet, it: Pass | None) -> None:
        """The script asks an iteration for another batch, or begins one (None)."""
        self.own_state.asks(data_set.number, it)

    def no_sync(self) -> AbstractContextManager[None]:
        """Accumulate gradients without sending them."""
        if self._side is None or isinstance(self._side, DdpScript):
            raise UsageError("call paceline.distribute() before paceline.no_sync()")
        return self._side.no_sync()

    def _crashed(self, _: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
        told = error
        if self._own:
            self._fail()
            told = self._explain(error)
            failure.write(told, self.launch.termination_log)
        self._excepthook(type(told), told, told.__traceback__)

    def _end(self) -> None:
        """The script has ended. Only when it ended well does this worker tell that it is done."""
        if self._ended or not self._own:
            return
        self._ended = True
        if self._preemption is not None:
            self._preemption.leave()
        asked = self._exits.failed() or sys.exception()  # the latter ends a process of multiprocessing
        if asked is not None:
            self._give_up(asked)
        if self._side is not None and not self._failed:
            self._measuring.trace.write(self.launch.output)
            self._side.leave()
        self.store_client.close(leave=self._side is None and not self._failed)
        if self.injected_delay.part is Slowed.DATA and not self.injected_delay.used:
            log.warning("--slow data: had no effect, because the data did not come through paceline.shard()")

    def _give_up(self, asked: BaseException) -> None:
        """The script ended itself as failed: tell the text that it gave, or else the error that it caught."""
        self._fail()
        told = asked.__context__ if isinstance(asked, SystemExit) and not isinstance(asked.code, str) else asked
        if told is not None:  # the exit code alone is told by the parent
            failure.write(self._explain(told), self.launch.termination_log)

    def _fail(self) -> None:
        """The script has failed: leave what is known of it, before anything that may take long."""
        self._failed = True
        if self._preemption is not None:
            self._preemption.leave()
        if self._side is None:
            return
        self._side.tell_rest()
        try:
            self._measuring.trace.write(self.launch.output)
        except OSError as problem:
            log.warning("the trace could not be written: %s", problem)

    def _explain(self, error: BaseException) -> BaseException:
        return self._side.explain(error) if isinstance(self._side, Ring | DdpScript) else error
