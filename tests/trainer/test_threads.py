"""Every thread's end is noticed: its error reaches whoever waits, or nothing changes and a line says so.

The table is compared with the code: a thread that is new needs a row.
"""

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paceline import http_pages
from paceline.checkpoints.part_writer import PartWriter
from paceline.local.replica import Replica, Start
from paceline.local.run import RunMonitor
from paceline.local.run_processes import Interrupts
from paceline.server.checkpoints.completion import Completion
from paceline.server.gradients.followers import FollowerConnections
from paceline.server.gradients.shard import Shard
from paceline.server.gradients.worker_connections import WorkerConnection
from paceline.server.membership.acceptor import Acceptor
from paceline.server.service import ParameterService
from paceline.worker.all_reduce.diagnosis_responder import DiagnosisResponder
from paceline.worker.observability.socket_queues import SocketQueues
from paceline.worker.observability.step_metrics import StepMetrics
from paceline.worker.parameter_server.shard_connection import ShardConnection
from paceline.worker.preemption import Preemption
from paceline_core.launch import Role

from .conftest import eventually
from .inprocess import Served, Trainee, launch
from .made import a_status, serving

SOURCE = Path(__file__).parents[2] / "trainer/paceline"
TOLD, GOES_ON = "the worker ends with the error's text", "the training goes on"
NOTICED_SECONDS = 15
Patch = pytest.MonkeyPatch


def raises(*_: Any, **__: Any) -> Any:
    raise RuntimeError("broken on purpose")


