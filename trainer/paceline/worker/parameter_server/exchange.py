"""One optimizer's exchange with the parameter servers: join once, then gradients for parameters at each step."""

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import is_not
from typing import Any

import torch

from paceline import metrics, optimizer_state, optimizers
from paceline.model_signature import Signature
from paceline.wire.frames import FrameKind, Header
from paceline.worker.model_description import ADDED_LATE, trained_parameters
from paceline.worker.observability.measuring import Measuring
from paceline.worker.observability.phase_hooks import Observer
from paceline.worker.observability.step_metrics import LastStep
from paceline.worker.parameter_server.grad_scaler import scaling, tell_scaler
from paceline.worker.parameter_server.gradient_buckets import GradientBuckets
from paceline.worker.parameter_server.optimizer_patch import RemoteState
from paceline.worker.parameter_server.parameter_targets import Targets
from paceline.worker.parameter_server.shard_connection import Commit, PushAnswer, ShardConnection, answers
from paceline.worker.parameter_server.tensor_changes import Changed, TensorChanges
from paceline.worker.parameter_server.untrained_changes import UntrainedChanges
from paceline_core.buckets import Slice
from paceline_core.errors import UsageError
from paceline_core.finiteness import NONFINITE
from paceline_core.launch import Launch

SHOWN = 3  # names of changed parameters
log = logging.getLogger("paceline")


@dataclass(frozen=True)
class ModelAndOptimizer:
    """A model and its optimizer, as one call of paceline.distribute() brought them; calls are counted from 0."""

    number: int
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    signature: Signature


