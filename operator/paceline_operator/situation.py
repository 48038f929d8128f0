"""What a decision depends on, and what it says. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from paceline_core.launch import Role
from paceline_core.spec import Topology, TrainingSpec
from paceline_operator.memory import Memory
from paceline_operator.observe import Pod

LOOK_AGAIN_SECONDS = 5.0  # while pods do not start, do not end, or are being taken away


@dataclass(frozen=True)
class Rules:
    """The operator's own settings."""

    force_delete_seconds: float = 60.0  # after its time of grace, for a pod that does not go


@dataclass(frozen=True)
class Situation:
    """Everything that a decision depends on."""

    spec: TrainingSpec
    namespace: str
    generation: int
    memory: Memory
    pods: Sequence[Pod]
    now: float
    rules: Rules = Rules()
    joined: bool = False  # the training says that all workers have joined

    @property
    def current(self) -> list[Pod]:
        """The pods of this attempt."""
        return [p for p in self.pods if p.attempt == self.memory.attempt]

    @property
    def ended_workers(self) -> frozenset[int]:
        """The workers of this attempt whose scripts have ended well; what was remembered outlives its pod."""
        return self.memory.ended | {p.ordinal for p in self.current if p.is_worker and p.succeeded}


@dataclass(frozen=True)
class Decision:
    """What to remember, or what to do; `again`: look again in so many seconds."""

    memory: Memory
    create: tuple[tuple[Role, int], ...] = ()
    delete: tuple[Pod, ...] = ()
    kill: tuple[Pod, ...] = ()  # without grace: the node that should end them is lost
    remove: bool = False  # the training itself
    again: float | None = None


def replicas(spec: TrainingSpec) -> list[tuple[Role, int]]:
    """The pods of a training: (role, ordinal)."""
    if spec.topology is Topology.ALL_REDUCE:
        first = [(Role.COORDINATOR, 0)]
    else:
        first = [(Role.SERVER, i) for i in range(spec.server.replicas)]
    return first + [(Role.WORKER, i) for i in range(spec.workers.replicas)]


def finish(it: Situation, result: str, reason: str, message: str) -> Decision:
    """The training is over."""
    memory = replace(it.memory, result=result, reason=reason, message=message, completion=it.now)
    return Decision(replace(memory, generation=it.generation), again=0)


def clear(it: Situation, pods: Sequence[Pod]) -> Decision:
    """Delete these pods; those that are long overdue without grace."""
    kill = tuple(p for p in pods if _is_overdue(it, p))
    delete = tuple(p for p in pods if p.terminating is None)
    return Decision(it.memory, delete=delete, kill=kill, again=LOOK_AGAIN_SECONDS if pods else None)


def soonest(decision: Decision, seconds: float | None) -> Decision:
    """The decision, to be looked at again in so many seconds at the latest."""
    times = [t for t in (decision.again, seconds) if t is not None]
    return replace(decision, again=max(0.0, min(times)) if times else None)


def _is_overdue(it: Situation, pod: Pod) -> bool:
    return pod.terminating is not None and it.now > pod.terminating + it.rules.force_delete_seconds
