"""A server under garbage: nothing changes, nobody hangs."""

import random
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import paceline_credentials
from paceline import metrics
from paceline.wire.channel import SMALL_BYTES, Channel
from paceline.wire.frames import HEADER_BYTES, FrameKind, Header

from .conftest import eventually
from .inprocess import ID, Cutting, Served, Trainee, equal, train

GARBAGE = 10_000


@pytest.fixture
def served() -> Iterator[Served]:
    server = Served()
    yield server
    server.stop()


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
    good = Header(FrameKind.HELLO, bytes.fromhex(ID), nbytes=10).pack()
    for number in range(GARBAGE):
        data = chance.randbytes(chance.randrange(1, 200))
        if number % 2:  # a header that is nearly right
            changed = bytearray(good + data)
            for _ in range(chance.randrange(1, 4)):
                changed[chance.randrange(HEADER_BYTES)] = chance.randrange(256)
            data = bytes(changed)
        send(served.address, data)
    assert served.service.membership.signatures == {}
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
        paceline_credentials.write(tmp_path / name, "test", ["ps-0"], 1)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance, hello = random.Random(seed), client_hello()
    conversations, _ = recorded(steps=2, width=4)
    server = Served(tls=str(tmp_path / "ours/ps-0"))
    garbage = [b"".join(frames) for frames in conversations]  # a whole training, but not over TLS
    for number in range(GARBAGE // 10):
        data = bytearray(chance.randbytes(chance.randrange(1, 200)) if number % 2 else hello)
        data[chance.randrange(len(data))] = chance.randrange(256)
        garbage.append(bytes(data[: chance.randrange(1, len(data) + 1)]))
    for data in garbage:
        send(server.address, data)
    for credentials in (None, tmp_path / "theirs/worker-0", tmp_path / "theirs/ps-0"):
        for data in (conversations[0][0], chance.randbytes(100)):
            send_over_tls(server.address, data, credentials)
    assert (server.service.membership.signatures, server.service.membership.here) == ({}, set())
    eventually(lambda: refused(server) == len(garbage) + 6)
    trainee = Trainee(server.address, width=4, tls=str(tmp_path / "ours/worker-0"))
    trainee.steps(range(2))
    trainee.weights()
    server.stop()
    assert (server.error, server.service.training_status.version) == (None, 2)


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
    assert kinds >= {
        FrameKind.HELLO,
        FrameKind.INITIAL,
        FrameKind.STATICS,
        FrameKind.JOIN,
        FrameKind.PUSH,
        FrameKind.COMMIT,
        FrameKind.REPORT,
        FrameKind.LEAVE,
    }
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
    assert server.service.training_status.version == 1
    trainee.steps(range(1, 3))
    found = trainee.weights()
    server.stop()
    assert equal(found, expected)


@pytest.mark.parametrize("size", [0, 10, SMALL_BYTES])
def test_a_frame_that_goes_with_the_next_one_comes_first(size: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    sender, receiver = (Channel(s, bytes.fromhex(ID), "the other", 10.0) for s in (ours, theirs))
    payload, after = memoryview(bytes(size)), memoryview(b"after")

    def send_all() -> None:
        sender.send(Header(FrameKind.STATICS, sender.training, step=1), (payload,), more=True)
        sender.send(Header(FrameKind.PARAMETERS, sender.training, step=2), (after,))
        sender.send(Header(FrameKind.PARAMETERS, sender.training, step=3))

    with ours, theirs, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send_all)
        headers = []
        for _ in range(3):
            headers.append(receiver.header())
            receiver.bytes(headers[-1])
        sent.result(10)
    assert [(h.kind, h.step, h.nbytes) for h in headers] == [
        (FrameKind.STATICS, 1, size), (FrameKind.PARAMETERS, 2, 5), (FrameKind.PARAMETERS, 3, 0)
    ]  # fmt: skip
    assert sender.sent == size + 5
