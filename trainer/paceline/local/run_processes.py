"""All processes of a run: started together, ended in order, and never left behind."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import paceline_credentials
from paceline import startup
from paceline.local import ports, watchdog
from paceline.local.preflight import ARRIVALS, Request, search_path
from paceline.local.replica import Replica, ShowLine, Start
from paceline_core.errors import SpecError
from paceline_core.launch import Launch, Role, replicas
from paceline_core.spec import Transport

LISTEN, METRICS = "port", "metrics-port"  # what a socket is for, as the options name it
WORKER_SECONDS = 5.0  # to end after SIGTERM
SERVER_SECONDS = 10.0
ELSEWHERE = "name a folder that has room in the variable TMPDIR"


class RunProcesses:
    """The processes of one attempt of a run, their sockets, their credentials and their watchdog.

    `before` are the ports of the attempt before, to be used again: for metrics, and to be called at.
    """

    def __init__(self, request: Request, umask: int, before: Mapping[tuple[str, str], int] | None = None) -> None:
        self._umask = umask  # of the user's scripts; what the servers write is for the user alone
        self.request, self.spec = request, request.training.spec
        self.training_id, self.began = secrets.token_hex(16), time.time()
        self.replicas: list[Replica] = []
        self._members = replicas(self.spec)
        self._listeners: dict[str, socket.socket] = {}
        self._metrics: dict[str, socket.socket] = {}
        self._watchdog: subprocess.Popen[str] | None = None
        self._incarnations: Counter[str] = Counter()  # of those that were started again
        self._bind(before or {})
        self.ports = {(kind, name): socket_.getsockname()[1] for kind, name, socket_ in self._sockets()}
        role, first = self._members[0]
        self.addresses = {name: ports.address(s) for name, s in self._metrics.items()}  # of each process's metrics
        self.status_url = f"http://{self.addresses[f'{role}-{first}']}/status"  # tells how far the training is
        self._private = _private_folder()

    def metrics(self) -> dict[str, str]:
        """Where each process serves its metrics."""
        return {name: f"http://{address}/metrics" for name, address in self.addresses.items()}

    def start(self, show: ShowLine) -> None:
        """Start the watchdog, then every process."""
        command = [sys.executable, "-I", "-S", watchdog.__file__, self.training_id, str(self._private)]
        self._watchdog = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
        if self.spec.security.transport is Transport.TLS:
            self._write_credentials()
        for role, ordinal in self._members:
            replica = Replica(self._plan(role, ordinal, self._threads), show)
            self.replicas.append(replica)
            self._tell_watchdog(str(replica.process.pid))
        for _, _, listener in self._sockets():
            listener.close()  # the children have them

    def start_again(self, replica: Replica, show: ShowLine) -> None:
        """Start another process in the place of a worker that was killed."""
        watchdog.end_group(replica.process.pid)  # what it started
        replica.drain(1)
        name = replica.name
        (self._private / f"{name}.json").unlink(missing_ok=True)
        self._incarnations[name] += 1
        self._metrics[name] = ports.bind_again(self.ports[METRICS, name])
        plan = replace(self._plan(Role.WORKER, replica.ordinal, self._threads), appends=True)
        self.replicas[self.replicas.index(replica)] = again = Replica(plan, show)
        self._tell_watchdog(str(again.process.pid))
        self._metrics[name].close()

    def stop(self, interrupts: "Interrupts", saves: bool = False) -> None:
        """End every process: workers first, then servers, which write what they have; at once after a second Ctrl-C.

        Workers of a run that `saves` are told alone: the processes of their DataLoaders have to go on until a
        checkpoint is whole, for which an interrupted run waits.
        """
        longest = self.spec.workers.template.spec.grace_seconds if saves and interrupts.count else WORKER_SECONDS
        for chosen, limit in ((True, longest), (False, SERVER_SECONDS)):
            group = [r for r in self.replicas if r.is_worker is chosen and r.code() is None]
            for replica in group:
                replica.signal(signal.SIGTERM, alone=saves)
            until = time.monotonic() + limit
            while time.monotonic() < until and not interrupts.twice() and any(r.code() is None for r in group):
                time.sleep(0.05)
            for replica in group:
                if replica.code() is None:
                    replica.signal(signal.SIGKILL)

    def close(self) -> None:
        """Make sure that nothing of the run lives on, and remove its credentials."""
        watchdog.end([r.process.pid for r in self.replicas if r.code() is None], self.training_id)
        for replica in self.replicas:
            replica.process.wait()
            replica.drain(2)
        for _, _, listener in self._sockets():
            listener.close()
        if self._watchdog:
            self._tell_watchdog("bye")
            self._watchdog.communicate()
        shutil.rmtree(self._private, ignore_errors=True)

    @property
    def _threads(self) -> int:
        """Threads for PyTorch in each process."""
        return max(1, (os.cpu_count() or 1) // len(self._members))

    def _sockets(self) -> list[tuple[str, str, socket.socket]]:
        """What for, whose, and the socket."""
        listening = [(LISTEN, name, it) for name, it in self._listeners.items()]
        return listening + [(METRICS, name, it) for name, it in self._metrics.items()]

    def _bind(self, before: Mapping[tuple[str, str], int]) -> None:
        def bound(kind: str, name: str, first: int, number: int) -> socket.socket:
            wanted = before.get((kind, name))
            return ports.bind(first and first + number, f"--{kind}") if wanted is None else ports.bind_again(wanted)

        try:
            for index, (role, ordinal) in enumerate(self._members):
                name = f"{role}-{ordinal}"
                self._metrics[name] = bound(METRICS, name, self.request.metrics_port, index)
                if role is not Role.WORKER:
                    self._listeners[name] = bound(LISTEN, name, self.request.port, ordinal)
        except BaseException:
            for _, _, listener in self._sockets():
                listener.close()
            raise

    def _write_credentials(self) -> None:
        try:
            name = self.request.training.metadata.name
            paceline_credentials.write(self._private, name, self._listeners, self.spec.world_size)
        except OSError as error:
            raise SpecError([f"{self._private.parent}: cannot be written: {error.strerror}; {ELSEWHERE}"]) from None

    def _plan(self, role: Role, ordinal: int, threads: int) -> Start:
        name, request = f"{role}-{ordinal}", self.request
        sockets = [s for s in (self._metrics[name], self._listeners.get(name)) if s]
        failure = self._private / f"{name}.json"
        worker = role is Role.WORKER
        return Start(
            name,
            request.command if worker else [sys.executable, "-P", "-m", "paceline.server"],
            startup.environment(
                self._environment(role, threads) | self._launch(role, ordinal, failure).to_environment()
            ),
            request.working_folder,
            request.folder / "logs" / f"{name}.log",
            failure,
            tuple(s.fileno() for s in sockets),
            self._umask if worker else -1,
        )

    def _environment(self, role: Role, threads: int) -> dict[str, str]:
        """This process's environment, with our Python first, output as we read it and the thread budget."""
        output = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}  # whatever the runner's own output can show
        own = {"PATH": search_path(), "OMP_NUM_THREADS": str(threads)} | output
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PACELINE_")}
        return inherited | own | (self.request.variables if role is Role.WORKER else {})

    def _launch(self, role: Role, ordinal: int, failure: Path) -> Launch:
        name, request = f"{role}-{ordinal}", self.request
        listener = self._listeners.get(name)
        secure = self.spec.security.transport is Transport.TLS
        return Launch(
            role,
            ordinal,
            request.training.metadata.name,
            self.training_id,
            self.spec,
            tuple(f"{ports.HOST}:{self.ports[LISTEN, server]}" for server in self._listeners),
            incarnation=self._incarnations[name],
            replaced=self.spec.replaces_alone and self.spec.run_policy.backoff_limit > 0,
            listen=f"fd:{listener.fileno()}" if listener else "127.0.0.1:0",
            metrics=f"fd:{self._metrics[name].fileno()}",
            tls=str(self._private / name) if secure else None,
            output=str(request.folder.resolve()),
            termination_log=str(failure),
            replay=str(request.replay.resolve() / ARRIVALS) if request.replay else None,
            resume=request.resume.absolute if request.resume else None,
            slowdown=request.slow.get(ordinal) if role is Role.WORKER else None,
            started=self.began,
            grace=self.spec.workers.template.spec.grace_seconds,
        )

    def _tell_watchdog(self, line: str) -> None:
        if self._watchdog and self._watchdog.stdin:
            try:
                self._watchdog.stdin.write(line + "\n")
                self._watchdog.stdin.flush()
            except BrokenPipeError:
                self._watchdog = None  # somebody killed it; the run goes on without


def _private_folder() -> Path:
    """A folder of mode 0700 for the credentials and for why processes fail. Raises SpecError."""
    try:
        return Path(tempfile.mkdtemp(prefix="paceline-"))
    except OSError as error:
        raise SpecError([f"there is no folder for temporary files: {error.strerror}; {ELSEWHERE}"]) from None


class Interrupts:
    """Ctrl-C while a run lasts: once to end in order, twice to end at once."""

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, Any] = {}  # the handlers

    def twice(self) -> bool:
        """Whether to end at once."""
        return self.count > 1

    def __enter__(self) -> Self:
        """Count SIGINT, SIGTERM and SIGHUP instead of dying of them; under nohup SIGHUP stays ignored."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._count)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _count(self, *_: object) -> None:
        self.count += 1
