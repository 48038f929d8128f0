"""Frames between shards over connections that break: each is carried out once, in order; shards that go are told."""

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from paceline.server.gradients import followers
from paceline.wire.channel import Channel
from paceline.wire.frames import FrameKind, Header
from paceline.wire.resumable_stream import ResumableReceiver, ResumableSender
from paceline_core.errors import PacelineError, ProtocolError

from .conftest import eventually
from .inprocess import ID, Cutting, Served, Trainee

TRAINING = bytes.fromhex(ID)


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def a_connection(opened: ExitStack) -> tuple[Channel, Channel]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
    ends = Channel(here, TRAINING, "here", 5), Channel(there, TRAINING, "there", 5)
    for end in ends:
        opened.callback(end.close)
    return ends


class Heard:
    """The frames that one side has carried out."""

    def __init__(self) -> None:
        self.receiver, self.values = ResumableReceiver(), list[int]()

    def one(self, channel: Channel) -> int:
        """Take a frame; gives the acknowledgement in it."""
        header = channel.header()
        value = channel.json(header)
        self.receiver.take(header, lambda: self.values.append(value["value"]))
        return header.version


@pytest.mark.parametrize("attempt", range(20))
def test_each_frame_is_carried_out_once_and_in_order(attempt: int, opened: ExitStack) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance, heard, sent = random.Random(seed), Heard(), 0
    sender = ResumableSender(3, lambda: 0)
    while sent < 60:
        near, far = a_connection(opened)
        sender.resume(near, heard.receiver.received)
        for _ in range(chance.randrange(12)):
            sender.send(FrameKind.ARRIVED, {"value": sent})
            sent += 1
        for _ in range(chance.randrange(sent - sender.delivered + 1)):
            heard.one(far)
            if chance.random() < 0.5:
                sender.acknowledged(heard.receiver.received)
        near.close()
    near, far = a_connection(opened)
    sender.resume(near, heard.receiver.received)
    while heard.receiver.received < sent:
        heard.one(far)
    assert heard.values == list(range(sent))
    sender.acknowledged(sent)
    assert sender.delivered == sent


def test_a_header_tells_what_has_come_on_the_stream_the_other_way(opened: ExitStack) -> None:
    near, far = a_connection(opened)
    sender = ResumableSender(3, lambda: 17)
    sender.resume(near, 0)
    sender.send(FrameKind.ORDER, {"value": 1})
    assert Heard().one(far) == 17


def test_a_frame_that_is_missing_is_noticed() -> None:
    receiver = ResumableReceiver()
    receiver.take(Header(FrameKind.ORDER, TRAINING, step=1), lambda: None)
    with pytest.raises(ProtocolError, match="frame 3 came after 1"):
        receiver.take(Header(FrameKind.ORDER, TRAINING, step=3), lambda: None)


def test_what_could_not_be_carried_out_has_not_been_received() -> None:
    receiver = ResumableReceiver()
    with pytest.raises(ZeroDivisionError):
        receiver.take(Header(FrameKind.ORDER, TRAINING, step=1), lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    assert receiver.received == 0


@pytest.mark.parametrize("received", [-1, 1, 4, None, "2", 2.0, True])
def test_a_peer_that_has_received_what_cannot_be_is_refused(received: object, opened: ExitStack) -> None:
    near, _ = a_connection(opened)
    sender = ResumableSender(0, lambda: 0)
    for number in range(3):
        sender.send(FrameKind.ORDER, {"value": number})
    sender.acknowledged(2)
    sender.acknowledged(1)  # came late, over an older connection
    with pytest.raises(ProtocolError):
        sender.resume(near, received)
    with pytest.raises(ProtocolError):
        sender.acknowledged(4)


def two_shards(relayed: bool = False) -> tuple[list[Served], list[Cutting]]:
    leader = Served(shards=2)
    relays = [Cutting(leader.address, random.Random(0), cuts=0)] if relayed else []
    between = relays[0].address if relayed else leader.address
    return [leader, Served(addresses=between, ordinal=1, shards=2)], relays


def test_a_shard_that_is_gone_for_good_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.wire.retries.TRY_SECONDS", 0.3)
    monkeypatch.setattr("paceline_core.limits.REFUSAL_SECONDS", 0.0)
    servers, relays = two_shards(relayed=True)
    eventually(lambda: len(relays[0].relayed) == 2)
    relays[0].close()
    for server in servers:
        server.thread.join(15)
    assert str(servers[0].error) == "ps-1 was lost: its connection broke and it did not come back in 0.3 s"
    assert str(servers[1].error).startswith("ps-0 was lost: cannot reach ps-0")


@pytest.mark.parametrize("failing", [0, 1])
def test_a_shard_that_fails_tells_the_other_why(failing: int) -> None:
    servers, _ = two_shards()
    eventually(lambda: all(f._open.total() == 2 for f in servers[0].service.followers._followers.values()))
    servers[failing].service.fail(PacelineError("no space left on device"))
    for server in servers:
        server.thread.join(15)
        assert str(server.error) == "no space left on device"


def test_the_end_is_said_again_to_a_shard_that_did_not_hear_it(monkeypatch: pytest.MonkeyPatch) -> None:
    servers, relays = two_shards(relayed=True)
    worker = Trainee(",".join(s.address for s in servers), width=4, shards=2)
    worker.steps(range(2))
    said = followers.FollowerConnections._tell

    def cut_before(self: followers.FollowerConnections, kind: FrameKind, value: dict[str, object]) -> None:
        if kind is FrameKind.END:
            for each in relays[0].relayed:
                each.end(True)
        said(self, kind, value)

    monkeypatch.setattr(followers.FollowerConnections, "_tell", cut_before)
    worker.weights()
    for server in servers:
        server.thread.join(9)
        assert not server.thread.is_alive()
        assert server.error is None
    relays[0].close()


def test_nobody_is_waited_for_that_cannot_hear_of_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.wire.retries.TRY_SECONDS", 0.2)
    it = followers.FollowerConnections(2, lambda *_: None, lambda _: None, None)  # type: ignore[arg-type]
    eventually(lambda: it.end(0.1))
    assert it.lost() is None
