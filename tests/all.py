"""Every test: those on the cluster, which mostly wait, beside those that measure no times; then all others, alone.

To be run with `python -P`: tests/operator would stand before Python's own module.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

ROOT = Path(__file__).parents[1]
CLUSTER = ["tests/cluster", "tests/observability/test_operator.py"]
BESIDE = [  # what measures no times
    *(f"tests/{folder}" for folder in ("charts", "compatibility", "core", "operator", "rules", "scripts")),
    *(
        f"tests/trainer/test_{name}.py"
        for name in ("checkpoints", "data_runs", "exact", "examples", "forked_processes", "not_finite", "reported_values",
                     "object_store_runs", "replaced_worker", "ring_checkpoints", "ring_recovery")
    ),
]  # fmt: skip
NICE = 5  # so that what the cluster runs comes first
END_SECONDS = 60.0  # for tests that were interrupted to clean up


def main() -> int:
    """Run all; 1 when one failed."""
    alone = ["tests", *(f"--ignore={path}" for path in (*CLUSTER, *BESIDE))]
    with tempfile.TemporaryFile() as output:
        try:
            cluster = pytest(CLUSTER, output)
            print("the tests on the cluster run beside these, and are shown after them", flush=True)
            codes = [pytest(BESIDE, nice=NICE).wait(), cluster.wait()]
        finally:
            end_all()
            show(output)
    try:
        codes.append(pytest(alone).wait())
    finally:
        end_all()
    return int(any(codes))


def pytest(arguments: list[str], output: IO[bytes] | None = None, nice: int = 0) -> "subprocess.Popen[bytes]":
    """Start a pytest of its own; it is ended with this process."""
    command = ["nice", "-n", str(nice), sys.executable, "-m", "pytest", *arguments]
    started = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
    RUNNING.append(started)
    return started


def end_all() -> None:
    """Interrupt those that still run, and let their tests clean up; a terminal's Ctrl-C has told them already."""
    for process in RUNNING:
        if process.poll() is None:
            if not isinstance(sys.exception(), KeyboardInterrupt):
                process.send_signal(signal.SIGINT)
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def show(output: IO[bytes]) -> None:
    """Print what was written."""
    output.seek(0)
    for line in output:
        sys.stdout.write(line.decode(errors="replace"))
    sys.stdout.flush()


def asked_to_end(number: int, _: FrameType | None) -> NoReturn:
    """By SIGTERM, which only this process was sent."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


RUNNING: list["subprocess.Popen[bytes]"] = []

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, asked_to_end)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