def once(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, which raises the first time."""
    calls: list[int] = []

    def call(*arguments: Any) -> Any:
        calls.append(1)
        return raises() if len(calls) == 1 else method(*arguments)

    return call


def carry_out(self: ParameterService, *arguments: Any) -> None:
    if not self.first:
        raises()
    ORIGINAL(self, *arguments)


ORIGINAL = ParameterService._carry_out
# thread -> how it is broken, what is expected of a training with two servers
IN_A_TRAINING: dict[tuple[str, str], tuple[Callable[[Patch], None], str]] = {
    ("server/service.py", "self._listen"): (lambda p: p.setattr(ParameterService, "_carry_out", carry_out), TOLD),
    ("server/gradients/executor.py", "self._run"): (lambda p: p.setattr(Shard, "step", raises), TOLD),
    ("server/membership/acceptor.py", "self._accept"): (lambda p: p.setattr(Acceptor, "_admit", once(Acceptor._admit)), GOES_ON),
    ("server/membership/acceptor.py", "self._serve"): (lambda p: p.setattr(WorkerConnection, "_commit", raises), TOLD),
    ("checkpoints/part_writer.py", "self._run"): (lambda p: p.setattr(PartWriter, "_written", raises), GOES_ON),
    ("server/checkpoints/completion.py", "self._run"): (lambda p: p.setattr(Completion, "_part_written", raises), GOES_ON),
    ("worker/parameter_server/shard_connection.py", "self._run"): (
        lambda p: p.setattr(ShardConnection, "_send_early", raises), TOLD,
    ),
    ("worker/observability/reporter.py", "self._run"): (lambda p: p.setattr(StepMetrics, "steps", raises), GOES_ON),
    ("http_pages.py", "_serve"): (lambda p: p.setattr(http_pages.Server, "service_actions", raises), GOES_ON),
}  # fmt: skip
BY_THEMSELVES = {  # each has a test of its own below
    ("worker/observability/socket_queues.py", "self._sample"),
    ("worker/all_reduce/diagnosis_responder.py", "self._answer"),
    ("local/run.py", "self._poll"),
    ("local/replica.py", "self._read"),
    ("local/background_output.py", "self._pass_on"),  # in test_output.py
    ("checkpoints/object_store.py", "answer"),  # in test_object_store.py
    ("worker/script_end.py", "_watch"),  # in test_script_end.py
    ("worker/preemption.py", "self._run"),
    ("worker/preemption.py", "self._ask_until_over"),
}


def test_every_thread_is_in_the_table() -> None:
    found = {
        (str(path.relative_to(SOURCE)), target)
        for path in SOURCE.rglob("*.py")
        for target in re.findall(r"\bThread\((?:target=)?([\w.]*)", path.read_text())
    }
    assert found == IN_A_TRAINING.keys() | BY_THEMSELVES


def a_training_of_two_servers(
    folder: Path, before_its_end: Callable[[], None] = lambda: None
) -> tuple[list[Served], Exception | None]:
    """The servers when it is over, and what the worker's error was."""
    asked = {"shards": 2, "checkpoint": {"everySteps": 1}}
    first = Served(folder, **asked)
    servers = [first, Served(folder, ordinal=1, addresses=first.address, **asked)]
    error = None
    try:
        trainee = Trainee(",".join(s.address for s in servers), **asked)
        trainee.steps(range(3))
        before_its_end()
        trainee.session.leave()
    except Exception as raised:
        error = raised
    if error is None:  # they end by themselves
        for server in servers:
            server.thread.join(NOTICED_SECONDS)
    for server in servers:
        server.stop()
    return servers, error


@pytest.mark.parametrize("thread", IN_A_TRAINING, ids=lambda t: f"{t[0]}-{t[1]}")
def test_an_error_in_it_is_noticed(
    thread: tuple[str, str], tmp_path: Path, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    damage, expected = IN_A_TRAINING[thread]
    damage(monkeypatch)
    began = time.monotonic()

    def said() -> bool:
        return any("broken on purpose" in record.getMessage() for record in list(caplog.records))

    def wait() -> None:
        if expected == GOES_ON:
            eventually(said)

    servers, error = a_training_of_two_servers(tmp_path, wait)
    if expected == TOLD:
        assert "broken on purpose" in str(error)
        assert time.monotonic() - began < NOTICED_SECONDS
    else:
        assert error is None
        assert [s.error for s in servers] == [None, None]
        assert (tmp_path / "weights-ps-1.safetensors").exists()


def test_what_a_server_cannot_order_ends_the_training(tmp_path: Path, monkeypatch: Patch) -> None:
    serve = FollowerConnections.serve_arrivals

    def broken(self: FollowerConnections, *arguments: Any) -> None:
        self._arrived = raises
        serve(self, *arguments)

    monkeypatch.setattr(FollowerConnections, "serve_arrivals", broken)
    _, error = a_training_of_two_servers(tmp_path)
    assert "broken on purpose" in str(error)


def test_a_ring_s_sockets_are_closed_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    a, b = socket.socketpair()
    queues = SocketQueues([a.fileno()], raises)
    eventually(lambda: bool(caplog.records))
    queues.close()
    assert "broken on purpose" in caplog.text
    a.close()
    b.close()


def test_a_diagnosis_that_cannot_be_answered_is_said(caplog: pytest.LogCaptureFixture) -> None:
    responder = DiagnosisResponder.__new__(DiagnosisResponder)
    responder._closed = False
    responder._channel = SimpleNamespace(header=raises)  # type: ignore[assignment]
    responder._answer()
    assert "broken on purpose" in caplog.text


def a_preemption(ending: Callable[..., Any] = raises) -> Preemption:
    it = Preemption.__new__(Preemption)
    it._launch, it._released, it._failure = launch(Role.WORKER), threading.Event(), None
    it._leaving, it._told, it._held = False, False, 3
    it._client = SimpleNamespace(ending=ending)  # type: ignore[assignment]
    return it


def test_a_held_script_is_told_that_nobody_says_what_it_waits_for() -> None:
    it = a_preemption()
    it._ask_until_over()
    assert it._released.is_set()
    assert "broken on purpose" in str(it._failure)


def test_without_the_thread_that_hears_it_sigterm_ends_a_worker_at_once(
    monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    ends: list[int] = []
    monkeypatch.setattr(Preemption, "_exit", staticmethod(lambda: ends.append(1)))
    monkeypatch.setattr(Preemption, "_wait_for_signals", raises)
    it = a_preemption()
    it._read, it._write = os.pipe()
    it._thread = threading.Thread(target=it._run)
    it._thread.start()
    it._thread.join()
    assert "broken on purpose" in caplog.text
    it._handle()
    assert ends
    os.close(it._read)
    os.close(it._write)


def test_progress_that_cannot_be_shown_does_not_end_the_watch() -> None:
    notes: list[str] = []
    shown: list[int] = []

    def progress(_: Any) -> None:
        shown.append(1)
        raises()

    with serving({"/status": (200, a_status())}) as address:
        processes = SimpleNamespace(status_url=f"{address}/status", began=datetime.now(UTC).timestamp())
        display: Any = SimpleNamespace(progress=progress, note=notes.append)
        history: Any = SimpleNamespace(request=None)
        monitor = RunMonitor(history, processes, display, Interrupts())  # type: ignore[arg-type]
        monitor._over = SimpleNamespace(wait=lambda _: len(shown) == 3)  # type: ignore[assignment]
        monitor._poll()
    assert notes == ["the progress cannot be shown: RuntimeError('broken on purpose')"]
    assert monitor._status == a_status()


def test_output_that_cannot_be_shown_is_read_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A process whose output nobody reads would wait for ever when the pipe is full."""
    command = [sys.executable, "-c", "for i in range(20000): print('a line', i)"]
    start = Start("worker-0", command, {}, tmp_path, tmp_path / "log", tmp_path / "failure", ())
    replica = Replica(start, raises)
    assert replica.process.wait(60) == 0
    replica.drain(60)
    assert len((tmp_path / "log").read_text().splitlines()) == 20000
    assert capsys.readouterr().err.count("broken on purpose") == 1
