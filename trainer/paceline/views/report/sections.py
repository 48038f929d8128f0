"""The parts of a report: each says something in a sentence, shows it in charts, or lists it in a table. Pure.

All of them but `time_spent` need a run in which steps were made.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from paceline.views import formatting
from paceline.views.report import axes, svg_chart
from paceline.views.report.downsampling import Point
from paceline.views.report.steps_csv import StepCurves, WorkerSteps
from paceline.views.report.svg_chart import Bar, Chart, Line
from paceline.views.sources.status_answer import GoodputAnswer, Status, selection
from paceline_core import modes
from paceline_core.attribution import PHASES, own_seconds
from paceline_core.modes import Mode

COLOURS = 8  # of workers, in the page's style
WORST = 3  # that get a line of their own when there are more workers than colours
MOST_ROWS = 20
NEARLY_ALL = 0.98
CUT_AT = 3.0  # times what nearly all values are below: where a chart ends when a few are far greater
COLUMNS = 60  # of a distribution


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    title: str
    text: str = ""
    charts: Sequence[Chart] = ()
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """What is known of the run."""

    strategy: str
    status: Status | None
    goodput: GoodputAnswer | None
    steps: StepCurves

    @property
    def mode(self) -> Mode:
        """The way to update."""
        return modes.mode(self.strategy)

    @property
    def waits_for_all(self) -> bool:
        """Whether each update waits for all workers."""
        return self.mode.knobs.waits_for_all

    @property
    def named(self) -> int | None:
        """The worker that made the others wait, or that alone was slow."""
        if self.status is None:
            return None
        if self.status.overall_verdict:
            return self.status.overall_verdict.worker
        slow = [w.worker for w in self.status.workers if w.verdicts]
        return slow[0] if len(slow) == 1 else None

    def worst_first(self) -> list[tuple[int, WorkerSteps]]:
        """The workers by lag, and, where there is none, by the time that their own work takes."""
        return sorted(self.steps.workers.items(), key=lambda item: (-item[1].lag, -_own(item[1])))


def waiting(facts: Facts) -> Section:
    """Who made whom wait; where nobody waits for all, whose own work took longest."""
    if not facts.waits_for_all:
        return _own_work(facts)
    title, steps = "Who made whom wait", facts.steps
    total = sum(it.lag for it in steps.workers.values())
    if not steps.rounds or total <= 0:
        return Section(title, "No step that all workers made together is recorded.")
    bars = [
        Bar(f"worker-{w}", {"lag": it.lag}, f"{formatting.duration(it.lag)}, {it.lag / total:.0%}", w == facts.named)
        for w, it in facts.worst_first()[:MOST_ROWS]
    ]
    summed = svg_chart.rows(f"Sum over {steps.rounds:,} steps", bars, formatting.duration)
    curves, cut = _over_time(facts, "lag", "In each step, over time")
    text = "A worker's lag is how much less than the median it waited in a step: the others waited for it."
    return Section(title, text, [summed, curves], note=f"{_by_arrival(facts)}{_not_shown(facts)}{cut}")


def _own_work(facts: Facts) -> Section:
    """The workers by the time of their own work."""
    title = "Who was slow"
    bars = [
        Bar(f"worker-{w}", {"compute": _own(it)}, f"{formatting.duration(_own(it))} a step", w == facts.named)
        for w, it in facts.worst_first()[:MOST_ROWS]
    ]
    drawn = svg_chart.rows("Mean of all steps", bars, formatting.duration)
    text = "A worker's own work is the part of a step in which it depends on nobody."
    return Section(title, text, [drawn], note=_not_shown(facts))


def without_steps(facts: Facts, phase: str) -> Section:
    """Why there is nothing of steps. Only workers that left in order have told of all that they made."""
    if phase == "Succeeded":
        return Section("Steps", "No step was made.")
    updates = facts.status.version if facts.status else 0
    made = f" The servers made {updates:,} updates." if updates else ""
    return Section("Steps", f"No worker told of a step before the run ended.{made}")


def time_spent(it: GoodputAnswer | None) -> Section:
    """Where the time went."""
    title = "Where the time went"
    if it is None or it.seconds <= 0:
        return Section(title, "Not measured in this run.")
    parts = {"productive": it.productive} | dict(sorted(it.lost.items(), key=lambda item: -item[1]))
    legend = {n: f"{n} {formatting.duration(s)}, {s / it.seconds:.1%}" for n, s in parts.items()}
    bars = [Bar("", parts, formatting.duration(it.seconds))]
    drawn = svg_chart.rows("From the first process to the last", bars, formatting.duration, legend)
    return Section(title, formatting.sentence(formatting.goodput(it)), [drawn])


def loss(facts: Facts) -> Section:
    """The loss that the script reported."""
    points = facts.steps.loss.points("loss")
    if not points:
        return Section("Loss", "The script reported none: paceline.report(loss=loss) does.")
    up = axes.values(min(p.least for p in points), max(p.greatest for p in points))
    line = Line("loss", "w0", points, band=True)
    caption = "Mean of all workers, over time; the band holds all of their values"
    drawn = svg_chart.lines(caption, _across(facts), up, [line], "{:.4g}".format)
    return Section("Loss", "The axis is logarithmic." if up.logarithmic else "", [drawn])


def latency(facts: Facts) -> Section:
    """Gradient latency by worker over time."""
    title = "Gradient latency"
    drawn, cut = _over_time(facts, "latency", "By worker, over time")
    usable = "the parameters that include it" if facts.waits_for_all else "the server's answer"
    text = f"From a worker's last gradient being ready until {usable} can be used."
    if facts.waits_for_all:
        text += " The worker that makes the others wait has the smallest: it waits least."
    return Section(title, text, [drawn], note=cut)


def phases(facts: Facts) -> Section:
    """Where a step's time goes, by worker."""
    title = "Phases of a step"
    bars = [
        Bar(f"worker-{w}", _mean(it), f"{formatting.duration(it.wall / it.steps)} a step", w == facts.named)
        for w, it in facts.worst_first()[:MOST_ROWS]
    ]
    there = {phase: phase for phase in PHASES if any(bar.parts[phase] > 0 for bar in bars)}
    drawn = svg_chart.rows("Mean of all steps", bars, formatting.duration, there)
    return Section(title, "The parts add up to the step.", [drawn], note=_not_shown(facts))


