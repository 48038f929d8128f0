"""Mutated sequences of frames, over TLS and with a valid certificate: no weight changes, and nothing ends unsaid.

Whoever sends them is a worker that has left the training, so that no gradient of its can be a valid one. Each sequence
has a connection of its own and ends with a frame that no connection takes: so the server has to say of every one what
became of it. `make sweep` runs 50,000 on each kind of connection, and `pytest` a sample.
"""

import logging
import os
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import paceline_credentials
from paceline.server.gradients import worker_connections
from paceline.server.membership import membership
from paceline.server.service import ParameterService
from paceline.wire import endpoint
from paceline.wire.channel import Channel
from paceline.wire.frames import FrameKind, Header
from paceline.worker.collectives.rendezvous_store import RendezvousStore
from paceline.worker.collectives.store_client import StoreClient
from paceline_core.errors import PacelineError
from paceline_core.launch import Role

from .conftest import eventually
from .inprocess import Cutting, Served, Trainee, equal, launch, train
from .mutations import TRAINING, Frame, Mutator, frames
from .strangers import counted

SAMPLE, SWEEP = 300, int(os.environ.get("PACELINE_SWEEP", "0"))  # sequences; in `make sweep` 50,000
STEPS, WIDTH = 40, 4  # of the honest worker meanwhile; its layer
MEMORY_BYTES = 64 << 20
SAID_SECONDS = 5.0
PROBE = Header(FrameKind.READY, TRAINING).pack()  # in no row of the table
Sequence_ = list[Frame]


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("credentials")
    paceline_credentials.write(folder, "test", ["ps-0", "ps-1"], 2)
    return folder


@pytest.fixture(scope="module")
def recorded() -> dict[str, list[Sequence_]]:
    """What honest processes send, by kind of connection: HELLO, then the frames."""
    first = Served(shards=2, gradients={"maxNorm": 1.0})
    relay = Cutting(first.address, random.Random(0), cuts=0)
    more: dict[str, Any] = {"shards": 2, "gradients": {"maxNorm": 1.0}}
    second = Served(ordinal=1, addresses=relay.address, **more)
    trainee = Trainee(f"{relay.address},{second.address}", WIDTH, **more)
    trainee.steps(range(2))
    trainee.optimizer.state_dict()
    use_the_store(launch(Role.WORKER, relay.address))
    trainee.weights()
    for server in (first, second):
        server.thread.join(20)
    relay.close()
    found: dict[str, list[Sequence_]] = {}
    for sent in relay.sent:
        conversation = frames(bytes(sent))
        name = next(n for n in NAMES if f'"channel":"{n}"'.encode() in conversation[0][1])
        found.setdefault(name, []).append(conversation)
    return found


NAMES = ("lane", "report", "store", "orders", "arrivals")


def use_the_store(asked: Any) -> None:
    keys, client = RendezvousStore(asked), StoreClient(asked)
    keys.set("a", "b")
    keys.get("a")
    keys.wait(["a"])
    keys.check(["a", "c"])
    keys.add("n", 2)
    keys.compare_set("a", "b", "c")
    keys.num_keys()
    keys.delete_key("a")
    keys.close()
    client.gather("mean", "1")
    client.first("seed", "2", "shard")
    client.differs_from("order", "x")
    client.close(leave=False)


