"""`paceline report`: a run as one HTML page that needs neither a network nor a script."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from paceline import __version__, manifest
from paceline.views import sections, steps, words
from paceline.views.look import Look
from paceline.views.redact import redacted
from paceline.views.runs import MANIFEST, Run
from paceline.views.sections import Facts, Section
from paceline.views.status import printable
from paceline_core.errors import SpecError
from paceline_core.spec import DistributedTraining, Topology

PAGE = "report.html"
LOG_LINES = 40
TONES = {"Succeeded": "good", "Failed": "bad", "Interrupted": "plain", "Unknown": "bad"}


def report(run: Run, output: Path | None) -> None:
    """Write the page, and say where it is. Raises SpecError."""
    path = output or run.folder / PAGE
    try:
        path.write_text(page(run), encoding="utf-8")
    except OSError as error:
        raise SpecError([f"{path}: cannot be written: {error.strerror}"]) from None
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB; open it in a browser")


def page(run: Run) -> str:
    """The whole page."""
    look, result, training = run.look(), run.result() or {}, _training(run)
    facts = _facts(look, result, training, run)
    jinja = Environment(loader=PackageLoader("paceline.views", ""), autoescape=True, undefined=StrictUndefined)
    return jinja.get_template(PAGE).render(
        name=result.get("training") or (training.metadata.name if training else run.folder.name),
        kind=_kind(training),
        phase=look.phase,
        tone=_tone(look, facts),
        headline=_headline(look, facts, result),
        tiles=_tiles(facts),
        failure=_failure(run, result),
        sections=_sections(facts),
        environment=_environment(run, result, training),
        manifest=_manifest(run),
        bins=words.duration(facts.steps.curves.width),
        points=facts.steps.curves.most,
        unreadable=facts.steps.unreadable,
        made=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        version=__version__,
    )


def _facts(look: Look, result: Mapping[str, Any], training: DistributedTraining | None, run: Run) -> Facts:
    strategy = look.status.strategy if look.status else str(result.get("strategy") or _strategy(training))
    size = training.spec.world_size if training else len(look.status.workers) if look.status else 1
    made = steps.read(run.folder, size, rounds=strategy != "Asynchronous")
    return Facts(strategy, look.status, look.goodput or (look.status.goodput if look.status else None), made)


def _strategy(training: DistributedTraining | None) -> str:
    if training is None:
        return "unknown"
    ring = training.spec.topology is Topology.ALL_REDUCE
    return str(Topology.ALL_REDUCE if ring else training.spec.server.strategy)


def _sections(facts: Facts) -> list[Section]:
    if not facts.steps.workers:
        return [sections.Section("Steps", "No step was made."), sections.time_spent(facts.goodput)]
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


def _headline(look: Look, facts: Facts, result: Mapping[str, Any]) -> list[str]:
    """The run in a few sentences."""
    after = f" after {words.duration(result['duration_seconds'])}" if "duration_seconds" in result else ""
    told = [f"{look.phase}{after}" + (f": {look.message}" if look.message else "")]
    if facts.status and facts.status.overall_verdict:
        told.append(words.waiting(facts.status.overall_verdict, past=True))
    elif facts.asynchronous and facts.status:
        told += [f"{w.name} was {' and '.join(w.verdicts)}" for w in facts.status.workers if w.verdicts]
        told.append(words.nobody(facts.strategy, past=True))
    elif facts.steps.rounds:
        told.append(words.nobody(facts.strategy, past=True))
    return [words.sentence(text) for text in told]


def _tone(look: Look, facts: Facts) -> str:
    tone = TONES.get(look.phase, "plain")
    return "warn" if tone == "good" and facts.named is not None else tone


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
    tiles += [(name, f"{value:.4g}") for name, value in reported.items() if name != "loss"][:4]
    if facts.goodput and facts.goodput.seconds > 0:
        tiles.append(("goodput", f"{facts.goodput.productive / facts.goodput.seconds:.0%}"))
    if any(w.rejected for w in status.workers):
        tiles.append(("rejected", f"{sum(w.rejected for w in status.workers):,}"))
    return tiles


def _failure(run: Run, result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Why the run failed, with the end of the log of the replica that failed first."""
    error = result.get("error")
    if not isinstance(error, dict):
        return None
    replica = str(error.get("replica"))
    return {
        "replica": replica,
        "message": str(error.get("message")),
        "traceback": str(error.get("traceback") or ""),
        "victims": ", ".join(str(v) for v in error.get("victims") or ()),
        "log": _tail(run.folder / "logs" / f"{Path(replica).name}.log"),
        "lines": LOG_LINES,
    }


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(printable(line) for line in lines[-LOG_LINES:])


def _kind(training: DistributedTraining | None) -> str:
    if training is None:
        return ""
    spec = training.spec
    ring = spec.topology is Topology.ALL_REDUCE
    servers = "" if ring else f", {_count(spec.server.replicas, 'server')}"
    return f"{_strategy(training)}{servers}, {_count(spec.world_size, 'worker')}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _environment(
    run: Run, result: Mapping[str, Any], training: DistributedTraining | None
) -> Sequence[tuple[str, str]]:
    machine = result.get("machine") or {}
    found = {
        "run folder": run.name,
        "started": result.get("started"),
        "transport": training.spec.security.transport if training else None,
        "CPUs": machine.get("cpus"),
        "Python": machine.get("python"),
        "torch": machine.get("torch"),
        "Paceline": __version__,
        "reproduces": result.get("replay_of"),
        "weights (SHA-256)": result.get("weights_sha256"),
    }
    return [(name, str(value)) for name, value in found.items() if value]


def _training(run: Run) -> DistributedTraining | None:
    """The manifest; None when this version cannot read it."""
    try:
        return manifest.read(run.folder / MANIFEST)
    except SpecError:
        return None


def _manifest(run: Run) -> str:
    try:
        return redacted((run.folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        return f"cannot be read: {error}"
