"""One worker's part in the checkpoints of a ring: it goes on from one, asks when to save, and writes its share.

What is saved is copied at the end of a step, since a script may change weights before it asks for the next batch, to
evaluate others. Whether more optimizers will step with this batch is not known there: each step copies anew until the
state of the script is taken (paceline/worker/own_state.py), and the last copies are written.
"""

from collections.abc import Collection, Sequence
from functools import partial

import torch

from paceline.checkpoints import finding, part_writer, state_values
from paceline.checkpoints.part_writer import Part, PartWriter
from paceline.checkpoints.restoring import Restored
from paceline.model_signature import Signature
from paceline.worker.all_reduce import pair_checkpoint
from paceline.worker.all_reduce.ring_optimizer import RingOptimizer
from paceline.worker.collectives.rendezvous_store import RendezvousStore
from paceline.worker.observability.phase_clock import PhaseClock
from paceline.worker.observability.reporter import Reporter
from paceline.worker.own_state import OwnState
from paceline_core.errors import UsageError
from paceline_core.launch import Launch


class RingCheckpointing:
    """One worker's; `pairs` grows with each call of paceline.distribute().

    Raises CheckpointDamaged, and UsageError for a checkpoint from which a ring cannot go on.
    """

    def __init__(
        self,
        launch: Launch,
        store: RendezvousStore,
        own_state: OwnState,
        reporter: Reporter,
        pairs: Sequence[RingOptimizer],
        clock: PhaseClock,
        joins: bool,
    ) -> None:
        self._launch, self._store, self._own_state, self._pairs, self._clock = launch, store, own_state, pairs, clock
        self._signatures: list[Signature] = []
        root = finding.root(launch)
        self._writer = PartWriter(launch.ordinal, root, store.saved) if root is not None else None
        self._restored = None if joins else self._verified()
        state = reporter.fetch_state()[0] if self._restored or joins else b""
        self._send_state = reporter.send_state
        self._numbers = numbers = own_state.begin(pairs, self._taken, state)
        if self._restored is not None:
            self._demand_common(self._restored, numbers)
        self.ask_after = self.step + 1  # the next step after which to ask whether to save
        self._last = False  # whether no step is to be made after the checkpoint
        self._copies: list[Part | str] = []  # of each pair, while a checkpoint is due
        self._stepped = set[int]()  # pairs that have updated since

    @property
    def step(self) -> int:
        """Steps that were made, of all pairs, where this process goes on."""
        return self._restored.manifest.step if self._restored else sum(self._numbers)

    def add(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, signature: Signature,
        others: Collection[torch.Tensor],
    ) -> int:  # fmt: skip
        """Another pair: fill it, if there is something to go on from, and give the number of its last step.

        `others` are the parameters that pairs before it train. Raises UsageError, ModelMismatch, CheckpointDamaged.
        """
        number = len(self._signatures)
        self._signatures.append(signature)
        if self._writer is not None:
            _demand_plain(optimizer)
        if self._restored is None:
            return sum(self._numbers[number : number + 1])
        pair_checkpoint.restore(self._restored, number, model, optimizer, signature, others)
        return self._restored.version(number)

    def added(self) -> None:
        """The pair is ready for its first step."""
        self._own_state.settle()

    def step_begins(self, pair: RingOptimizer) -> None:
        """An optimizer is about to update."""
        number = self._pairs.index(pair)
        if not self._copies or number in self._stepped:
            self._own_state.step_begins(number)

    def step_ended(self, pair: RingOptimizer) -> None:
        """An optimizer has updated: copy, if a checkpoint is due."""
        number = self._pairs.index(pair)
        step = sum(each.number for each in self._pairs)
        if self._writer is not None and (self._copies or step >= self.ask_after):
            self._clock.enter("checkpoint")
            if self._copies or self._is_due(step):
                self._copy()
                self._stepped.add(number)
            self._clock.enter("other")
        self._own_state.step_ended(number, step if self._copies else 0, self._last)

    def step_repeated(self, pair: RingOptimizer) -> None:
        """A step was left out that had been made before: no checkpoint is made after it."""
        self._own_state.step_ended(self._pairs.index(pair), 0)

    def leave(self) -> None:
        """The script has ended: write what is on its way."""
        if self._writer is not None:
            self._own_state.leave()
            self._writer.close()

    def _verified(self) -> Restored | None:
        where = self._store.resumed_from() if self._launch.resume is not None else None
        if where is None:
            return None
        found = Restored(finding.place_of(where))
        found.verify(self._launch.world_size)
        return found

    def _demand_common(self, restored: Restored, numbers: Sequence[int]) -> None:
        """In a ring all make the same steps; where workers do not wait for each other, each makes its own."""
        versions = restored.manifest.versions
        if tuple(numbers) != versions:
            raise UsageError(
                f"the checkpoint {restored.place} has {sum(versions)} updates, of which worker-{self._launch.ordinal} "
                f"took part in {sum(numbers)}: {self._launch.spec.topology} goes on where every worker took part in all"
            )

    def _is_due(self, step: int) -> bool:
        saves, self.ask_after, self._last = self._store.save_after(step)
        return saves

    def _copy(self) -> None:
        self._copies.clear()
        for number in range(len(self._pairs)):
            copied = partial(pair_checkpoint.share, self._launch, self._pairs, self._signatures, number)
            self._copies.append(part_writer.attempt(copied))

    def _taken(self, checkpoint: int, state: bytes) -> None:
        """The script's state was taken, for a checkpoint of this step or for none: between two steps."""
        if self._writer is not None and checkpoint:
            for copied in self._copies:
                self._writer.write(checkpoint, copied)
            self._copies, self._stepped = [], set()
        self._send_state(checkpoint, state)


def _demand_plain(optimizer: torch.optim.Optimizer) -> None:
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        state_values.encode(groups)
    except TypeError as error:
        raise UsageError(f"spec.checkpoint: the optimizer's param_groups{error}") from None