class Exchange:
    """The exchange of one pair of a model and an optimizer; `others` are parameters that pairs before it train."""

    def __init__(
        self,
        launch: Launch,
        pair: ModelAndOptimizer,
        measuring: Measuring,
        observer: Observer,
        others: Collection[torch.Tensor] = (),
    ) -> None:
        self.launch, self.pair, self._observer = launch, pair, observer
        self._metrics, self._clock, self._injected_delay = measuring.metrics, measuring.clock, measuring.injected_delay
        gradients = launch.spec.gradients
        self._plan = pair.signature.plan(launch.spec.server.replicas, int(gradients.bucket_mib * (1 << 20)))
        self.parameters = trained_parameters(pair.optimizer)
        self._targets = Targets(self.parameters)
        self._connections = self._connect()
        self.untrained = UntrainedChanges(pair.model, pair.signature)
        self.untrained.leave_out(others)
        self._version, self._lowest = 0, 0
        self.number = 0  # of the optimizer's last step
        self.shared = 0, 0  # for the servers sum gradients and spread buffers
        self.repeats = 0  # steps to come that another process in this worker's place has made
        self._first = True  # no step of this process has been sent
        self.save_asked = 0  # by the last answer: the checkpoint for which this worker is to send its state
        self.save_last = False  # and after which it is to make no further step
        self._ignored = False
        self.gradients = GradientBuckets(
            self.parameters, pair.signature, self._plan, self._push, observer.gradient_ready,
            gradients.overlap, gradients.on_non_finite.checks_gradients,
        )  # fmt: skip
        self._held = RemoteState(dict)
        if not optimizers.has_state(pair.optimizer):
            pair.optimizer.state = self._held
        self._join()
        self._changes = TensorChanges(lambda: self.parameters)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The script's."""
        return self.pair.optimizer

    def step(self) -> LastStep:
        """Push this step's gradients, and return when the model holds the parameters for the next forward pass."""
        if self.repeats:
            return self._repeat()
        changed, untrained, scaled = self._changes.found(), self.untrained.changed(), scaling(self.pair.optimizer)
        unscaled = "found_inf" in scaled and "unscale" not in scaled  # by the script, with GradScaler.unscale_
        absent, not_finite = self.gradients.finish(unscaled)
        payload = self._payload(absent) | scaled
        if not_finite is not None and not scaled.get("found_inf"):
            payload["not_finite"] = not_finite
        mine = self._lowest == self.launch.ordinal
        if self._begins_anew and self._first:
            mine = False
            if changed.all or self._state_loaded:
                payload["absent"] = self._begun_anew(payload["absent"], changed)
                changed = Changed([], [])
        payload |= self._push_changed(changed) | ({} if mine or not untrained else {"touched": untrained})
        started = time.perf_counter()
        found = self._commit(self._header(FrameKind.COMMIT), payload, self.untrained.pack(untrained) if mine else {})
        self._charge(started, found)
        if found[0].reason == NONFINITE:
            tell_scaler(self.pair.optimizer)
        self._say_if_ignored(found[0], changed)
        self._install(found)
        self.number, self._first = self.number + 1, False
        self.save_asked, self.save_last = max((answer.save, answer.last) for answer in found)
        return LastStep(found[0].version, found[0].delay, found[0].accepted, found[0].reason)

    def takes_place(self, number: int) -> None:
        """This worker goes on where another was after step `number`; the steps since have been made without it."""
        self.number, self.repeats = number, self._version - number
        self.gradients.repeats = self.repeats > 0

    def take_anew(self) -> None:
        """Take parameters and buffers as they are on the servers, whatever the script has made of them here."""
        self._drop_state()
        self._install(self._commit(self._header(FrameKind.JOIN, step=0), {}, {}), joining=True)
        self._changes.remember()

    def fetch_optimizer_state(self) -> dict[torch.Tensor, dict[str, Any]] | None:
        """The servers' state of each parameter; None while the optimizer itself holds one that was loaded.

        Raises PeerLost.
        """
        if self._state_loaded:
            return None
        slices: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        with_state = [c for c in self._connections if c.carries_state]
        commits = [(connection, Commit(self._header(FrameKind.ASK_STATE), {})) for connection in with_state]
        for connection, commit in commits:
            connection.commit(commit)
        for answer in answers([commit for _, commit in commits]):
            for (index, start), state in optimizer_state.unpack(answer.state).items():
                slices.setdefault(index, []).append((start, state))
        return {self.parameters[i]: optimizer_state.joined(self.parameters[i], parts) for i, parts in slices.items()}

    def leave(self) -> None:
        """Leave; what the script changed after its last step (best weights, loaded again) is carried out."""
        if self.repeats:  # the script ended before it was where others wait for it: nothing here is newer
            self._close()
            return
        changed, untrained = self._changes.found(), self.untrained.changed()
        if not self.launch.spec.knobs.waits_for_all:  # this worker's parameters are not the newest
            changed = Changed(changed.certain, [])
        if self._lowest != self.launch.ordinal:
            self._say_what_is_not_saved(changed)
        elif changed.all or untrained:
            payload = self._payload([]) | self._push_changed(changed) | {"final": True}
            self._commit(self._header(FrameKind.COMMIT), payload, self.untrained.pack(untrained))
        self._close()

    @property
    def traffic(self) -> tuple[int, int]:
        """Payload bytes sent and received since the start, or since a connection was made anew."""
        return sum(c.bytes_sent for c in self._connections), sum(c.bytes_received for c in self._connections)

    def _close(self) -> None:
        for connection in self._connections:
            connection.close()

    def _connect(self) -> list[ShardConnection]:
        count = self.launch.spec.gradients.connections

        def retried() -> None:
            self._metrics.add(metrics.RETRIES, 1, "reset")

        pair, delay = self.pair, self._injected_delay
        return [
            ShardConnection(self.launch, pair.number, pair.signature, shard, number, self._targets, retried, delay)
            for shard in self._plan
            for number in range(count)
        ]

    def _join(self) -> None:
        self._targets.load()
        untrained = self.untrained.everything() if self.launch.ordinal == 0 else {}
        self._install(self._commit(self._header(FrameKind.JOIN, step=0), {}, untrained), joining=True)

    @property
    def _begins_anew(self) -> bool:
        """Whether this process is in another's place, and its script begins at its beginning."""
        return self.launch.incarnation > 0 and not self.launch.spec.knobs.waits_for_all

    def _repeat(self) -> LastStep:
        """Leave out a step that was made before: what it changed in the script's own objects was to be made again."""
        self.number += 1
        self.repeats -= 1
        if not self.repeats:
            self.gradients.repeats = False
            self.take_anew()
        return LastStep(self._version - self.repeats, 0, True, "")

    def _payload(self, absent: list[int]) -> dict[str, Any]:
        optimizer, settings = self.pair.optimizer, self.pair.signature.settings
        now = trained_parameters(optimizer)
        if len(now) != len(self.parameters) or any(map(is_not, now, self.parameters)):
            raise UsageError(ADDED_LATE)
        if len(optimizer.param_groups) != len(settings):
            raise UsageError(ADDED_LATE)
        return {"absent": absent, "settings": optimizers.settings(optimizer)}

    def _push_changed(self, changed: Changed) -> dict[str, Any]:
        """Send what the script made of parameters and of the optimizer's state; gives what the COMMIT says of it."""
        said: dict[str, Any] = {"state": True} if self._state_loaded else {}
        if not changed.all:
            return said
        self._targets.refresh()
        self._targets.load()
        for shard in self._plan:
            for bucket in shard.buckets:
                if any(cut.parameter in changed.all for cut in bucket.slices):
                    self._queue(FrameKind.INITIAL, shard.ordinal, bucket.index, self._targets.pieces(bucket))
        return said | {"changed": changed.all, "certain": changed.certain}

    def _begun_anew(self, absent: list[int], changed: Changed) -> list[int]:
        """This worker took a lost one's place, and its script has begun anew: what it loads is not for all.

        A gradient that was computed from what it loaded is none: gives the parameters without one.
        """
        log.warning("the training is at version %d: what the script loaded is not taken over", self._version)
        self._drop_state()
        return list(range(len(self.parameters))) if changed.all else absent

    @property
    def _state_loaded(self) -> bool:
        """Whether the script has given the optimizer a state. Raises UsageError where it wrote into the servers'."""
        state = self.pair.optimizer.state
        if state is self._held and state:
            raise UsageError(
                "the script wrote into optimizer.state, which the servers hold: use optimizer.state_dict(), change "
                "what it gives, and optimizer.load_state_dict()"
            )
        return state is not self._held or self._held.cleared

    def _say_what_is_not_saved(self, changed: Changed) -> None:
        if changed.certain:
            log.warning(
                "what this worker changed after its last step is not saved: worker-%d's parameters are", self._lowest
            )

    def _push(self, shard: int, bucket: int, pieces: list[memoryview]) -> None:
        self._queue(FrameKind.PUSH, shard, bucket, pieces)

    def _queue(self, kind: FrameKind, shard: int, bucket: int, pieces: list[memoryview]) -> None:
        count = self.launch.spec.gradients.connections
        self._connections[shard * count + bucket % count].push(self._header(kind, bucket=bucket), pieces)

    def _commit(self, header: Header, payload: dict[str, Any], untrained: dict[int, memoryview]) -> list[PushAnswer]:
        self._targets.refresh()
        commits = []
        for connection in self._connections:
            commit = Commit(header, payload)
            if connection.carries_untrained:
                commit.untrained = untrained
            if connection.carries_state and "state" in payload:
                commit.state = self._state(connection)
            commits.append(commit)
            connection.commit(commit)
        return answers(commits)

    def _state(self, connection: ShardConnection) -> bytes:
        """The state that the script has loaded, as far as it belongs to one shard."""
        state = self.pair.optimizer.state

        def cut(piece: Slice) -> tuple[Slice, dict[str, Any]]:
            parameter = self.parameters[piece.parameter]
            return piece, optimizer_state.cut(parameter, state.get(parameter, {}), piece)

        return optimizer_state.pack(cut(piece) for bucket in connection.shard.buckets for piece in bucket.slices)

    def _charge(self, started: float, found: Sequence[PushAnswer]) -> None:
        """Divide the exchange: sending until the last connection had sent, waiting until each had its answer."""
        sent = max(a.sent for a in found)
        self._clock.enter("send", at=started)
        self._clock.enter("wait", at=sent)
        self._clock.enter("receive", at=max(a.begun for a in found))
        self._clock.enter("apply", at=max(a.done for a in found))

    def _say_if_ignored(self, answer: PushAnswer, changed: Changed) -> None:
        if answer.ignored and not self._ignored:
            self._ignored = True
            names = ", ".join(self.pair.signature.parameters[i].name for i in changed.certain[:SHOWN])
            log.warning(
                "this worker changed %s between two steps: where updates do not wait for all workers, what worker-%d "
                "changes counts, and nobody else's", names, answer.lowest,
            )  # fmt: skip

    def _install(self, found: Sequence[PushAnswer], joining: bool = False) -> None:
        for answer in found:
            if answer.untrained is not None:
                self.untrained.install(answer.untrained)
        self._targets.finish()
        self._version, self._lowest = found[0].version, found[0].lowest
        if not joining:
            self._drop_state()
            self._changes.remember()

    def _drop_state(self) -> None:
        if self._state_loaded:
            self._held = self.pair.optimizer.state = RemoteState(dict)  # the servers hold it now

    def _header(self, kind: FrameKind, bucket: int = 0, step: int | None = None) -> Header:
        number = self.number + 1 if step is None else step
        return Header(
            kind, bytes.fromhex(self.launch.training_id), self.launch.ordinal, self.launch.incarnation, number,
            self._version, bucket,
        )  # fmt: skip
