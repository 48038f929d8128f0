"""`paceline top`: one training as a table that renews itself."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import TypeAdapter
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from paceline.views import words
from paceline.views.look import Look, Source
from paceline.views.status import MOST_ROWS, Status, selection
from paceline.views.table import legend, table
from paceline_core.errors import SpecError

PLAIN_WIDTH = 132  # columns when the output is not a terminal
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


def top(source: Source, options: Options) -> None:
    """Show the training until it ends or the user has seen enough (Ctrl-C). Raises SpecError."""
    if options.output == "json":
        print(TypeAdapter(Look).dump_json(source.look()).decode())
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    if options.once or not console.is_terminal:
        console.print(page(source.name, source.look(), options, console.width))
        return
    try:
        _follow(source, options, console)
    except KeyboardInterrupt:
        pass  # that is how one leaves


def _follow(source: Source, options: Options, console: Console) -> None:
    look, heard = source.look(), time.monotonic()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            rows = max(FEWEST_ROWS, min(MOST_ROWS, console.height - AROUND))
            live.update(page(source.name, look, options, console.width, rows), refresh=True)
            if look.ended:
                return
            time.sleep(source.period)
            look = _next(source, look)
            heard = heard if look.lost else time.monotonic()
            if time.monotonic() - heard > LOST_SECONDS:
                raise SpecError([look.message])


def _next(source: Source, before: Look) -> Look:
    """A new look; when there is none, the one before, with the reason: a cluster may be out of reach for a moment."""
    try:
        return source.look()
    except SpecError as error:
        return replace(before, message=str(error), lost=True)


def page(name: str, look: Look, options: Options, width: int, rows: int = MOST_ROWS) -> Group:
    """Everything that is shown at one moment."""
    lines: list[RenderableType] = [_head(name, look)]
    if look.message:
        lines.append(Text(look.message, style="red" if look.lost or look.phase == "Failed" else ""))
    goodput = look.goodput or (look.status.goodput if look.status else None)
    if goodput is not None and goodput.seconds > 0:
        lines.append(Text(words.goodput(goodput)))
    if look.status is not None:
        lines += _workers(look.status, look.ended, options, width, rows)
    return Group(*lines)


def _head(name: str, look: Look) -> Text:
    phase = (look.phase, COLOURS.get(look.phase, "bold"))
    if look.status is None:
        return Text.assemble((name, "bold"), "  ", phase)
    return Text.assemble((look.status.training, "bold"), "  ", phase, f"  {look.status.strategy}  ", (name, "dim"))


def _workers(status: Status, ended: bool, options: Options, width: int, rows: int) -> Iterator[RenderableType]:
    if status.version:
        yield Text(_progress(status, ended))
        yield _verdict(status, ended)
    if any(w.rejected for w in status.workers):
        yield Text(words.rejections(status))
    shown, rest = selection(status.workers, options.by_lag, rows)
    yield Text("")
    if ended:
        yield Text("as it was at the end:", style="dim")
    yield table(status, width, shown)
    if rest:
        yield Text(words.rest(rest))
    yield legend(shown)


def _progress(status: Status, ended: bool) -> str:
    parts = [words.steps(status), f"{status.version} updates"]
    if status.eta_seconds and not ended:
        parts.append(f"about {words.duration(status.eta_seconds)} left")
    return ", ".join(parts)


def _verdict(status: Status, ended: bool) -> Text:
    verdict = status.overall_verdict if ended else status.verdict
    if verdict is None:
        return Text(words.nobody(status.strategy, past=ended))
    return Text(words.waiting(verdict, past=ended), style="bold yellow")
