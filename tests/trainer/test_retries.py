"""Workers whose connections break: what they sent twice is applied once."""

import random
import threading
import time

import pytest

from paceline.wire import retries
from paceline.wire.frames import FrameKind, Header
from paceline.wire.retries import ATTEMPTS, persist
from paceline.worker.parameter_server.shard_connection import Commit, answers
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
    assert server.service.training_status.version == STEPS
    assert server.service.membership.left == {0}
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
    assert (server.error, server.service.training_status.version) == (None, 2)


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


def a_commit() -> Commit:
    return Commit(Header(FrameKind.COMMIT, bytes(16)), {})


@pytest.mark.parametrize("failed", [0, 1, 2])
def test_a_connection_that_has_failed_is_told_while_others_wait(failed: int) -> None:
    commits = [a_commit() for _ in range(3)]
    commits[failed].answer.set_exception(BROKEN)
    began = time.monotonic()
    with pytest.raises(PeerLost, match="the connection broke"):
        answers(commits)
    assert time.monotonic() - began < 5


def test_who_names_a_culprit_in_the_same_moment_is_heard_first() -> None:
    commits = [a_commit() for _ in range(3)]
    commits[0].answer.set_exception(BROKEN)
    threading.Timer(0.1, lambda: commits[2].answer.set_exception(from_peer())).start()
    with pytest.raises(PeerLost, match="worker-1 was lost"):
        answers(commits)
