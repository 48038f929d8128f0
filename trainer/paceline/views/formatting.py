"""How figures are written: the same in the table, in the summary and in the report."""

import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence

from paceline.views.sources.status_answer import GoodputAnswer, OddLossAnswer, Status, VerdictAnswer, WorkerAnswer
from paceline_core import finiteness, modes

CAUSES = {"data": "its data", "compute": "its computing", "send": "its network"}


def number(value: float | None, digits: int = 4) -> str:
    """A number, or nothing."""
    return "" if value is None else f"{value:.{digits}f}"


def figure(value: float | None) -> str:
    """A number that the script reported; None: it was not finite."""
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """A duration in the unit that fits."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def steps(status: Status) -> str:
    """How far the workers are."""
    made = [w.step for w in status.workers]
    text = f"step {min(made)}" + (f" to {max(made)}" if max(made) > min(made) else "")
    totals = [w.total_steps for w in status.workers if w.total_steps]
    return text + (f" of {max(totals)}" if totals else "")


def rest(workers: Sequence[WorkerAnswer]) -> str:
    """A line for the workers that found no room."""
    made = [w.step for w in workers]
    text = f"and {len(workers):,} more: step {min(made)}" + (f" to {max(made)}" if max(made) > min(made) else "")
    for what, values in (
        ("step time", [w.step_seconds for w in workers if w.step_seconds is not None]),
        ("gradient latency", [w.latency_seconds for w in workers if w.latency_seconds is not None]),
        ("lag", [w.lag_seconds for w in workers if w.lag_seconds is not None]),
    ):
        text += f", median {what} {duration(statistics.median(values))}" if values else ""
    return text


def note(worker: WorkerAnswer) -> str:
    """What is to be said about a worker."""
    share = f" {worker.lag_share:.0%}" if worker.lag_share is not None else ""
    verdicts = [v + share if v == "makes the others wait" else v for v in worker.verdicts]
    state = [worker.state] if worker.state in ("waiting", "lost") else []
    odd = worker.loss_not_finite
    return ", ".join(state + verdicts + ([f"loss {odd.value} at step {odd.step}"] if odd else []))


def not_finite(loss: OddLossAnswer | None, weights: str | None) -> list[str]:
    """What is to be said of a loss, and of weights, that were not finite."""
    told = [finiteness.of_loss(loss.worker or 0, loss.step, loss.value)] if loss else []
    return told + ([finiteness.of_weights(weights)] if weights else [])


def waiting(verdict: VerdictAnswer, past: bool = False) -> str:
    """Who makes whom wait, what it costs and why."""
    verb = "made" if past else "makes"
    since = ""
    if verdict.since is not None and not past:
        at = time.strftime("%H:%M:%S", time.localtime(verdict.since))
        since = f" since {at} ({duration(max(0.0, time.time() - verdict.since))})"
    text = f"worker-{verdict.worker} {verb} the others wait{since}: {verdict.lag_share:.0%} of all waiting, "
    text += f"{duration(verdict.lag_seconds)} in each round"
    if verdict.cost is not None:
        text += f"; it cost{'' if past else 's'} {verdict.cost:.0%} of the throughput"
    if verdict.cause is not None:
        text += f"; cause: {CAUSES.get(verdict.cause, 'not known')}"
    return text


def nobody(strategy: str, past: bool = False) -> str:
    """That nobody makes the others wait."""
    verb = "made" if past else "makes"
    knobs = modes.mode(strategy).knobs
    why = "" if knobs.waits_for_all else " (asynchronous workers never wait for one another)"
    if knobs.quorum is not None and knobs.quorum > 1:
        why = " (an update waits for the first of them, and not for all)"
    return f"nobody {verb} the others wait{why}"


def goodput(it: GoodputAnswer) -> str:
    """The productive share of the time, and why the rest was lost."""
    if it.seconds <= 0:
        return ""
    lost = sorted(it.lost.items(), key=lambda item: -item[1])
    why = ", ".join(f"{reason} {duration(seconds)}" for reason, seconds in lost if seconds > 0)
    return f"goodput {it.productive / it.seconds:.0%} of {duration(it.seconds)}" + (f", lost to {why}" if why else "")


def rejections(status: Status) -> str:
    """How many gradients were rejected, and why."""
    reasons: Counter[str] = Counter()
    for worker in status.workers:
        reasons.update(worker.rejected_by_reason)
    why = ", ".join(f"{reason} {times}" for reason, times in reasons.most_common())
    count = sum(w.rejected for w in status.workers)
    return f"{count} {'gradient' if count == 1 else 'gradients'} rejected" + (f": {why}" if why else "")


def sentence(text: str) -> str:
    """With a capital, save for names, and a full stop."""
    return f"{text if text.startswith('worker-') else text[:1].upper() + text[1:]}".rstrip(".") + "."
