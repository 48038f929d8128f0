"""Who is here, who has left, and who took whose place."""

import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from paceline.server.roll import Roll
from paceline.server.service import TICK_SECONDS
from paceline_core.errors import PeerLost

from .conftest import Run, eventually
from .inprocess import Served, Trainee, equal
from .test_failures import with_line


def rolled(*connected: tuple[int, int]) -> Roll:
    """A roll of two workers, on which these, each with its incarnation, have connected."""
    roll = Roll(2, patience=5, replaced=True)
    for worker, incarnation in connected:
        roll.connected(worker, incarnation)
    return roll


def test_a_worker_that_took_the_place_of_one_that_left_is_served_to_its_end() -> None:
    roll = rolled((0, 0), (1, 0))
    roll.leave(1, 0)
    roll.connected(1, 9)
    roll.leave(0, 0)
    assert not roll.finished()
    roll.leave(1, 9)
    assert roll.finished()


def test_a_goodbye_that_comes_late_is_not_that_of_the_new_worker() -> None:
    roll = rolled((0, 0), (1, 0), (1, 9))
    roll.leave(0, 0)
    roll.leave(1, 0)
    assert not roll.finished()


def test_a_goodbye_over_a_new_connection_holds() -> None:
    roll = rolled((0, 0), (1, 3))
    roll.leave(1, 3)
    roll.connected(1, 3)
    roll.leave(0, 0)
    assert roll.finished()


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
    assert shards[0].service.aggregator.workers[1].state == "training"
    third.steps(range(2, 30))
    third.weights()
    all_end_well(shards)
    assert shards[0].service.aggregator.version == 34


def test_no_shard_ends_while_a_lost_worker_may_come_back_and_all_others_have_left(
    shards: list[Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline.server.roll.GRACE_SECONDS", 0.0)
    monkeypatch.setattr("paceline.server.service.FAREWELL_SECONDS", 0.0)
    first, second = two_workers(shards)
    for each in (first, second):
        each.steps(range(2))
    second.vanish()
    eventually(lambda: 1 in shards[0].service.roll.lost)
    first.weights()
    eventually(lambda: 0 in shards[-1].service.roll.left)
    for shard in shards:
        shard.thread.join(5 * TICK_SECONDS)
        assert shard.thread.is_alive()
    third = a_worker(shards, 1, incarnation=9)
    third.steps(range(2))
    third.weights()
    all_end_well(shards)
    assert shards[0].service.aggregator.version == 6


def test_a_lost_worker_is_waited_for_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.server.roll.GRACE_SECONDS", 0.0)
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


def test_the_others_of_a_synchronous_training_are_told_who_went_without_a_goodbye(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("paceline.server.roll.GRACE_SECONDS", 0.0)
    server = Served(workers=2)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda w: Trainee(server.address, width=4, workers=2, ordinal=w), range(2))
    second.vanish()
    with pytest.raises(PeerLost, match="worker-1 was lost: its connections broke"):
        first.steps(range(1))
    first.vanish()
    server.stop()


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
