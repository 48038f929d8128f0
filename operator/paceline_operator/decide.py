"""The operator's decisions: from a training's specification, what is remembered of it and what there is, to what is
to be remembered and done. Pure: the clock is an argument, and nothing is read or written here.

A decision either remembers something new, and then does nothing else, or acts upon what is remembered. So a failure
is counted once, and a restart of the operator between the two is harmless.
"""

from dataclasses import replace

from paceline_core.launch import Role
from paceline_operator.blame import new_failure
from paceline_operator.farewell import after_the_end, farewell, workers_are_done
from paceline_operator.memory import TRAINING, Memory
from paceline_operator.situation import LOOK_AGAIN_SECONDS, Decision, Situation, clear, finish, replicas, soonest


def decide(it: Situation) -> Decision:
    """What to do next."""
    memory, policy = it.memory, it.spec.run_policy
    if memory.result is not None:
        return after_the_end(it)
    if policy.suspend:
        return _suspend(it)
    if memory.suspended or memory.start is None:
        return _begin(it)
    deadline = policy.active_deadline_seconds
    if deadline is not None and it.now >= memory.start + deadline:
        return finish(it, "Failed", "DeadlineExceeded", f"the training ran for longer than {deadline:g} s")
    return soonest(_go_on(it), deadline and memory.start + deadline - it.now)


def _go_on(it: Situation) -> Decision:
    if it.memory.broken is not None:
        return _begin_anew(it)
    news = _news(it)
    known = replace(it, memory=news)
    decision = farewell(known) if workers_are_done(known) else new_failure(known) or _tend(known)
    acts_on_news = news != it.memory and decision.memory == news
    return Decision(news, again=0) if acts_on_news else decision


def _news(it: Situation) -> Memory:
    """What is remembered, with what outlives a pod: that all workers have joined, and which have ended well."""
    memory = replace(it.memory, joined=it.memory.joined or it.joined)
    if it.ended_workers == memory.ended:
        return memory
    times = [p.finished or it.now for p in it.current if p.is_worker and p.succeeded]
    return replace(memory, ended=it.ended_workers, ended_time=max([*times, memory.ended_time or 0.0]))


def _begin(it: Situation) -> Decision:
    """First of all, or again after a suspension."""
    resumed = it.memory.suspended
    memory = it.memory.next_attempt(it.now) if resumed else replace(it.memory, attempt_start=it.now)
    return Decision(replace(memory, start=it.now), again=0)


def _suspend(it: Situation) -> Decision:
    if not it.memory.suspended:
        return Decision(replace(it.memory, suspended=True), again=0)
    return clear(it, it.pods)


def _begin_anew(it: Situation) -> Decision:
    """The attempt has failed: away with its pods, wait, and begin the next."""
    if it.pods:
        return clear(it, it.pods)
    wait = it.memory.delays[TRAINING].until - it.now
    if wait > 0:
        return Decision(it.memory, again=wait)
    return Decision(it.memory.next_attempt(it.now), again=0)


def _tend(it: Situation) -> Decision:
    """Make the pods that are missing, replace workers that failed alone, and take away what is left of before."""
    known = {p.uid for p in it.pods if it.memory.knows(p.uid)}
    over = [p for p in it.pods if p.attempt != it.memory.attempt or p.uid in known]
    cleared = clear(it, over)
    there = {(p.role, p.ordinal) for p in it.pods} | {(Role.WORKER, i) for i in it.memory.ended}
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
