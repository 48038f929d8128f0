"""Workers whose connections break: what they sent twice is applied once."""

import random

import pytest

from paceline.worker.lane import ATTEMPTS

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
