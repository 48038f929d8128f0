"""What a parameter server does about checkpoints: going on from one at the start, and saving others on the way."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paceline import weights
from paceline.checkpoints import finding, part_writer
from paceline.checkpoints.part_writer import Part, PartWriter
from paceline.server.checkpoints.beginning import Beginning
from paceline.server.checkpoints.completing import Completing
from paceline.server.checkpoints.completion import Completion
from paceline.server.checkpoints.filling import fill
from paceline.server.checkpoints.last_save import LastSave
from paceline.server.checkpoints.save_schedule import SaveSchedule
from paceline.server.gradients.executor import Executor
from paceline.server.membership.key_value_store import KeyValueStore
from paceline.server.membership.membership import Membership
from paceline.server.observability.checkpoint_record import CheckpointRecord
from paceline_core.launch import Launch
from paceline_core.state_machine import Action, Apply, Event, Save

OrderOf = Callable[[int], Callable[[Event, Sequence[Action]], None]]  # how to give one, by the pair


class Checkpointing(Completing):
    """One shard's part; shard 0 completes checkpoints. `executors` are those of its pairs, `tell` tells shard 0.

    On shard 0 itself `tell` is None.
    """

    def __init__(
        self,
        launch: Launch,
        beginning: Beginning,
        executors: Mapping[int, Executor],
        membership: Membership,
        store: KeyValueStore,
        tell: Callable[[dict[str, Any]], None] | None,
        record: CheckpointRecord,
    ) -> None:
        self._executors, place, spec = executors, finding.root(launch), launch.spec
        self._restored = restored = beginning.restored
        self._versions = dict(enumerate(restored.manifest.versions)) if restored else {}
        self._writer: PartWriter | None = None
        if spec.checkpoint is not None and place is not None:
            if tell is None:
                self._completion = completion = Completion(
                    launch, place, spec.checkpoint.keep, spec.server.replicas,
                    membership.gone_for_good if spec.replaces_alone else membership.absent,
                    store.firsts, record,
                )  # fmt: skip
                self._last_save = it = LastSave(
                    completion, membership, spec.knobs, record, lambda: sum(self._versions.values()) > record.step
                )
                store.offer({"ending": it.answer})
                self._schedule = SaveSchedule(spec.checkpoint, restored.manifest.step if restored else 0, _now())
                tell = lambda value: completion.hear_part(0, value)  # noqa: E731 - it is used once
            self._writer = PartWriter(launch.ordinal, place, tell)
        beginning.tell(record, store)

    @property
    def begins_at(self) -> int:
        """The step of the checkpoint that the training goes on from; 0 where it begins at its beginning."""
        return self._restored.manifest.step if self._restored else 0

    def version(self, pair: int) -> int:
        """The version at which a pair begins."""
        return self._restored.version(pair) if self._restored else 0

    def prepare(self, executor: Executor, pair: int) -> bool:
        """Fill a pair's shard, if there is something to go on from. Raises ModelMismatch, CheckpointDamaged."""
        if self._restored is not None:
            fill(executor, self._restored, pair)
        return self._restored is not None

    def after(self, pair: int, event: Event, actions: Sequence[Action], order_of: OrderOf) -> Sequence[Action]:
        """Shard 0: the actions, and saving if it is due: after the last pair's update, when a step is complete.

        The other pairs' shards are saved at the same moment, in the order of each.
        """
        made = [a.version for a in actions if isinstance(a, Apply)]
        if self._completion is None or self._last_save is None or not made:
            return actions
        self._versions[pair] = max(made)
        pairs = list(self._executors)
        if pair != max(pairs):
            return actions
        step = sum(self._versions.values())
        if not (self._schedule.due(step, _now(), self._last_save.due()) and self._completion.begin(step)):
            return actions
        last = self._last_save.begun(step)
        for other in sorted({*pairs} - {pair}):
            order_of(other)(event, (Save(step, len(pairs), asks=False, last=last),))
        return (*actions, Save(step, len(pairs), asks=True, last=last))

    def copy(self, pair: int, executor: Executor, save: Save) -> None:
        """Copy a pair's part of a checkpoint; called by the thread that owns its tensors, which goes on at once."""
        if self._writer is not None:
            self._writer.write(save.step, part_writer.attempt(lambda: _copied(executor, pair, save)))

    def hear_shard(self, ordinal: int, value: Mapping[str, Any]) -> None:
        """Shard 0: another shard has written its part. Raises ProtocolError."""
        if self._completion is not None:
            self._completion.hear_part(ordinal, value)

    def close(self) -> None:
        """Write what is on its way."""
        if self._writer is not None:
            self._writer.close()
        super().close()


def _now() -> float:
    return time.monotonic()


def _copied(executor: Executor, pair: int, save: Save) -> Part:
    shard = executor.shard
    tensors = {name: part_writer.copy(tensor) for name, tensor in shard.state().items()}
    state = [(cut, {k: part_writer.copy(v) for k, v in held.items()}) for cut, held in shard.optimizer_states()]
    signature = None
    if shard.ordinal == 0:
        tensors |= weights.untrained_tensors(shard.signature, executor.untrained.all())
        signature = shard.signature.to_json()
    return Part(save.step, pair, save.pairs, executor.version, tensors, state, signature)
