"""Run folders: which there are, what is written in them, and how a run is that still goes on."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from paceline.views import status, web
from paceline.views.look import Look, Process
from paceline.views.status import Goodput, Status
from paceline_core.errors import SpecError

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

    def result(self) -> dict[str, Any] | None:
        """What came of the run; None while it goes on, or when it was killed."""
        return _object(self.folder / RESULT)

    def last_status(self) -> Status | None:
        """What server 0 or the coordinator wrote at its end, or what the runner last heard of it."""
        path = self.folder / STATUS
        found = _object(path)
        if found is None:
            path, found = self.folder / RESULT, self.result()
            if not found or not found.get("workers"):
                return None
            found = {**found, "overall_verdict": found.get("verdict"), "verdict": None}
        return status.read(found, str(path))

    def look(self) -> Look:
        """Ask server 0 or the coordinator; of a run that has ended, read what it wrote."""
        result = self.result()
        if result is not None:
            return Look(str(result.get("result")), _failure(result), self.last_status(), _goodput(result), ended=True)
        url = self._endpoints().get("status")
        if url is None:
            return Look("Unknown", f"it has neither {ENDPOINTS} nor {RESULT}", lost=True)
        try:
            found = status.read(web.get(url), url)
        except web.NoAnswer as error:
            if error.silent:
                return Look("Starting", "its processes listen, but do not answer yet")
            why = f"nothing answers: it begins, ends, or was killed ({error})"
            return Look("Unknown", why, self.last_status(), lost=True)
        return Look(_phase(found), _missing(found), found)

    def goes_on(self) -> bool:
        """Whether its server 0 or coordinator answers, or will."""
        url = self._endpoints().get("status")
        if url is None or self.result() is not None:
            return False
        try:
            web.get(url)
        except web.NoAnswer as error:
            return error.silent
        return True

    def processes(self) -> Sequence[Process]:
        """The addresses of a run that goes on, the files of one that has ended."""
        if self.goes_on():
            metrics = self._endpoints().get("metrics", {})
            return [Process(name, _asking(url.removesuffix("/metrics") + "/trace")) for name, url in metrics.items()]
        files = sorted((self.folder / TRACES).glob("*.json"))
        if not files:
            raise SpecError([f"{self.name}: has no traces: the processes write them to {TRACES}/ when they end"])
        return [Process(file.stem, _reading(file)) for file in files]

    def _endpoints(self) -> dict[str, Any]:
        return _object(self.folder / ENDPOINTS) or {}


def at(text: str) -> Run | None:
    """The run that a user means, by the path of its folder or by its name in ./runs."""
    for folder in (Path(text), RUNS / text):
        if (folder / MANIFEST).is_file():
            return Run(folder)
    return None


def newest(going_on_first: bool = False) -> Run:
    """The newest run in ./runs, if wanted rather one that still goes on. Raises SpecError when there is none."""
    folders = sorted((m.parent for m in RUNS.glob(f"*/{MANIFEST}")), key=_made, reverse=True)
    if not folders:
        raise SpecError([f"there is no run in ./{RUNS}: name a run folder, or a training in the cluster"])
    found = [Run(folder) for folder in folders]
    return next((run for run in found if run.goes_on()), found[0]) if going_on_first else found[0]


def _failure(result: dict[str, Any]) -> str:
    """Why the run failed; empty when it did not."""
    error = result.get("error")
    return status.printable(f"{error.get('replica')}: {error.get('message')}") if isinstance(error, dict) else ""


def _goodput(result: dict[str, Any]) -> Goodput | None:
    """Of the whole run, from its first process to its last."""
    try:
        return Goodput.model_validate(result.get("goodput"))
    except ValidationError:
        return None  # nobody told: the run ended before its server did


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


def _object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None when there is no file. Raises SpecError when it holds something else."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise SpecError([f"{path}: cannot be read: {error}"]) from None
    if not isinstance(found, dict):
        raise SpecError([f"{path}: should hold a JSON object"])
    return found


def _asking(url: str) -> Callable[[], Any]:
    return lambda: web.get(url)


def _reading(path: Path) -> Callable[[], Any]:
    return lambda: _object(path)
