"""Runs a script under `paceline run` and gives what it prints as JSON."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


def environment() -> dict[str, str]:
    """One thread each, loopback for gloo."""
    return os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def train(
    script: str, workers: int, *arguments: str, servers: int = 1, strategy: str = "Synchronous", tls: bool = False
) -> tuple[dict[str, Any], Path]:
    """What the script's last line of JSON says (worker 0), and the run folder."""
    folder = _prepare(script, workers, servers, strategy, tls)
    subprocess.run(_command(folder, *arguments), env=environment(), check=True, stdout=subprocess.PIPE, timeout=300)
    return last_json((folder / "run/logs/worker-0.log").read_text()), folder / "run"


def watch(
    script: str, workers: int, *arguments: str, strategy: str = "Synchronous"
) -> Iterator[tuple[float, dict[str, Any]]]:
    """What `/status` tells while the script runs, until the caller has seen enough, and how many seconds after all workers had begun to train."""
    command = _command(_prepare(script, workers, 1, strategy, tls=False), *arguments, "-o", "json")
    began = None
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None, "a pipe was asked for"
        try:
            for line in running.stdout:
                status = json.loads(line)
                if status["event"] == "progress" and not status["missing"]:
                    began = began or time.monotonic()
                    yield time.monotonic() - began, status
        finally:  # who has seen enough need not wait for the end
            running.send_signal(signal.SIGINT)
            running.stdout.read()


def begin(script: str, workers: int) -> tuple["subprocess.Popen[str]", Path]:
    """A run over TLS that goes on until it is terminated, and the script's folder."""
    folder = _prepare(script, workers, 1, "Synchronous", tls=True)
    running = subprocess.Popen(_command(folder), env=environment(), stdout=subprocess.DEVNULL, text=True)
    return running, folder


def _prepare(script: str, workers: int, servers: int, strategy: str, tls: bool) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="paceline-bench-"))
    (folder / "train.py").write_text(textwrap.dedent(script))
    spec: dict[str, Any] = {
        "topology": "AllReduce" if strategy == "AllReduce" else "ParameterServer",
        "workers": {"replicas": workers, "template": {"spec": {"containers": [
            {"name": "trainer", "command": ["python", "train.py"], "workingDir": str(folder)}]}}},
        "security": {"transport": "TLS" if tls else "Insecure"},
    }  # fmt: skip
    if strategy != "AllReduce":
        spec["parameterServer"] = {"replicas": servers, "strategy": strategy}
    if strategy == "Asynchronous":
        spec["parameterServer"]["asynchronous"] = {"maxStaleness": 64}
    training = {"apiVersion": "paceline.dev/v1alpha1", "kind": "DistributedTraining", "metadata": {"name": "bench"}}
    (folder / "bench.yaml").write_text(yaml.safe_dump(training | {"spec": spec}))
    return folder


def _command(folder: Path, *arguments: str) -> list[str]:
    run = [sys.executable, "-m", "paceline.cli", "run", str(folder / "bench.yaml"), "--run-dir", str(folder / "run")]
    return [*run, *arguments]


def processes(script: str, count: int) -> dict[str, Any]:
    """The same for plain processes: script RANK COUNT FOLDER."""
    folder = tempfile.mkdtemp(prefix="paceline-bench-")
    command = [sys.executable, "-c", textwrap.dedent(script)]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(count), folder], env=environment(), stdout=subprocess.PIPE, text=True
        )
        for rank in range(count)
    ]
    outputs = [p.communicate(timeout=300)[0] for p in started]
    return last_json(outputs[0])


def last_json(text: str) -> dict[str, Any]:
    """The last line that is a JSON object."""
    lines = [line for line in text.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return found
