"""The failure policy: which failure is recorded, and whether the training restarts or ends because of it. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from paceline_core.launch import Role
from paceline_core.run_policy import CleanPodPolicy
from paceline_operator.decisions import pod_failures
from paceline_operator.decisions.decision import Decision, Observed, finish, pods_of
from paceline_operator.decisions.observe import Pod
from paceline_operator.decisions.persisted_state import TRAINING, Failure
from paceline_operator.decisions.pod_failures import FailureCause
from paceline_operator.objects import labels

SETTLE_SECONDS = 3.0  # after a victim's failure, for the failure that made it one


def check_failures(it: Observed) -> Decision | None:
    """Record a failure that is not recorded yet, or end the training because of it."""
    found = unrecorded(it, it.current)
    if all(cause.victim for _, cause in found):  # or none has failed
        missing = _missing_when_formed(it)
        if missing is not None:
            return _record(it, missing, permanent=False)
    return apply(it, found) if found else None


def unrecorded(it: Observed, pods: Sequence[Pod]) -> list[tuple[Pod, FailureCause]]:
    """Those of these pods that have failed, or are being taken away, and are not recorded yet."""
    return [(p, c) for p in pods if not it.state.has_failure_of(p.uid) and (c := pod_failures.cause(p))]


def apply(it: Observed, found: Sequence[tuple[Pod, FailureCause]]) -> Decision:
    """Record the failure that led to all of these."""
    pod, cause = pod_failures.root_cause(found)
    if cause.victim:
        if it.now < (pod.finished or it.now) + SETTLE_SECONDS:
            return Decision(it.state, requeue_after=1.0)
        cause = replace(_cause_of_victims(it, cause), victim=True)
    others_wait = it.spec.knobs.replaced_where_it_was and cause.victim  # for another than this one
    scope = pod.replica if it.replaces_alone(pod.role, pod.ordinal) and not others_wait else TRAINING
    attempt = it.state.attempt
    failure = Failure(scope, pod.replica, pod.uid, attempt, cause.reason, cause.message, it.now, cause.counted)
    return _record(it, failure, cause.permanent)


def _cause_of_victims(it: Observed, cause: FailureCause) -> FailureCause:
    """When everyone is a victim: of a pod that never started, or of one that nobody saw fail."""
    stuck = next((p for p in it.current if p.trouble is not None), None)
    if stuck is None or stuck.trouble is None:
        return cause
    message = f"{stuck.replica} never started: {stuck.trouble.reason}: {stuck.trouble.message}"
    return FailureCause(stuck.trouble.reason, message)


def _missing_when_formed(it: Observed) -> Failure | None:
    """A pod of the attempt has gone without being seen to fail or to end well."""
    if not it.state.formed:
        return None
    there = {(p.role, p.ordinal) for p in it.current} | {(Role.WORKER, i) for i in it.state.ended}
    for role, ordinal in pods_of(it.spec):
        name, attempt = labels.replica_name(role, ordinal), it.state.attempt
        recorded = any(f.scope == name and f.attempt == attempt for f in it.state.failures)
        if (role, ordinal) not in there and not recorded and not it.replaces_alone(role, ordinal):
            return Failure(TRAINING, name, "", attempt, "PodDeleted", f"{name}: its pod is gone", it.now, False)
    return None


def _record(it: Observed, failure: Failure, permanent: bool) -> Decision:
    state = it.state.failed(failure, {p.uid for p in it.pods})
    it, limit = replace(it, state=state), it.spec.run_policy.backoff_limit
    if permanent:
        why = "Another attempt would fail alike"
    elif failure.counted and state.restarts > limit:
        times = "restarts" if limit != 1 else "restart"
        why = f"This was after {limit} {times}, as runPolicy.backoffLimit allows"
    else:
        role = "worker" if failure.replica.startswith(Role.WORKER) else "server"
        return Decision(state.restarted(role, pod_failures.kind(failure.reason)), requeue_after=0)
    return finish(it, "Failed", failure.reason, f"{failure.message}. {why}.{_logs(it, failure)}")


def _logs(it: Observed, failure: Failure) -> str:
    """Where the failed pod's logs are, if it stays when the training has failed."""
    pod = next((p for p in it.pods if p.uid == failure.uid), None)
    policy = it.spec.run_policy.clean_pod_policy
    if pod is None or policy is CleanPodPolicy.ALL or (policy is CleanPodPolicy.RUNNING and pod.runs):
        return ""
    container = f" -c {pod.end.container}" if pod.end is not None and pod.end.container else ""
    return f" See: kubectl logs -n {it.namespace} {pod.name}{container}"
