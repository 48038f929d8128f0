"""What a person (or a program) sees of a run: a live table, plain lines, or JSON lines."""

import json
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

PLAIN_SECONDS = 5.0  # between two lines of progress when the output is not a terminal
PLAIN_WIDTH = 132  # columns of the final table then
Status = Mapping[str, Any]


class Display(Protocol):
    """Where a run shows itself. Called from several threads."""

    def start(self, info: Mapping[str, Any]) -> None:
        """The processes are being started."""

    def note(self, text: str) -> None:
        """Something worth knowing."""

    def line(self, name: str, line: str) -> None:
        """A line of output of one process."""

    def progress(self, status: Status) -> None:
        """The state of the workers."""

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

    def progress(self, status: Status) -> None:
        """Renew the table, or print a line now and then."""
        self._last = status
        if self._live:
            self._live.update(table(status))
        elif time.monotonic() - self._shown > PLAIN_SECONDS and any(w["step"] for w in status["workers"]):
            self._shown = time.monotonic()
            self._print(escape(one_line(status)))

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
        if self._last and any(w["step"] for w in self._last["workers"]):
            self._print("")
            self._console.print(table(self._last, final=True))
        self._print("")
        for line in summary(result):
            self._print(escape(line))

    def _end_live(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def _print(self, text: str) -> None:
        with self._lock:
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

    def progress(self, status: Status) -> None:
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
            sys.stdout.write(json.dumps({"event": event, **value}) + "\n")
            sys.stdout.flush()


def table(status: Status, final: bool = False) -> Table:
    """The workers, one row each."""
    title = f"{status['training']}: {status['strategy']}, {status['version']} updates"
    eta = eta_seconds(status)
    if eta and not final:
        title += f", about {_time(eta)} left"
    out = Table(title=title, title_justify="left", expand=False)
    for name in ("worker", "step", "loss", "step time", "gradient latency", "lag", "staleness", "rejected", "note"):
        out.add_column(name, justify="left" if name in ("worker", "note") else "right", no_wrap=name != "note")
    for worker in status["workers"]:
        total = f"/{worker['total_steps']}" if worker["total_steps"] else ""
        out.add_row(
            f"worker-{worker['worker']}", f"{worker['step']}{total}", _number(worker["loss"]),
            _time(worker["step_seconds"]), _time(worker["latency_seconds"]), _time(worker["lag_seconds"]),
            _number(worker["staleness"], 1), str(worker["rejected"]), note(worker),
        )  # fmt: skip
    return out


def note(worker: Mapping[str, Any]) -> str:
    """What is to be said about a worker."""
    verdicts = [f"{v} {worker['lag_share']:.0%}" if v == "makes the others wait" else v for v in worker["verdicts"]]
    state = [worker["state"]] if worker["state"] in ("waiting", "lost") else []
    return ", ".join(state + verdicts)


def one_line(status: Status) -> str:
    """All workers in a line."""
    workers = status["workers"]
    losses = [w["loss"] for w in workers if w["loss"] is not None]
    steps = [w["step"] for w in workers]
    parts = [f"step {min(steps)}" + (f" to {max(steps)}" if max(steps) > min(steps) else "")]
    if workers[0]["total_steps"]:
        parts[0] += f" of {workers[0]['total_steps']}"
    if losses:
        parts.append(f"loss {sum(losses) / len(losses):.4f}")
    parts += [f"worker-{w['worker']} {note(w)}" for w in workers if note(w)]
    if rejected := sum(w["rejected"] for w in workers):
        parts.append(f"{rejected} rejected")
    if eta := eta_seconds(status):
        parts.append(f"about {_time(eta)} left")
    return ", ".join(parts)


def summary(result: Mapping[str, Any]) -> list[str]:
    """The last lines of a run."""
    lines = [f"{result['result']} in {result['duration_seconds']:.1f} s"]
    reported = {k: v for k, v in result["reported"].items() if k != "loss"}
    lines += [f"{name} {value:.4g}" for name, value in reported.items()]
    verdict = result["verdict"]
    if verdict:
        share, lag = f"{verdict['lag_share']:.0%}", _time(verdict["lag_seconds"])
        lines.append(f"worker-{verdict['worker']} made the others wait: {share} of all waiting, {lag} in each round")
    elif result["result"] == "Succeeded" and result["strategy"] == "Asynchronous":
        lines.append("nobody made the others wait (asynchronous workers never wait for one another)")
    elif result["result"] == "Succeeded":
        lines.append("nobody made the others wait")
    if result["weights_sha256"]:
        lines.append(f"weights {result['folder']}/weights.safetensors (SHA-256 {result['weights_sha256']})")
    lines.append(f"everything about this run is in {result['folder']}")
    return lines


def eta_seconds(status: Status) -> float | None:
    """When the slowest worker will be done, in seconds from now; None when that is not known."""
    left = [
        (w["total_steps"] - w["step"]) * w["step_seconds"]
        for w in status["workers"]
        if w["total_steps"] and w["step_seconds"] and w["state"] == "training"
    ]
    return max(left) if left and max(left) > 0 else None


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min"
