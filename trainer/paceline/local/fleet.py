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
from pathlib import Path

import paceline_credentials
from paceline.local import guard, ports
from paceline.local.replica import Replica, ShowLine, Start
from paceline.local.request import Request, search_path
from paceline_core.launch import Launch, Role, replicas
from paceline_core.spec import Transport

WORKER_SECONDS = 5.0  # to end after SIGTERM
SERVER_SECONDS = 10.0


class Fleet:
    """The processes of one run, their sockets, their credentials and their guard."""

    def __init__(self, request: Request) -> None:
        self.request, self.spec = request, request.training.spec
        self.training_id, self.began = secrets.token_hex(16), time.time()
        self.replicas: list[Replica] = []
        self._members = replicas(self.spec)
        self._listeners: dict[str, socket.socket] = {}
        self._metrics: dict[str, socket.socket] = {}
        self._guard: subprocess.Popen[str] | None = None
        self._bind()
        role, first = self._members[0]
        self.addresses = {name: ports.address(s) for name, s in self._metrics.items()}  # of each process's metrics
        self.status_url = f"http://{self.addresses[f'{role}-{first}']}/status"  # tells how far the training is
        self._private = Path(tempfile.mkdtemp(prefix="paceline-"))  # mode 0700

    def metrics(self) -> dict[str, str]:
        """Where each process serves its metrics."""
        return {name: f"http://{address}/metrics" for name, address in self.addresses.items()}

    def start(self, show: ShowLine) -> None:
        """Start the guard, then every process."""
        command = [sys.executable, "-I", "-S", guard.__file__, self.training_id, str(self._private)]
        self._guard = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
        if self.spec.security.transport is Transport.TLS:
            paceline_credentials.write(self._private, self.request.training.metadata.name)
        threads = max(1, (os.cpu_count() or 1) // len(self._members))
        for role, ordinal in self._members:
            replica = Replica(self._plan(role, ordinal, threads), show)
            self.replicas.append(replica)
            self._tell_guard(str(replica.process.pid))
        for listener in [*self._listeners.values(), *self._metrics.values()]:
            listener.close()  # the children have them

    def stop(self, hurry: "Hurry") -> None:
        """End every process: workers first, then servers, which write what they have; at once when `hurry` says so."""
        for chosen, limit in ((True, WORKER_SECONDS), (False, SERVER_SECONDS)):
            group = [r for r in self.replicas if r.is_worker is chosen and r.code() is None]
            for replica in group:
                replica.signal(signal.SIGTERM)
            until = time.monotonic() + limit
            while time.monotonic() < until and not hurry.now() and any(r.code() is None for r in group):
                time.sleep(0.05)
            for replica in group:
                if replica.code() is None:
                    replica.signal(signal.SIGKILL)

    def close(self) -> None:
        """Make sure that nothing of the run lives on, and remove its credentials."""
        guard.end([r.process.pid for r in self.replicas if r.code() is None], self.training_id)
        for replica in self.replicas:
            replica.process.wait()
            replica.drain(2)
        for listener in [*self._listeners.values(), *self._metrics.values()]:
            listener.close()
        if self._guard:
            self._tell_guard("bye")
            self._guard.communicate()
        shutil.rmtree(self._private, ignore_errors=True)

    def _bind(self) -> None:
        try:
            for index, (role, ordinal) in enumerate(self._members):
                name = f"{role}-{ordinal}"
                metrics_port = self.request.metrics_port and self.request.metrics_port + index
                self._metrics[name] = ports.bind(metrics_port, "--metrics-port")
                if role is not Role.WORKER:
                    self._listeners[name] = ports.bind(self.request.port and self.request.port + ordinal, "--port")
        except BaseException:
            for listener in [*self._listeners.values(), *self._metrics.values()]:
                listener.close()
            raise

    def _plan(self, role: Role, ordinal: int, threads: int) -> Start:
        name, request = f"{role}-{ordinal}", self.request
        sockets = [s for s in (self._metrics[name], self._listeners.get(name)) if s]
        failure = self._private / f"{name}.json"
        worker = role is Role.WORKER
        return Start(
            name,
            request.command if worker else [sys.executable, "-m", "paceline.server"],
            self._environment(role, threads) | self._launch(role, ordinal, failure).to_environment(),
            request.working_folder if worker else Path.cwd(),
            request.folder / "logs" / f"{name}.log",
            failure,
            tuple(s.fileno() for s in sockets),
        )

    def _environment(self, role: Role, threads: int) -> dict[str, str]:
        """This process's environment, with our Python first, unbuffered output and the thread budget."""
        own = {"PATH": search_path(), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads)}
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PACELINE_")}
        return inherited | own | (self.request.variables if role is Role.WORKER else {})

    def _launch(self, role: Role, ordinal: int, failure: Path) -> Launch:
        name, request = f"{role}-{ordinal}", self.request
        listener = self._listeners.get(name)
        secure = self.spec.security.transport is Transport.TLS
        credentials = self._private / ("worker" if role is Role.WORKER else "server")
        return Launch(
            role,
            ordinal,
            request.training.metadata.name,
            self.training_id,
            self.spec,
            tuple(ports.address(s) for s in self._listeners.values()),
            listen=f"fd:{listener.fileno()}" if listener else "127.0.0.1:0",
            metrics=f"fd:{self._metrics[name].fileno()}",
            tls=str(credentials) if secure else None,
            output=str(request.folder.resolve()),
            termination_log=str(failure),
            replay=str((request.replay / "arrivals-ps-0.csv").resolve()) if request.replay else None,
            slowdown=request.slow.get(ordinal) if role is Role.WORKER else None,
            started=self.began,
        )

    def _tell_guard(self, line: str) -> None:
        if self._guard and self._guard.stdin:
            try:
                self._guard.stdin.write(line + "\n")
                self._guard.stdin.flush()
            except BrokenPipeError:
                self._guard = None  # somebody killed it; the run goes on without


class Hurry:
    """Ctrl-C: once to end in order, twice to end at once."""

    def __init__(self) -> None:
        self.count = 0

    def now(self) -> bool:
        """Whether to end at once."""
        return self.count > 1

    def install(self) -> None:
        """Count SIGINT, SIGTERM and SIGHUP instead of dying of them."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._count)

    def _count(self, *_: object) -> None:
        self.count += 1
