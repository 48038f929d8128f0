"""A server under garbage and broken connections: nothing changes, nothing is applied twice, nobody hangs."""

import random
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import paceline_credentials
from paceline import metrics
from paceline.server import roll
from paceline.server.service import ParameterService
from paceline.wire.frames import HEADER_BYTES, Header, Kind
from paceline.worker.measuring import Measuring
from paceline.worker.session import Session
from paceline_core.launch import Launch, Role
from paceline_core.spec import TrainingSpec

from .conftest import eventually

ID = "5a" * 16
GARBAGE, STEPS = 10_000, 30


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


@pytest.fixture
def served() -> Iterator[Served]:
    server = Served()
    yield server
    server.stop()


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
    samples = (s for family in server.service.metrics.collect() for s in family.samples)
    return sum(s.value for s in samples if s.name == metrics.PEERS_REJECTED.name)


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


def client_hello() -> bytes:
    """The first bytes of a TLS client."""
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="server.paceline")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def send_over_tls(address: str, data: bytes, credentials: Path | None) -> None:
    """Send bytes as a client that asks nobody who they are; return when the server has closed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if credentials:
        context.load_cert_chain(credentials / "cert.pem", credentials / "key.pem")
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        try:
            with context.wrap_socket(connection) as secure:
                secure.sendall(data)
                assert secure.recv(1) == b"", "nothing is answered"
        except (ssl.SSLError, ConnectionError):
            pass  # it refuses, in the handshake or after it


def test_garbage_at_a_tls_port_changes_nothing(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        paceline_credentials.write(tmp_path / name, "test")
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance, hello = random.Random(seed), client_hello()
    conversations, _ = recorded(steps=2, width=4)
    server = Served(tls=str(tmp_path / "ours/server"))
    garbage = [b"".join(frames) for frames in conversations]  # a whole training, but not over TLS
    for number in range(GARBAGE // 10):
        data = bytearray(chance.randbytes(chance.randrange(1, 200)) if number % 2 else hello)
        data[chance.randrange(len(data))] = chance.randrange(256)
        garbage.append(bytes(data[: chance.randrange(1, len(data) + 1)]))
    for data in garbage:
        send(server.address, data)
    for credentials in (None, tmp_path / "theirs/worker", tmp_path / "theirs/server"):
        for data in (conversations[0][0], chance.randbytes(100)):
            send_over_tls(server.address, data, credentials)
    assert (server.service.roll.signature, server.service.roll.here) == (None, set())
    eventually(lambda: refused(server) == len(garbage) + 6)
    trainee = Trainee(server.address, width=4, tls=str(tmp_path / "ours/worker"))
    trainee.steps(range(2))
    trainee.weights()
    server.stop()
    assert (server.error, server.service.aggregator.version) == (None, 2)


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
    assert equal(found, expected)


def recorded(steps: int, width: int) -> tuple[list[list[bytes]], dict[str, torch.Tensor]]:
    """Every frame that a worker sends in a whole training, by connection; and the weights it ends with."""
    server = Served()
    relay = Cutting(server.address, random.Random(0), cuts=0)
    weights = train(relay.address, steps, width)
    relay.close()
    server.stop()
    return [list(frames(bytes(sent))) for sent in relay.sent], weights


def frames(data: bytes) -> Iterator[bytes]:
    while data:
        end = HEADER_BYTES + Header.unpack(data[:HEADER_BYTES]).nbytes
        yield data[:end]
        data = data[end:]


def test_every_truncation_of_every_frame_changes_nothing() -> None:
    conversations, expected = recorded(steps=3, width=4)
    kinds = {Header.unpack(f[:HEADER_BYTES]).kind for frames in conversations for f in frames}
    assert kinds >= {Kind.HELLO, Kind.INITIAL, Kind.STATICS, Kind.JOIN, Kind.PUSH, Kind.COMMIT, Kind.REPORT, Kind.LEAVE}
    server = Served()
    trainee = Trainee(server.address, width=4)
    trainee.steps(range(1))
    for hello, *others in conversations:
        headers = [Header.unpack(frame[:HEADER_BYTES]) for frame in others]
        next_of_kind = {h.kind: frame for h, frame in zip(headers, others, strict=True) if h.step in (0, 2)}
        for frame in [hello, *next_of_kind.values()]:
            before = b"" if frame is hello else hello
            for length in range(len(frame)):
                send(server.address, before + frame[:length])
    assert server.service.aggregator.version == 1
    trainee.steps(range(1, 3))
    found = trainee.weights()
    server.stop()
    assert equal(found, expected)


def test_a_lost_worker_is_waited_for_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll, "GRACE_SECONDS", 0.0)
    server = Served(strategy="Asynchronous", replaced=True)
    first = Trainee(server.address, width=4, strategy="Asynchronous")
    first.steps(range(3))
    first.vanish()
    with server.service.roll.changed:
        assert server.service.roll.changed.wait_for(lambda: server.service.roll.lost, 20)
    second = Trainee(server.address, width=4, strategy="Asynchronous", incarnation=9)
    assert equal(dict(second.model.named_parameters()), dict(first.model.named_parameters())), (
        "no first parameters again"
    )
    second.steps(range(3, 6))
    second.weights()
    server.thread.join(20)
    assert not server.thread.is_alive(), "the replacement was the last"
    assert (server.error, server.service.aggregator.version) == (None, 6)
