"""`paceline trace`: asks every process what it did when, and writes one file for Perfetto or chrome://tracing."""

import gzip
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from paceline.views.look import Process, Source
from paceline.views.timeline import MOST_EVENTS, Timeline, Trace, timeline
from paceline_core.errors import SpecError

AT_ONCE = 16  # processes that are asked at the same time
SHOWN = 5  # problems that are told


def trace(source: Source, output: Path | None) -> None:
    """Write the file, and say where it is. Raises SpecError."""
    found, problems = collect(source.processes())
    if not any(each.spans or each.updates for each in found):
        told = problems[:SHOWN] or ["its processes have made no step"]
        raise SpecError([f"{source.name}: {problem}" for problem in told])
    for problem in problems[:SHOWN]:
        print(f"left out: {problem}", file=sys.stderr)
    if len(problems) > SHOWN:
        print(f"left out: {len(problems) - SHOWN} more processes", file=sys.stderr)
    merged = timeline(found, source.name)
    path = output or source.trace_file
    size = write(merged, path)
    print(f"{path}: {merged.summary()}, {size / 1e6:.1f} MB")
    print("open it in https://ui.perfetto.dev (the file stays on this machine) or in chrome://tracing")


def collect(processes: Sequence[Process]) -> tuple[list[Trace], list[str]]:
    """What the processes answer, a few asked at a time, and why some do not."""
    found, problems = [], []
    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with bar as progress, ThreadPoolExecutor(AT_ONCE) as pool:
        answers = pool.map(_ask, processes)
        for answer in progress.track(answers, total=len(processes), description="asking the processes"):
            if isinstance(answer, Trace):
                found.append(answer.newest(2 * MOST_EVENTS // len(processes)))  # in memory all at once
            else:
                problems.append(answer)
    return found, problems


def _ask(process: Process) -> Trace | str:
    """A trace, or why there is none."""
    try:
        return Trace.model_validate(process.trace())
    except SpecError as error:
        return f"{process.replica}: {error}"
    except ValidationError as error:
        return f"{process.replica}: answered something that is no trace: {error.errors()[0]['msg']}"


def write(merged: Timeline, path: Path) -> int:
    """Write the file, compressed if its name asks for that; gives its size. Raises SpecError."""
    data = json.dumps(merged.to_json(), separators=(",", ":")).encode()
    try:
        path.write_bytes(gzip.compress(data, compresslevel=6) if path.suffix == ".gz" else data)
    except OSError as error:
        raise SpecError([f"{path}: cannot be written: {error.strerror}"]) from None
    return path.stat().st_size
