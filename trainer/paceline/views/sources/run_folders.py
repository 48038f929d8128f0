"""Run folders: which there are, what is written in them, and how a run is that still goes on."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from paceline.files import bounded_reading
from paceline.terminal import printable
from paceline.views.sources import local_process, status_answer
from paceline.views.sources.run_files import Endpoints, RunResult
from paceline.views.sources.status_answer import Status
from paceline.views.sources.training_source import Process, Snapshot
from paceline_core.errors import SpecError

T = TypeVar("T", bound=BaseModel)
RUNS = Path("runs")
MANIFEST, RESULT, STATUS, ENDPOINTS, TRACES = "manifest.yaml", "result.json", "status.json", "endpoints.json", "traces"


@dataclass(frozen=True)
class Run:
    """A run of `paceline run`, by its folder."""

    folder: Path
    period = 0.5

    @property
    def name(self) -> str:
        """The folder, as the user named it."""
        return str(self.folder)

    @property
    def trace_file(self) -> Path:
        """Beside the parts that it is made of."""
        return self.folder / "trace.json"

    def result(self) -> RunResult | None:
        """What came of the run; None while it goes on, or when it was killed. Raises SpecError."""
        found = bounded_reading.json_object(self.folder, RESULT)
        return None if found is None else _read(RunResult, found, self.folder / RESULT)

    def last_status(self) -> Status | None:
        """What server 0 or the coordinator wrote at its end, or what the runner last heard of it."""
        path = self.folder / STATUS
        found = bounded_reading.json_object(self.folder, STATUS)
        if found is None:
            path, found = self.folder / RESULT, bounded_reading.json_object(self.folder, RESULT)
            if not found or not found.get("workers"):
                return None
            found = {**found, "overall_verdict": found.get("verdict"), "verdict": None}
        result = self.result()
        whole = result.weights_not_finite if result else None  # server 0 has seen its own part of the weights alone
        found = {**found, "weights_not_finite": whole or found.get("weights_not_finite")}
        return status_answer.read(found, str(path))

    def snapshot(self) -> Snapshot:
        """Ask server 0 or the coordinator; of a run that has ended, read what it wrote."""
        result = self.result()
        if result is not None:
            return Snapshot(result.result, result.failure, self.last_status(), result.goodput, ended=True)
        url = self._endpoints().status
        if url is None:
            return Snapshot("Unknown", f"it has neither {ENDPOINTS} nor {RESULT}", lost=True)
        try:
            found = status_answer.read(local_process.get(url), url)
        except local_process.NoAnswer as error:
            if error.silent:
                return Snapshot("Starting", "its processes listen, but do not answer yet")
            why = f"nothing answers: it begins, ends, or was killed ({error})"
            return Snapshot("Unknown", why, self.last_status(), lost=True)
        return Snapshot(_phase(found), _missing(found), found)

    def goes_on(self) -> bool:
        """Whether its server 0 or coordinator answers, or will."""
        url = self._endpoints().status
        if url is None or self.result() is not None:
            return False
        try:
            local_process.get(url)
        except local_process.NoAnswer as error:
            return error.silent
        return True

    def processes(self) -> Sequence[Process]:
        """The addresses of a run that goes on, the files of one that has ended."""
        if self.goes_on():
            metrics = self._endpoints().metrics
            return [Process(name, _asking(url.removesuffix("/metrics") + "/trace")) for name, url in metrics.items()]
        files = sorted((self.folder / TRACES).glob("*.json"))
        if not files:
            raise SpecError([f"{self.name}: has no traces: the processes write them to {TRACES}/ when they end"])
        return [Process(printable(file.stem), _reading(self.folder, f"{TRACES}/{file.name}")) for file in files]

    def _endpoints(self) -> Endpoints:
        found = bounded_reading.json_object(self.folder, ENDPOINTS)
        return _read(Endpoints, found or {}, self.folder / ENDPOINTS)


def at(text: str) -> Run | None:
    """The run that a user means, by the path of its folder or by its name in ./runs."""
    for folder in (Path(text), RUNS / text):
        if os.path.isfile(folder / MANIFEST):
            return Run(folder)
    return None


def newest(going_on_first: bool = False) -> Run:
    """The newest run in ./runs, if wanted rather one that still goes on. Raises SpecError when there is none."""
    folders = sorted((m.parent for m in RUNS.glob(f"*/{MANIFEST}")), key=_made, reverse=True)
    if not folders:
        raise SpecError([f"there is no run in ./{RUNS}: name a run folder, or a training in the cluster"])
    found = [Run(folder) for folder in folders]
    return next((run for run in found if _goes_on(run)), found[0]) if going_on_first else found[0]


def _goes_on(run: Run) -> bool:
    """Whether it does; one whose files cannot be read is not in the way of the others."""
    try:
        return run.goes_on()
    except SpecError:
        return False


def _made(folder: Path) -> float:
    return (folder / MANIFEST).stat().st_mtime


def _phase(found: Status) -> str:
    if found.finished:
        return "Finishing"
    return "Starting" if found.missing else "Running"


def _missing(found: Status) -> str:
    if not found.missing or found.finished:
        return ""
    names = ", ".join(f"worker-{w}" for w in found.missing[:5]) + (", ..." if len(found.missing) > 5 else "")
    return f"waiting for {names} to call paceline.distribute()"


def _read(model: type[T], found: Any, path: Path) -> T:
    try:
        return model.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(printable(str(part)) for part in first["loc"])
        raise SpecError([f"{path}: cannot be read: {where}: {first['msg']}"]) from None


def _asking(url: str) -> Callable[[], Any]:
    return lambda: local_process.get(url)


def _reading(folder: Path, name: str) -> Callable[[], Any]:
    return lambda: bounded_reading.json_object(folder, name, bounded_reading.MOST_TRACED)
