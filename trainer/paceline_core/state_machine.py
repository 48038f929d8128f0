"""The parameter server's state machine: pure, the same for every strategy, which is a setting of its knobs.

Events come in (a worker joined or left, a push is complete on every shard), actions go out (admit, apply, reply,
reject). Tensors, sockets and clocks stay outside. With n updates made, a gradient g computed from P(n - d) has the
*delay* d, and applying it makes P(n + 1) = P(n) - lr * g(P(n - d)).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace


def constant(delay: int) -> float:
    """The learning-rate rule that ignores the delay."""
    del delay
    return 1.0


@dataclass(frozen=True)
class Knobs:
    """What a strategy does. Everybody who must know asks these, and never the strategy's name."""

    quorum: int | None = None  # pushes that make an update; None: one of every member
    greatest_delay: int | None = None  # in updates; a push with a greater delay is rejected
    clock_bound: int | None = None  # steps that a worker may be ahead of the slowest member
    learning_rate: Callable[[int], float] = constant  # greatest delay of an update -> factor of the learning rate
    replaces_alone: bool = False  # a worker that is lost ends nothing: another takes its place
    held_by_workers: bool = False  # they have the weights, and no server: one at least must be left of them
    repeats: bool = False  # the batches of a step that was rejected as stale come again

    @property
    def waits_for_all(self) -> bool:
        """Whether each update is a round of all members, so that the last to arrive makes the others wait."""
        return self.quorum is None

    @property
    def replaced_where_it_was(self) -> bool:
        """Whether one in a lost worker's place goes on where that was, and the others wait for it until then."""
        return self.replaces_alone and self.waits_for_all

    @property
    def names_lag(self) -> bool:
        """Whether it is known of each worker by how much it came later than the others, update by update."""
        return self.waits_for_all

    @property
    def rejects_late(self) -> bool:
        """Whether a gradient can come too late to be applied."""
        return self.greatest_delay is not None

    @property
    def order_matters(self) -> bool:
        """Whether the weights depend on the order of arrival, so that only its log gives the same ones again."""
        return not self.waits_for_all


@dataclass(frozen=True)
class Joined:
    """A worker is ready to be admitted."""

    worker: int
    incarnation: int


@dataclass(frozen=True)
class Left:
    """A worker has gone, in order or not."""

    worker: int
    incarnation: int


@dataclass(frozen=True)
class Pushed:
    """A worker's gradient of `step`, computed from parameters of `version`, is there whole."""

    worker: int
    incarnation: int
    step: int
    version: int


@dataclass(frozen=True)
class Admit:
    """Let a worker in, with the parameters of `version`."""

    worker: int
    incarnation: int
    version: int
    lowest: int = 0  # of the members: its buffers count, and what its script changes


@dataclass(frozen=True)
class Apply:
    """Apply the mean of these gradients, in worker order; the result is `version`."""

    version: int
    pushes: tuple[Pushed, ...]
    factor: float
    lowest: int = 0  # of the members


@dataclass(frozen=True)
class Reply:
    """This push was applied: answer with the parameters of `version`."""

    worker: int
    incarnation: int
    step: int
    version: int
    delay: int


@dataclass(frozen=True)
class Reject:
    """This push is not applied: answer with the reason and the parameters of `version`."""

    worker: int
    incarnation: int
    step: int
    reason: str
    version: int
    delay: int
    lowest: int = 0  # of the members


@dataclass(frozen=True)
class Repeat:
    """A push that was decided before came again: answer as then."""

    worker: int
    incarnation: int
    step: int


@dataclass(frozen=True)
class Save:
    """Keep everything as it is now: `step` counts the updates made, of all pairs of a model and an optimizer.

    No event makes the state machine say so; shard 0 puts it into the order of each of these `pairs`, so that all shards
    save the same. With `asks`, each worker is asked in its next reply for a state of its own. With `last` the training
    ends there for now, because processes were told to: each worker makes no further step.
    """

    step: int
    pairs: int
    asks: bool
    last: bool = False


Event = Joined | Left | Pushed
Action = Admit | Apply | Reply | Reject | Repeat | Save


@dataclass(frozen=True)
class Member:
    """A worker that takes part."""

    incarnation: int
    clock: int = 0  # pushes decided, since the start or, for one that came later, counted from the slowest
    step: int = 0  # last step decided


@dataclass(frozen=True)
class State:
    """Everything the server remembers between two events."""

    knobs: Knobs
    expected: frozenset[int]  # nobody is admitted before all of these have joined once
    version: int = 0
    formed: bool = False
    members: Mapping[int, Member] = field(default_factory=dict)
    pending: tuple[Pushed, ...] = ()  # complete, not yet applied
    held: tuple[Reply, ...] = ()  # applied, but the worker is too far ahead to go on

    def advance(self, event: Event) -> "tuple[State, tuple[Action, ...]]":
        """The state after `event`, and what is to be done."""
        match event:
            case Joined():
                return _join(self, event)
            case Left():
                return _leave(self, event)
            case Pushed():
                return _push(self, event)

    def waiting_for(self) -> tuple[int, ...]:
        """The workers for whose push (or join) the others wait."""
        if not self.formed:
            return tuple(sorted(self.expected - self.members.keys()))
        if self.held:
            slowest = min(m.clock for m in self.members.values())
            return tuple(sorted(w for w, m in self.members.items() if m.clock == slowest))
        pushed = {p.worker for p in self.pending}
        return tuple(sorted(self.members.keys() - pushed))


