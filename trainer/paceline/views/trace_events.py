"""Traces of many processes as one, in the trace event format that Chrome made and Perfetto reads. Pure.

Each replica is a process of the file: workers with their steps and the phases in them, servers with their updates.
Arrows lead from the end of a worker's sending to each update that its gradient went into. All times are microseconds
on the clock of server 0 (or the coordinator), from the first event on.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Annotated, Any

from pydantic import Field

from paceline import __version__
from paceline.views.sources.status_answer import Answer, Clean, Count
from paceline_core.launch import Role

MOST_EVENTS = 1_000_000  # about 100 MB, which the viewers still open
Event = dict[str, Any]
LATEST = 1e11  # seconds: some thousand years from now, where calendars end
Time = Annotated[float, Field(ge=-LATEST, le=LATEST, allow_inf_nan=False)]
Push = tuple[Count, Count, Time]  # worker, step, when its gradient was here whole


class TraceAnswer(Answer):
    """What /trace answers: Unix times on the process's own clock."""

    replica: Clean
    offset: Time = 0.0  # to add, for the clock of server 0
    spans: tuple[tuple[Clean, Time, Time, Count], ...] = ()  # phase, begin, end, step
    updates: tuple[tuple[Count, Time, Time, tuple[Push, ...]], ...] = ()  # version, begin, end
    cut: bool = False  # whether older ones were left out

    @property
    def rank(self) -> tuple[bool, str, int]:
        """Servers first, each kind by number."""
        return self.is_worker, self.replica.rpartition("-")[0], self.ordinal

    @property
    def is_worker(self) -> bool:
        """Whether it makes steps."""
        return self.replica.startswith(f"{Role.WORKER}-")

    @property
    def ordinal(self) -> int:
        """Its number among its kind."""
        ordinal = self.replica.rpartition("-")[2]
        return int(ordinal) if re.fullmatch(r"[0-9]{1,9}", ordinal) else 0

    def newest(self, count: int) -> "TraceAnswer":
        """Without spans and updates that are older than the newest `count` of each; of steps only whole ones."""
        if len(self.spans) <= count and len(self.updates) <= count:
            return self
        first = self.spans[-count][3] if len(self.spans) > count else 0
        spans = tuple(span for span in self.spans[-count:] if span[3] > first)
        return self.model_copy(update={"spans": spans, "updates": self.updates[-count:], "cut": True})

    def micros(self, time: float) -> int:
        """A time of this process in microseconds on the clock of server 0."""
        return round((time + self.offset) * 1e6)


@dataclass(frozen=True)
class Timeline:
    """The merged file."""

    events: Sequence[Event]
    about: Mapping[str, Any]
    processes: int
    arrows: int
    cut: bool  # whether older events found no room
    crossed: int  # arrows that would lead back in time

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {"traceEvents": self.events, "displayTimeUnit": "ms", "otherData": self.about}

    def summary(self) -> str:
        """What is in it, and what is not."""
        parts = [f"{self.processes} processes", f"{len(self.events):,} events"]
        if self.arrows:
            parts.append(f"{self.arrows:,} arrows from push to update")
        if self.cut:
            parts.append("older ones found no room")
        if self.crossed:
            parts.append(f"{self.crossed:,} arrows left out, because the clocks do not agree well enough")
        return ", ".join(parts)


def timeline(traces: Sequence[TraceAnswer], name: str, most: int = MOST_EVENTS) -> Timeline:
    """One timeline of all processes, of about the newest `most` events."""
    ordered = sorted(traces, key=lambda t: t.rank)
    times = sorted(time for trace in ordered for time in _times(trace))
    since = times[-most] if len(times) > most else min(times, default=0)
    merge = _Merge(since)
    for process, trace in enumerate(ordered, start=1):
        merge.name(process, trace)
        merge.steps(process, trace)
    for process, trace in enumerate(ordered, start=1):
        merge.updates(process, trace)
    begins = datetime.fromtimestamp(max(0.0, since / 1e6), UTC).isoformat(timespec="milliseconds")
    about = {"run": name, "begins": begins, "made by": f"paceline {__version__}"}
    cut = len(times) > most or any(trace.cut for trace in traces)
    return Timeline(merge.events, about, len(ordered), merge.arrows, cut, merge.crossed)


