"""Where a script goes on in its data: stopped after any step, it sees what it would have seen, and nothing else."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from paceline.worker.observability.step_metrics import LastStep
from paceline.worker.own_state import LAST, OwnState

from .test_sampling import Nothing, Worker, no_counting_for_others, numbers  # noqa: F401 - a fixture

WORLD_SIZE = 2
KINDS: dict[str, Callable[["Script"], None]] = {}
Kind = Callable[["Script"], None]


def kind(script: Kind) -> Kind:
    KINDS[script.__name__] = script
    return script


class Feeding(Nothing):
    """The training that a loader feeds, with a state of its own."""

    def __init__(self, own: OwnState) -> None:
        super().__init__()
        self.own = own

    def asks(self, data_set: Any, it: Any) -> None:
        self.own.asks(data_set.number, it)


@dataclass
class Counter:
    """An object of a script's own."""

    count: int = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Script:
    """A script on one worker, and what it sees; stopped after `most` steps, if it says so."""

    def __init__(self, rank: int, said: dict[str, Any], state: bytes, ask: tuple[int, ...]) -> None:
        torch.manual_seed(7)
        self.worker = Worker(rank, WORLD_SIZE, said)
        self.own = OwnState(self.worker.sets)
        self.worker.training = Feeding(self.own)
        self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.5)
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # it is, on the servers
        self.ask, self.states = ask, dict[int, bytes]()
        self.seen, self.evaluated = list[Any](), list[list[int]]()
        self.number, self.shared = 0, (0, 0)
        self.number = sum(self.own.begin([self], self._send, state))
        self.own.settle()

    def state(self, **objects: Any) -> None:
        self.own.register(objects)

    def shard(self, loader: Any) -> Any:
        return self.worker.shard(loader)

    def step(self, *batches: Any) -> None:
        """Train with these batches, at this learning rate, with a random number, as of dropout."""
        lr = self.optimizer.param_groups[0]["lr"]
        self.seen.append((*(b[0].tolist() if isinstance(b, list) else b.tolist() for b in batches), lr, torch.rand(1)))
        self.own.step_begins(0)
        self.number += 1
        self.own.step_ended(0, self.number if self.number in self.ask else 0)
        self.worker.step()

    def evaluate(self, loader: Any) -> None:
        self.evaluated.append([int(x) for (batch,) in loader for x in batch])

    def _send(self, checkpoint: int, state: bytes) -> None:
        self.states[checkpoint] = state


class Augmented(Dataset[Any]):
    """Samples that are changed at random as they are read."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(index) + torch.rand(())


class Read(IterableDataset[Any]):
    """A stream in an order that is drawn."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.randperm(24))


def shuffled(count: int = 24, size: int = 3) -> DataLoader[Any]:
    return DataLoader(numbers(count), batch_size=size, shuffle=True)


@kind
def plain(script: Script) -> None:
    loader, test = script.shard(shuffled()), script.shard(DataLoader(numbers(8), batch_size=2))
    script.state(scheduler=script.scheduler)
    for _ in range(3):
        for (x,) in loader:
            script.step(x)
        script.scheduler.step()
        script.evaluate(test)


@kind
def its_scheduler_is_its_own_affair(script: Script) -> None:
    loader = script.shard(shuffled())
    for epoch in range(3):
        for group in script.optimizer.param_groups:
            group["lr"] = 1 / (1 + epoch)
        for (x,) in loader:
            script.step(x)
            for group in script.optimizer.param_groups:
                group["lr"] *= 0.9


@kind
def two_batches_a_step(script: Script) -> None:
    loader = script.shard(shuffled())
    for _ in range(3):
        for (x,), (y,) in zip(*[iter(loader)] * 2, strict=False):
            script.step(x, y)


@kind
def it_ends_epochs_by_itself(script: Script) -> None:
    loader, test, done = script.shard(shuffled()), script.shard(DataLoader(numbers(8))), Counter()
    script.state(done=done)
    for _ in range(3):
        for (x,) in loader:
            script.step(x)
            done.count += 1
            if done.count % 3 == 0:
                break
        script.evaluate(test)


@kind
def a_loader_for_each_epoch(script: Script) -> None:
    held = numbers(24)
    for _ in range(3):
        for (x,) in script.shard(DataLoader(held, batch_size=3, shuffle=True)):
            script.step(x)


@kind
def a_stream(script: Script) -> None:
    loader = script.shard(DataLoader(Read(), batch_size=3))
    for _ in range(3):
        for x in loader:
            script.step(x)


@kind
def augmented(script: Script) -> None:
    loader = script.shard(DataLoader(Augmented(), batch_size=3, shuffle=True))
    for _ in range(3):
        for x in loader:
            script.step(x)


@kind
def it_looks_first(script: Script) -> None:
    loader = script.shard(shuffled())
    first = iter(loader)  # as in torch's tutorials
    script.evaluated.append(next(first)[0].tolist())
    for _ in range(3):
        for (x,) in loader:
            script.step(x)
        script.evaluated.append(next(iter(loader))[0].tolist())


