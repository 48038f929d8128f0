"""Completion of a training: when all scripts have ended well, and what is removed afterwards. Pure."""

from paceline_core.run_policy import CleanPodPolicy
from paceline_operator.decisions import failure_policy, training_answer
from paceline_operator.decisions.decision import REQUEUE_SECONDS, Decision, Observed, clear, finish, soonest
from paceline_operator.decisions.observe import Pod
from paceline_operator.objects import pod_templates

# After the last worker, for the servers to end: as long as `paceline run` waits, and longer if workers had come to
# them, for then they have weights to write.
UNJOINED_SECONDS, SAVING_SECONDS = 60.0, 3600.0


def workers_are_done(it: Observed) -> bool:
    """Whether every script has ended well."""
    return len(it.ended_workers) == it.spec.workers.replicas


def complete(it: Observed) -> Decision:
    """All scripts have ended well: so will the servers, unless one fails in saving, or no worker ever came to them."""
    servers = [p for p in it.current if not p.is_worker and p.phase == "Failed"]
    failed = [(p, c) for p, c in failure_policy.unrecorded(it, servers) if c.counted or pod_templates.saves(it.spec)]
    if failed:
        return failure_policy.apply(it, failed)
    late = waited_for(it)
    if not late:
        odd = training_answer.not_finite(it.current)
        return finish(it, "Succeeded", "TrainingSucceeded", "; ".join(["all workers have ended their scripts", *odd]))
    limit = SAVING_SECONDS if it.state.joined else UNJOINED_SECONDS
    wait = seconds_since_the_last(it) - limit
    if wait < 0:
        return Decision(it.state, requeue_after=min(REQUEUE_SECONDS, -wait))
    names = ", ".join(p.replica for p in late)
    if it.state.joined:
        message = f"all scripts ended, but {names} did not within {limit:g} s: the weights may not have been written"
        return finish(it, "Failed", "ServersNotEnded", message)
    message = f"all scripts ended, but {names} waited in vain: do they call paceline.distribute()?"
    return finish(it, "Failed", "NeverJoined", message)


def waited_for(it: Observed) -> list[Pod]:
    """The servers that have not ended; one that is taken away may use its time of grace to write its weights."""
    running = [p for p in it.current if not p.is_worker and p.phase in ("Pending", "Running")]
    return [p for p in running if p.terminating is None or it.now < p.terminating]


def seconds_since_the_last(it: Observed) -> float:
    """For how long all scripts have ended."""
    return it.now - (it.state.ended_time or it.now)


def clean_up(it: Observed) -> Decision:
    """Remove what the policies say."""
    policy, state = it.spec.run_policy, it.state
    assert state.completion is not None, "a result has a time"
    ttl = policy.ttl_seconds_after_finished
    if ttl is not None and it.now >= state.completion + ttl:
        return Decision(state, remove=True)
    match policy.clean_pod_policy:
        case CleanPodPolicy.NONE:
            over = []
        case CleanPodPolicy.ALL:
            over = list(it.pods)
        case CleanPodPolicy.RUNNING:  # ended workers stay for their logs, and so do failed servers of a failed training
            stays = ("Failed",) if state.result == "Failed" else ()
            over = [p for p in it.pods if p.runs or not (p.is_worker or p.phase in stays)]
    return soonest(clear(it, over), None if ttl is None else state.completion + ttl - it.now)
