"""`paceline top`: one training as a table that renews itself."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import TypeAdapter
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from paceline import json_text
from paceline.terminal import printable
from paceline.views import formatting
from paceline.views.sources.status_answer import MOST_ROWS, Status, selection
from paceline.views.sources.training_source import Snapshot, TrainingSource
from paceline.views.worker_table import legend, table
from paceline_core.errors import SpecError

PLAIN_WIDTH = 132  # columns when the output is not a terminal
LONGEST = 2000  # characters of a message
LOST_SECONDS = 15.0  # without an answer, before it is given up
AROUND = 13  # lines of a terminal that are not rows of the table
FEWEST_ROWS = 4
COLOURS = {"Succeeded": "green", "Failed": "red", "Unknown": "red"}


@dataclass(frozen=True)
class Options:
    """How to show it."""

    once: bool = False
    output: Literal["text", "json"] = "text"
    by_lag: bool = True


def top(source: TrainingSource, options: Options) -> None:
    """Show the training until it ends or the user has seen enough (Ctrl-C). Raises SpecError."""
    if options.output == "json":
        print(json_text.dumps(TypeAdapter(Snapshot).dump_python(source.snapshot(), mode="json")))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    if options.once or not console.is_terminal:
        console.print(page(printable(source.name), source.snapshot(), options, console.width))
        return
    try:
        _follow(source, options, console)
    except KeyboardInterrupt:
        pass  # that is how one leaves


def _follow(source: TrainingSource, options: Options, console: Console) -> None:
    snapshot, heard = source.snapshot(), time.monotonic()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            rows = max(FEWEST_ROWS, min(MOST_ROWS, console.height - AROUND))
            live.update(page(printable(source.name), snapshot, options, console.width, rows), refresh=True)
            if snapshot.ended:
                return
            time.sleep(source.period)
            snapshot = _next(source, snapshot)
            heard = heard if snapshot.lost else time.monotonic()
            if time.monotonic() - heard > LOST_SECONDS:
                raise SpecError([snapshot.message])


def _next(source: TrainingSource, before: Snapshot) -> Snapshot:
    """A new snapshot; if there is none, the one before, with the reason: a cluster may be out of reach for a moment."""
    try:
        return source.snapshot()
    except SpecError as error:
        return replace(before, message=str(error), lost=True)


def page(name: str, snapshot: Snapshot, options: Options, width: int, rows: int = MOST_ROWS) -> Group:
    """Everything that is shown at one moment."""
    lines: list[RenderableType] = [_head(name, snapshot)]
    if snapshot.message:
        lines.append(
            Text(
                printable(snapshot.message, LONGEST), style="red" if snapshot.lost or snapshot.phase == "Failed" else ""
            )
        )
    goodput = snapshot.goodput or (snapshot.status.goodput if snapshot.status else None)
    if goodput is not None and goodput.seconds > 0:
        lines.append(Text(formatting.goodput(goodput)))
    if snapshot.status is not None:
        lines += _workers(snapshot.status, snapshot.ended, options, width, rows)
    return Group(*lines)


def _head(name: str, snapshot: Snapshot) -> Text:
    phase = (snapshot.phase, COLOURS.get(snapshot.phase, "bold"))
    if snapshot.status is None:
        return Text.assemble((name, "bold"), "  ", phase)
    return Text.assemble(
        (snapshot.status.training, "bold"), "  ", phase, f"  {snapshot.status.strategy}  ", (name, "dim")
    )


def _workers(status: Status, ended: bool, options: Options, width: int, rows: int) -> Iterator[RenderableType]:
    if status.version:
        yield Text(_progress(status, ended))
        yield _verdict(status, ended)
    for line in formatting.not_finite(status.loss_not_finite, status.weights_not_finite):
        yield Text(line, style="bold yellow")
    if any(w.rejected for w in status.workers):
        yield Text(formatting.rejections(status))
    shown, rest = selection(status.workers, options.by_lag, rows)
    yield Text("")
    if ended:
        yield Text("as it was at the end:", style="dim")
    yield table(status, width, shown)
    if rest:
        yield Text(formatting.rest(rest))
    yield legend(shown)


def _progress(status: Status, ended: bool) -> str:
    parts = [formatting.steps(status), f"{status.version} updates"]
    if status.eta_seconds and not ended:
        parts.append(f"about {formatting.duration(status.eta_seconds)} left")
    return ", ".join(parts)


def _verdict(status: Status, ended: bool) -> Text:
    verdict = status.overall_verdict if ended else status.verdict
    if verdict is None:
        return Text(formatting.nobody(status.strategy, past=ended))
    return Text(formatting.waiting(verdict, past=ended), style="bold yellow")
