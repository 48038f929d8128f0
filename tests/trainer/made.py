"""Builders for what is read of a run: answers of /status and /trace, run folders, and servers that give answers."""

import csv
import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from paceline.views.sources import run_folders
from paceline_core.attribution import PHASES

from .conftest import manifest

COLUMNS = ("worker", "step", "version", "time", "loss", "latency", "wall", "staleness", "accepted", "reason", *PHASES)
BEGAN = 1_800_000_000.0
MEANS = {"data": 0.001, "forward": 0.004, "backward": 0.006, "send": 0.002, "wait": 0.027}
VERDICT = {
    "worker": 2, "lag_share": 0.97, "lag_seconds": 0.028, "round_seconds": 0.042, "cause": "compute", "cost": 0.38, "since": 0.0,
}  # fmt: skip
GOODPUT = {"seconds": 20.0, "productive": 14.0, "lost": {"startup": 4.0, "straggler": 2.0}}


def a_worker(worker: int, **given: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "worker": worker, "state": "training", "step": 100, "total_steps": 330, "loss": 0.5, "step_seconds": 0.04,
        "latency_seconds": 0.03, "lag_seconds": 0.001, "lag_share": 0.01, "last_arrivals": 3, "staleness": 0.0,
        "applied": 100, "rejected": 0, "rejected_by_reason": {}, "phases": MEANS, "reported": {"loss": 0.5, "accuracy": 0.99},
        "verdicts": [], "cause": None,
    }  # fmt: skip
    return usual | given


def a_status(workers: list[dict[str, Any]] | None = None, **given: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "training": "digits", "topology": "ParameterServer", "strategy": "Synchronous", "version": 100,
        "finished": False, "uptime_seconds": 20.0, "missing": [], "level": "Detailed",
        "workers": workers or [a_worker(w) for w in range(4)], "verdict": None, "overall_verdict": None,
        "goodput": GOODPUT,
    }  # fmt: skip
    return usual | given


def straggling(**given: Any) -> dict[str, Any]:
    slow = a_worker(2, lag_seconds=0.028, lag_share=0.97, verdicts=["makes the others wait"], cause="compute")
    return a_status([a_worker(0), a_worker(1), slow, a_worker(3)], verdict=VERDICT, overall_verdict=VERDICT, **given)


def a_result(found: dict[str, Any], result: str = "Succeeded", **given: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "result": result, "training": "digits", "topology": found["topology"], "strategy": found["strategy"],
        "started": "2026-01-01T10:00:00+00:00", "duration_seconds": 20.0, "version": found["version"],
        "workers": found["workers"], "verdict": found["overall_verdict"], "goodput": GOODPUT, "error": None,
        "weights_sha256": None, "replay_of": None, "reported": {"loss": 0.5, "accuracy": 0.99},
        "machine": {"cpus": 2, "python": "3.11", "torch": "2.13"},
    }  # fmt: skip
    return usual | given


def a_run(folder: Path, **files: Any) -> run_folders.Run:
    """A run folder with a manifest and these files: result=..., status=..., endpoints=..."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest(["python", "train.py"], workers=4)))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return run_folders.Run(folder)


Pages = dict[str, tuple[int, Any]]


@contextmanager
def serving(pages: Pages) -> Iterator[str]:
    """A server that answers these paths with (code, JSON or text); gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, value = pages.get(self.path.partition("?")[0], (404, "no such page\n"))
            body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(value, str) else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def a_trace(replica: str, begin: float = 100.0, steps: int = 2, offset: float = 0.0) -> dict[str, Any]:
    """Steps of 10 ms, half computing and half sending; servers update 1 ms after each step's end."""
    begin -= offset
    ends = [(s, begin + 0.01 * s) for s in range(1, steps + 1)]
    if not replica.startswith("worker-"):
        updates = [[s, end + 0.001, end + 0.002, [[w, s, end] for w in range(3)]] for s, end in ends]
        return {"replica": replica, "offset": offset, "spans": [], "updates": updates}
    spans = [[p, end - a, end - b, s] for s, end in ends for p, a, b in (("forward", 0.01, 0.005), ("send", 0.005, 0))]
    return {"replica": replica, "offset": offset, "spans": spans, "updates": []}


def events(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)["traceEvents"]


def a_row(worker: int, step: int, wait: float = 0.03, wall: float = 0.04, **given: Any) -> dict[str, Any]:
    usual = dict.fromkeys(PHASES, 0.0) | {"forward": wall - wait, "wait": wait}
    usual |= {"worker": worker, "step": step, "version": step, "time": BEGAN + step * wall, "loss": 1 / step}
    return usual | {"latency": wait, "wall": wall, "staleness": 0, "accepted": True, "reason": ""} | given


def write_steps(folder: Path, rows: list[dict[str, Any]], tail: str = "") -> None:
    with (folder / "steps.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        file.write(tail)
