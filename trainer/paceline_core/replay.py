"""The order of a run, written down and followed again.

With the order of the updates fixed, every reply's version is fixed, and so every gradient: the same weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import NamedTuple

from paceline_core.errors import ReplayError
from paceline_core.state_machine import (
    Action,
    Admit,
    Apply,
    Event,
    Joined,
    Knobs,
    Left,
    Pushed,
    Reject,
    State,
    start,
)


class Entry(NamedTuple):
    """One line of the log. The pushes of one update have a line each, with the same version."""

    kind: str  # join, apply, reject or leave
    version: int  # after it
    worker: int
    incarnation: int
    step: int
    delay: int
    reason: str


def entries(actions: Sequence[Action], event: Event) -> tuple[Entry, ...]:
    """What to log for one event. A repeated answer is none."""
    out: list[Entry] = []
    for action in actions:
        match action:
            case Admit(worker=worker, incarnation=incarnation, version=version):
                out.append(Entry("join", version, worker, incarnation, 0, 0, ""))
            case Apply(version=version, pushes=pushes):
                before = version - 1
                out += [
                    Entry("apply", version, p.worker, p.incarnation, p.step, before - p.version, "") for p in pushes
                ]
            case Reject():
                it = action
                out.append(Entry("reject", it.version, it.worker, it.incarnation, it.step, it.delay, it.reason))
    if isinstance(event, Left):
        out.append(Entry("leave", 0, event.worker, event.incarnation, 0, 0, ""))
    return tuple(out)


Key = tuple[int, int, int]  # worker, incarnation, step; LEAVES for the end of a worker
LEAVES = -1
UNDECIDED = ("incarnation", "duplicate")  # rejected without a decision about a step


@dataclass(frozen=True)
class ReplayState:
    """A recorded run that is being followed: pushes and departures wait until the log says that it is their turn."""

    live: State
    script: tuple[Entry, ...]  # what was decided, and who left
    decisions: tuple[Entry, ...]  # the same without who left
    steps: Mapping[int, int]  # the last of each worker
    fed: int = 0  # lines of the script whose event the live state has had
    decided: int = 0  # of the decisions, those that it has made again; the pushes of an update are decided together
    waiting: Mapping[Key, Pushed | Left] = field(default_factory=dict)

    def advance(self, event: Event) -> "tuple[ReplayState, tuple[Action, ...]]":
        """The state after `event`, and what is to be done. Raises ReplayError when the log does not hold it."""
        if isinstance(event, Joined) or self._decided(event):
            live, actions = self.live.advance(event)
            state, more = _drain(replace(self, live=live))
            return state, actions + more
        _check_recorded(self, event)
        return _drain(replace(self, waiting={**self.waiting, _key(event): event}))

    def _decided(self, event: Pushed | Left) -> bool:
        """Whether this came before: a push that is sent again, or a worker that has left."""
        member = self.live.members.get(event.worker)
        return member is None or (isinstance(event, Pushed) and event.step <= member.step)

    def waiting_for(self) -> tuple[int, ...]:
        """The workers that the log names next."""
        if not self.live.formed:
            return self.live.waiting_for()
        return tuple(e.worker for e in self.script[self.fed : self.fed + 1])


def follow(log: Sequence[Entry], knobs: Knobs, world_size: int) -> ReplayState:
    """Begin to follow a log. Raises ReplayError for a run in which workers were replaced."""
    if any(e.incarnation > 0 for e in log):
        raise ReplayError("workers were replaced in the recorded run: it cannot be followed")
    if {e.worker for e in log if e.kind == "join"} != set(range(world_size)):
        raise ReplayError(f"the recorded run is not one of {world_size} workers")
    log = [e for e in log if e.kind != "join" and e.reason not in UNDECIDED]
    decisions = tuple(e for e in log if e.kind != "leave")
    steps = {w: max((e.step for e in decisions if e.worker == w), default=0) for w in range(world_size)}
    return ReplayState(start(knobs, world_size), tuple(log), decisions, steps)


def _drain(state: ReplayState) -> tuple[ReplayState, tuple[Action, ...]]:
    """Hand the events whose turn it is to the state machine, and check that it decides as it did."""
    done: tuple[Action, ...] = ()
    while state.fed < len(state.script) and state.live.formed:
        entry = state.script[state.fed]
        event = state.waiting.get(_key_of(entry))
        if event is None and not (entry.kind == "leave" and entry.worker not in state.live.members):
            break
        state = replace(state, fed=state.fed + 1)
        if event is not None:
            state, actions = _feed(state, event)
            done += actions
    return state, done


def _feed(state: ReplayState, event: Pushed | Left) -> tuple[ReplayState, tuple[Action, ...]]:
    live, actions = state.live.advance(event)
    found = [e for e in entries(actions, event) if e.kind != "leave"]
    recorded = state.decisions[state.decided : state.decided + len(found)]
    for mine, known in zip_longest(found, recorded):
        if mine != known:
            was = f"{known.kind} at {known.version}" if known else "nothing"
            raise ReplayError(
                f"step {mine.step} of worker-{mine.worker}: {mine.kind} at version {mine.version}, "
                f"but {was} in the recorded run"
            )
    waiting = {k: v for k, v in state.waiting.items() if v != event}
    return replace(state, live=live, decided=state.decided + len(found), waiting=waiting), actions


def _check_recorded(state: ReplayState, event: Pushed | Left) -> None:
    """A push must be in the log; who leaves must have made the steps that it made there."""
    last = state.steps[event.worker]
    if isinstance(event, Pushed) and event.step > last:
        raise ReplayError(f"step {event.step} of worker-{event.worker} is not in the recorded run")
    if isinstance(event, Left):
        made = [step for worker, _, step in state.waiting if worker == event.worker]
        made.append(state.live.members[event.worker].step)
        if max(made) < last:
            raise ReplayError(f"worker-{event.worker} left, but made step {max(made) + 1} in the recorded run")


def _key(event: Pushed | Left) -> Key:
    return event.worker, event.incarnation, event.step if isinstance(event, Pushed) else LEAVES


def _key_of(entry: Entry) -> Key:
    return entry.worker, entry.incarnation, LEAVES if entry.kind == "leave" else entry.step
