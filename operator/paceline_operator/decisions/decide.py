"""The operator's decisions: from a training's specification, its persisted state and the pods there are, to the new
state and what is to be done. Pure: the clock is an argument, and nothing is read or written here.

A decision either changes the state, and then does nothing else, or acts upon the state as it is. So a failure
is counted once, and a restart of the operator between the two is harmless.
"""

from dataclasses import replace

from paceline_core.launch import Role
from paceline_core.limits import Limit, words
from paceline_operator.decisions.completion import clean_up, complete, workers_are_done
from paceline_operator.decisions.decision import (
    REQUEUE_SECONDS,
    Decision,
    Observed,
    clear,
    finish,
    pods_of,
    soonest,
)
from paceline_operator.decisions.failure_policy import check_failures
from paceline_operator.decisions.persisted_state import TRAINING, PersistedState


def decide(it: Observed) -> Decision:
    """What to do next."""
    state, policy = it.state, it.spec.run_policy
    if state.result is not None:
        return clean_up(it)
    if policy.suspend:
        return _suspend(it)
    if state.suspended or state.start is None:
        return _begin(it)
    deadline = policy.active_deadline_seconds
    if deadline is not None and it.now >= state.start + deadline:
        limit = words(Limit(deadline, "spec.runPolicy.activeDeadlineSeconds"))
        return finish(it, "Failed", "DeadlineExceeded", f"the training ran for longer than {limit}")
    return soonest(_continue(it), deadline and state.start + deadline - it.now)


def _continue(it: Observed) -> Decision:
    if it.state.broken is not None:
        return _restart(it)
    updated = _updated_state(it)
    known = replace(it, state=updated)
    decision = complete(known) if workers_are_done(known) else check_failures(known) or _reconcile_pods(known)
    acts_on_update = updated != it.state and decision.state == updated
    return Decision(updated, requeue_after=0) if acts_on_update else decision


def _updated_state(it: Observed) -> PersistedState:
    """The state with what must outlive a pod: that all workers have joined, and which have ended well."""
    state = replace(it.state, joined=it.state.joined or it.joined)
    if it.ended_workers == state.ended:
        return state
    times = [p.finished or it.now for p in it.current if p.is_worker and p.succeeded]
    return replace(state, ended=it.ended_workers, ended_time=max([*times, state.ended_time or 0.0]))


def _begin(it: Observed) -> Decision:
    """First of all, or again after a suspension."""
    resumed = it.state.suspended
    state = it.state.next_attempt(it.now) if resumed else replace(it.state, attempt_start=it.now)
    return Decision(replace(state, start=it.now), requeue_after=0)


def _suspend(it: Observed) -> Decision:
    if not it.state.suspended:
        return Decision(replace(it.state, suspended=True), requeue_after=0)
    return clear(it, it.pods)


def _restart(it: Observed) -> Decision:
    """The attempt has failed: away with its pods, wait, and begin the next."""
    if it.pods:
        return clear(it, it.pods)
    wait = it.state.delays[TRAINING].until - it.now
    if wait > 0:
        return Decision(it.state, requeue_after=wait)
    return Decision(it.state.next_attempt(it.now), requeue_after=0)


def _reconcile_pods(it: Observed) -> Decision:
    """Make the pods that are missing, replace workers that failed alone, and take away what is left of before."""
    known = {p.uid for p in it.pods if it.state.has_failure_of(p.uid)}
    over = [p for p in it.pods if p.attempt != it.state.attempt or p.uid in known]
    cleared = clear(it, over)
    there = {(p.role, p.ordinal) for p in it.pods} | {(Role.WORKER, i) for i in it.state.ended}
    missing = [r for r in pods_of(it.spec) if r not in there]
    formed = it.state.formed or (not missing and not over)
    if formed != it.state.formed:
        return Decision(replace(it.state, formed=True), requeue_after=0)
    delays = {r: _delay(it, r) for r in missing}
    create = tuple(r for r in missing if delays[r] <= 0)
    waits = [d for d in delays.values() if d > 0]
    if cleared.requeue_after is not None or create or any(p.phase == "Pending" for p in it.pods):
        waits.append(REQUEUE_SECONDS)
    return replace(cleared, create=create, requeue_after=min(waits, default=None))


def _delay(it: Observed, replica: tuple[Role, int]) -> float:
    delay = it.state.delays.get(f"{replica[0]}-{replica[1]}")
    return delay.until - it.now if delay else 0.0
