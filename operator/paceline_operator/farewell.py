"""The end of a training: when all scripts have ended well, and what is removed afterwards. Pure."""

from paceline_core.spec import CleanPodPolicy
from paceline_operator import blame, templates
from paceline_operator.observe import Pod
from paceline_operator.situation import LOOK_AGAIN_SECONDS, Decision, Situation, clear, finish, soonest

# After the last worker, for the servers to end: as long as `paceline run` waits, and longer if workers had come to
# them, for then they have weights to write.
UNJOINED_SECONDS, SAVING_SECONDS = 60.0, 3600.0


def workers_are_done(it: Situation) -> bool:
    """Whether every script has ended well."""
    return len(it.ended_workers) == it.spec.workers.replicas


def farewell(it: Situation) -> Decision:
    """All scripts have ended well: so will the servers, unless one fails in saving, or no worker ever came to them."""
    servers = [p for p in it.current if not p.is_worker and p.phase == "Failed"]
    failed = [(p, c) for p, c in blame.unknown(it, servers) if c.counted or templates.saves(it.spec)]
    if failed:
        return blame.judge(it, failed)
    late = waited_for(it)
    if not late:
        return finish(it, "Succeeded", "TrainingSucceeded", "all workers have ended their scripts")
    limit = SAVING_SECONDS if it.memory.joined else UNJOINED_SECONDS
    wait = seconds_since_the_last(it) - limit
    if wait < 0:
        return Decision(it.memory, again=min(LOOK_AGAIN_SECONDS, -wait))
    names = ", ".join(p.replica for p in late)
    if it.memory.joined:
        message = f"all scripts ended, but {names} did not within {limit:g} s: the weights may not have been written"
        return finish(it, "Failed", "ServersNotEnded", message)
    message = f"all scripts ended, but {names} waited in vain: do they call paceline.distribute()?"
    return finish(it, "Failed", "NeverJoined", message)


def waited_for(it: Situation) -> list[Pod]:
    """The servers that have not ended; one that is taken away may use its time of grace to write its weights."""
    running = [p for p in it.current if not p.is_worker and p.phase in ("Pending", "Running")]
    return [p for p in running if p.terminating is None or it.now < p.terminating]


def seconds_since_the_last(it: Situation) -> float:
    """For how long all scripts have ended."""
    return it.now - (it.memory.ended_time or it.now)


def after_the_end(it: Situation) -> Decision:
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
        case CleanPodPolicy.RUNNING:  # ended workers stay for their logs, and so do failed servers of a failed training
            stays = ("Failed",) if memory.result == "Failed" else ()
            over = [p for p in it.pods if p.runs or not (p.is_worker or p.phase in stays)]
    return soonest(clear(it, over), None if ttl is None else memory.completion + ttl - it.now)
