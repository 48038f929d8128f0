"""The table of workers, as wide as fits: `paceline run` shows it while it runs, `paceline top` at any time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from paceline.views import formatting
from paceline.views.sources.status_answer import Status, WorkerAnswer

BAR = 16  # letters for a step's phases
LETTERS = {  # of each phase in a bar, and its colour
    "data": ("d", "magenta"),
    "forward": ("f", "green"),
    "backward": ("b", "bright_green"),
    "encode": ("e", "cyan"),
    "send": ("s", "bright_blue"),
    "wait": ("w", "yellow"),
    "receive": ("r", "blue"),
    "apply": ("a", "bright_cyan"),
    "checkpoint": ("c", "bright_magenta"),
    "other": ("o", "white"),
}


@dataclass(frozen=True)
class Column:
    """One column; of those that do not fit into the width, the highest `rank` goes first."""

    title: str
    value: Callable[[WorkerAnswer], str | Text]
    rank: int
    left: bool = False
    empty: Callable[[WorkerAnswer], bool] = lambda _: False  # a column that is empty for all is left out


COLUMNS = (
    Column("worker", lambda w: w.name, 0, left=True),
    Column("step", lambda w: f"{w.step}/{w.total_steps}" if w.total_steps else str(w.step), 1),
    Column("loss", lambda w: formatting.number(w.loss), 5),
    Column("step time", lambda w: formatting.duration(w.step_seconds), 4),
    Column("gradient latency", lambda w: formatting.duration(w.latency_seconds), 6),
    Column("lag", lambda w: formatting.duration(w.lag_seconds), 2, empty=lambda w: w.lag_seconds is None),
    Column("staleness", lambda w: formatting.number(w.staleness, 1), 7, empty=lambda w: not w.staleness),
    Column("rejected", lambda w: str(w.rejected), 8, empty=lambda w: not w.rejected),
    Column("phases of a step", lambda w: bar(w.phases), 3, left=True, empty=lambda w: not w.phases),
    Column("note", formatting.note, 0, left=True, empty=lambda w: not formatting.note(w)),
)


def table(status: Status, width: int, workers: Sequence[WorkerAnswer] | None = None, title: str = "") -> Table:
    """One row for each worker, by default for all in their order. Columns that do not fit are left out."""
    shown = status.workers if workers is None else workers
    columns = [c for c in COLUMNS if not all(c.empty(w) for w in status.workers)]
    while True:
        out = _table(columns, shown, title)
        if len(columns) <= 2 or _width(out) <= width:
            return out
        columns.remove(max(columns, key=lambda c: c.rank))


def bar(phases: Mapping[str, float]) -> Text:
    """Where a step's time goes, in letters."""
    out = Text()
    known = {phase: phases[phase] for phase in LETTERS if phases.get(phase)}
    total = sum(known.values())
    done, before = 0, 0.0
    for phase, seconds in known.items():
        before += seconds
        until = round(BAR * before / total)
        letter, colour = LETTERS[phase]
        out.append(letter * (until - done), style=f"black on {colour}")
        done = until
    return out


def legend(workers: Sequence[WorkerAnswer]) -> Text:
    """What the letters in the bars mean; only those that are there."""
    letters = {letter for w in workers for letter in bar(w.phases).plain}
    there = [(phase, *style) for phase, style in LETTERS.items() if style[0] in letters]
    parts = [Text.assemble((letter, f"black on {colour}"), f" {phase}") for phase, letter, colour in there]
    return Text("  ").join(parts)


def _table(columns: Sequence[Column], workers: Sequence[WorkerAnswer], title: str) -> Table:
    out = Table(title=Text(title) if title else None, title_justify="left", expand=False)
    for column in columns:
        out.add_column(column.title, justify="left" if column.left else "right", no_wrap=column.title != "note")
    for worker in workers:
        out.add_row(*(_cell(column.value(worker)) for column in columns))
    return out


def _cell(value: str | Text) -> Text:
    return Text(value) if isinstance(value, str) else value  # never markup: the words may come from a pod


def _width(out: Table) -> int:
    console = Console(width=1000)
    return console.measure(out).maximum
