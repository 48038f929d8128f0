"""The operator's decisions: from a training's specification, what is remembered of it and what there is, to what is
to be remembered and done. Pure: the clock is an argument, and nothing is read or written here.

A decision either remembers something new, and then does nothing else, or acts upon what is remembered. So a failure
is counted once, and a restart of the operator between the two is harmless.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from paceline_core.launch import Role
from paceline_core.spec import CleanPodPolicy, Topology, TrainingSpec
from paceline_operator import failures
from paceline_operator.memory import TRAINING, Failure, Memory
from paceline_operator.observe import Pod

SETTLE_SECONDS = 3.0  # after a victim's failure, for the failure that made it one
FAREWELL_SECONDS = 20.0  # after the last worker, for the servers to end
LOOK_AGAIN_SECONDS = 5.0  # while pods do not start, or are being taken away


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


@dataclass(frozen=True)
class Decision:
    """What to remember, or what to do; `again`: look again in so many seconds."""

    memory: Memory
    create: tuple[tuple[Role, int], ...] = ()
    delete: tuple[Pod, ...] = ()
    kill: tuple[Pod, ...] = ()  # without grace: the node that should end them is lost
    remove: bool = False  # the training itself
    again: float | None = None


def decide(it: Situation) -> Decision:
    """What to do next."""
    memory, policy = it.memory, it.spec.run_policy
    if memory.result is not None:
        return _after_the_end(it)
    if policy.suspend:
        return _suspend(it)
    if memory.suspended or memory.start is None:
        return _begin(it)
    deadline = policy.active_deadline_seconds
    if deadline is not None and it.now >= memory.start + deadline:
        return _finish(it, "Failed", "DeadlineExceeded", f"the training ran for longer than {deadline:g} s")
    if _workers_are_done(it):
        return _farewell(it)
    if memory.broken is not None:
        return _begin_anew(it)
    return _soonest(_new_failure(it) or _tend(it), deadline and memory.start + deadline - it.now)


def replicas(spec: TrainingSpec) -> list[tuple[Role, int]]:
    """The pods of a training: (role, ordinal)."""
    if spec.topology is Topology.ALL_REDUCE:
        first = [(Role.COORDINATOR, 0)]
    else:
        first = [(Role.SERVER, i) for i in range(spec.server.replicas)]
    return first + [(Role.WORKER, i) for i in range(spec.workers.replicas)]


def current(it: Situation) -> list[Pod]:
    """The pods of this attempt."""
    return [p for p in it.pods if p.attempt == it.memory.attempt]


def _begin(it: Situation) -> Decision:
    """First of all, or again after a suspension."""
    resumed = it.memory.suspended
    memory = it.memory.next_attempt(it.now) if resumed else replace(it.memory, attempt_start=it.now)
    return Decision(replace(memory, start=it.now), again=0)


def _suspend(it: Situation) -> Decision:
    if not it.memory.suspended:
        return Decision(replace(it.memory, suspended=True), again=0)
    return _clear(it, it.pods)


def _finish(it: Situation, result: str, reason: str, message: str) -> Decision:
    memory = replace(it.memory, result=result, reason=reason, message=message, completion=it.now)
    return Decision(replace(memory, generation=it.generation), again=0)


def _farewell(it: Situation) -> Decision:
    """All scripts have ended well: so will the servers, unless no worker ever came to them."""
    servers = [p for p in current(it) if not p.is_worker and p.phase in ("Pending", "Running") and not p.terminating]
    if not servers:
        return _finish(it, "Succeeded", "TrainingSucceeded", "all workers have ended their scripts")
    last = max(p.finished or it.now for p in current(it) if p.is_worker)
    if it.now < last + FAREWELL_SECONDS:
        return Decision(it.memory, again=1.0)
    names = ", ".join(p.replica for p in servers)
    message = f"all scripts ended, but {names} waited in vain: do they call paceline.distribute()?"
    return _finish(it, "Failed", "NeverJoined", message)


def _workers_are_done(it: Situation) -> bool:
    done = {p.ordinal for p in current(it) if p.is_worker and p.phase == "Succeeded"}
    return len(done) == it.spec.workers.replicas


def _after_the_end(it: Situation) -> Decision:
    """Remove what the policies say."""
    policy, memory = it.spec.run_policy, it.memory
    assert memory.completion is not None, "a result has a time"
    ttl = policy.ttl_seconds_after_finished
    if ttl is not None and it.now >= memory.completion + ttl:
        return Decision(memory, remove=True)
    match policy.clean_pod_policy:
        case CleanPodPolicy.NONE:
            over = []
        case CleanPodPolicy.ALL:
            over = list(it.pods)
        case CleanPodPolicy.RUNNING:  # ended workers stay for their logs, and so do servers of a failed training
            ended = ("Failed",) if memory.result == "Failed" else ()
            over = [p for p in it.pods if p.phase not in (("Succeeded", "Failed") if p.is_worker else ended)]
    return _soonest(_clear(it, over), None if ttl is None else memory.completion + ttl - it.now)


def _begin_anew(it: Situation) -> Decision:
    """The attempt has failed: away with its pods, wait, and begin the next."""
    if it.pods:
        return _clear(it, it.pods)
    wait = it.memory.delays[TRAINING].until - it.now
    if wait > 0:
        return Decision(it.memory, again=wait)
    return Decision(it.memory.next_attempt(it.now), again=0)


def _clear(it: Situation, pods: Sequence[Pod]) -> Decision:
    """Delete these pods; those that are long overdue without grace."""
    kill = tuple(p for p in pods if _is_overdue(it, p))
    delete = tuple(p for p in pods if p.terminating is None)
    return Decision(it.memory, delete=delete, kill=kill, again=LOOK_AGAIN_SECONDS if pods else None)


def _is_overdue(it: Situation, pod: Pod) -> bool:
    return pod.terminating is not None and it.now > pod.terminating + it.rules.force_delete_seconds


def _new_failure(it: Situation) -> Decision | None:
    """Remember a failure that is not remembered yet, or end the training because of it."""
    found = [(p, c) for p in current(it) if not it.memory.knows(p.uid) and (c := failures.cause(p))]
    if not found:
        missing = _missing_when_formed(it)
        return None if missing is None else _remember(it, missing, permanent=False)
    pod, cause = failures.root(found)
    if cause.victim:
        if it.now < (pod.finished or it.now) + SETTLE_SECONDS:
            return Decision(it.memory, again=1.0)
        cause = _behind(it, cause)
    scope = pod.replica if it.spec.asynchronous and pod.is_worker else TRAINING
    failure = Failure(
        scope, pod.replica, pod.uid, it.memory.attempt, cause.reason, cause.message, it.now, cause.counted
    )
    return _remember(it, failure, cause.permanent)


def _behind(it: Situation, cause: failures.Cause) -> failures.Cause:
    """When everyone is a victim: of a pod that never started, or of one that nobody saw fail."""
    stuck = next((p for p in current(it) if p.trouble is not None), None)
    if stuck is None or stuck.trouble is None:
        return cause
    message = f"{stuck.replica} never started: {stuck.trouble.reason}: {stuck.trouble.message}"
    return failures.Cause(stuck.trouble.reason, message)


def _missing_when_formed(it: Situation) -> Failure | None:
    """A pod of the attempt has gone without being seen to fail."""
    if not it.memory.formed:
        return None
    there = {(p.role, p.ordinal) for p in current(it)}
    for role, ordinal in replicas(it.spec):
        replaced_alone = it.spec.asynchronous and role is Role.WORKER
        if (role, ordinal) not in there and not replaced_alone:
            name = f"{role}-{ordinal}"
            return Failure(
                TRAINING, name, "", it.memory.attempt, "PodDeleted", f"{name}: its pod is gone", it.now, False
            )
    return None


def _remember(it: Situation, failure: Failure, permanent: bool) -> Decision:
    memory = it.memory.failed(failure, {p.uid for p in it.pods})
    it, limit = replace(it, memory=memory), it.spec.run_policy.backoff_limit
    if permanent:
        why = "Another attempt would fail alike"
    elif failure.counted and memory.restarts > limit:
        times = "restarts" if limit != 1 else "restart"
        why = f"This was after {limit} {times}, as runPolicy.backoffLimit allows"
    else:
        role = "worker" if failure.replica.startswith(Role.WORKER) else "server"
        return Decision(memory.restarted(role, failures.kind(failure.reason)), again=0)
    return _finish(it, "Failed", failure.reason, f"{failure.message}. {why}.{_logs(it, failure)}")


def _logs(it: Situation, failure: Failure) -> str:
    """Where the failed pod's own words are: it stays when the training has failed."""
    pod = next((p.name for p in it.pods if p.uid == failure.uid), None)
    return f" See: kubectl logs -n {it.namespace} {pod}" if pod else ""


