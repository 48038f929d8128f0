"""A ring that is made anew when a worker is lost: the others' processes go on, and another takes the lost one's place.

Whoever sees that the group is broken ends its own connections of it, so that all see it within milliseconds, also when
the lost worker is only stopped. All meet at the coordinator with how far they are, and make another process group. What
was on its way is reduced again there. The newcomer is given the model and the optimizer's state, and goes on from the
place that was kept of the worker before it (paceline/worker/own_state.py): it makes the steps since then again without
their updates, and takes what it was given after the last of them.

It cannot be done where more was under way than gradients and small buffers: `obstacle` says so.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from paceline import failure
from paceline.checkpoints import state_values
from paceline.worker.all_reduce import pair_checkpoint
from paceline.worker.all_reduce.buffer_broadcast import NOTHING
from paceline.worker.all_reduce.recovery.ring_agreement import Agreement, Gift, Position, What
from paceline.worker.all_reduce.recovery.ring_group import RingGroup
from paceline.worker.all_reduce.ring_optimizer import RingOptimizer
from paceline.worker.collectives.rendezvous_store import RendezvousStore
from paceline.worker.model_description import uncompiled
from paceline.worker.observability.socket_queues import SocketQueues, sockets
from paceline_core.errors import PeerLost
from paceline_core.launch import Launch

ALONE = -1  # the group of a process that was in none
GLOO = "gloo"
NEVER_ASKED = (
    "worker-{} cannot go on where it was lost: its script asked for no batch after the steps that were made again"
)
log = logging.getLogger("paceline")


class RingRecovery:
    """One worker's. `pairs` grows with each call of paceline.distribute(); a process that `joins` takes a place."""

    def __init__(
        self, launch: Launch, store: RendezvousStore, pairs: Sequence[RingOptimizer], backend: str, limit: Any
    ) -> None:
        self._launch, self._store, self._pairs, self._backend, self._limit = launch, store, pairs, backend, limit
        self._groups: list[RingGroup] = []
        self._able = launch.replaced and backend == GLOO
        self.joins = launch.replaced and store.takes_place()
        self._agreement: Agreement | None = None
        self._generation = 0
        self._models: dict[int, Any] = {}  # of each pair what it takes after the last step that it makes again
        self._changed: list[bool] = []  # whether each pair's weights are others than the last step made them
        self.socket_queues: SocketQueues
        self.ask_after: Callable[[], int] = lambda: 0
        if self.joins:
            self._agreement = self._agree(ALONE, None)
        self.connections = self._make_group()

    def new_group(self) -> RingGroup:
        """A process group for another pair: what the script itself sends does not come between."""
        before = sockets()
        made = RingGroup(dist.new_group(timeout=self._limit), self.recover)
        self._groups.append(made)
        self.socket_queues.add(sockets() - before)
        return made

    def joined(self, pair: RingOptimizer, shared: Sequence[tuple[int, int]]) -> int:
        """A pair is there. Of a newcomer, take what the others have; gives the steps that it makes again.

        `shared`: the reductions and exchanges of each pair that were made at its place. Raises PeerLost.
        """
        if self._able:
            pair.reducers[0].keep()
        if self._agreement is None:
            return 0
        number = len(self._pairs) - 1
        pair.reached = self._agreement.updates(number)
        passes, exchanges = shared[number] if number < len(shared) else (0, 0)
        if pair.number > pair.reached or passes > self._agreement.passes(number):
            raise PeerLost(
                f"the place that is kept of worker-{self._launch.ordinal}, after step {pair.number}, is ahead of the "
                f"others, which are at step {pair.reached}"
            )
        self._give(number, self._agreement, passes, exchanges)
        pair.look()
        return pair.reached - pair.number

    def next_question(self, own: int) -> int:
        """The step after which to ask for a checkpoint: the others' of a newcomer, else its own."""
        return self._agreement.ask_after() if self._agreement is not None else own

    def asked(self) -> None:
        """The script asks for a batch, and perhaps has come to its place: take what needs no step to be made again.

        After a step, a script that changes its weights then (clips them, say) has done so, as the others' have.
        """
        for number in list(self._models):
            if not self._pairs[number].repeats:
                self._take_model(self._pairs[number])

    def stepped(self, pair: RingOptimizer) -> None:
        """A step of a newcomer has ended that the others made before."""
        given = self._models.get(self._pairs.index(pair))
        if given is not None and pair.number == pair.reached and not given["changed"]:
            self._take_model(pair)

    @torch.no_grad()
    def _take_model(self, pair: RingOptimizer) -> None:
        """Take the model and the optimizer's state that the others gave, whatever the script has made of them here."""
        number = self._pairs.index(pair)
        given, self._groups[number].refuses = self._models.pop(number), None
        held = _tensors(pair)
        for name, tensor in given["tensors"].items():
            held[name].copy_(tensor)
        pair.buffers.take()
        pair.buffers.are_set()
        pair.optimizer.state.clear()
        group_of = {id(p): group for group in pair.optimizer.param_groups for p in group["params"]}
        for parameter, state in zip(pair.parameters, given["states"], strict=True):
            if state:
                group = group_of[id(parameter)]
                pair.optimizer.state[parameter] = {
                    key: pair_checkpoint.placed(key, value, parameter, group) for key, value in state.items()
                }
        pair.unchanged.note()

    def recover(self, error: RuntimeError) -> None:
        """The group of a pair is broken: come back when there is another. Raises the error where that cannot be."""
        if not self._able or not failure.broken_ring(error) or failure.too_late(error):
            raise error
        if obstacle := self.obstacle():
            log.warning("the ring broke, and another worker cannot take the lost one's place alone: %s", obstacle)
            raise error
        log.warning("the ring broke: %s; the workers that are left wait for another one", _first_line(error))
        self._changed = [not pair.unchanged for pair in self._pairs]
        position = self._position()
        again: RuntimeError | None = error
        spent = 0.0
        while again is not None:
            began = time.perf_counter()
            self._break_up()
            waits = time.perf_counter()
            agreement = self._agree(self._generation, position)
            all_here = time.perf_counter()
            again = self._go_on(agreement)
            spent += time.perf_counter() - all_here + waits - began
        log.warning(
            "the ring goes on, as generation %d: it took %.3f s beside the wait for all to be here",
            self._generation, spent,
        )  # fmt: skip

    def obstacle(self) -> str | None:
        """Why what this worker does could not be repeated, if so."""
        if not self._able:
            return f"backend {self._backend}"
        if _collectives_of_script():
            return "the script, or SyncBatchNorm, has used torch.distributed itself"
        if len(dist.distributed_c10d._world.pg_map) > 1 + len(self._groups):
            return "the script has process groups of its own"
        for pair in self._pairs:
            if pair.calls_closures:
                return "the optimizer calls a closure"
            if pair.buffers.held == NOTHING:
                return "buffers were registered in this step"
            if pair.buffers.large_changed:
                return "a large buffer has changed"
            if any(each.has_sparse for each in pair.reducers):
                return "gradients are sparse"
        return None

    def _position(self) -> Position:
        pairs = self._pairs
        return Position(
            [pair.number for pair in pairs],
            [pair.reducers[0].passes for pair in pairs],
            [pair.reducers[0].means() is not None for pair in pairs],
            [pair.buffers.held for pair in pairs],
            self.ask_after(),
        )

    def _break_up(self) -> None:
        self.socket_queues.shut_down()
        for pair in self._pairs:
            pair.reducers[0].drain()
            pair.buffers.drain()
        for group in self._groups:
            group.made = None
        if dist.is_initialized():
            dist.destroy_process_group()

    def _agree(self, before: int, position: Position | None) -> Agreement:
        """Meet the others. Raises PeerLost where they cannot go on together."""
        told = None if position is None else position.to_json()
        self._generation, members = self._store.regroup(before, told)
        agreement = Agreement({w: None if it is None else Position.from_json(it) for w, it in members.items()})
        if obstacle := agreement.obstacle():
            raise PeerLost(f"a worker was lost, and another cannot take its place alone: {obstacle}")
        return agreement

    def _go_on(self, agreement: Agreement) -> RuntimeError | None:
        """Over another group, in which all are given what they lack; gives an error of one that broke again."""
        try:
            self.socket_queues.replace(self._make_group())
            for number, pair in enumerate(self._pairs):
                before = sockets()
                self._groups[number].made = dist.new_group(timeout=self._limit)
                self.socket_queues.add(sockets() - before)
                self._give(number, agreement, *pair.shared)
        except RuntimeError as error:
            if not failure.broken_ring(error):
                raise
            return error
        for pair in self._pairs:
            pair.reducers[0].send_again()
            pair.buffers.send_again()
        return None

    def _make_group(self) -> set[int]:
        """torch's default group; gives the descriptors of its connections."""
        before = sockets()
        dist.init_process_group(
            self._backend,
            store=PrefixStore(f"generation-{self._generation}", self._store),
            rank=self._launch.ordinal,
            world_size=self._launch.world_size,
            timeout=self._limit,
        )
        return sockets() - before

    def _give(self, number: int, agreement: Agreement, passes: int, exchanges: int) -> None:
        """Send and receive what this pair's workers lack; so many passes and exchanges were made here."""
        pair, group, own = self._pairs[number], self._groups[number], self._launch.ordinal
        means = buffers = None
        for gift in agreement.gifts(number):
            if gift.source == own:
                _send(group, gift, self._content(pair, gift.what))
            elif gift.receiver == own:
                found = _receive(group, gift)
                if gift.what is What.MODEL:
                    self._models[number] = found
                    group.refuses = PeerLost(NEVER_ASKED.format(own))
                elif gift.what is What.MEANS:
                    means = found
                else:
                    buffers = found
        pair.reducers[0].go_on(passes, agreement.passes(number), means)
        pair.buffers.go_on(exchanges, agreement.exchanges(number), buffers)

    def _content(self, pair: RingOptimizer, what: What) -> Any:
        if what is What.MEANS:
            return pair.reducers[0].means()
        if what is What.BUFFERS:
            return pair.buffers.packed()
        return {
            "changed": self._changed[self._pairs.index(pair)],
            "tensors": {name: tensor.detach() for name, tensor in _tensors(pair).items()},
            "states": [dict(pair.optimizer.state.get(p, {})) for p in pair.parameters],
        }


