"""The status that people read: phase, conditions and figures, in plain words. Pure."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paceline_core.spec import Topology
from paceline_operator.decide import Decision, Situation, current, replicas
from paceline_operator.memory import text
from paceline_operator.observe import Pod, Trouble

Object = dict[str, Any]
CONDITIONS = ("Ready", "Progressing", "Straggling", "Suspended", "Succeeded", "Failed", "Finished")
TROUBLES_SHOWN, REPORTED = 3, 20
ADVICE = {
    "Unschedulable": "free or add nodes, or ask for less",
    "ErrImagePull": "check spec.workers.template's image and imagePullSecrets",
    "ImagePullBackOff": "check spec.workers.template's image and imagePullSecrets",
    "InvalidImageName": "mend the image's name",
}


@dataclass(frozen=True)
class Word:
    """What is the matter, in one word and in one sentence."""

    phase: str
    reason: str
    message: str


@dataclass(frozen=True)
class Progress:
    """What the training itself tells: /status while it runs, its last words when it has ended."""

    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    reported: Mapping[str, float] | None = None
    slowest: str | None = None
    lag_share: float | None = None
    lag_seconds: float | None = None
    training: bool = False  # all workers have joined

    @classmethod
    def from_status(cls, status: Mapping[str, Any]) -> "Progress":
        """From what /status answers. Raises KeyError, TypeError, ValueError: pods are not trusted."""
        workers = status["workers"]
        totals = [int(w["total_steps"]) for w in workers if w["total_steps"]]
        return cls(
            step=min((int(w["step"]) for w in workers if w["state"] != "lost"), default=0),
            total_steps=max(totals, default=None),
            loss=_mean([w["loss"] for w in workers if w["loss"] is not None]),
            reported=_figures_of(item for w in workers for item in w["reported"].items()),
            training=not status["missing"],
            **_verdict(status["verdict"]),
        )

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any]) -> "Progress":
        """From the last words of shard 0 or the coordinator. Raises as `from_status` does."""
        return cls(
            step=int(summary["step"]),
            total_steps=int(summary["step"]),
            loss=None if summary["loss"] is None else _mean([summary["loss"]]),
            reported=_figures_of(summary["reported"].items()),
            training=True,
            **_verdict(summary["verdict"]),
        )


def _mean(values: Sequence[Any]) -> float | None:
    """The mean; None without values, or when it is not finite: JSON has no NaN."""
    mean = statistics.fmean(float(v) for v in values) if values else math.nan
    return mean if math.isfinite(mean) else None


def _figures_of(items: Iterable[tuple[str, Any]]) -> dict[str, float]:
    """Reported values that can be shown; the loss has a place of its own."""
    found = {str(k): float(v) for k, v in items if k != "loss"}
    return dict([(k, v) for k, v in found.items() if math.isfinite(v)][:REPORTED])


def _verdict(verdict: Mapping[str, Any] | None) -> dict[str, Any]:
    if not verdict:
        return {}
    share, lag = float(verdict["lag_share"]), float(verdict["lag_seconds"])
    return {"slowest": f"worker-{int(verdict['worker'])}", "lag_share": share, "lag_seconds": lag}


def last_words(pods: Sequence[Pod]) -> Progress | None:
    """What the ended shard 0 or coordinator left."""
    for pod in pods:
        if not pod.is_worker and pod.ordinal == 0 and pod.end and "summary" in pod.end.told:
            try:
                return Progress.from_summary(pod.end.told["summary"])
            except (KeyError, TypeError, ValueError, AttributeError):
                return None
    return None


def status(
    it: Situation, decision: Decision, progress: Progress | None, warnings: Mapping[str, Trouble], before: Object
) -> Object:
    """The whole new status."""
    word = _word(it, decision, progress, warnings)
    figures = _figures(it, progress, before)
    slow = progress if progress and progress.slowest and decision.memory.result is None else None
    facts = {
        "Ready": (word.phase == "Running", word.reason, word.message),
        "Progressing": (word.phase in ("Pending", "Running", "Restarting"), word.reason, word.message),
        "Straggling": _straggling(slow),
        "Suspended": (word.phase == "Suspended", word.reason, word.message),
        "Succeeded": (word.phase == "Succeeded", word.reason, word.message),
        "Failed": (word.phase == "Failed", word.reason, word.message),
        "Finished": (word.phase in ("Succeeded", "Failed"), word.reason, word.message),
    }
    return {
        "observedGeneration": it.generation,
        "phase": word.phase,
        "reason": word.reason,
        "message": word.message,
        **decision.memory.to_status(),
        **figures,
        "conditions": _conditions(facts, before.get("conditions", ()), it.generation, it.now),
    }


def refused(generation: int, now: float, before: Object, reason: str, problems: Sequence[str]) -> Object:
    """The status of a training that cannot be run as it is written."""
    message = "; ".join(problems)
    facts = {name: (name in ("Failed", "Finished"), reason, message) for name in CONDITIONS}
    facts["Straggling"] = _straggling(None)
    return {
        **before,
        "observedGeneration": generation,
        "phase": "Failed",
        "reason": reason,
        "message": message,
        "conditions": _conditions(facts, before.get("conditions", ()), generation, now),
    }


def _word(it: Situation, decision: Decision, progress: Progress | None, warnings: Mapping[str, Trouble]) -> Word:
    memory, broken = decision.memory, decision.memory.broken
    if memory.result is not None:
        return Word(memory.result, memory.reason, memory.message)
    if memory.suspended:
        return Word("Suspended", "Suspended", "runPolicy.suspend is true: set it to false to run the training")
    if broken is not None:
        text_ = f"{broken.message}. Everything begins anew: restart {memory.attempt + 1}" + _budget(it, memory.restarts)
        return Word("Restarting", broken.reason, text_)
    stuck = _stuck(it, warnings)
    if stuck is not None:
        return stuck
    pods = current(it)
    started = [p for p in pods if p.phase in ("Running", "Succeeded")]
    wanted = len(replicas(it.spec))
    if len(started) < wanted:
        replaced = next((f for f in reversed(memory.failures) if f.attempt == memory.attempt), None)
        if replaced is not None and it.spec.asynchronous:
            return Word("Running", replaced.reason, f"{replaced.message}. It is replaced; the others go on")
        return Word("Pending", "PodsStarting", f"{len(started)} of {wanted} pods have started")
    if progress is None or not progress.training:
        return Word("Running", "WorkersJoining", "all pods run; waiting for every worker to call paceline.distribute()")
    return Word("Running", "Training", "all workers train")


def _budget(it: Situation, restarts: int) -> str:
    return f" ({restarts} of {it.spec.run_policy.backoff_limit} that runPolicy.backoffLimit allows are used)"


def _stuck(it: Situation, warnings: Mapping[str, Trouble]) -> Word | None:
    """Pods that cannot start, told in the words of the scheduler or kubelet; the same words are told once."""
    troubles: dict[tuple[str, str], list[str]] = {}
    for pod in current(it):
        trouble = pod.trouble or warnings.get(pod.uid)
        if trouble is not None and pod.phase == "Pending":
            troubles.setdefault((trouble.reason, trouble.message), []).append(pod.replica)
    if not troubles:
        return None
    said = []
    for (reason, message), names in list(troubles.items())[:TROUBLES_SHOWN]:
        advice = f" ({ADVICE[reason]})" if reason in ADVICE else ""
        shown = ", ".join(names[:TROUBLES_SHOWN]) + (
            f" and {len(names) - TROUBLES_SHOWN} more" if len(names) > TROUBLES_SHOWN else ""
        )
        said.append(f"{shown}: {message or reason}{advice}")
    return Word("Pending", next(iter(troubles))[0], "; ".join(said))


def _straggling(slow: Progress | None) -> tuple[bool, str, str]:
    if slow is None or slow.lag_share is None or slow.lag_seconds is None:
        return False, "NobodyWaits", "no worker makes the others wait"
    cost = f"{slow.lag_share:.0%} of all waiting, {slow.lag_seconds * 1e3:.0f} ms in each round"
    message = f"{slow.slowest} makes the others wait: {cost}"
    return True, "WorkerIsSlow", message


def _figures(it: Situation, progress: Progress | None, before: Object) -> Object:
    """How many there are, and how far they have come; what is not known now stays as it was."""
    pods, workers = current(it), it.spec.workers.replicas
    out: Object = {
        "strategy": "AllReduce" if it.spec.topology is Topology.ALL_REDUCE else str(it.spec.server.strategy),
        "workers": _count([p for p in pods if p.is_worker], workers),
        "servers": _count([p for p in pods if not p.is_worker], len(replicas(it.spec)) - workers),
    }
    kept = ("step", "totalSteps", "progress", "loss", "reported", "slowestWorker")
    if progress is None or progress.step is None:
        fresh = it.memory.attempt == before.get("attempt", 0)
        return out | {k: before[k] for k in kept if k in before and fresh}
    found: Object = {
        "step": progress.step,
        "totalSteps": progress.total_steps,
        "progress": f"{progress.step / progress.total_steps:.0%}" if progress.total_steps else None,
        "loss": progress.loss,
        "reported": dict(progress.reported or {}) or None,
        "slowestWorker": progress.slowest,
    }
    return out | {k: v for k, v in found.items() if v is not None}


def _count(pods: Sequence[Pod], desired: int) -> Object:
    ready = sum(p.ready for p in pods)
    succeeded = sum(p.phase == "Succeeded" for p in pods)
    return {
        "desired": desired,
        "ready": ready,
        "succeeded": succeeded,
        "failed": sum(p.phase == "Failed" for p in pods),
        "summary": f"{ready + succeeded}/{desired}",
    }


def _conditions(
    facts: Mapping[str, tuple[bool, str, str]], before: Sequence[Object], generation: int, now: float
) -> list[Object]:
    """The conditions, with the time at which each last changed its status."""
    old = {c["type"]: c for c in before}
    out = []
    for name in CONDITIONS:
        holds, reason, message = facts[name]
        state = "True" if holds else "False"
        same = old.get(name, {}).get("status") == state
        out.append(
            {
                "type": name,
                "status": state,
                "observedGeneration": generation,
                "lastTransitionTime": old[name]["lastTransitionTime"] if same else text(now),
                "reason": reason,
                "message": message,
            }
        )
    return out
