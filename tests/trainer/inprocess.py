"""A parameter server and its workers in threads of this process, and a bad connection between them."""

import random
import socket
import threading
from pathlib import Path

import torch

from paceline.server.service import ParameterService
from paceline.worker.measuring import Measuring
from paceline.worker.session import Session
from paceline_core.launch import Launch, Role
from paceline_core.spec import TrainingSpec

ID = "5a" * 16


def launch(
    role: Role,
    addresses: str = "127.0.0.1:1",
    strategy: str = "Synchronous",
    workers: int = 1,
    shards: int = 1,
    ordinal: int = 0,
    **more: object,
) -> Launch:
    container = {"name": "trainer", "command": ["x"]}
    spec = {
        "topology": "ParameterServer",
        "parameterServer": {"strategy": strategy, "replicas": shards},
        "workers": {"replicas": workers, "template": {"spec": {"containers": [container]}}},
        "gradients": {"bucketMib": 0.01, "timeoutSeconds": 20},
        "security": {"transport": "TLS" if "tls" in more else "Insecure"},
    }
    servers = tuple(addresses.split(","))
    return Launch(role, ordinal, "test", ID, TrainingSpec.model_validate(spec), servers, **more)  # type: ignore[arg-type]


class Served:
    """A parameter server in a thread of this process."""

    def __init__(self, output: Path | None = None, **more: object) -> None:
        self.service = ParameterService(launch(Role.SERVER, output=str(output) if output else None, **more))
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


class Trainee:
    """A worker in this thread."""

    def __init__(self, addresses: str, width: int = 80, **more: object) -> None:
        torch.manual_seed(1)
        self.model = torch.nn.Sequential(torch.nn.Linear(40, width), torch.nn.BatchNorm1d(width))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        worker = launch(Role.WORKER, addresses, **more)
        self.session = Session(worker, self.model, self.optimizer, Measuring.of(worker), None)

    def steps(self, numbers: range) -> None:
        for number in numbers:
            self.optimizer.zero_grad()
            x = torch.arange(160, dtype=torch.float32).reshape(4, 40)
            self.model(x + number).pow(3).mean().backward()
            self.session.step()

    def vanish(self) -> None:
        """As a process that is killed: connections end without a word."""
        self.session.reporter._stop.set()
        for channel in (self.session.reporter._channel, *(lane._channel for lane in self.session._lanes)):
            if channel is not None:
                channel.close()

    def weights(self) -> dict[str, torch.Tensor]:
        self.session.leave()
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def train(address: str, steps: int, width: int = 80) -> dict[str, torch.Tensor]:
    trainee = Trainee(address, width)
    trainee.steps(range(steps))
    return trainee.weights()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


class Cutting:
    """A relay to the server that cuts each connection after a random number of bytes, both ways."""

    def __init__(self, target: str, chance: random.Random, cuts: int) -> None:
        self.target, self.chance, self.cuts = target, chance, cuts
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.lock = threading.Lock()
        self.sockets: list[socket.socket] = []
        self.sent: list[bytearray] = []  # by the client, of each connection
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            host, _, port = self.target.rpartition(":")
            server = socket.create_connection((host, int(port)))
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sockets += [client, server]
            with self.lock:
                cut = self.cuts > 0
                self.cuts -= cut
                budget = [self.chance.randrange(500, 200_000) if cut else 1 << 60]
            self.sent.append(bytearray())
            for a, b, record in ((client, server, self.sent[-1]), (server, client, bytearray())):
                threading.Thread(target=self._relay, args=(a, b, budget, record), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, budget: list[int], record: bytearray) -> None:
        try:
            while data := source.recv(8192):
                record += data
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
