"""What the workers of a broken ring agree on: a model of rings that break at any moment, and who is given what then."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from paceline.worker.all_reduce.recovery.ring_agreement import Agreement, Gift, Position, What

WELL = Position(updates=[4], passes=[4], holds=[True], exchanges=[4], ask_after=9)
IN_THE_NEXT = replace(WELL, passes=[5], exchanges=[5], updates=[5])  # one step further


def test_whoever_waits_in_the_same_step_makes_it_again() -> None:
    agreement = Agreement({0: WELL, 1: None, 2: WELL})
    assert agreement.obstacle() is None
    assert (agreement.updates(0), agreement.passes(0), agreement.exchanges(0)) == (4, 4, 4)
    assert agreement.gifts(0) == [Gift(What.MODEL, 0, 1), Gift(What.BUFFERS, 0, 1), Gift(What.MEANS, 0, 1)]


def test_whoever_is_a_step_behind_takes_what_came_of_it() -> None:
    agreement = Agreement({0: WELL, 1: IN_THE_NEXT, 2: None})
    assert agreement.obstacle() is None
    assert (agreement.updates(0), agreement.passes(0), agreement.exchanges(0)) == (5, 5, 5)
    assert agreement.gifts(0) == [
        Gift(What.BUFFERS, 1, 0), Gift(What.MEANS, 1, 0),
        Gift(What.MODEL, 1, 2), Gift(What.BUFFERS, 1, 2), Gift(What.MEANS, 1, 2),
    ]  # fmt: skip


def test_a_ring_of_which_nobody_was_lost_gives_nothing() -> None:
    assert Agreement({0: WELL, 1: WELL}).gifts(0) == []


def test_before_the_first_reduction_nobody_needs_means() -> None:
    begins = Position([0], [0], [False], [0], 1)
    agreement = Agreement({0: begins, 1: None})
    assert agreement.obstacle() is None
    assert [gift.what for gift in agreement.gifts(0)] == [What.MODEL, What.BUFFERS]


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({0: None, 1: None}, "no worker is left"),
        ({0: replace(WELL, obstacle="it is so"), 1: None}, "it is so"),
        ({0: WELL, 1: replace(WELL, updates=[4, 4])}, "equally often"),
        ({0: replace(WELL, holds=[False]), 1: None}, "nobody has the mean gradients"),
        ({0: WELL, 1: replace(WELL, passes=[6]), 2: None}, "more than a step behind"),
        ({0: WELL, 1: replace(WELL, updates=[6]), 2: None}, "more than a step behind"),
    ],
)
def test_what_nobody_can_repeat_is_said(members: dict[int, Position | None], why: str) -> None:
    assert why in (Agreement(members).obstacle() or "")


def position(events: Sequence[tuple[str, int]], pairs: int, done: int, ahead: bool, first_is_lost: bool) -> Position:
    """After so many events; who is ahead had all of the broken one, and goes on to the next that needs the others."""
    if ahead:
        done += 1
        while events[done][0] == "step" or (events[done][0] == "exchange" and not first_is_lost):
            done += 1
    count = {kind: [0] * pairs for kind in ("pass", "exchange", "step")}
    for what, pair in events[:done]:
        count[what][pair] += 1
    return Position(count["step"], count["pass"], [n > 0 for n in count["pass"]], count["exchange"], done)


def test_every_break_leaves_all_at_the_same_place() -> None:
    """Steps of several pairs, each a reduction, an exchange and an update; each worker stops somewhere in it.

    Nobody completes a reduction that some worker has not come to, nor an exchange that worker 0 has not.
    """
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(3000):
        world, pairs, steps = chance.randint(2, 5), chance.randint(1, 3), chance.randint(0, 3)
        events = [
            (what, pair) for _ in range(steps + 2) for pair in range(pairs) for what in ("pass", "exchange", "step")
        ]
        stopped = chance.randrange(len(events) - 3 * pairs)  # the event in which the ring breaks, for the slowest
        lost = set(chance.sample(range(world), chance.randint(0, world - 1)))
        members: dict[int, Position | None] = {}
        for worker in range(world):
            ahead = chance.random() < 0.5
            members[worker] = None if worker in lost else position(events, pairs, stopped, ahead, 0 in lost)
        agreement = Agreement(members)
        assert agreement.obstacle() is None, members
        for pair in range(pairs):
            has = {w: (it.passes[pair], it.exchanges[pair], it.updates[pair]) for w, it in members.items() if it}
            assert agreement.updates(pair) <= agreement.exchanges(pair) <= agreement.passes(pair)
            for gift in agreement.gifts(pair):
                assert gift.source in has
                assert gift.receiver != gift.source
                kind = {What.MEANS: 0, What.BUFFERS: 1, What.MODEL: 2}[gift.what]
                reached = (agreement.passes(pair), agreement.exchanges(pair), agreement.updates(pair))[kind]
                assert has[gift.source][kind] == reached
            given = {(g.what, g.receiver) for g in agreement.gifts(pair)}
            for worker in range(world):
                mine = has.get(worker)
                assert (mine is None) == ((What.MODEL, worker) in given)
                assert (mine is None or mine[1] < agreement.exchanges(pair)) == ((What.BUFFERS, worker) in given)
                needs = agreement.passes(pair) > 0 and (mine is None or mine[0] < agreement.passes(pair))
                assert needs == ((What.MEANS, worker) in given)
