"""One shard as a service: its connections, its part in the order, and its life from first join to last leave."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from paceline import json_text, metrics
from paceline.http_pages import serve
from paceline.process_trace import ProcessTrace, Update
from paceline.server import final_weights
from paceline.server.checkpoints.beginning import Beginning
from paceline.server.checkpoints.checkpointing import Checkpointing
from paceline.server.gradients.executor import Executor, UpdateRules
from paceline.server.gradients.followers import FollowerConnections
from paceline.server.gradients.gradient_norm import Norms
from paceline.server.gradients.leader_connection import LeaderConnection
from paceline.server.gradients.sequencer import ArrivalLog, Sequencer, machine
from paceline.server.gradients.shard import Shard
from paceline.server.gradients.worker_connections import WorkerConnections
from paceline.server.membership.acceptor import Acceptor, Handler
from paceline.server.membership.key_value_store import KeyValueStore
from paceline.server.membership.membership import Membership, lost
from paceline.server.membership.places import Places
from paceline.server.membership.reports import Reports
from paceline.server.observability.training_status import TrainingStatus
from paceline.server.told_to_end import ToldToEnd
from paceline_core import limits, metric_series
from paceline_core.errors import NotFinite, PacelineError, PeerLost
from paceline_core.finiteness import NONFINITE
from paceline_core.launch import Launch
from paceline_core.state_machine import Action, Apply, Event, Joined, Left, Pushed, Reject

TICK_SECONDS = 0.1
log = logging.getLogger("paceline")


class ParameterService:
    """Shard `launch.ordinal`; shard 0 also decides the order and the end, holds the store, collects
    reports, answers /status, and takes the frozen parameters and buffers."""

    def __init__(self, launch: Launch) -> None:
        spec, self.launch, beginning = launch.spec, launch, Beginning.of(launch)
        self.told_to_end = ToldToEnd(launch.end_limit, self._may_end)  # writes what is reached then, and ends
        self.metrics = metrics.of_server(launch.training, launch.ordinal, metric_series.level(spec))
        self.knobs = spec.knobs
        if self.knobs.greatest_delay is not None:
            self.metrics.set(metrics.MAX_STALENESS, self.knobs.greatest_delay)
        self.trace = ProcessTrace(launch.name, time.monotonic())
        self.membership = Membership(launch.world_size, launch.start_limit, launch.replaced)
        self.first = launch.ordinal == 0
        self.connections = WorkerConnections(
            launch, self.membership, self.metrics, self._arrived, self._waiting_for, self._new_executor
        )
        self.training_status = TrainingStatus(launch, self.metrics)
        patience = max(launch.start_limit, launch.step_limit)
        self.store = KeyValueStore(self.membership, patience, self._left, self.training_status.gathered)
        self.checkpointing = Checkpointing(
            launch, beginning, self.connections.executors, self.membership, self.store,
            None if self.first else self._tell_saved, self.training_status.checkpoints,
        )  # fmt: skip
        self.norms = Norms(spec.server.replicas, launch.step_limit)
        self.followers = FollowerConnections(
            spec.server.replicas, self._sequence, self.fail, self.norms, self.checkpointing.hear_shard,
            self.checkpointing.begins_at,
        )  # fmt: skip
        self.norms.give = self.followers.give_norm
        self._sequencers: dict[int, Sequencer] = {}  # of each pair of a model and an optimizer; on shard 0
        self._logs: dict[int, ArrivalLog] = {}
        self._making = threading.Lock()
        self.places = Places() if self.knobs.replaced_where_it_was and launch.replaced else None
        self.reports = Reports(
            self.membership, self.training_status, self._left, self.fail, self.checkpointing, self.places
        )
        self.leader: LeaderConnection | None = None
        self._over = threading.Event()  # shard 0 has said so
        self.acceptor = Acceptor(launch, self._handlers(), self.metrics, self.membership.is_newest)

    def run(self) -> None:
        """Serve until every worker has left, then write the weights. Raises what made the training fail."""
        pages = {"/trace": self.trace.to_json} | ({"/status": self.training_status.to_json} if self.first else {})
        web = serve(self.launch.metrics, self.metrics, pages)
        if not self.first:
            self.leader = LeaderConnection(self.launch, self._carry_out, self.norms, self.checkpointing.begins_at)
            threading.Thread(target=self._listen, name="orders", daemon=True).start()
        self.acceptor.open()
        try:
            self._wait()
        finally:
            self._end()
            web.shutdown()
            web.server_close()
        if self.membership.failure:
            raise self.membership.failure

    def fail(self, error: Exception) -> None:
        """End the training with this error, unless it is over."""
        if not self.training_status.finished:
            self.membership.fail(error)
            for executor in list(self.connections.executors.values()):
                executor.fail(error)

    def _handlers(self) -> dict[str, Handler]:
        """Who serves which kind of connection."""
        handlers: dict[str, Handler] = {"lane": self.connections.serve}
        if self.first:
            handlers |= {
                "report": self.reports.serve,
                "orders": self.followers.serve_orders,
                "arrivals": self.followers.serve_arrivals,
                "store": self.store.serve,
            }
        return handlers

    def _wait(self) -> None:
        while True:
            time.sleep(TICK_SECONDS)
            executors = list(self.connections.executors.values())
            failure = self.membership.failure or next((e.failure for e in executors if e.failure), None)
            if failure is not None:
                self._say_why(failure)
                raise failure
            for worker in self.membership.overdue() if self.first else ():  # only it has each worker's report
                self._lost(worker)
            for worker in self.membership.not_replaced() if self.knobs.replaced_where_it_was else ():
                self.fail(lost(worker))
            if (gone := self.followers.lost()) is not None:
                self.fail(gone)
            self.checkpointing.look()
            if self._finished() or self.told_to_end.ends_now():
                return
            if self.told_to_end or self.followers.told_to_end():
                self.training_status.servers_end = True
            if self.followers.told_to_end() and self._may_end():
                self.followers.let_end()
            self.metrics.set(metrics.CONNECTED, self.membership.connected_workers())
            self.metrics.set(metrics.QUEUE, sum(len(e.pushes) for e in executors))

    def _finished(self) -> bool:
        if not self.first:
            return self._over.is_set()
        if self.membership.finished() and self.checkpointing.idle() and self.followers.end(TICK_SECONDS):
            self._over.set()
        return self._over.is_set()

    def _say_why(self, failure: Exception) -> None:
        known = (
            failure if isinstance(failure, PacelineError) else PeerLost(f"ps-{self.launch.ordinal} failed: {failure}")
        )
        if self.leader:
            self.leader.tell_failure(known)
        self.acceptor.refuse(known)
        limit = time.monotonic() + limits.REFUSAL_SECONDS
        while time.monotonic() < limit and not self.told_to_end:
            time.sleep(TICK_SECONDS)

    def _may_end(self) -> bool:
        """Whether a server that was told to end waits for no checkpoint, or not any more."""
        if self.launch.spec.checkpoint is None:
            return True
        return self.leader.lets_end() if self.leader else self.checkpointing.may_end()

    def _lost(self, worker: int) -> None:
        if not self.knobs.replaces_alone or (self.knobs.waits_for_all and not self.training_status.replaceable(worker)):
            self.fail(lost(worker))
            return
        self.training_status.state(worker, "lost")
        if self.knobs.waits_for_all:
            log.warning("%s; the others wait for another in its place", lost(worker))
        else:
            log.warning("%s; the others go on", lost(worker))
            self._left(worker, self.membership.incarnations[worker])

    def _end(self) -> None:
        self.training_status.end()
        if self.told_to_end:
            self.followers.let_end()
        for pair, executor in sorted(self.connections.executors.items()):
            if executor.failure is None:
                executor.stop()
            if self.launch.output and pair in self.connections.initialised:
                self._write_weights(pair, executor, Path(self.launch.output))
        self.checkpointing.close()
        self.acceptor.close()
        if self.leader:
            self.leader.close()
        for finish in (self._close_logs, self.training_status.close, lambda: self.trace.write(self.launch.output)):
            try:
                finish()
            except OSError as error:
                self.membership.fail(error)  # a full disk: what was not written is lost, and the run has failed

    def _write_weights(self, pair: int, executor: Executor, folder: Path) -> None:
        if (name := final_weights.not_finite(executor)) is not None:
            self.training_status.weights_not_finite(name)
            try:
                self.training_status.demand_finite()
            except NotFinite as error:
                self.membership.fail(error)
        if self.first:
            (folder / "status.json").write_text(json_text.dumps(self.training_status.to_json(), indent=1))
        final_weights.write(executor, pair, folder)

    def _new_executor(self, pair: int, shard: Shard) -> Executor:
        others = [e.shard for e in self.connections.executors.values()]
        self.metrics.set(metrics.PARAMETER_BYTES, sum(b.nbytes for s in (*others, shard) for b in s.buckets))
        gradients = self.launch.spec.gradients
        rules = UpdateRules(
            self.knobs.waits_for_all,
            gradients.max_norm,
            gradients.on_non_finite.checks_gradients,
            lambda version, here: self._total_norm((pair, version), here),
        )
        executor = Executor(shard, rules, self._applied, partial(self.checkpointing.copy, pair))
        if self.checkpointing.prepare(executor, pair):
            self.connections.initialised.add(pair)
        return executor

    def _total_norm(self, key: tuple[int, int], here: float) -> float:
        if self.leader:
            self.leader.tell_norm(key, here)
        else:
            self.norms.add(0, key, here)
        return self.norms.total(key)

    def _applied(self, update: Update) -> None:
        self.metrics.observe(metrics.APPLY, update.end - update.begin)
        self.metrics.add(metrics.LOCK_WAIT, update.waited)
        self.metrics.set(metrics.VERSION, sum(e.version for e in list(self.connections.executors.values())))
        self.trace.update(update)

    def _arrived(self, pair: int, event: Joined | Pushed) -> None:
        if self.leader:
            self.leader.arrived(pair, event)
        else:
            self._sequence(pair, 0, event)

    def _sequence(self, pair: int, shard: int, event: Joined | Pushed) -> None:
        """Shard 0: something is complete on a shard. An order that cannot be given ends the training."""
        try:
            self._sequencer(pair).arrived(shard, event)
        except Exception as error:
            self.fail(error)
            raise

    def _left(self, worker: int, incarnation: int) -> None:
        with self._making:
            sequencers = list(self._sequencers.values())
        for sequencer in sequencers:
            try:
                sequencer.left(worker, incarnation)
            except Exception as error:
                self.fail(error)
                raise

    def _sequencer(self, pair: int) -> Sequencer:
        """Of one pair of a model and an optimizer: each has an order of its own."""
        assert self.first, "only shard 0 decides"
        with self._making:
            if pair not in self._sequencers:
                give = partial(self._decided, pair)
                self._sequencers[pair] = Sequencer(
                    machine(self.launch, pair, self.checkpointing.version(pair)),
                    self.launch.spec.server.replicas,
                    give,
                )
            return self._sequencers[pair]

    def _waiting_for(self, pair: int) -> tuple[int, ...]:
        return self._sequencer(pair).waiting_for() if self.first else ()

    def _decided(self, pair: int, event: Event, actions: Sequence[Action]) -> None:
        """Shard 0: carry out an order here and hand it on. Called in the order of decisions."""
        actions = self.checkpointing.after(pair, event, actions, lambda other: self._sequencer(other).order)
        for action in actions:
            if isinstance(action, Apply):
                self._count_applied(pair, action)
            elif isinstance(action, Reject):
                self.training_status.rejected(action.worker, action.reason, action.delay)
                self._count_not_finite(pair, {action.worker: action.step})
        self._carry_out(pair, event, actions)
        self.followers.give(pair, event, actions)

    def _tell_saved(self, value: dict[str, Any]) -> None:
        assert self.leader is not None, "connected before anything can be saved"
        self.leader.tell_saved(value)

    def _carry_out(self, pair: int, event: Event, actions: Sequence[Action]) -> None:
        try:
            self._log(pair).write(actions, event)
        except OSError as error:
            self.fail(error)
        if pair in self.connections.executors:
            self.connections.executors[pair].order(actions)
        if isinstance(event, Left) and not self.first:
            self.membership.leave(event.worker, event.incarnation)

    def _count_applied(self, pair: int, action: Apply) -> None:
        delays = {p.worker: action.version - 1 - p.version for p in action.pushes}
        executor, sequencer = self.connections.executors[pair], self._sequencer(pair)
        self._count_not_finite(pair, {p.worker: p.step for p in action.pushes})
        if not all(executor.pushes[w].applicable for w in delays):
            for worker, delay in delays.items():
                self.training_status.rejected(worker, NONFINITE, delay)
            return
        arrivals = {w: sequencer.arrivals[w] for w in delays} if self.knobs.names_lag else None
        others = sum(e.version for number, e in self.connections.executors.items() if number != pair)
        self.training_status.applied(action.version + others, delays, arrivals)

    def _count_not_finite(self, pair: int, steps: Mapping[int, int]) -> None:
        """Which workers' gradients of these steps are not finite."""
        executor = self.connections.executors[pair]
        names = executor.shard.signature.parameters
        try:
            for worker, step in steps.items():
                push = executor.pushes.get(worker)
                if push is not None and push.step == step and push.not_finite is not None:
                    self.training_status.gradient_not_finite(worker, step, names[push.not_finite].name)
                    self.training_status.demand_finite()
        except NotFinite as error:
            self.fail(error)

    def _log(self, pair: int) -> ArrivalLog:
        if pair not in self._logs:
            self._logs[pair] = ArrivalLog(self.launch.output, self.launch.ordinal, pair)
        return self._logs[pair]

    def _close_logs(self) -> None:
        for log_of_pair in list(self._logs.values()):
            log_of_pair.close()

    def _listen(self) -> None:
        assert self.leader is not None, "only the other shards follow"
        try:
            self.leader.listen()
            self._over.set()
        except PacelineError as error:
            if self.told_to_end:
                self.leader.ends = True  # nobody is left who could say so
                return
            self.fail(error if error.from_peer else PeerLost(f"ps-0 was lost: {error}"))
        except Exception as error:  # without orders every worker would wait in vain
            error.add_note("the orders of ps-0 could not be carried out")
            self.fail(error)
