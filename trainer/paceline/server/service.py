"""One shard as a service: its door, its lanes, its part in the order, and its life from first join to last leave."""

import json
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from paceline import metrics, weights
from paceline.server.aggregator import Aggregator
from paceline.server.door import Door
from paceline.server.executor import Executor
from paceline.server.lanes import Lanes
from paceline.server.order import Followers, Leader
from paceline.server.reports import Reports
from paceline.server.roll import Roll, lost
from paceline.server.sequencer import ArrivalLog, Machine, Sequencer, read_arrivals
from paceline.server.shard import Shard
from paceline.trace import Trace, Update
from paceline.web import serve
from paceline_core import strategies, telemetry
from paceline_core.errors import PacelineError, PeerLost
from paceline_core.launch import Launch
from paceline_core.replay import follow
from paceline_core.spec import Strategy
from paceline_core.strategy import Action, Apply, Event, Joined, Left, Pushed, Reject, start

TICK_SECONDS = 0.1
FAREWELL_SECONDS = 5.0  # after a failure, for workers to ask what happened
log = logging.getLogger("paceline")


class ParameterService:
    """Shard `launch.ordinal`; shard 0 also decides the order, collects reports and answers /status."""

    def __init__(self, launch: Launch) -> None:
        spec, self.launch = launch.spec, launch
        self.stopping = threading.Event()  # SIGTERM: write what is reached, and end
        self.metrics = metrics.of_server(launch.training, launch.ordinal, telemetry.level(spec))
        if spec.asynchronous:
            self.metrics.set(metrics.MAX_STALENESS, spec.server.staleness.max_staleness)
        self.trace = Trace(launch.name, time.monotonic())
        self.roll = Roll(launch.world_size, spec.run_policy.start_timeout_seconds, launch.replaced)
        self.log = ArrivalLog(launch.output, launch.ordinal)
        self.first = launch.ordinal == 0
        self.synchronous = spec.server.strategy is Strategy.SYNCHRONOUS
        self.lanes = Lanes(launch, self.roll, self.metrics, self._arrived, self._waiting_for, self._new_executor)
        self.aggregator = Aggregator(launch, self.metrics)
        self.sequencer = Sequencer(_machine(launch), spec.server.replicas, self._decided) if self.first else None
        self.followers = Followers(self._sequencer, self.fail)
        self.reports = Reports(self.roll, self.aggregator, self._left, self.fail)
        self.leader: Leader | None = None
        self._over = threading.Event()  # shard 0 has said so
        handlers = {"lane": self.lanes.serve}
        if self.first:
            handlers |= {
                "report": self.reports.serve,
                "orders": self.followers.serve_orders,
                "arrivals": self.followers.serve_arrivals,
            }
        self.door = Door(launch, handlers, self.metrics)

    def run(self) -> None:
        """Serve until every worker has left, then write the weights. Raises what made the training fail."""
        pages = {"/trace": self.trace.to_json} | ({"/status": self.aggregator.status} if self.first else {})
        web = serve(self.launch.metrics, self.metrics, pages)
        if not self.first:
            self.leader = Leader(self.launch, self._follow)
            threading.Thread(target=self._listen, name="orders", daemon=True).start()
        self.door.open()
        try:
            self._wait()
        finally:
            self._end()
            web.shutdown()
            web.server_close()
        if self.roll.failure:
            raise self.roll.failure

    def fail(self, error: Exception) -> None:
        """End the training with this error, unless it is over."""
        if not self.aggregator.finished:
            self.roll.fail(error)
            if self.lanes.executor:
                self.lanes.executor.fail(error)

    def _wait(self) -> None:
        while not self.stopping.wait(TICK_SECONDS):
            executor = self.lanes.executor
            failure = self.roll.failure or (executor.failure if executor else None)
            if failure is not None:
                self._say_why(failure)
                raise failure
            for worker in self.roll.overdue():
                self._lost(worker)
            if self._finished():
                return
            self.metrics.set(metrics.CONNECTED, self.roll.connected_workers())
            self.metrics.set(metrics.QUEUE, len(executor.pushes) if executor else 0)

    def _finished(self) -> bool:
        if self.first and self.roll.finished():
            self.followers.end()
            self._over.set()
        return self._over.is_set()

    def _say_why(self, failure: Exception) -> None:
        known = (
            failure if isinstance(failure, PacelineError) else PeerLost(f"ps-{self.launch.ordinal} failed: {failure}")
        )
        self.door.refuse(known)
        limit = time.monotonic() + FAREWELL_SECONDS
        while time.monotonic() < limit and not self.stopping.wait(TICK_SECONDS):
            pass

    def _lost(self, worker: int) -> None:
        if self.synchronous:
            self.fail(lost(worker))
        elif self.first:
            log.warning("%s; the others go on", lost(worker))
            self.aggregator.state(worker, "lost")
            self._left(worker, self.roll.incarnations[worker])

    def _end(self) -> None:
        self.aggregator.end()
        self.followers.close()
        if self.lanes.executor:
            if self.lanes.executor.failure is None:
                self.lanes.executor.stop()
            self._write(self.lanes.executor)
        self.door.close()
        if self.leader:
            self.leader.close()
        for finish in (self.log.close, self.aggregator.close, lambda: self.trace.write(self.launch.output)):
            try:
                finish()
            except OSError as error:
                self.roll.fail(error)  # a full disk: what was not written is lost, and the run has failed

    def _write(self, executor: Executor) -> None:
        if not self.launch.output or not self.lanes.initialised:
            return
        folder, shard = Path(self.launch.output), executor.shard
        tensors = shard.state()
        if self.first:
            tensors |= weights.statics(shard.signature, executor.frozen, executor.statics)
            (folder / weights.SIGNATURE).write_text(json.dumps(shard.signature.to_json()))
            (folder / "status.json").write_text(json.dumps(self.aggregator.status(), indent=1))
        weights.save(tensors, folder / weights.shard_file(self.launch.ordinal))

    def _new_executor(self, shard: Shard) -> Executor:
        self.metrics.set(metrics.PARAMETER_BYTES, sum(b.nbytes for b in shard.buckets))
        return Executor(shard, live=self.synchronous, observe=self._applied)

    def _applied(self, update: Update) -> None:
        self.metrics.observe(metrics.APPLY, update.end - update.begin)
        self.metrics.add(metrics.LOCK_WAIT, update.waited)
        self.metrics.set(metrics.VERSION, update.version)
        self.trace.update(update)

    def _arrived(self, event: Joined | Pushed) -> None:
        if self.leader:
            self.leader.arrived(event)
        else:
            self._sequencer().arrived(0, event)

    def _left(self, worker: int, incarnation: int) -> None:
        self._sequencer().left(worker, incarnation)

    def _sequencer(self) -> Sequencer:
        assert self.sequencer is not None, "only shard 0 decides"
        return self.sequencer

    def _waiting_for(self) -> tuple[int, ...]:
        return self.sequencer.waiting_for() if self.sequencer else ()

    def _decided(self, event: Event, actions: Sequence[Action]) -> None:
        """Shard 0: carry out an order here and hand it on. Called in the order of decisions."""
        self._carry_out(event, actions)
        self.followers.give(event, actions)
        for action in actions:
            if isinstance(action, Apply):
                self._count_applied(action)
            elif isinstance(action, Reject):
                self.aggregator.rejected(action.worker, action.reason, action.delay)

    def _carry_out(self, event: Event, actions: Sequence[Action]) -> None:
        try:
            self.log.write(actions, event)
        except OSError as error:
            self.fail(error)
        if self.lanes.executor:
            self.lanes.executor.order(actions)
        if isinstance(event, Left) and not self.first:
            self.roll.leave(event.worker, event.incarnation)

    def _count_applied(self, action: Apply) -> None:
        delays = {p.worker: action.version - 1 - p.version for p in action.pushes}
        arrivals = {w: self._sequencer().arrivals[w] for w in delays} if self.synchronous else None
        self.aggregator.applied(action.version, delays, arrivals)

    def _follow(self, event: Event, actions: list[Action]) -> None:
        self._carry_out(event, actions)

    def _listen(self) -> None:
        assert self.leader is not None, "only the other shards follow"
        try:
            self.leader.listen()
            self._over.set()
        except (PacelineError, EOFError) as error:
            self.fail(PeerLost(f"ps-0 was lost: {error}"))


def _machine(launch: Launch) -> Machine:
    knobs = strategies.knobs(launch.spec.server, launch.world_size)
    if launch.replay:
        return follow(read_arrivals(Path(launch.replay)), knobs, launch.world_size)
    return start(knobs, launch.world_size)
