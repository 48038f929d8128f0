"""Which failure is remembered, and whether the training ends because of it. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from paceline_core.launch import Role
from paceline_core.spec import CleanPodPolicy
from paceline_operator import failures, labels
from paceline_operator.failures import Cause
from paceline_operator.memory import TRAINING, Failure
from paceline_operator.observe import Pod
from paceline_operator.situation import Decision, Situation, finish, replicas

SETTLE_SECONDS = 3.0  # after a victim's failure, for the failure that made it one


def new_failure(it: Situation) -> Decision | None:
    """Remember a failure that is not remembered yet, or end the training because of it."""
    found = unknown(it, it.current)
    if all(cause.victim for _, cause in found):  # or none has failed
        missing = _missing_when_formed(it)
        if missing is not None:
            return _remember(it, missing, permanent=False)
    return judge(it, found) if found else None


def unknown(it: Situation, pods: Sequence[Pod]) -> list[tuple[Pod, Cause]]:
    """Those of these pods that have failed, or are being taken away, and are not remembered yet."""
    return [(p, c) for p in pods if not it.memory.knows(p.uid) and (c := failures.cause(p))]


def judge(it: Situation, found: Sequence[tuple[Pod, Cause]]) -> Decision:
    """Remember the failure that led to all of these."""
    pod, cause = failures.root(found)
    if cause.victim:
        if it.now < (pod.finished or it.now) + SETTLE_SECONDS:
            return Decision(it.memory, again=1.0)
        cause = _behind(it, cause)
    scope = pod.replica if it.spec.asynchronous and pod.is_worker else TRAINING
    attempt = it.memory.attempt
    failure = Failure(scope, pod.replica, pod.uid, attempt, cause.reason, cause.message, it.now, cause.counted)
    return _remember(it, failure, cause.permanent)


def _behind(it: Situation, cause: Cause) -> Cause:
    """When everyone is a victim: of a pod that never started, or of one that nobody saw fail."""
    stuck = next((p for p in it.current if p.trouble is not None), None)
    if stuck is None or stuck.trouble is None:
        return cause
    message = f"{stuck.replica} never started: {stuck.trouble.reason}: {stuck.trouble.message}"
    return Cause(stuck.trouble.reason, message)


def _missing_when_formed(it: Situation) -> Failure | None:
    """A pod of the attempt has gone without being seen to fail or to end well."""
    if not it.memory.formed:
        return None
    there = {(p.role, p.ordinal) for p in it.current} | {(Role.WORKER, i) for i in it.memory.ended}
    for role, ordinal in replicas(it.spec):
        replaced_alone = it.spec.asynchronous and role is Role.WORKER
        if (role, ordinal) not in there and not replaced_alone:
            name, attempt = labels.replica_name(role, ordinal), it.memory.attempt
            return Failure(TRAINING, name, "", attempt, "PodDeleted", f"{name}: its pod is gone", it.now, False)
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
    return finish(it, "Failed", failure.reason, f"{failure.message}. {why}.{_logs(it, failure)}")


def _logs(it: Situation, failure: Failure) -> str:
    """Where the failed pod's own words are, if it stays when the training has failed."""
    pod = next((p for p in it.pods if p.uid == failure.uid), None)
    policy = it.spec.run_policy.clean_pod_policy
    if pod is None or policy is CleanPodPolicy.ALL or (policy is CleanPodPolicy.RUNNING and pod.runs):
        return ""
    container = f" -c {pod.end.container}" if pod.end is not None and pod.end.container else ""
    return f" See: kubectl logs -n {it.namespace} {pod.name}{container}"
