"""`paceline report`: a run as one HTML page that needs neither a network nor a script."""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from paceline import __version__, manifest, standard_streams
from paceline.files import bounded_reading, private_writing
from paceline.manifest_redaction import redacted
from paceline.terminal import printable, printable_lines
from paceline.views import formatting
from paceline.views.report import sections, steps_csv
from paceline.views.report.sections import Facts, Section
from paceline.views.sources.run_files import RunFailure, RunResult
from paceline.views.sources.run_folders import MANIFEST, Run
from paceline.views.sources.training_source import Snapshot
from paceline_core import modes
from paceline_core.errors import SpecError
from paceline_core.spec import DistributedTraining

PAGE = "report.html"
MANIFEST_LINES = 5000
LOG_LINES, LOG_BYTES = 40, 256 << 10
TONES = {"Succeeded": "good", "Failed": "bad", "Interrupted": "plain", "Unknown": "bad"}


def report(run: Run, output: Path | None) -> None:
    """Write the page, and say where it is. Raises SpecError."""
    path, text, unreadable = output or run.folder / PAGE, *page(run)
    data = text.encode()
    try:
        if output is None:
            private_writing.replace(path, data)
        else:
            private_writing.write_asked(output, data)
    except BrokenPipeError:
        raise  # its reader has seen enough
    except OSError as error:
        raise SpecError([f"{path}: cannot be written: {error.strerror}"]) from None
    if unreadable > 1:  # one is the half line of a run that was killed
        standard_streams.say(printable(f"{run.folder / steps_csv.FILE}: {unreadable:,} lines cannot be read"))
    print(printable(f"{path}: {len(data) / 1e3:.0f} kB; open it in a browser"))


def page(run: Run) -> tuple[str, int]:
    """The whole page, and how many lines of steps.csv could not be read."""
    snapshot, result, training = run.snapshot(), run.result() or RunResult(), _training(run)
    facts = _facts(snapshot, result, training, run)
    jinja = Environment(loader=PackageLoader("paceline.views.report", ""), autoescape=True, undefined=StrictUndefined)
    text = jinja.get_template(PAGE).render(
        name=result.training or (training.metadata.name if training else run.folder.name),
        kind=_kind(training),
        phase=snapshot.phase,
        tone=_tone(snapshot, facts),
        headline=_headline(snapshot, facts, result),
        tiles=_tiles(facts),
        failure=_failure(run, result.error),
        sections=_sections(snapshot, facts),
        environment=_environment(run, result, training),
        manifest=_manifest(run),
        bins=formatting.duration(facts.steps.curves.width),
        points=facts.steps.curves.most,
        unreadable=facts.steps.unreadable,
        made=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        version=__version__,
    )
    return text, facts.steps.unreadable


def _facts(snapshot: Snapshot, result: RunResult, training: DistributedTraining | None, run: Run) -> Facts:
    status = snapshot.status
    strategy = status.strategy if status else result.strategy or _strategy(training)
    size = training.spec.world_size if training else len(status.workers) if status else None
    made = steps_csv.read(run.folder, size, rounds=modes.mode(strategy).knobs.names_lag)
    return Facts(strategy, status, snapshot.goodput or (status.goodput if status else None), made)


def _strategy(training: DistributedTraining | None) -> str:
    return training.spec.mode if training else "unknown"


def _sections(snapshot: Snapshot, facts: Facts) -> list[Section]:
    if not facts.steps.workers:
        return [sections.without_steps(facts, snapshot.phase), sections.time_spent(facts.goodput)]
    found = [
        sections.waiting(facts),
        sections.time_spent(facts.goodput),
        sections.loss(facts),
        sections.latency(facts),
        sections.phases(facts),
        sections.staleness(facts),
        sections.rejections(facts),
        sections.workers(facts),
    ]
    return [section for section in found if section is not None]