def staleness(facts: Facts) -> Section | None:
    """How old the parameters of the gradients were; only where a gradient can come too late."""
    counted: Counter[tuple[int, bool]] = Counter()
    for it in facts.steps.workers.values():
        counted.update(it.staleness)
    if not facts.mode.knobs.rejects_late or not counted:
        return None
    width = max(1, math.ceil((max(age for age, _ in counted) + 1) / COLUMNS))
    heights: dict[int, dict[str, float]] = {}
    for (age, accepted), count in counted.items():
        parts = heights.setdefault(age // width * width, {"accepted": 0, "rejected": 0})
        parts["accepted" if accepted else "rejected"] += count
    across = axes.linear(max(heights) + width, ticks=10)
    up = axes.linear(max(sum(parts.values()) for parts in heights.values()), "{:,.0f}".format)
    drawn = svg_chart.columns("Gradients by staleness", across, up, heights, width)
    curves, cut = _over_time(facts, "staleness", "By worker, over time")
    text = "Updates between the parameters that a gradient was computed from and those that it was applied to."
    return Section("Staleness", text, [drawn, curves], note=cut)


def rejections(facts: Facts) -> Section:
    """Rejected gradients by worker and reason."""
    title, steps = "Rejected gradients", facts.steps.workers
    counts = {w: it.rejected for w, it in sorted(steps.items()) if it.rejected}
    if not counts:
        return Section(title, "None.")
    reasons = sorted({reason for rejected in counts.values() for reason in rejected})
    rows = [
        (f"worker-{w}", *(str(rejected[r]) for r in reasons), f"{rejected.total() / steps[w].steps:.1%}")
        for w, rejected in counts.items()
    ]
    total, of = sum(c.total() for c in counts.values()), sum(it.steps for it in steps.values())
    text = f"{total:,} of {of:,} gradients, {total / of:.1%}."
    return Section(title, text, head=("worker", *reasons, "of its gradients"), rows=rows)


def workers(facts: Facts) -> Section:
    """The workers as they were at the end."""
    if facts.status is None:
        return Section("Workers", "The training never told how it was.")
    shown, rest = selection(facts.status.workers, by_lag=False, rows=MOST_ROWS)
    head = ("worker", "state", "step", "loss", "lag", "last", "applied", "rejected", "note")
    rows = [
        (
            w.name,
            w.state,
            f"{w.step}/{w.total_steps}" if w.total_steps else str(w.step),
            formatting.number(w.loss),
            formatting.duration(w.lag_seconds),
            "" if w.last_arrivals is None else str(w.last_arrivals),
            str(w.applied),
            str(w.rejected),
            formatting.note(w),
        )
        for w in shown
    ]
    note = "Last: rounds in which the worker came last. Lag and note tell of the end of the run, not of the whole."
    note += f" The worst {len(shown)} are shown, {formatting.rest(rest)}." if rest else ""
    return Section("Workers", "As they were at the end.", head=head, rows=rows, note=note)


def _over_time(facts: Facts, what: str, caption: str) -> tuple[Chart, str]:
    """Curves by worker, and a note on values that were cut off."""
    curves = _curves(facts, what)
    tell = "{:.1f}".format if what == "staleness" else formatting.duration
    means = sorted(p.mean for c in curves for p in c.points) or [0.0]
    top, limit, cut = means[-1], CUT_AT * means[int(NEARLY_ALL * (len(means) - 1))], ""
    if 0 < 2 * limit < top:
        cut = f" Points above {tell(limit)} are cut off; the greatest is {tell(top)}."
        top = limit
    up = axes.linear(top) if what == "staleness" else axes.durations(top)
    return svg_chart.lines(caption, _across(facts), up, curves, tell), cut


def _curves(facts: Facts, what: str) -> list[Line]:
    """A line for each worker; of many only for the worst, with one for all others."""
    points = {w: facts.steps.curves.points((what, w)) for w in facts.steps.workers}
    if len(points) <= COLOURS:
        return [Line(f"worker-{w}", _style(i, w, facts), points[w]) for i, w in enumerate(sorted(points))]
    worst = [w for w, _ in facts.worst_first()[:WORST]]
    rest = _together([p for w in points if w not in worst for p in points[w]])
    named = [Line(f"worker-{w}", _style(i, w, facts), points[w]) for i, w in enumerate(worst)]
    return [Line(f"the other {len(points) - WORST:,} workers", "others", rest, band=True), *named]


def _style(index: int, worker: int, facts: Facts) -> str:
    return f"w{index}" + (" named" if worker == facts.named else "")


def _together(points: Sequence[Point]) -> list[Point]:
    """The points of several curves as one curve."""
    out = []
    for time, group in groupby(sorted(points), key=lambda p: p.time):
        same = list(group)
        mean = sum(p.mean for p in same) / len(same)
        out.append(Point(time, mean, min(p.least for p in same), max(p.greatest for p in same)))
    return out


def _across(facts: Facts) -> axes.Scale:
    return axes.durations(facts.steps.seconds or 1.0, ticks=10, exact=True)


def _mean(it: WorkerSteps) -> Mapping[str, float]:
    return {phase: it.phases[phase] / it.steps for phase in PHASES}


def _own(it: WorkerSteps) -> float:
    return own_seconds(_mean(it))


def _by_arrival(facts: Facts) -> str:
    return (
        ""
        if facts.mode.ring
        else "The shares above are from the arrivals at the server, and can differ a little from these."
    )


def _not_shown(facts: Facts) -> str:
    count = len(facts.steps.workers) - MOST_ROWS
    return f" The worst {MOST_ROWS} workers are shown, {count:,} others are not." if count > 0 else ""
