"""A parameter server and its workers in threads of this process, and a bad connection between them."""

import random
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch

from paceline.server.coordinator import Coordinator
from paceline.server.service import ParameterService
from paceline.worker.observability.measuring import Measuring
from paceline.worker.parameter_server.session import Session
from paceline_core.launch import Launch, Role
from paceline_core.spec import TrainingSpec

ID = secrets.token_hex(16)  # of this process: others on this machine may have an address that was one of ours
SEEDING = threading.Lock()  # the global generator is of all threads


def launch(
    role: Role,
    addresses: str = "127.0.0.1:1",
    strategy: str = "Synchronous",
    workers: int = 1,
    shards: int = 1,
    ordinal: int = 0,
    optimizers: Sequence[str] = (),
    gradients: Mapping[str, object] = MappingProxyType({}),
    checkpoint: Mapping[str, object] | None = None,
    **more: object,
) -> Launch:
    container = {"name": "trainer", "command": ["x"]}
    spec = {
        "topology": "ParameterServer",
        "parameterServer": {"strategy": strategy, "replicas": shards, "optimizers": list(optimizers)},
        "workers": {"replicas": workers, "template": {"spec": {"containers": [container]}}},
        "gradients": {"bucketMib": 0.01, "timeoutSeconds": 20, **gradients},
        "security": {"transport": "TLS" if "tls" in more else "Insecure"},
        "checkpoint": checkpoint,
    }
    servers = tuple(addresses.split(","))
    return Launch(role, ordinal, "test", ID, TrainingSpec.model_validate(spec), servers, **more)  # type: ignore[arg-type]


def end_at_once(process: ParameterService | Coordinator) -> None:
    """As two SIGTERMs do: the first may have it wait for a checkpoint."""
    process.told_to_end.hear()
    process.told_to_end.hear()


class Served:
    """A parameter server in a thread of this process."""

    def __init__(self, output: Path | None = None, **more: object) -> None:
        self.service = ParameterService(launch(Role.SERVER, output=str(output) if output else None, **more))
        self.address = self.service.acceptor.address
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.service.run()
        except Exception as error:
            self.error = error

    def stop(self) -> None:
        end_at_once(self.service)
        self.thread.join(30)
        assert not self.thread.is_alive()


class Trainee:
    """A worker in this thread."""

    def __init__(self, addresses: str, width: int = 80, **more: object) -> None:
        with SEEDING:
            torch.manual_seed(1)
            self.model = torch.nn.Sequential(torch.nn.Linear(40, width), torch.nn.BatchNorm1d(width))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        worker = launch(Role.WORKER, addresses, **more)
        self.session = Session(worker, Measuring.of(worker))
        self.session.add(self.model, self.optimizer)

    def steps(self, numbers: range) -> None:
        for number in numbers:
            self.optimizer.zero_grad()
            x = torch.arange(160, dtype=torch.float32).reshape(4, 40)
            self.model(x + number).pow(3).mean().backward()
            self.optimizer.step()

    def vanish(self) -> None:
        """As a process that is killed: connections end without a word."""
        self.session.reporter._stop.set()
        for channel in (
            self.session.reporter._channel,
            *(connection._channel for connection in self.session.exchanges[0]._connections),
        ):
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
    """A relay to a server that cuts the first `cuts` connections, half of them by a TCP reset.

    Each is cut after up to `most` bytes, both ways counted, or after up to `longest` seconds.
    """

    def __init__(
        self, target: str, chance: random.Random, cuts: int, most: int = 200_000, longest: float = 0.0
    ) -> None:
        self.target, self.chance, self.cuts, self.most, self.longest = target, chance, cuts, most, longest
        self.done = 0  # cuts that were made
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.lock = threading.Lock()
        self.relayed: list[Relayed] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def sent(self) -> list[bytearray]:
        """What the client sent on each connection."""
        return [each.sent for each in self.relayed]

    def _accept(self) -> None:
        host, _, port = self.target.rpartition(":")
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection((host, int(port)))
            except OSError:
                client.close()
                continue
            with self.lock:
                cut = self.cuts > 0
                self.cuts -= cut
            relayed = Relayed(client, server, hard=self.chance.random() < 0.5, cut=self._was_cut)
            self.relayed.append(relayed)
            if cut and self.longest and self.chance.random() < 0.5:
                relayed.cut_after(self.chance.uniform(0, self.longest))
            elif cut:
                relayed.left = self.chance.randrange(500, self.most)
            relayed.start()

    def _was_cut(self) -> None:
        with self.lock:
            self.done += 1

    def close(self) -> None:
        self.listener.close()
        for each in self.relayed:
            each.close()


class Relayed:
    """One connection through a relay."""

    def __init__(self, client: socket.socket, server: socket.socket, hard: bool, cut: Callable[[], None]) -> None:
        self.client, self.server, self.hard, self.cut = client, server, hard, cut
        self.left = 1 << 60  # bytes
        self.sent = bytearray()
        self.lock = threading.Lock()
        self.over = False
        self.timer: threading.Timer | None = None
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def cut_after(self, seconds: float) -> None:
        self.timer = threading.Timer(seconds, self.end, (True,))
        self.timer.daemon = True
        self.timer.start()

    def start(self) -> None:
        pairs = ((self.client, self.server, self.sent), (self.server, self.client, None))
        threads = [threading.Thread(target=self._copy, args=pair, daemon=True) for pair in pairs]
        for thread in threads:
            thread.start()
        threading.Thread(target=self._close_after, args=(threads,), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, record: bytearray | None) -> None:
        cut = False
        try:
            while not cut and (data := source.recv(8192)):
                if record is not None:
                    record += data
                with self.lock:
                    allowed = data[: max(0, self.left)]
                    self.left -= len(allowed)
                target.sendall(allowed)
                cut = len(allowed) < len(data)
        except OSError:
            pass
        self.end(cut)

    def end(self, cut: bool) -> None:
        """End both sides, with a reset if it is `hard`; who waits in one of them comes back."""
        with self.lock:
            if self.over:
                return
            self.over = True
        if cut:
            self.cut()
        for each in (self.client, self.server):
            try:
                if cut and self.hard:
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                each.shutdown(socket.SHUT_RD if cut and self.hard else socket.SHUT_RDWR)
            except OSError:
                pass

    def _close_after(self, threads: Sequence[threading.Thread]) -> None:
        for thread in threads:
            thread.join()
        self.client.close()
        self.server.close()

    def close(self) -> None:
        if self.timer:
            self.timer.cancel()
        self.end(False)