def _times(trace: TraceAnswer) -> Iterator[int]:
    """When the events of a trace will be, about: one for each span, and three for each push of an update."""
    yield from (trace.micros(begin) for _, begin, _, _ in trace.spans)
    for _, begin, _, pushes in trace.updates:
        yield from [trace.micros(begin)] * (1 + 2 * len(pushes))


class _Merge:
    """Collects the events; those from before `since` are left out.

    Times are whole microseconds, so that slices that follow one another never overlap: Perfetto drops those that do.
    Each process has one thread, with the same number: Perfetto takes threads of one number for one.
    """

    def __init__(self, since: int) -> None:
        self.events: list[Event] = []
        self.arrows, self.crossed = 0, 0
        self._since = since
        self._sends: dict[tuple[int, int], tuple[int, int, int]] = {}  # worker, step -> process, begin, end

    def name(self, process: int, trace: TraceAnswer) -> None:
        """The replica's name, and its place from above."""
        for what, args in (
            ("process_name", {"name": trace.replica}),
            ("process_sort_index", {"sort_index": process}),
            ("thread_name", {"name": "steps" if trace.is_worker else "updates"}),
        ):
            self.events.append({"ph": "M", "name": what, "pid": process, "tid": process, "args": args})

    def steps(self, process: int, trace: TraceAnswer) -> None:
        """A worker's steps, each with its phases in it."""
        for step, spans in groupby(trace.spans, key=lambda span: span[3]):
            phases = [(phase, trace.micros(begin), trace.micros(end)) for phase, begin, end, _ in spans]
            begin, end = phases[0][1], phases[-1][2]
            if begin < self._since:
                continue
            self._slice(process, f"step {step}", "step", begin, end, {"step": step})
            for phase, at, until in phases:
                self._slice(process, phase, "phase", at, until, {"step": step})
                if phase == "send":
                    self._sends[trace.ordinal, step] = process, at, until

    def updates(self, process: int, trace: TraceAnswer) -> None:
        """A server's updates, with arrows from the pushes in them."""
        for version, begin_, end_, pushes in trace.updates:
            begin, end = trace.micros(begin_), trace.micros(end_)
            if begin < self._since:
                continue
            told = {f"worker-{w}": f"step {s}, here {begin_ - at:.6f} s before" for w, s, at in pushes}
            self._slice(process, f"update {version}", "update", begin, end, {"version": version, **told})
            for worker, step, _ in pushes:
                self._arrow(worker, step, process, begin)

    def _slice(self, process: int, name: str, kind: str, begin: int, end: int, args: Event) -> None:
        self.events.append(
            {"ph": "X", "name": name, "cat": kind, "pid": process, "tid": process,
             "ts": begin - self._since, "dur": max(0, end - begin), "args": args}
        )  # fmt: skip

    def _arrow(self, worker: int, step: int, process: int, at: int) -> None:
        sender, begin, end = self._sends.get((worker, step), (0, 0, 0))
        if not sender:
            return
        if at < begin:
            self.crossed += 1
            return
        self.arrows += 1
        # a moment before the end, so that the arrow begins in this slice and not in the next; an update may begin
        # before the worker knows that it has sent everything
        leaves = max(begin, min(end - 1, at))
        arrow = {"name": "push", "cat": "push", "id": self.arrows}
        self.events += [
            {**arrow, "ph": "s", "pid": sender, "tid": sender, "ts": leaves - self._since},
            {**arrow, "ph": "f", "bp": "e", "pid": process, "tid": process, "ts": at - self._since},
        ]
