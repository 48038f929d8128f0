"""Every kind of connection and frame against every role: what the table allows is taken, and all else is refused."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import paceline_credentials
from paceline import metrics
from paceline.server.membership.acceptor import Acceptor
from paceline.wire.channel import Channel
from paceline.wire.connections import CONNECTIONS
from paceline.wire.frames import FrameKind, Header
from paceline_core.errors import PacelineError
from paceline_core.launch import Role
from paceline_core.spec import Level

from .conftest import eventually
from .inprocess import Served, Trainee, equal, launch, train
from .strangers import ANOTHER_TRAINING, Stranger, answers, connect, counted, hello, may_open, send, strangers

TRANSPORTS = [pytest.param(True, id="TLS"), pytest.param(False, id="plain")]
NAMES = [*CONNECTIONS, "another", None]
ANOTHER = (  # who else a frame may say that it is of
    {"worker": 7},
    {"incarnation": 1},
    {"training": ANOTHER_TRAINING},
)


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("credentials")
    paceline_credentials.write(folder, "test", ["ps-0", "ps-1", "ps-2"], 3)
    paceline_credentials.write(folder / "another", "test", ["ps-0", "ps-1"], 1)
    return folder


class Door:
    """An acceptor that serves every kind of connection: it answers each frame that comes through."""

    def __init__(self, tls: Path | None) -> None:
        self.metrics = metrics.of_server("test", 0, Level.DETAILED)
        asked: dict[str, Any] = {"tls": str(tls)} if tls else {}
        self.acceptor = Acceptor(
            launch(Role.SERVER, workers=2, shards=2, **asked), dict.fromkeys(CONNECTIONS, self._serve), self.metrics
        )
        self.taken: Counter[FrameKind] = Counter()
        self.acceptor.open()

    def _serve(self, channel: Channel, hello: Header, asked: dict[str, Any]) -> None:
        while True:
            channel.send(Header(FrameKind.READY, channel.training))
            header = channel.header(idle=True)
            channel.skip(header)
            self.taken[header.kind] += 1

    @property
    def refused(self) -> float:
        return sum(counted(self.metrics).values())


@pytest.fixture(params=TRANSPORTS)
def door(request: pytest.FixtureRequest, credentials: Path) -> Iterator[Door]:
    found = Door(credentials / "ps-0" if request.param else None)
    found.tls = request.param  # type: ignore[attr-defined]
    yield found
    found.acceptor.close()


def opened(stranger: Stranger, address: str, credentials: Path, name: object, **more: Any) -> Channel | None:
    """A connection of this kind, if the server takes it."""
    channel = None
    try:
        channel = connect(stranger, address, credentials)
        channel.send_json(hello(stranger), {"role": stranger.says, "channel": name, **more})
        if answers(channel):
            return channel
    except (PacelineError, OSError):
        pass
    if channel:
        channel.close()
    return None


def refuses_first(stranger: Stranger, address: str, credentials: Path, kind: FrameKind) -> bool:
    """Whether a connection that begins with this frame is ended."""
    channel = None
    try:
        channel = connect(stranger, address, credentials)
        send(channel, replace(hello(stranger), kind=kind))
        return not answers(channel)
    except (PacelineError, OSError):
        return True
    finally:
        if channel:
            channel.close()


def test_a_connection_is_opened_by_who_may(door: Any, credentials: Path) -> None:
    expected = 0
    for stranger in strangers(door.tls):
        for name in NAMES:
            channel = opened(stranger, door.acceptor.address, credentials, name)
            may = may_open(stranger, str(name), door.tls)
            assert (channel is not None) is may, (stranger.name, name)
            expected += not may
            if channel:
                channel.close()
    eventually(lambda: door.refused >= expected)  # of what the opener itself ended, perhaps a moment later
    assert door.refused == expected


def test_a_connection_begins_with_hello_alone(door: Any, credentials: Path) -> None:
    expected = 0
    for stranger in strangers(door.tls):
        for kind in FrameKind:
            if kind is not FrameKind.HELLO:
                assert refuses_first(stranger, door.acceptor.address, credentials, kind), (stranger.name, kind.name)
                expected += 1
    eventually(lambda: door.refused >= expected)  # of what the opener itself ended, perhaps a moment later
    assert door.refused == expected
    assert not door.taken


def test_a_connection_takes_the_frames_of_its_row(door: Any, credentials: Path) -> None:
    expected = 0
    taken: Counter[FrameKind] = Counter()
    openers = {s.name: s for s in strangers(door.tls)}
    for row in CONNECTIONS.values():
        for kind in FrameKind:
            for change in ({}, *ANOTHER):
                channel = opened(openers[row.role], door.acceptor.address, credentials, row.name)
                assert channel
                header = replace(hello(openers[row.role]), kind=kind, **change)
                channel.training = header.training
                send(channel, header)
                may = kind in row.frames and not change
                if may:
                    taken[kind] += 1
                channel.training = openers[row.role].training
                assert answers(channel) is may, (row.name, kind.name, change)
                expected += not may
                channel.close()
    eventually(lambda: door.refused >= expected)  # of what the opener itself ended, perhaps a moment later
    assert door.refused == expected
    assert door.taken == taken
    assert set(door.taken) == set().union(*(row.frames for row in CONNECTIONS.values()))


@pytest.mark.parametrize("tls", TRANSPORTS)
def test_a_training_goes_on(tls: bool, credentials: Path) -> None:
    """Whatever is refused is refused while a worker trains: its weights are as without it."""
    served = Served(workers=1, **({"tls": str(credentials / "ps-0")} if tls else {}))
    honest = Trainee(served.address, **({"tls": str(credentials / "worker-0")} if tls else {}))
    signature = honest.session.exchanges[0].pair.signature.to_json()
    more = {"signature": signature, "lane": 0, "pair": 0}
    before = sum(counted(served.service.metrics).values())
    refused = 0
    for number, stranger in enumerate(strangers(tls)):
        if number % 2:
            honest.steps(range(number // 2, number // 2 + 1))
        worker = stranger.name == "worker"
        for name in NAMES:
            if not (worker and name in ("lane", "report", "store")):
                assert opened(stranger, served.address, credentials, name, **more) is None, (stranger.name, name)
                refused += 1
            for kind in FrameKind if worker and name in ("lane", "report", "store") else ():
                if kind not in CONNECTIONS[str(name)].frames:
                    channel = opened(stranger, served.address, credentials, name, **more)
                    assert channel
                    send(channel, replace(hello(stranger), kind=kind))
                    assert not answers(channel), (name, kind.name)
                    channel.close()
                    refused += 1
        for kind in set(FrameKind) - {FrameKind.HELLO}:
            assert refuses_first(stranger, served.address, credentials, kind), (stranger.name, kind.name)
            refused += 1
    done = len(strangers(tls)) // 2
    honest.steps(range(done, 6))
    eventually(lambda: sum(counted(served.service.metrics).values()) - before >= refused)
    assert sum(counted(served.service.metrics).values()) - before == refused
    found = honest.weights()
    served.stop()
    assert served.error is None
    assert equal(found, expected())


def expected() -> dict[str, torch.Tensor]:
    plain = Served()
    found = train(plain.address, 6)
    plain.stop()
    return found
