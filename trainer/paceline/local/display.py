"""What a person (or a program) sees of a run: a live table, plain lines, or JSON lines."""

import json
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape

from paceline.views import status as answers
from paceline.views import words
from paceline.views.status import Status, Verdict, selection
from paceline.views.table import legend, table

PLAIN_SECONDS = 5.0  # between two lines of progress when the output is not a terminal
PLAIN_WIDTH = 132  # columns of the final table then


class Display(Protocol):
    """Where a run shows itself. Called from several threads."""

    def start(self, info: Mapping[str, Any]) -> None:
        """The processes are being started."""

    def note(self, text: str) -> None:
        """Something worth knowing."""

    def line(self, name: str, line: str) -> None:
        """A line of output of one process."""

    def progress(self, status: Mapping[str, Any]) -> None:
        """The state of the workers: what /status answers."""

    def failure(self, failure: Mapping[str, Any]) -> None:
        """Why the run failed."""

    def result(self, result: Mapping[str, Any]) -> None:
        """The end."""


class Text:
    """For people: a live table on a terminal, lines otherwise."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        if not self._console.is_terminal:
            self._console = Console(highlight=False, width=PLAIN_WIDTH)
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._last: Status | None = None
        self._shown = 0.0

    def start(self, info: Mapping[str, Any]) -> None:
        """Name the run, and where its metrics are."""
        self._print(f"[bold]{info['training']}[/]: {info['summary']}")
        self._print(f"run folder {info['folder']}")
        self._print(f"status     {info['status']}")
        for name, address in info["metrics"].items():
            self._print(f"metrics    {address} ({name})")
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()

    def note(self, text: str) -> None:
        """Print a remark."""
        self._print(f"[dim]{escape(text)}[/]")

    def line(self, name: str, line: str) -> None:
        """Print a process's line behind its name."""
        self._print(f"[cyan]{escape(f'[{name}]')}[/] {escape(line)}")

    def progress(self, status: Mapping[str, Any]) -> None:
        """Renew the table, or print a line now and then."""
        self._last = found = answers.read(status, "the training")
        if self._live:
            self._live.update(self._table(found))
        elif time.monotonic() - self._shown > PLAIN_SECONDS and any(w.step for w in found.workers):
            self._shown = time.monotonic()
            self._print(escape(one_line(found)))

    def failure(self, failure: Mapping[str, Any]) -> None:
        """Show the root cause with its traceback, then the victims."""
        self._end_live()
        self._print("")
        if failure.get("traceback"):
            for line in str(failure["traceback"]).rstrip().splitlines():
                self._print(f"[red]|[/] {escape(line)}")
        self._print(f"[bold red]{escape(failure['replica'])}[/]: {escape(str(failure['message']))}")
        if failure["victims"]:
            self._print(f"[dim]ended because of it: {', '.join(failure['victims'])}[/]")

    def result(self, result: Mapping[str, Any]) -> None:
        """The final table and the summary."""
        self._end_live()
        if self._last and any(w.step for w in self._last.workers):
            self._print("")
            self._console.print(self._table(self._last, final=True))
        self._print("")
        for line in summary(result):
            self._print(escape(line))

    def _table(self, status: Status, final: bool = False) -> Group:
        """The workers in their order; of very many only the worst."""
        shown, rest = selection(status.workers, by_lag=False)
        return Group(
            table(status, self._console.width, shown, title(status, final)),
            *([words.rest(rest)] if rest else []),
            legend(shown),
        )

    def _end_live(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def _print(self, text: str) -> None:
        with self._lock, suppress(BrokenPipeError):  # who read it has gone; the run goes on
            self._console.print(text, soft_wrap=True)


class Json:
    """For programs: one JSON object a line on standard output."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def start(self, info: Mapping[str, Any]) -> None:
        """Event `start`."""
        self._emit("start", info)

    def note(self, text: str) -> None:
        """Event `note`."""
        self._emit("note", {"text": text})

    def line(self, name: str, line: str) -> None:
        """Event `log`."""
        self._emit("log", {"replica": name, "line": line})

    def progress(self, status: Mapping[str, Any]) -> None:
        """Event `progress`."""
        self._emit("progress", status)

    def failure(self, failure: Mapping[str, Any]) -> None:
        """Event `failure`."""
        self._emit("failure", failure)

    def result(self, result: Mapping[str, Any]) -> None:
        """Event `result`."""
        self._emit("result", result)

    def _emit(self, event: str, value: Mapping[str, Any]) -> None:
        with self._lock, suppress(BrokenPipeError):  # as above
            sys.stdout.write(json.dumps({"event": event, **value}) + "\n")
            sys.stdout.flush()


def title(status: Status, final: bool = False) -> str:
    """What stands above the table."""
    text = f"{status.training}: {status.strategy}, {status.version} updates"
    eta = status.eta_seconds
    return text if final or not eta else f"{text}, about {words.duration(eta)} left"


def one_line(status: Status) -> str:
    """All workers in a line."""
    workers = status.workers
    losses = [w.loss for w in workers if w.loss is not None]
    parts = [words.steps(status)]
    if losses:
        parts.append(f"loss {sum(losses) / len(losses):.4f}")
    parts += [f"{w.name} {words.note(w)}" for w in workers if words.note(w)]
    if rejected := sum(w.rejected for w in workers):
        parts.append(f"{rejected} rejected")
    if status.eta_seconds:
        parts.append(f"about {words.duration(status.eta_seconds)} left")
    return ", ".join(parts)


def summary(result: Mapping[str, Any]) -> list[str]:
    """The last lines of a run."""
    lines = [f"{result['result']} in {result['duration_seconds']:.1f} s"]
    reported = {k: v for k, v in result["reported"].items() if k != "loss"}
    lines += [f"{name} {value:.4g}" for name, value in reported.items()]
    if result["verdict"]:
        lines.append(words.waiting(Verdict.model_validate(result["verdict"]), past=True))
    elif result["result"] == "Succeeded":
        lines.append(words.nobody(result["strategy"], past=True))
    if result["weights_sha256"]:
        lines.append(f"weights {result['folder']}/weights.safetensors (SHA-256 {result['weights_sha256']})")
    lines.append(f"everything about this run is in {result['folder']}; as a page: paceline report {result['folder']}")
    return lines
