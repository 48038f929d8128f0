"""A server under garbage and broken connections: nothing changes, nothing is applied twice, nobody hangs."""

import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry

from paceline.metrics import WorkerMetrics
from paceline.server.service import ParameterService
from paceline.wire.frames import HEADER_BYTES, Header, Kind
from paceline.worker.clock import PhaseClock
from paceline.worker.session import Session
from paceline_core.launch import Launch, Role
from paceline_core.spec import TrainingSpec

ID = "5a" * 16
GARBAGE, STEPS = 10_000, 30


def launch(role: Role, address: str = "127.0.0.1:1", **more: object) -> Launch:
    spec = {
        "topology": "ParameterServer",
        "workers": {"replicas": 1, "template": {"spec": {"containers": [{"name": "trainer", "command": ["x"]}]}}},
        "gradients": {"bucketMib": 0.01, "timeoutSeconds": 20},
        "security": {"transport": "Insecure"},
    }
    return Launch(role, 0, "test", ID, TrainingSpec.model_validate(spec), (address,), **more)  # type: ignore[arg-type]


class Served:
    """A parameter server in a thread of this process."""

    def __init__(self, output: Path | None = None) -> None:
        self.service = ParameterService(launch(Role.SERVER, output=str(output) if output else None))
        self.address = self.service.door.address
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.service.run()
        except Exception as error:
            self.error = error

    def stop(self) -> None:
        self.service.stopping.set()
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture
def served() -> Iterator[Served]:
    server = Served()
    yield server
    server.stop()


def network() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(40, 80), torch.nn.Linear(80, 3))
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def train(address: str, steps: int) -> dict[str, torch.Tensor]:
    model, optimizer = network()
    metrics = WorkerMetrics(CollectorRegistry(), "test", 0)
    session = Session(launch(Role.WORKER, address), model, optimizer, metrics, PhaseClock(), None)
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((4, 40), float(step))).square().mean().backward()
        session.step()
    session.leave()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def send(address: str, data: bytes) -> None:
    """Send bytes and an end of stream; return when the server has closed too."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
        except OSError:
            pass  # it did not even read to the end


def refused(server: Served) -> float:
    samples = server.service.metrics.peers_rejected.collect()[0].samples
    return sum(s.value for s in samples if s.name.endswith("_total"))


def test_random_bytes_change_nothing(served: Served) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    good = Header(Kind.HELLO, bytes.fromhex(ID), nbytes=10).pack()
    for number in range(GARBAGE):
        data = chance.randbytes(chance.randrange(1, 200))
        if number % 2:  # a header that is nearly right
            changed = bytearray(good + data)
            for _ in range(chance.randrange(1, 4)):
                changed[chance.randrange(HEADER_BYTES)] = chance.randrange(256)
            data = bytes(changed)
        send(served.address, data)
    assert served.service.roll.signature is None
    assert refused(served) > 0.9 * GARBAGE
    assert served.thread.is_alive()
    train(served.address, 2)


def test_every_truncation_of_a_valid_conversation(served: Served) -> None:
    whole = b'{"role":"worker","channel":"lane","lane":0,"signature":{}}'
    frame = Header(Kind.HELLO, bytes.fromhex(ID), nbytes=len(whole)).pack() + whole
    for length in range(len(frame)):
        send(served.address, frame[:length])
    assert served.service.roll.signature is None
    train(served.address, 2)


class Cutting:
    """A relay to the server that cuts each connection after a random number of bytes, both ways."""

    def __init__(self, target: str, chance: random.Random, cuts: int) -> None:
        self.target, self.chance, self.cuts = target, chance, cuts
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.lock = threading.Lock()
        self.sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            host, _, port = self.target.rpartition(":")
            server = socket.create_connection((host, int(port)))
            self.sockets += [client, server]
            with self.lock:
                cut = self.cuts > 0
                self.cuts -= cut
                budget = [self.chance.randrange(500, 200_000) if cut else 1 << 60]
            for a, b in ((client, server), (server, client)):
                threading.Thread(target=self._relay, args=(a, b, budget), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, budget: list[int]) -> None:
        try:
            while data := source.recv(8192):
                with self.lock:
                    allowed = data[: max(0, budget[0])]
                    budget[0] -= len(allowed)
                target.sendall(allowed)
                if len(allowed) < len(data):
                    break
        except OSError:
            pass
        for each in (source, target):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        self.listener.close()
        for each in self.sockets:
            each.close()


@pytest.mark.parametrize("attempt", range(5))
def test_a_retry_after_a_broken_connection_is_never_applied_twice(attempt: int) -> None:
    plain = Served()
    expected = train(plain.address, STEPS)
    plain.stop()
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    server = Served()
    relay = Cutting(server.address, random.Random(seed), cuts=12)
    try:
        found = train(relay.address, STEPS)
    finally:
        relay.close()
        server.stop()
    assert server.service.aggregator.version == STEPS
    assert server.service.roll.left == {0}
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