@kind
def it_evaluates_on_what_it_trains_with(script: Script) -> None:
    loader = script.shard(shuffled())
    done = Counter()
    script.state(done=done)
    script.evaluate(loader)
    for _ in range(3):
        for (x,) in loader:
            script.step(x)
            done.count += 1
            if done.count % 2:
                script.evaluate(loader)
        script.evaluate(loader)
        script.evaluate(loader)


@kind
def it_asks_for_each_batch(script: Script) -> None:
    def endless(loader: Any) -> Iterator[Any]:
        while True:
            yield from loader

    source, done = endless(script.shard(shuffled())), Counter()
    script.state(done=done)
    while True:
        (x,) = next(source)
        if done.count == 10:
            break
        script.step(x)
        done.count += 1


@kind
def a_second_data_set_is_begun_anew_whenever_it_ends(script: Script) -> None:
    one, two = script.shard(shuffled()), script.shard(shuffled(8, 2))
    others = iter(two)
    for _ in range(3):
        for (x,) in one:
            try:
                (y,) = next(others)
            except StopIteration:
                others = iter(two)
                (y,) = next(others)
            script.step(x, y)


@kind
def an_epoch_for_each_step(script: Script) -> None:
    loader, done = script.shard(shuffled()), Counter()
    script.state(done=done)
    for _ in range(9):
        for (x,) in loader:
            script.step(x)
            break


@kind
def two_data_sets_together(script: Script) -> None:
    one, two = script.shard(shuffled()), script.shard(shuffled(12, 2))
    for _ in range(3):
        for (x,), (y,) in zip(one, two, strict=False):
            script.step(x, y)


@kind
def two_data_sets_in_turn(script: Script) -> None:
    one, two = script.shard(shuffled()), script.shard(shuffled(12, 2))
    for _ in range(2):
        for (x,) in one:
            script.step(x)
        for (y,) in two:
            script.step(y)


@kind
def it_divides_by_itself(script: Script) -> None:
    held = numbers(24)
    sampler = DistributedSampler(held, WORLD_SIZE, script.worker.rank)  # type: ignore[var-annotated]
    loader = script.shard(DataLoader(held, batch_size=3, sampler=sampler))
    for epoch in range(3):
        loader.set_epoch(epoch)
        for (x,) in loader:
            script.step(x)


@kind
def it_draws_by_itself(script: Script) -> None:
    done = Counter()
    script.state(done=done)
    torch.rand(3) if not done.count else None
    while done.count < 9:
        x = torch.randint(100, (3,))
        done.count += 1
        script.step(x)


@dataclass
class Whole:
    """A run that nobody stopped."""

    said: dict[str, Any]
    scripts: list[Script] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return self.scripts[0].number


def whole(name: str) -> Whole:
    run = Whole({})
    for rank in range(WORLD_SIZE):
        script = Script(rank, run.said, b"", tuple(range(1, 1000)))
        KINDS[name](script)
        script.own.leave()
        run.scripts.append(script)
    return run


@pytest.mark.parametrize("name", KINDS)
def test_stopped_after_any_step_it_sees_what_it_would_have_seen(name: str) -> None:
    run = whole(name)
    assert run.steps >= 6
    for stopped in range(1, run.steps + 1):
        said = {key: value for key, value in run.said.items() if not key.startswith("agree/")}
        for rank, before in enumerate(run.scripts):
            script = Script(rank, said, before.states[stopped], ())
            KINDS[name](script)
            assert script.seen == before.seen[stopped:], (rank, stopped)
            for evaluated in script.evaluated:
                assert sorted(evaluated) in map(sorted, before.evaluated), "whole, or not at all"
            assert script.number == run.steps


@pytest.mark.parametrize("name", KINDS)
def test_a_worker_that_had_ended_ends_at_once(name: str) -> None:
    run = whole(name)
    for rank, before in enumerate(run.scripts):
        script = Script(rank, dict(run.said), before.states[LAST], ())
        KINDS[name](script)
        assert script.seen == []


def test_goes_on_again_and_again() -> None:
    run = whole("plain")
    state, seen = b"", list[Any]()
    for stopped in (3, 4, 9, 12):
        script = Script(0, run.said, state, (stopped,))
        KINDS["plain"](script)
        seen += script.seen[: stopped - len(seen)]
        state = script.states[stopped]
    assert seen == run.scripts[0].seen


def test_a_batch_whose_gradient_was_stale_comes_again_also_after_going_on() -> None:
    def train(script: Script) -> None:
        script.worker.training.recomputes = True
        for (x,) in script.shard(shuffled()):
            accepted = len(script.seen) != 1
            script.worker.training.last = LastStep(len(script.seen), 0, accepted, "" if accepted else "stale")
            script.step(x)

    said: dict[str, Any] = {}
    before = Script(0, said, b"", (2,))
    train(before)
    assert before.seen[1][0] == before.seen[2][0]
    after = Script(0, said, before.states[2], ())
    train(after)
    assert [batch for batch, *_ in after.seen[:1]] == [before.seen[1][0]]
