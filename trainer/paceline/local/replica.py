"""One process of the run: started in a session of its own, its output kept and shown line by line."""

import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline import standard_streams
from paceline.local import shadowed_modules
from paceline.local.output_lines import UNENDED_SECONDS, OutputLines
from paceline_core.errors import SpecError

TAIL_LINES = 15
SIGNALLED = 128  # a shell's exit code beyond it: what it ran was ended by a signal
CHUNK = 64 << 10  # bytes that are read at once
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
    umask: int = -1  # that it begins with; -1: the runner's
    appends: bool = False  # to the log of the process in whose place it is started


class Replica:
    """A running process. `ended` is when it was seen to have ended (time.monotonic).

    Raises SpecError when the system does not start it.
    """

    def __init__(self, start: Start, show: ShowLine) -> None:
        self.name, self._start, self._show = start.name, start, show
        self.ended: float | None = None
        self.stopped_by_us = False
        self.log_problem: Exception | None = None
        self._shows = True
        self._log = start.log.open("ab" if start.appends else "wb")
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

    def signal(self, number: int, alone: bool = False) -> None:
        """Send a signal to the process and those it started, or to it `alone`."""
        self.stopped_by_us = self.stopped_by_us or self.code() is None
        try:
            (os.kill if alone else os.killpg)(self.process.pid, number)
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
            output = self._last_output()
            raised = output.startswith("Traceback ") and (self.code() or 0) >= 0  # else it is of a process of its own
            last = output.rpartition("\n")[2] if raised else ""
            told = {"kind": "", "message": last or self._how_it_ended(), "traceback": output, "victim": False}
        hint = shadowed_modules.hint(told["message"], self._start.folder, self._start.command)
        return {**told, "message": told["message"] + (f"; {hint}" if hint else "")}

    def _how_it_ended(self) -> str:
        code = self.code() or 0
        if code == SIGNALLED + signal.SIGTERM:  # it has saved a checkpoint before
            code = -signal.SIGTERM
        if code >= 0:
            return f"exited with code {code}"
        text = f"was ended by signal {signal.Signals(-code).name}"
        return text + (" (out of memory?)" if -code == signal.SIGKILL else "")

    def _last_output(self) -> str:
        """The last traceback in its output, or else the last lines."""
        try:
            lines = self._start.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        starts = [i for i, line in enumerate(lines) if line.startswith("Traceback ")]
        return "\n".join(lines[starts[-1] :] if starts else lines[-TAIL_LINES:])

    def _read(self) -> None:
        assert self.process.stdout is not None, "a pipe was asked for"
        try:
            self._pass_on(self.process.stdout.fileno())
            self._log.close()
        except (OSError, ValueError) as error:  # the run ends because of it
            self.log_problem = self.log_problem or error
        finally:
            self.process.stdout.close()  # a process that nobody reads would wait for ever

    def _pass_on(self, descriptor: int) -> None:
        """Keep the bytes as they come, and show the lines that they make."""
        poll, lines = select.poll(), OutputLines(time.monotonic())
        poll.register(descriptor, select.POLLIN)
        while True:
            data = b""
            if poll.poll(UNENDED_SECONDS * 1e3):
                data = os.read(descriptor, CHUNK)
                if not data:
                    break
                self._keep(data)
            self._show_lines(lines.feed(data, time.monotonic()))
        self._show_lines(lines.end())

    def _show_lines(self, lines: list[str]) -> None:
        """Whatever is wrong with showing, the output has to be read: the process would wait for ever."""
        try:
            for line in lines if self._shows else ():
                self._show(self.name, line)
        except Exception as error:
            self._shows = False
            standard_streams.say(f"the output of {self.name} is in its log alone: {error!r}")

    def _keep(self, data: bytes) -> None:
        if self.log_problem:
            return
        try:
            self._log.write(data)
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
            umask=start.umask,
            start_new_session=True,
        )
    except OSError as error:  # it is no program, or its first line names none
        raise SpecError([f"{start.command[0]!r} cannot be run: {error.strerror}"]) from error
