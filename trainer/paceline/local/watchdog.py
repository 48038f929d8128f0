"""A small process that ends a run's processes when the runner itself is gone.

The runner holds the other end of its standard input and writes one process group a line, then `bye` at an orderly
end. When the pipe closes without it, the runner was killed: every group is killed, and every process that carries the
run's id in its environment, which finds those that made sessions of their own. Runs with `python -I -S`.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence

ROUNDS = 20
ROUND_SECONDS = 0.05


def end(groups: Sequence[int], training_id: str) -> None:
    """Kill the process groups and everything that was started in this training."""
    for group in groups:
        end_group(group)
    for _ in range(ROUNDS):
        found = members(training_id)
        for pid in found:
            _kill(os.kill, pid)
        if not found:
            return
        time.sleep(ROUND_SECONDS)


def end_group(group: int) -> None:
    """Kill what is left of a process group."""
    _kill(os.killpg, group)


def members(training_id: str) -> list[int]:
    """The living processes (Linux only) whose environment names this training."""
    mark, found = f"PACELINE_TRAINING_ID={training_id}".encode(), []
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    if mark in file.read().split(b"\0"):
                        found.append(int(entry))
            except OSError:
                continue  # it has ended, or is another user's
    return found


def _kill(how: Callable[[int, int], None], target: int) -> None:
    try:
        how(target, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # it has ended


def main() -> None:
    """Wait for the runner's end."""
    training_id, private = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups = []
    for line in sys.stdin:
        if line.strip() == "bye":
            return
        groups.append(int(line))
    end(groups, training_id)
    shutil.rmtree(private, ignore_errors=True)


if __name__ == "__main__":
    main()
