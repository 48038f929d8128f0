"""What a person (or a program) sees of a run: a live table, plain lines, or JSON lines."""

import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape

from paceline import json_text
from paceline.terminal import printable
from paceline.views import formatting
from paceline.views.sources import status_answer as answers
from paceline.views.sources.status_answer import OddLossAnswer, Status, VerdictAnswer, selection
from paceline.views.worker_table import legend, table
from paceline_core.errors import SpecError

PLAIN_SECONDS = 5.0  # between two lines of progress when the output is not a terminal
LONGEST = 5000  # characters of a line of ours
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


class TextDisplay:
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
        self._print(f"[bold]{escape(info['training'])}[/]: {escape(info['summary'])}")
        self._print(f"run folder {_shown(info['folder'])}")
        if info["resumed_from"]:
            self._print(f"resumed    from step {info['resumed_step']} of {_shown(info['resumed_from'])}")
        self._print(f"status     {info['status']}")
        for name, address in info["metrics"].items():
            self._print(f"metrics    {address} ({name})")
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()

    def note(self, text: str) -> None:
        """Print a remark."""
        self._print(f"[dim]{_shown(text)}[/]")

    def line(self, name: str, line: str) -> None:
        """Print a process's line behind its name. It is the user's own, with colours if it has any."""
        self._print(f"[cyan]{escape(f'[{name}]')}[/] {escape(line)}")

    def progress(self, status: Mapping[str, Any]) -> None:
        """Renew the table, or print a line now and then."""
        try:
            self._last = found = answers.read(status, "the training")
        except SpecError:
            return  # showing is not worth the run
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
                self._print(f"[red]|[/] {_shown(line)}")
        self._print(f"[bold red]{_shown(failure['replica'])}[/]: {_shown(str(failure['message']))}")
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
            self._print(_shown(line))

    def _table(self, status: Status, final: bool = False) -> Group:
        """The workers in their order; of very many only the worst."""
        shown, rest = selection(status.workers, by_lag=False)
        return Group(
            table(status, self._console.width, shown, title(status, final)),
            *([formatting.rest(rest)] if rest else []),
            legend(shown),
        )

    def _end_live(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def _print(self, text: str) -> None:
        with self._lock:
            self._console.print(text, soft_wrap=True)


class JsonDisplay:
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
        with self._lock:
            sys.stdout.write(json_text.dumps({"event": event, **value}) + "\n")
            sys.stdout.flush()


def _shown(text: str) -> str:
    """A text from outside, with nothing in it that a terminal, or rich, would obey."""
    return escape(printable(text.expandtabs(), LONGEST))


def title(status: Status, final: bool = False) -> str:
    """What stands above the table."""
    text = f"{status.training}: {status.strategy}, {status.version} updates"
    eta = status.eta_seconds
    return text if final or not eta else f"{text}, about {formatting.duration(eta)} left"


def one_line(status: Status) -> str:
    """All workers in a line."""
    workers = status.workers
    losses = [w.loss for w in workers if w.loss is not None]
    parts = [formatting.steps(status)]
    if losses:
        parts.append(f"loss {sum(losses) / len(losses):.4f}")
    parts += [f"{w.name} {formatting.note(w)}" for w in workers if formatting.note(w)]
    if rejected := sum(w.rejected for w in workers):
        parts.append(f"{rejected} rejected")
    if status.eta_seconds:
        parts.append(f"about {formatting.duration(status.eta_seconds)} left")
    return ", ".join(parts)


def summary(result: Mapping[str, Any]) -> list[str]:
    """The last lines of a run."""
    lines = [f"{result['result']} in {result['duration_seconds']:.1f} s"]
    reported = {k: v for k, v in result["reported"].items() if k != "loss"}
    lines += [f"{name} {formatting.figure(value)}" for name, value in reported.items()]
    lines += [
        f"{worker}: gradients were not finite in {steps} steps, whose updates were left out"
        for worker, steps in (result.get("gradients_not_finite") or {}).items()
    ]
    odd = result.get("loss_not_finite")
    loss = OddLossAnswer.model_validate(odd) if odd else None
    lines += formatting.not_finite(loss, result.get("weights_not_finite"))
    if result["verdict"]:
        lines.append(formatting.waiting(VerdictAnswer.model_validate(result["verdict"]), past=True))
    elif result["result"] == "Succeeded":
        lines.append(formatting.nobody(result["strategy"], past=True))
    if result["weights_sha256"]:
        lines.append(f"weights {result['folder']}/weights.safetensors (SHA-256 {result['weights_sha256']})")
    lines.append(f"everything about this run is in {result['folder']}; as a page: paceline report {result['folder']}")
    return lines