def start(knobs: Knobs, world_size: int, version: int = 0) -> State:
    """The state before anyone has joined; `version` of the parameters that a checkpoint gave."""
    return State(knobs, frozenset(range(world_size)), version)


def _join(state: State, event: Joined) -> tuple[State, tuple[Action, ...]]:
    before = state.members.get(event.worker)
    if before is not None and before.incarnation >= event.incarnation:
        return state, (Repeat(event.worker, event.incarnation, 0),) if state.formed else ()
    slowest = min((m.clock for m in state.members.values()), default=0)
    members = {**state.members, event.worker: Member(event.incarnation, slowest)}
    state = replace(_without(state, event.worker), members=members)
    if not state.formed:
        if not state.expected <= members.keys():
            return state, ()
        admitted = sorted(members)
        state = replace(state, formed=True)
        return state, tuple(Admit(w, members[w].incarnation, state.version, admitted[0]) for w in admitted)
    return state, (Admit(event.worker, event.incarnation, state.version, min(members)),)


def _leave(state: State, event: Left) -> tuple[State, tuple[Action, ...]]:
    member = state.members.get(event.worker)
    if member is None or member.incarnation != event.incarnation:
        return state, ()
    members = {w: m for w, m in state.members.items() if w != event.worker}
    state, applied = _apply(replace(_without(state, event.worker), members=members))
    state, released = _release(state)
    return state, applied + released


def _push(state: State, event: Pushed) -> tuple[State, tuple[Action, ...]]:
    member, delay = state.members.get(event.worker), state.version - event.version
    if not state.formed or member is None or member.incarnation != event.incarnation:
        return state, (_reject(state, event, "incarnation", delay),)
    if event in state.pending:
        return state, ()
    if event.step == member.step:
        return state, (Repeat(event.worker, event.incarnation, event.step),)
    if event.step < member.step or any(p.worker == event.worker for p in state.pending):
        return state, (_reject(state, event, "duplicate", delay),)
    limit = state.knobs.greatest_delay
    if delay < 0 or (limit is not None and delay > limit):
        state, released = _release(replace(state, members=_decided(state.members, (event,))))
        return state, (_reject(state, event, "stale" if delay > 0 else "version", delay), *released)
    state, applied = _apply(replace(state, pending=(*state.pending, event)))
    state, released = _release(state)
    return state, applied + released


def _apply(state: State) -> tuple[State, tuple[Action, ...]]:
    """Make an update if there is a quorum; its replies are held until `_release`."""
    wanted = len(state.members)
    if state.knobs.quorum is not None:
        wanted = min(state.knobs.quorum, wanted)
    if not state.formed or not state.pending or len(state.pending) < wanted:
        return state, ()
    pushes = tuple(sorted(state.pending, key=lambda p: p.worker))
    delays = {p.worker: state.version - p.version for p in pushes}
    version = state.version + 1
    replies = tuple(Reply(p.worker, p.incarnation, p.step, version, delays[p.worker]) for p in pushes)
    members = _decided(state.members, pushes)
    state = replace(state, members=members, version=version, pending=(), held=state.held + replies)
    return state, (Apply(version, pushes, state.knobs.learning_rate(max(delays.values())), min(state.members)),)


def _release(state: State) -> tuple[State, tuple[Action, ...]]:
    """Let the replies go whose workers are not too far ahead of the slowest member."""
    if not state.held:
        return state, ()
    bound = state.knobs.clock_bound
    slowest = min((m.clock for m in state.members.values()), default=0)
    ahead = {r.worker for r in state.held if bound is not None and state.members[r.worker].clock > slowest + bound}
    # A worker that waited gets the newest parameters, not those of the update that holds its gradient.
    go, newest = [r for r in state.held if r.worker not in ahead], state.version
    released = tuple(r if r.version == newest else replace(r, version=newest) for r in go)
    return replace(state, held=tuple(r for r in state.held if r.worker in ahead)), released


def _decided(members: Mapping[int, Member], pushes: Sequence[Pushed]) -> Mapping[int, Member]:
    """The members once these pushes have been decided."""
    decided = dict(members)
    for push in pushes:
        before = members[push.worker]
        decided[push.worker] = Member(before.incarnation, before.clock + 1, push.step)
    return decided


def _without(state: State, worker: int) -> State:
    return replace(
        state,
        pending=tuple(p for p in state.pending if p.worker != worker),
        held=tuple(r for r in state.held if r.worker != worker),
    )


def _reject(state: State, push: Pushed, reason: str, delay: int) -> Reject:
    lowest = min(state.members, default=0)
    return Reject(push.worker, push.incarnation, push.step, reason, state.version, delay, lowest)
