"""`paceline run`: prepare the folder, start the fleet, watch it to its end, and write down what came of it."""

import json
import os
import platform
import shutil
import threading
import time
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from paceline.local.display import Display
from paceline.local.fleet import Fleet, Hurry
from paceline.local.replica import Replica
from paceline.local.request import MANIFEST, Request, check, cluster_only
from paceline_core.errors import SpecError
from paceline_core.goodput import Loss
from paceline_core.spec import Topology

ENDPOINTS = "endpoints.json"
TICK_SECONDS = 0.1
POLL_SECONDS = 0.5
SETTLE_SECONDS = 1.5  # after the first failure, for others that failed by themselves
SERVER_END_SECONDS = 60.0  # after the last worker
EXIT = {"Succeeded": 0, "Failed": 1, "Interrupted": 130}
BAD_INPUT = 2
NEVER_JOINED = "ended without ever calling paceline.distribute(): add the call to the script"


def run(request: Request, display: Display) -> int:
    """Run a training; gives the exit code. Raises SpecError when it cannot begin."""
    check(request)
    _make_folder(request)
    fleet = Fleet(request)
    display.start(_info(request, fleet))
    ignored = cluster_only(request)
    if ignored:
        display.note(f"has no meaning on one machine: {', '.join(ignored)}")
    hurry = Hurry()
    hurry.install()
    watch = Watch(request, fleet, display, hurry)
    try:
        _write_endpoints(request, fleet)
        fleet.start(display.line)
        watch.until_end()
    except SpecError as error:  # found out by trying
        display.failure(_own_failure("paceline", str(error)))
        return BAD_INPUT
    finally:
        fleet.close()
    return watch.conclude()


