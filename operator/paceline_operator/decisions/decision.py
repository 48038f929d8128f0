"""A decision, and what it depends on. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from paceline_core.launch import Role
from paceline_core.spec import TrainingSpec
from paceline_operator.decisions.observe import Pod
from paceline_operator.decisions.persisted_state import PersistedState

REQUEUE_SECONDS = 5.0  # while pods do not start, do not end, or are being taken away


@dataclass(frozen=True)
class DecisionSettings:
    """The operator's settings that decisions depend on."""

    force_delete_seconds: float = 60.0  # after its time of grace, for a pod that does not go


@dataclass(frozen=True)
class Observed:
    """Everything that a decision depends on."""

    spec: TrainingSpec
    namespace: str
    generation: int
    state: PersistedState
    pods: Sequence[Pod]
    now: float
    settings: DecisionSettings = DecisionSettings()
    joined: bool = False  # the training says that all workers have joined
    # worker processes in whose place another can go on, as the training says; None: it has not been asked yet
    replaceable: frozenset[int] | None = None

    @property
    def current(self) -> list[Pod]:
        """The pods of this attempt."""
        return [p for p in self.pods if p.attempt == self.state.attempt]

    def replaces_alone(self, role: Role, ordinal: int) -> bool:
        """Whether this pod is replaced when it is lost while the others go on, or wait for it where it was."""
        if role is not Role.WORKER or not self.spec.replaces_alone:
            return False
        if not self.spec.knobs.replaced_where_it_was:
            return True
        others = [p for p in self.current if p.is_worker and p.ordinal != ordinal and not p.stopped]
        if self.spec.knobs.held_by_workers and not any(p.phase == "Running" for p in others):
            return False
        if self.replaceable is None:  # as when the operator was just started: the training fails if another cannot
            return self.state.joined
        processes = self.spec.workers.processes
        return self.replaceable.issuperset(range(ordinal * processes, (ordinal + 1) * processes))

    @property
    def ended_workers(self) -> frozenset[int]:
        """The workers of this attempt whose scripts have ended well; what is persisted outlives its pod."""
        return self.state.ended | {p.ordinal for p in self.current if p.is_worker and p.succeeded}


@dataclass(frozen=True)
class Decision:
    """The state to persist, or what to do; `requeue_after`: decide again in so many seconds."""

    state: PersistedState
    create: tuple[tuple[Role, int], ...] = ()
    delete: tuple[Pod, ...] = ()
    kill: tuple[Pod, ...] = ()  # without grace: the node that should end them is lost
    remove: bool = False  # the training itself
    requeue_after: float | None = None


def pods_of(spec: TrainingSpec) -> list[tuple[Role, int]]:
    """The pods of a training: (role, ordinal)."""
    first = [(Role.COORDINATOR, 0)] if spec.ring else [(Role.SERVER, i) for i in range(spec.server.replicas)]
    return first + [(Role.WORKER, i) for i in range(spec.workers.replicas)]


def finish(it: Observed, result: str, reason: str, message: str) -> Decision:
    """The training is over."""
    state = replace(it.state, result=result, reason=reason, message=message, completion=it.now)
    return Decision(replace(state, generation=it.generation), requeue_after=0)


def clear(it: Observed, pods: Sequence[Pod]) -> Decision:
    """Delete these pods; those that are long overdue without grace."""
    kill = tuple(p for p in pods if _is_overdue(it, p))
    delete = tuple(p for p in pods if p.terminating is None)
    return Decision(it.state, delete=delete, kill=kill, requeue_after=REQUEUE_SECONDS if pods else None)


def soonest(decision: Decision, seconds: float | None) -> Decision:
    """The decision, requeued after so many seconds at the latest."""
    times = [t for t in (decision.requeue_after, seconds) if t is not None]
    return replace(decision, requeue_after=max(0.0, min(times)) if times else None)


def _is_overdue(it: Observed, pod: Pod) -> bool:
    return pod.terminating is not None and it.now > pod.terminating + it.settings.force_delete_seconds
