"""The order of a run, written down and followed again.

With the order of the updates fixed, every reply's version is fixed, and so every gradient: the same weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from paceline_core.errors import ReplayError
from paceline_core.strategy import (
    Action,
    Admit,
    Apply,
    Event,
    Knobs,
    Left,
    Pushed,
    Reject,
    State,
    start,
)


@dataclass(frozen=True)
class Entry:
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
            case Admit(worker, incarnation, version):
                out.append(Entry("join", version, worker, incarnation, 0, 0, ""))
            case Apply(version, pushes):
                before = version - 1
                out += [
                    Entry("apply", version, p.worker, p.incarnation, p.step, before - p.version, "") for p in pushes
                ]
            case Reject(worker, incarnation, step, reason, version, delay):
                out.append(Entry("reject", version, worker, incarnation, step, delay, reason))
    if isinstance(event, Left):
        out.append(Entry("leave", 0, event.worker, event.incarnation, 0, 0, ""))
    return tuple(out)


@dataclass(frozen=True)
class ReplayState:
    """A recorded run that is being followed: pushes wait until the log says that it is their turn."""

    live: State
    script: tuple[Entry, ...]
    position: int = 0
    waiting: Mapping[tuple[int, int, int], Pushed] = field(default_factory=dict)

    def advance(self, event: Event) -> "tuple[ReplayState, tuple[Action, ...]]":
        """The state after `event`, and what is to be done. Raises ReplayError when the log does not hold it."""
        if isinstance(event, Pushed):
            return _drain(replace(self, waiting={**self.waiting, _key(event): event}))
        live, actions = self.live.advance(event)
        if any(isinstance(a, Apply) for a in actions):
            raise ReplayError(f"worker-{event.worker} left in the middle of a round: this run cannot be followed")
        state, more = _drain(replace(self, live=live))
        return state, actions + more

    def waiting_for(self) -> tuple[int, ...]:
        """The workers that the log names next."""
        if not self.live.formed:
            return self.live.waiting_for()
        return tuple(e.worker for e in self.script[self.position : self.position + 1])


def follow(log: Sequence[Entry], knobs: Knobs, world_size: int) -> ReplayState:
    """Begin to follow a log. Raises ReplayError for a run in which workers were replaced."""
    if any(e.incarnation > 0 for e in log):
        raise ReplayError("workers were replaced in the recorded run: it cannot be followed")
    if {e.worker for e in log if e.kind == "join"} != set(range(world_size)):
        raise ReplayError(f"the recorded run is not one of {world_size} workers")
    return ReplayState(start(knobs, world_size), tuple(e for e in log if e.kind in ("apply", "reject")))


def _drain(state: ReplayState) -> tuple[ReplayState, tuple[Action, ...]]:
    """Hand the pushes whose turn it is to the state machine, and check that it decides as it did."""
    done: list[Action] = []
    while state.position < len(state.script) and state.live.formed:
        entry = state.script[state.position]
        push = state.waiting.get((entry.worker, entry.incarnation, entry.step))
        if push is None:
            break
        live, actions = state.live.advance(push)
        for action in actions:
            _check(entry, action)
        waiting = {k: v for k, v in state.waiting.items() if v != push}
        state = replace(state, live=live, position=state.position + 1, waiting=waiting)
        done += actions
    if state.position == len(state.script) and state.waiting:
        worker, _, step = next(iter(state.waiting))
        raise ReplayError(f"step {step} of worker-{worker} is not in the recorded run")
    return state, tuple(done)


def _check(entry: Entry, action: Action) -> None:
    match action:
        case Reject(version=version) | Apply(version=version):
            kind = "reject" if isinstance(action, Reject) else "apply"
            if (kind, version) != (entry.kind, entry.version):
                raise ReplayError(
                    f"step {entry.step} of worker-{entry.worker}: {kind} at version {version}, "
                    f"but {entry.kind} at {entry.version} in the recorded run"
                )


def _key(push: Pushed) -> tuple[int, int, int]:
    return push.worker, push.incarnation, push.step