def _headline(snapshot: Snapshot, facts: Facts, result: RunResult) -> list[str]:
    """The run in a few sentences."""
    seconds = result.duration_seconds
    after = "" if seconds is None else f" after {formatting.duration(seconds)}"
    told = [f"{snapshot.phase}{after}" + (f": {snapshot.message}" if snapshot.message else "")]
    if facts.status and facts.status.overall_verdict:
        told.append(formatting.waiting(facts.status.overall_verdict, past=True))
    elif not facts.waits_for_all and facts.status:
        told += [f"{w.name} was {' and '.join(w.verdicts)}" for w in facts.status.workers if w.verdicts]
        told.append(formatting.nobody(facts.strategy, past=True))
    elif facts.steps.rounds:
        told.append(formatting.nobody(facts.strategy, past=True))
    if facts.status:
        told += formatting.not_finite(facts.status.loss_not_finite, facts.status.weights_not_finite)
    return [formatting.sentence(text) for text in told]


def _tone(snapshot: Snapshot, facts: Facts) -> str:
    tone = TONES.get(snapshot.phase, "plain")
    status = facts.status
    odd = status is not None and bool(status.loss_not_finite or status.weights_not_finite)
    return "warn" if tone == "good" and (facts.named is not None or odd) else tone


def _tiles(facts: Facts) -> list[tuple[str, str]]:
    """The figures that are looked for first."""
    status = facts.status
    if status is None:
        return [("steps", str(sum(it.steps for it in facts.steps.workers.values())))]
    tiles = [("updates", f"{status.version:,}")]
    if facts.steps.seconds > 0:
        tiles.append(("updates a second", f"{status.version / facts.steps.seconds:.1f}"))
    losses = [w.loss for w in status.workers if w.loss is not None]
    if losses:
        tiles.append(("loss", f"{sum(losses) / len(losses):.4g}"))
    reported = status.workers[0].reported
    tiles += [(name, formatting.figure(value)) for name, value in reported.items() if name != "loss"][:4]
    if facts.goodput and facts.goodput.seconds > 0:
        tiles.append(("goodput", f"{facts.goodput.productive / facts.goodput.seconds:.0%}"))
    if any(w.rejected for w in status.workers):
        tiles.append(("rejected", f"{sum(w.rejected for w in status.workers):,}"))
    return tiles


def _failure(run: Run, error: RunFailure | None) -> Mapping[str, Any] | None:
    """Why the run failed, with the end of the log of the replica that failed first."""
    if error is None:
        return None
    return {
        "replica": error.replica,
        "message": error.message,
        "traceback": error.traceback,
        "victims": ", ".join(error.victims),
        "log": _tail(run.folder, f"logs/{Path(error.replica).name}.log"),
        "lines": LOG_LINES,
    }


def _tail(folder: Path, name: str) -> str:
    try:
        file = bounded_reading.opened(folder, name)
    except SpecError as error:
        return str(error)
    if file is None:
        return ""
    with file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
        return printable_lines(file.read(LOG_BYTES).decode(errors="replace"), LOG_LINES)


def _kind(training: DistributedTraining | None) -> str:
    if training is None:
        return ""
    spec = training.spec
    servers = "" if spec.ring else f", {_count(spec.server.replicas, 'server')}"
    return f"{_strategy(training)}{servers}, {_count(spec.world_size, 'worker')}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _environment(run: Run, result: RunResult, training: DistributedTraining | None) -> Sequence[tuple[str, str]]:
    machine = result.machine
    found = {
        "run folder": printable(run.name),
        "started": result.started,
        "transport": training.spec.security.transport if training else None,
        "CPUs": machine.get("cpus"),
        "Python": machine.get("python"),
        "torch": machine.get("torch"),
        "Paceline": __version__,
        "reproduces": result.replay_of,
        "weights (SHA-256)": result.weights_sha256,
    }
    return [(name, str(value)) for name, value in found.items() if value]


def _training(run: Run) -> DistributedTraining | None:
    """The manifest; None when this version cannot read it."""
    try:
        return manifest.one(_written(run), run.folder / MANIFEST)
    except SpecError:
        return None


def _manifest(run: Run) -> str:
    try:
        return printable_lines(redacted(_written(run)), MANIFEST_LINES)
    except SpecError as error:
        return str(error)


def _written(run: Run) -> str:
    """The text of the manifest. Raises SpecError."""
    data = bounded_reading.whole(run.folder, MANIFEST, manifest.MOST_BYTES)
    return manifest.decoded(data or b"", run.folder / MANIFEST)
