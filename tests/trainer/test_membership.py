"""Who is here, who has left, and who took whose place."""

import socket
import struct
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from paceline.server.membership.membership import Membership
from paceline.server.service import TICK_SECONDS
from paceline.wire.channel import Channel
from paceline.wire.frames import FrameKind, Header
from paceline_core.errors import PeerLost
from paceline_core.strategies import STRATEGIES

from .conftest import Run, eventually
from .inprocess import Served, Trainee, equal
from .test_failures import with_line


def test_a_wait_ends_when_who_waits_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        channel = Channel(listener.accept()[0], bytes(16), "worker-1", 10)
    membership = Membership(2, 1.0)
    assert membership.wait_for(lambda: True, 0, channel)
    assert not membership.wait_for(lambda: False, 0.01, channel)
    peer.close()
    began = time.monotonic()
    with pytest.raises(PeerLost, match="worker-1 is gone"):
        membership.wait_for(lambda: False, 30, channel)
    assert time.monotonic() - began < 10
    channel.close()


def membership_of(*connected: tuple[int, int]) -> Membership:
    """The membership of two workers, of which these, each with its incarnation, have connected."""
    membership = Membership(2, patience=5, replaced=True)
    for worker, incarnation in connected:
        membership.connected(worker, incarnation)
    return membership


def test_a_worker_that_took_the_place_of_one_that_left_is_served_to_its_end() -> None:
    membership = membership_of((0, 0), (1, 0))
    membership.leave(1, 0)
    membership.connected(1, 9)
    membership.leave(0, 0)
    assert not membership.finished()
    membership.leave(1, 9)
    assert membership.finished()


def test_a_goodbye_that_comes_late_is_not_that_of_the_new_worker() -> None:
    membership = membership_of((0, 0), (1, 0), (1, 9))
    membership.leave(0, 0)
    membership.leave(1, 0)
    assert not membership.finished()


def test_a_goodbye_over_a_new_connection_holds() -> None:
    membership = membership_of((0, 0), (1, 3))
    membership.leave(1, 3)
    membership.connected(1, 3)
    membership.leave(0, 0)
    assert membership.finished()


@pytest.fixture(params=[1, 2])
def shards(request: pytest.FixtureRequest) -> Iterator[list[Served]]:
    asked = {"strategy": "Asynchronous", "replaced": True, "workers": 2, "shards": request.param}
    servers = [Served(**asked)]
    if request.param == 2:
        servers.append(Served(addresses=servers[0].address, ordinal=1, **asked))
    yield servers
    for server in servers:
        server.stop()


def a_worker(shards: list[Served], ordinal: int, incarnation: int = 0) -> Trainee:
    asked = {"strategy": "Asynchronous", "workers": 2, "shards": len(shards), "ordinal": ordinal}
    return Trainee(",".join(s.address for s in shards), width=4, incarnation=incarnation, **asked)


def two_workers(shards: list[Served]) -> Iterator[Trainee]:
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(lambda ordinal: a_worker(shards, ordinal), range(2))


def all_end_well(shards: list[Served]) -> None:
    for shard in shards:
        shard.thread.join(20)
        assert not shard.thread.is_alive()
        assert shard.error is None


def test_no_shard_ends_under_a_worker_that_took_the_place_of_another(shards: list[Served]) -> None:
    first, second = two_workers(shards)
    for each in (first, second):
        each.steps(range(2))
    second.weights()  # its script ended well, but its pod was evicted, say, and is made anew
    third = a_worker(shards, 1, incarnation=9)
    third.steps(range(2))
    first.weights()
    assert shards[0].service.training_status.workers[1].state == "training"
    third.steps(range(2, 30))
    third.weights()
    all_end_well(shards)
    assert shards[0].service.training_status.version == 34