class Watch:
    """Follows a run: polls its status, notices failures, interruptions and limits."""

    def __init__(self, request: Request, fleet: Fleet, display: Display, hurry: Hurry) -> None:
        self._request, self._fleet, self._display, self._hurry = request, fleet, display, hurry
        self._began, self._started = time.monotonic(), datetime.fromtimestamp(fleet.began, UTC)
        self._status: dict[str, Any] | None = None
        self._polled = 0.0  # when the request for the last status was sent
        self._over = threading.Event()
        self._failure: dict[str, Any] | None = None

    def until_end(self) -> None:
        """Return when every process has ended or has been told to."""
        poller = threading.Thread(target=self._poll, name="status", daemon=True)
        poller.start()
        try:
            while not self._hurry.count:
                if self._failed() or all(r.code() is not None for r in self._fleet.replicas):
                    break
                time.sleep(TICK_SECONDS)
            if any(r.code() is None for r in self._fleet.replicas):
                self._fleet.stop(self._hurry)
        finally:
            self._over.set()
            poller.join(POLL_SECONDS + 2)

    def conclude(self) -> int:
        """Write result.json, show the end, and give the exit code."""
        status = self._last_status()
        if status:
            self._display.progress(status)
        result, weights = self._outcome(), None
        if result != "Failed":
            try:
                weights = _weights(self._request.folder)
            except OSError as error:
                result, self._failure = "Failed", _own_failure("paceline", f"the weights were not written: {error}")
        if self._failure and result == "Failed":
            self._display.failure(self._failure)
        summary = self._summary(result, status or {}, weights)
        try:
            (self._request.folder / "result.json").write_text(json.dumps(summary, indent=1) + "\n")
        except OSError as error:
            summary |= {"result": "Failed", "exit_code": EXIT["Failed"]}
            self._display.failure(_own_failure("paceline", f"{self._request.folder} cannot be written: {error}"))
        self._display.result(summary)
        return int(summary["exit_code"])

    def _outcome(self) -> str:
        if self._hurry.count:
            return "Interrupted"
        return "Failed" if self._failure else "Succeeded"

    def _failed(self) -> bool:
        """Whether something went wrong; remembers what."""
        self._failure = self._failure or self._crash() or self._broken_rule()
        return self._failure is not None

    def _crash(self) -> dict[str, Any] | None:
        replicas = self._fleet.replicas
        if not any(r.code() for r in replicas):
            return None
        settled = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < settled and not self._hurry.count and any(r.code() is None for r in replicas):
            time.sleep(TICK_SECONDS)
        for replica in replicas:
            if replica.code():
                replica.drain(1)
        return root_cause(replicas)

    def _broken_rule(self) -> dict[str, Any] | None:
        replicas = self._fleet.replicas
        for replica in replicas:
            if replica.log_problem:
                return _own_failure("paceline", f"the log of {replica.name} cannot be written: {replica.log_problem}")
        limit = self._request.training.spec.run_policy.active_deadline_seconds
        if limit and time.monotonic() - self._began > limit:
            text = f"the training took longer than spec.runPolicy.activeDeadlineSeconds, {limit:g} s"
            return _own_failure("paceline", text)
        return self._never_joined() or self._servers_linger()

    def _never_joined(self) -> dict[str, Any] | None:
        status = self._status
        for replica in self._fleet.replicas:
            if not replica.is_worker or replica.code() != 0 or replica.ended is None or status is None:
                continue
            if replica.ended < self._polled and replica.ordinal in status["missing"]:
                return _own_failure(replica.name, NEVER_JOINED)
        return None

    def _servers_linger(self) -> dict[str, Any] | None:
        ends = [r.ended for r in self._fleet.replicas if r.is_worker and r.code() is not None and r.ended is not None]
        workers = sum(r.is_worker for r in self._fleet.replicas)
        if len(ends) == workers and time.monotonic() - max(ends) > SERVER_END_SECONDS:
            names = ", ".join(r.name for r in self._fleet.replicas if r.code() is None)
            return _own_failure(names, f"did not end within {SERVER_END_SECONDS:g} s after the last worker")
        return None

    def _poll(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            asked = time.monotonic()
            try:
                with urllib.request.urlopen(self._fleet.status_url, timeout=2) as answer:
                    status = json.load(answer)
            except (OSError, ValueError, HTTPException):
                continue  # not there yet, or gone already
            self._status, self._polled = status, asked
            self._display.progress(status)

    def _last_status(self) -> dict[str, Any] | None:
        """What server 0 wrote at its end, or else what it last told."""
        try:
            found: dict[str, Any] = json.loads((self._request.folder / "status.json").read_text())
        except (OSError, ValueError):
            return self._status
        return found

    def _summary(self, result: str, status: dict[str, Any], weights: str | None) -> dict[str, Any]:
        request = self._request
        workers = status.get("workers", [])
        return {
            "result": result,
            "exit_code": EXIT[result],
            "training": request.training.metadata.name,
            "topology": str(request.training.spec.topology),
            "strategy": _strategy(request),
            "started": self._started.isoformat(timespec="seconds"),
            "duration_seconds": time.monotonic() - self._began,
            "version": status.get("version", 0),
            "workers": workers,
            "verdict": status.get("overall_verdict"),
            "goodput": _whole(status.get("goodput"), time.monotonic() - self._began),
            "reported": next((w["reported"] for w in workers if w["worker"] == 0), {}),
            "weights_sha256": weights,
            "error": self._failure if result == "Failed" else None,
            "replay_of": str(request.replay) if request.replay else None,
            "folder": str(request.folder),
            "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "torch": _installed("torch")},
        }


def root_cause(replicas: Sequence[Replica]) -> dict[str, Any] | None:
    """The earliest failure that is not a consequence of another; the other failures are its victims."""
    failed = sorted((r for r in replicas if r.code()), key=lambda r: r.ended or 0.0)
    failures = [(r, r.failure()) for r in failed if not r.stopped_by_us]
    if not failures:
        return None
    replica, failure = next(((r, f) for r, f in failures if not f["victim"]), failures[0])
    kind = failure["kind"]
    message = failure["message"] if not kind else f"{kind}: {failure['message']}"
    victims = [r.name for r in replicas if r is not replica and r.code() != 0]
    return {"replica": replica.name, "message": message, "traceback": failure["traceback"], "victims": victims}


def _own_failure(replica: str, message: str) -> dict[str, Any]:
    return {"replica": replica, "message": message, "traceback": "", "victims": []}


def _make_folder(request: Request) -> None:
    try:
        if request.folder.exists() and any(request.folder.iterdir()):
            raise SpecError([f"--run-dir {request.folder}: is not empty; choose another"])
        (request.folder / "logs").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(request.file, request.folder / MANIFEST)
    except OSError as error:
        why = error.strerror or error
        raise SpecError([f"--run-dir {request.folder}: cannot be written: {why}"]) from None


def _info(request: Request, fleet: Fleet) -> dict[str, Any]:
    spec, metrics = request.training.spec, fleet.metrics()
    servers = f"{spec.server.replicas} servers" if spec.server.replicas > 1 else "1 server"
    if spec.topology is Topology.ALL_REDUCE:
        servers = "1 coordinator"
    workers = f"{spec.world_size} workers" if spec.world_size > 1 else "1 worker"
    return {
        "training": request.training.metadata.name,
        "summary": f"{_strategy(request)}, {servers}, {workers}, {spec.security.transport}",
        "folder": str(request.folder),
        "status": fleet.status_url,
        "metrics": metrics,
    }


def _write_endpoints(request: Request, fleet: Fleet) -> None:
    """Where to ask the processes, for who looks at the run while it goes on."""
    endpoints = {"status": fleet.status_url, "metrics": fleet.metrics()}
    (request.folder / ENDPOINTS).write_text(json.dumps(endpoints, indent=1) + "\n")


def _whole(goodput: dict[str, Any] | None, seconds: float) -> dict[str, Any] | None:
    """The goodput that server 0 told, made up to the whole run: what came after its end is shutdown too."""
    if goodput is None:
        return None
    rest = max(0.0, seconds - goodput["seconds"])
    lost = {**goodput["lost"], Loss.SHUTDOWN: goodput["lost"].get(Loss.SHUTDOWN, 0.0) + rest}
    return {"seconds": goodput["seconds"] + rest, "productive": goodput["productive"], "lost": lost}


def _strategy(request: Request) -> str:
    spec = request.training.spec
    return "AllReduce" if spec.topology is Topology.ALL_REDUCE else str(spec.server.strategy)


def _weights(folder: Path) -> str | None:
    if not (folder / "signature.json").exists() and not (folder / "weights.safetensors").exists():
        return None
    from paceline.weights import merge  # late: it needs torch

    return merge(folder)


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
