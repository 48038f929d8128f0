"""Workers whose connections break: what they sent twice is applied once."""

import random

import pytest

from paceline.wire import retries
from paceline.wire.retries import ATTEMPTS, persist
from paceline_core.errors import PacelineError, PeerLost, ProtocolError, Unreachable

from .inprocess import Cutting, Served, equal, train

STEPS = 30


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


class Few(random.Random):
    """Chooses the least."""

    def randrange(self, start: int, *_: object) -> int:
        return start


def test_a_network_that_breaks_every_connection_for_a_while_ends_nothing() -> None:
    server = Served()
    relay = Cutting(server.address, Few(), cuts=2 * ATTEMPTS)
    try:
        train(relay.address, steps=2, width=4)
    finally:
        relay.close()
        server.stop()
    assert (server.error, server.service.aggregator.version) == (None, 2)


def from_peer() -> PacelineError:
    error = PeerLost("worker-1 was lost")
    error.from_peer = True
    return error


def too_slow() -> PacelineError:
    error = PeerLost("ps-0 did not answer within 60 s")
    error.__cause__ = TimeoutError()
    return error


BROKEN, CUT = PeerLost("the connection broke"), ProtocolError("truncated", "closed in the middle of a frame")


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (BROKEN, ATTEMPTS),
        (CUT, ATTEMPTS),
        (Unreachable("nobody is there"), 1),
        (from_peer(), 1),
        (too_slow(), 1),
        (ProtocolError("bad_magic", "speaks something else"), 1),
    ],
    ids=str,
)
def test_what_another_connection_may_mend_is_tried_again(
    error: PacelineError, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "TRY_SECONDS", 0.0)
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.0)
    tried = 0

    def attempt() -> None:
        nonlocal tried
        tried += 1
        raise error

    with pytest.raises(type(error)):
        persist(attempt)
    assert tried == attempts