def test_no_shard_ends_while_a_lost_worker_may_come_back_and_all_others_have_left(
    shards: list[Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline.server.membership.membership.GRACE_SECONDS", 0.0)
    monkeypatch.setattr("paceline_core.limits.REFUSAL_SECONDS", 0.0)
    first, second = two_workers(shards)
    for each in (first, second):
        each.steps(range(2))
    second.vanish()
    eventually(lambda: 1 in shards[0].service.membership.lost)
    first.weights()
    eventually(lambda: 0 in shards[-1].service.membership.left)
    for shard in shards:
        shard.thread.join(5 * TICK_SECONDS)
        assert shard.thread.is_alive()
    third = a_worker(shards, 1, incarnation=9)
    third.steps(range(2))
    third.weights()
    all_end_well(shards)
    assert shards[0].service.training_status.version == 6


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("count", [1, 2])
def test_connections_that_break_in_a_step_longer_than_the_grace_end_nothing(
    strategy: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    grace = 2.0
    monkeypatch.setattr("paceline.server.membership.membership.GRACE_SECONDS", grace)
    asked = {"strategy": strategy, "workers": 2, "shards": count}
    servers = [Served(**asked)]
    servers += [Served(addresses=servers[0].address, ordinal=1, **asked) for _ in range(count - 1)]
    addresses = ",".join(s.address for s in servers)
    with ThreadPoolExecutor(2) as pool:
        workers = list(pool.map(lambda k: Trainee(addresses, width=4, ordinal=k, **asked), range(2)))
        list(pool.map(lambda w: w.steps(range(2)), workers))
        for server in servers:
            reset(server, "worker-1")
        threading.Event().wait(2 * grace)  # the long step
        assert [s.service.membership.lost for s in servers] == [{}] * count
        list(pool.map(lambda w: w.steps(range(2, 4)), workers))
        list(pool.map(lambda w: w.weights(), workers))
    all_end_well(servers)
    applied = [w.applied + w.rejected.total() for w in servers[0].service.training_status.workers.values()]
    assert applied == [4, 4]


def reset(server: Served, peer: str) -> None:
    """A TCP reset of each connection from this peer."""
    for channel in list(server.service.acceptor._channels):
        if channel is not None and channel.peer == peer:
            channel.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            channel.close()


def test_a_lost_worker_is_waited_for_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.server.membership.membership.GRACE_SECONDS", 0.0)
    server = Served(strategy="Asynchronous", replaced=True)
    first = Trainee(server.address, width=4, strategy="Asynchronous")
    first.steps(range(3))
    first.vanish()
    with server.service.membership.changed:
        assert server.service.membership.changed.wait_for(lambda: server.service.membership.lost, 20)
    second = Trainee(server.address, width=4, strategy="Asynchronous", incarnation=9)
    assert equal(dict(second.model.named_parameters()), dict(first.model.named_parameters())), (
        "no first parameters again"
    )
    second.steps(range(3, 6))
    second.weights()
    server.thread.join(20)
    assert not server.thread.is_alive(), "the replacement was the last"
    assert (server.error, server.service.training_status.version) == (None, 6)


def test_the_others_of_a_synchronous_training_are_told_who_went_without_a_goodbye(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("paceline.server.membership.membership.GRACE_SECONDS", 0.0)
    server = Served(workers=2)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda w: Trainee(server.address, width=4, workers=2, ordinal=w), range(2))
    second.vanish()
    with pytest.raises(PeerLost, match="worker-1 was lost: its connections broke"):
        first.steps(range(1))
    first.vanish()
    server.stop()


def waiting_for_each_other() -> tuple[Served, Trainee, Trainee]:
    """A training that saves, and its two workers, whose places are kept, after two steps."""
    server = Served(workers=2, replaced=True, checkpoint={"everySteps": 1000, "to": "/nowhere"})
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda w: Trainee(server.address, width=4, workers=2, ordinal=w), range(2))
        list(pool.map(lambda it: it.steps(range(2)), (first, second)))
    for worker in range(2):
        server.service.reports._keep_place(Header(FrameKind.KEPT, bytes(16), worker, 0, 1, bucket=1), b"a place")
    return server, first, second


def test_a_successor_may_connect_anew_as_often_as_it_likes() -> None:
    server, first, second = waiting_for_each_other()
    second.vanish()
    third = Trainee(server.address, width=4, workers=2, ordinal=1, incarnation=9)
    server.service.reports._keep_place(Header(FrameKind.KEPT, bytes(16), 1, 9, 2, bucket=1), b"its own")
    with ThreadPoolExecutor(2) as pool:
        for number in range(2, 5):
            reset(server, "worker-1")
            eventually(lambda: server.service.membership.connected_workers() == 2)
            list(pool.map(lambda it, n=number: it.steps(range(n, n + 1)), (first, third)))
        list(pool.map(lambda it: it.weights(), (first, third)))
    all_end_well([server])
    assert server.service.training_status.version == 5


def test_buffers_of_a_push_that_never_counted_are_not_those_of_its_successor() -> None:
    server, first, second = waiting_for_each_other()
    executor = server.service.connections.executors[0]
    before = executor.untrained.all()

    def step_alone() -> None:
        with pytest.raises(PeerLost):
            first.steps(range(2, 3))

    alone = threading.Thread(target=step_alone)
    alone.start()
    eventually(lambda: 0 in executor.pushes)
    assert executor.sent_untrained[0][1], "the statistics of its forward pass"
    first.vanish()
    again = Trainee(server.address, width=4, workers=2, incarnation=9)
    assert executor.untrained.all() == before
    assert equal(dict(again.model.named_buffers()), dict(second.model.named_buffers()))
    second.vanish()
    again.vanish()
    server.stop()
    alone.join(30)


EXITS = with_line("STEP", "if paceline.rank() == 1 and step == 3: import sys; sys.exit(CODE)")
CRASHES = with_line("STEP", "if paceline.rank() == 1 and step == 3: raise ValueError('only me')")
CAUGHT = f"""
import sys
try:
{textwrap.indent(CRASHES, "    ")}
except Exception as error:
    sys.exit(CODE)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "strategy", "code", "message"),
    [
        (EXITS, "Synchronous", "3", "worker-1: exited with code 3"),
        (EXITS, "AllReduce", "3", "worker-1: exited with code 3"),
        (EXITS, "Synchronous", "'no data'", "worker-1: SystemExit: no data"),
        (CAUGHT, "Synchronous", "1", "worker-1: ValueError: only me"),
        (CAUGHT, "AllReduce", "1", "worker-1: ValueError: only me"),
        (CAUGHT, "AllReduce", "f'failed: {error}'", "worker-1: SystemExit: failed: only me"),
    ],
)
def test_a_script_that_ends_itself_as_failed_has_not_left(
    run: Run, script: str, strategy: str, code: str, message: str
) -> None:
    outcome = run(script.replace("CODE", code), strategy=strategy)
    assert outcome.code == 1, outcome.output
    assert message in outcome.output
    assert outcome.result["version"] <= 3, "the others went on without it"