def _collectives_of_script() -> int:
    """Those of torch's default group; those of Paceline have groups of their own."""
    group: Any = dist.distributed_c10d._get_default_group()
    return int(group._get_sequence_number_for_group())


def _tensors(pair: RingOptimizer) -> dict[str, torch.Tensor]:
    """All that the model and the optimizer hold, each tensor once."""
    model, out, seen = uncompiled(pair.model), dict[str, torch.Tensor](), set[int]()
    named = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in [*named, *((f"optimizer.{i}", p) for i, p in enumerate(pair.parameters))]:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            out[name] = tensor
    return out


def _send(group: RingGroup, gift: Gift, content: Any) -> None:
    data = state_values.encode(content)
    length = torch.tensor([len(data)], dtype=torch.int64, device="cpu")
    group.made.send([length], gift.receiver, 0).wait()
    group.made.send([torch.frombuffer(bytearray(data), dtype=torch.uint8)], gift.receiver, 0).wait()


def _receive(group: RingGroup, gift: Gift) -> Any:
    length = torch.zeros(1, dtype=torch.int64, device="cpu")
    group.made.recv([length], gift.source, 0).wait()
    data = torch.empty(int(length.item()), dtype=torch.uint8, device="cpu")
    group.made.recv([data], gift.source, 0).wait()
    return state_values.decode(data.numpy().tobytes())


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0]