class Attacker:
    """Sends sequences, one connection each, and finds out what became of them."""

    def __init__(self, address: str, credentials: Path, instruments: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.address, self.tls, self.metrics = address, str(credentials), instruments
        self.came_to: Counter[str] = Counter()
        self.gone, self.unsaid = 0, list[bytes]()
        is_broken = Channel.is_broken

        def noticed(channel: Channel) -> bool:
            found = is_broken(channel)
            self.gone += found
            return found

        monkeypatch.setattr(Channel, "is_broken", noticed)

    def send(self, sequence: Sequence[bytes]) -> None:
        before, gone = self.refused, self.gone
        channel = endpoint.connect(self.address, TRAINING, "ps-0", self.tls, 0, 10)
        try:
            for frame in (*sequence, PROBE):
                channel.connection.sendall(frame)
            socket.socket.shutdown(channel.connection, socket.SHUT_WR)
        except OSError:
            pass  # it was ended before
        told = self._told(channel)
        channel.close()
        limit = time.monotonic() + SAID_SECONDS  # TLS tells of an end before the server counts it
        while not told and (self.refused, self.gone) == (before, gone) and time.monotonic() < limit:
            time.sleep(0.001)
        kind = "refused" if self.refused > before else "told" if told else "gone" if self.gone > gone else "nothing"
        self.came_to[kind] += 1
        if kind == "nothing":
            self.unsaid.append(b"".join(sequence)[:200])

    def _told(self, channel: Channel) -> bool:
        """Read what comes until the end; whether the last was an error."""
        last = None
        try:
            while True:
                header = channel.header()
                channel.skip(header)
                last = header.kind
        except EOFError:
            return last is FrameKind.ERROR
        except PacelineError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise  # it is not ended
            return last is FrameKind.ERROR

    @property
    def refused(self) -> float:
        return sum(counted(self.metrics).values())


@pytest.fixture
def attacked(credentials: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[Attacked]":
    monkeypatch.setattr(membership, "PRESENCE_SECONDS", 0.01)
    monkeypatch.setattr(worker_connections, "PRESENCE_SECONDS", 0.01)
    found = Attacked(credentials, monkeypatch)
    yield found
    found.honest.vanish()
    found.served.stop()


class Attacked:
    """A training of two workers, one of which has left after its first step."""

    def __init__(self, credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.served = Served(workers=2, tls=str(credentials / "ps-0"))
        more: dict[str, Any] = {"workers": 2}
        tls = [str(credentials / f"worker-{rank}") for rank in range(2)]
        other = threading.Thread(
            target=lambda: self._leave(Trainee(self.served.address, WIDTH, ordinal=1, tls=tls[1], **more))
        )
        other.start()
        self.honest = Trainee(self.served.address, WIDTH, tls=tls[0], **more)
        self.honest.steps(range(1))
        other.join(20)
        eventually(lambda: self.served.service.membership.left == {1})
        self.done = 1
        self.attacker = Attacker(
            self.served.address, credentials / "worker-1", self.served.service.metrics, monkeypatch
        )

    def _leave(self, trainee: Trainee) -> None:
        trainee.steps(range(1))
        trainee.session.leave()

    def step(self) -> None:
        """A step of the honest worker."""
        if self.done < STEPS:
            self.honest.steps(range(self.done, self.done + 1))
            self.done += 1

    def forget(self) -> None:
        """The other worker's last push, after which older ones would be outdated."""
        self.served.service.connections._incoming.pop((0, 1), None)


def valid_join(frame: bytes) -> bool:
    """A frame that makes the worker a member again; and a HELLO of a process that takes its place: both are allowed."""
    try:
        header = Header.unpack(frame[:60])
    except (PacelineError, struct.error):
        return False
    return header.kind is FrameKind.JOIN or (header.kind is FrameKind.HELLO and header.incarnation > 0)


def attack(attacker: Attacker, seeds: list[Sequence_], worker: int, count: int, step: Any, before: Any) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    mutator, process = Mutator(chance), psutil.Process()
    seeds = [[(replace(header, worker=worker), payload) for header, payload in each] for each in seeds]
    attacker.send([])  # from here on all threads of the server are there
    threads, began = threading.active_count(), process.memory_info().rss
    for number in range(count):
        chosen = chance.choice(seeds)
        start = chance.randrange(1, len(chosen) + 1)
        made = [h.pack() + p for h, p in chosen[:1]] + mutator(chosen[start : start + chance.randrange(1, 9)])
        if chance.random() < 0.1:
            made = mutator(chosen[: chance.randrange(1, 5)])
        before()
        if not any(map(valid_join, made)):
            attacker.send(made)
        if number % (count // (STEPS - 2)) == 0:
            step()
    grown = process.memory_info().rss - began
    print(f"{count} sequences: {dict(attacker.came_to)}, {counted(attacker.metrics)}, {grown / 2**20:.0f} MiB more")
    assert attacker.unsaid == []
    assert attacker.came_to["refused"] > count / 2
    assert grown < MEMORY_BYTES
    eventually(lambda: threading.active_count() <= threads + 1)


def long_and_short(test: Any) -> Any:
    sweep = pytest.param(SWEEP, marks=[pytest.mark.sweep, pytest.mark.slow], id="sweep")
    return pytest.mark.parametrize("count", [pytest.param(SAMPLE, id="sample"), sweep])(test)


@pytest.fixture(autouse=True)
def quiet(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No traceback, whatever comes."""
    if "sweep" in request.node.name and not SWEEP:
        pytest.skip("long: PACELINE_SWEEP=50000, or `make sweep`")
    yield
    assert [r.getMessage() for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("name", ["lane", "report", "store"])
@long_and_short
def test_no_sequence_of_a_workers_changes_a_weight(
    attacked: Attacked, recorded: dict[str, list[Sequence_]], name: str, count: int
) -> None:
    attack(attacked.attacker, recorded[name], 1, count, attacked.step, attacked.forget)
    while attacked.done < STEPS:
        attacked.step()
    assert attacked.served.service.training_status.version == STEPS
    found = attacked.honest.weights()
    attacked.served.thread.join(20)
    assert attacked.served.error is None
    assert equal(found, alone())


def alone() -> dict[str, torch.Tensor]:
    plain = Served()
    found = train(plain.address, STEPS, WIDTH)
    plain.stop()
    return found


@long_and_short
def test_no_sequence_of_a_servers_is_carried_out(
    credentials: Path, recorded: dict[str, list[Sequence_]], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has arrived on shard 0 itself, so that nothing can be ordered, whatever another shard says."""
    failures: list[Exception] = []
    monkeypatch.setattr(ParameterService, "fail", lambda _, error: failures.append(error))
    served = Served(shards=2, gradients={"maxNorm": 1.0}, tls=str(credentials / "ps-0"))
    service = served.service
    attacker = Attacker(served.address, credentials / "ps-1", service.metrics, monkeypatch)
    attack(attacker, recorded["arrivals"], 1, count, lambda: None, lambda: None)
    assert all(isinstance(error, PacelineError) for error in failures), failures
    assert (service.training_status.version, service.connections.executors) == (0, {})
    served.stop()
