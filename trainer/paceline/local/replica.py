"""One process of the run: started in a session of its own, its output kept and shown line by line."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline_core.errors import SpecError

TAIL_LINES = 15
ShowLine = Callable[[str, str], None]


@dataclass(frozen=True)
class Start:
    """How to start a replica."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path  # to run in
    log: Path
    failure: Path  # where the process says why it died
    descriptors: tuple[int, ...]


class Replica:
    """A running process. `ended` is when it was seen to have ended (time.monotonic).

    Raises SpecError when the system does not start it.
    """

    def __init__(self, start: Start, show: ShowLine) -> None:
        self.name, self._start, self._show = start.name, start, show
        self.ended: float | None = None
        self.stopped_by_us = False
        self.log_problem: OSError | None = None
        self._log = start.log.open("wb")
        self.process = _process(start)
        self._reader = threading.Thread(target=self._read, name=f"output-{self.name}", daemon=True)
        self._reader.start()

    @property
    def is_worker(self) -> bool:
        """Whether it runs the user's script."""
        return self.name.startswith("worker-")

    @property
    def ordinal(self) -> int:
        """Its number among its kind."""
        return int(self.name.rpartition("-")[2])

    def code(self) -> int | None:
        """Its exit code (negative: the signal that ended it), or None while it runs."""
        code = self.process.poll()
        if code is not None and self.ended is None:
            self.ended = time.monotonic()
        return code

    def signal(self, number: int) -> None:
        """Send a signal to the process and those it started."""
        self.stopped_by_us = self.stopped_by_us or self.code() is None
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # it has ended

    def drain(self, seconds: float) -> None:
        """Wait for the rest of its output."""
        self._reader.join(seconds)

    def failure(self) -> dict[str, Any]:
        """Why it died: kind, message, traceback, victim."""
        try:
            told: dict[str, Any] = json.loads(self._start.failure.read_text())
        except (OSError, ValueError):
            words = self._last_words()
            last = words.rpartition("\n")[2] if words.startswith("Traceback ") else ""
            return {"kind": "", "message": last or self._end_in_words(), "traceback": words, "victim": False}
        return told

    def _end_in_words(self) -> str:
        code = self.code() or 0
        if code >= 0:
            return f"exited with code {code}"
        text = f"was ended by signal {signal.Signals(-code).name}"
        return text + (" (out of memory?)" if -code == signal.SIGKILL else "")

    def _last_words(self) -> str:
        """The last traceback in its output, or else the last lines."""
        try:
            lines = self._start.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        starts = [i for i, line in enumerate(lines) if line.startswith("Traceback ")]
        return "\n".join(lines[starts[-1] :] if starts else lines[-TAIL_LINES:])

    def _read(self) -> None:
        assert self.process.stdout is not None, "a pipe was asked for"
        for line in self.process.stdout:
            self._keep(line)
            self._show(self.name, line.decode(errors="replace").rstrip("\r\n"))
        self.process.stdout.close()
        try:
            self._log.close()
        except OSError as error:
            self.log_problem = self.log_problem or error

    def _keep(self, line: bytes) -> None:
        if self.log_problem:
            return
        try:
            self._log.write(line)
            self._log.flush()
        except OSError as error:
            self.log_problem = error  # the run ends because of it, but the output is still read


def _process(start: Start) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(start.command),
            env=dict(start.environment),
            cwd=start.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=start.descriptors,
            start_new_session=True,
        )
    except OSError as error:  # it is no program, or its first line names none
        raise SpecError([f"{start.command[0]!r} cannot be run: {error.strerror}"]) from error
