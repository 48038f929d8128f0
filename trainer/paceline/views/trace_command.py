"""`paceline trace`: asks every process what it did when, and writes one file for Perfetto or chrome://tracing."""

import gzip
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from paceline import json_text, standard_streams
from paceline.files import private_writing
from paceline.terminal import printable
from paceline.views.sources.training_source import Process, TrainingSource
from paceline.views.trace_events import MOST_EVENTS, Timeline, TraceAnswer, timeline
from paceline_core.errors import SpecError

AT_ONCE = 16  # processes that are asked at the same time
SHOWN = 5  # problems that are told


def trace(source: TrainingSource, output: Path | None) -> None:
    """Write the file, and say where it is. Raises SpecError."""
    found, problems = collect(source.processes())
    if not any(each.spans or each.updates for each in found):
        told = problems[:SHOWN] or ["its processes have told of no step"]
        raise SpecError([f"{source.name}: {problem}" for problem in told])
    for problem in problems[:SHOWN]:
        standard_streams.say(printable(f"left out: {problem}"))
    if len(problems) > SHOWN:
        standard_streams.say(f"left out: {len(problems) - SHOWN} more processes")
    merged = timeline(found, source.name)
    path = output or source.trace_file
    size = write(merged, path, asked=output is not None)
    print(printable(f"{path}: {merged.summary()}, {size / 1e6:.1f} MB"))
    print("open it in https://ui.perfetto.dev (the file stays on this machine) or in chrome://tracing")


def collect(processes: Sequence[Process]) -> tuple[list[TraceAnswer], list[str]]:
    """What the processes answer, a few asked at a time, and why some do not."""
    found, problems = [], []
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with bar as progress, ThreadPoolExecutor(AT_ONCE) as pool:
        answers = pool.map(_ask, processes)
        for answer in progress.track(answers, total=len(processes), description="asking the processes"):
            if isinstance(answer, TraceAnswer):
                found.append(answer.newest(max(1, 2 * MOST_EVENTS // len(processes))))  # in memory all at once
            else:
                problems.append(answer)
    return found, problems


def _ask(process: Process) -> TraceAnswer | str:
    """A trace, or why there is none."""
    try:
        return TraceAnswer.model_validate(process.trace())
    except SpecError as error:
        return f"{process.replica}: {error}"
    except ValidationError as error:
        return f"{process.replica}: answered something that is no trace: {error.errors()[0]['msg']}"


def write(merged: Timeline, path: Path, asked: bool = True) -> int:
    """Write the file, compressed if its name asks for that; gives its size. Raises SpecError."""
    data = json_text.dumps(merged.to_json(), separators=(",", ":")).encode()
    data = gzip.compress(data, compresslevel=6) if path.suffix == ".gz" else data
    try:
        if asked:
            private_writing.write_asked(path, data)
        else:
            private_writing.replace(path, data)
    except BrokenPipeError:
        raise  # its reader has seen enough
    except OSError as error:
        raise SpecError([f"{path}: cannot be written: {error.strerror}"]) from None
    return len(data)