def _tend(it: Situation) -> Decision:
    """Make the pods that are missing, replace workers that failed alone, and take away what is left of before."""
    known = {p.uid for p in it.pods if it.memory.knows(p.uid)}
    over = [p for p in it.pods if p.attempt != it.memory.attempt or p.uid in known]
    cleared = _clear(it, over)
    there = {(p.role, p.ordinal) for p in it.pods}
    missing = [r for r in replicas(it.spec) if r not in there]
    formed = it.memory.formed or (not missing and not over)
    if formed != it.memory.formed:
        return Decision(replace(it.memory, formed=True), again=0)
    delays = {r: _delay(it, r) for r in missing}
    create = tuple(r for r in missing if delays[r] <= 0)
    waits = [d for d in delays.values() if d > 0]
    if cleared.again is not None or create or any(p.phase == "Pending" for p in it.pods):
        waits.append(LOOK_AGAIN_SECONDS)
    return replace(cleared, create=create, again=min(waits, default=None))


def _delay(it: Situation, replica: tuple[Role, int]) -> float:
    delay = it.memory.delays.get(f"{replica[0]}-{replica[1]}")
    return delay.until - it.now if delay else 0.0


def _soonest(decision: Decision, seconds: float | None) -> Decision:
    times = [t for t in (decision.again, seconds) if t is not None]
    return replace(decision, again=max(0.0, min(times)) if times else None)
