"""Which samples each worker gets: over an epoch all of them, whoever looks at the loader in between."""

import copy
import gc
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
    random_split,
)  # fmt: skip

from paceline.worker.data.datasets import DataSets
from paceline.worker.data.epochs import Epochs
from paceline.worker.data.loader_kinds import batch_source
from paceline.worker.data.random_state import CommonRandom
from paceline.worker.data.sampling import batched, batches_length, mix, share, share_length
from paceline.worker.data.sharded_loader import ShardedLoader
from paceline.worker.observability.step_metrics import LastStep
from paceline_core.errors import UsageError


class Told:
    """What workers in one process hold in common."""

    def __init__(self, rank: int, world_size: int, said: dict[str, Any]) -> None:
        self.rank, self.world_size, self._said = rank, world_size, said

    def first(self, name: str, value: str, waits_for: str) -> str:
        assert self.rank == 0 or name in self._said, "worker-0 would be waited for"
        return self._said.setdefault(name, value)

    def differs_from(self, name: str, text: str) -> int | None:
        first, said = self._said.setdefault(f"agree/{name}", (self.rank, text))
        return None if said == text else first


class Nothing:
    """A clock, an injected delay and their training, which do nothing."""

    recomputes = False

    def __init__(self) -> None:
        self.clock = self.injected_delay = self
        self.samples, self.last = 0, None

    def enter(self, phase: str) -> None: ...

    def pause(self, part: object) -> None: ...

    def count_samples(self, count: int) -> None:
        self.samples += count

    def last_step(self) -> LastStep | None:
        return self.last

    def asks(self, data_set: object, it: object) -> None: ...


class Worker:
    """One worker's view of its script."""

    def __init__(self, rank: int, world_size: int, said: dict[str, Any]) -> None:
        self.rank, self.world_size = rank, world_size
        self.sets, self.training = DataSets(Told(rank, world_size, said)), Nothing()

    def shard(self, loader: Any) -> ShardedLoader:
        return ShardedLoader(loader, batch_source(loader, self.sets, self.rank, self.world_size), self.training)

    def step(self) -> None:
        self.sets._stepped()

    def epoch(
        self, batches: ShardedLoader, most: int = 1 << 30, during: Callable[[int], None] = lambda _: None
    ) -> list[Any]:
        """Train for an epoch, or for some steps of it."""
        given = []
        for number, batch in enumerate(batches):
            during(number)
            given.append(batch)
            self.step()
            if number + 1 == most:
                break
        return given


@pytest.fixture(autouse=True)
def no_counting_for_others() -> Iterator[None]:
    yield
    from torch.optim import optimizer

    optimizer._global_optimizer_post_hooks.clear()


def workers(count: int) -> list[Worker]:
    said: dict[str, Any] = {}
    return [Worker(rank, count, said) for rank in range(count)]


def numbers(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count))


def flat(batches: list[Any]) -> list[int]:
    return [int(i) for (batch,) in batches for i in batch]


def loader(count: int = 40, size: int = 4, **more: Any) -> DataLoader[Any]:
    return DataLoader(numbers(count), size, **({"shuffle": True} | more))


def test_each_epoch_has_its_own_order_whether_shard_is_called_once_or_each_time() -> None:
    for anew in (False, True):
        a, b = workers(2)
        ours = [loader(), loader()]
        kept = [w.shard(it) for w, it in zip((a, b), ours, strict=True)]
        epochs = []
        for _ in range(3):
            parts = [w.epoch(w.shard(it) if anew else k) for w, it, k in zip((a, b), ours, kept, strict=True)]
            epochs.append([flat(p) for p in parts])
            assert sorted(epochs[-1][0] + epochs[-1][1]) == list(range(40))
        assert len({tuple(first) for first, _ in epochs}) == 3


def test_a_loader_made_anew_over_the_same_data_set_goes_on_with_its_epochs() -> None:
    (a,) = workers(1)
    data = numbers(20)
    orders = {tuple(flat(a.epoch(a.shard(DataLoader(data, 4, shuffle=True))))) for _ in range(3)}
    assert len(orders) == 3
    plain = [*range(20)]
    orders = {tuple(int(i) for b in a.epoch(a.shard(DataLoader(plain, 4, shuffle=True))) for i in b) for _ in range(3)}
    assert len(orders) == 3, "nor can a list be referred to weakly"


def order_of(seed: int, generator: int | None = None) -> list[int]:
    torch.manual_seed(seed)
    made = None if generator is None else torch.Generator().manual_seed(generator)
    (a,) = workers(1)
    return flat(a.epoch(a.shard(loader(generator=made))))


def test_the_order_follows_from_the_seed_of_the_script_or_of_the_loader() -> None:
    assert order_of(1) == order_of(1) != order_of(2)
    assert order_of(1, 7) == order_of(2, 7) != order_of(1, 8)


def test_worker_0s_seed_is_everyones() -> None:
    a, b = workers(2)
    parts = []
    for w in (a, b):
        torch.manual_seed(100 + w.rank)
        parts += flat(w.epoch(w.shard(loader(generator=torch.Generator().manual_seed(w.rank)))))
    assert sorted(parts) == list(range(40))


def test_the_scripts_own_random_numbers_are_as_with_an_ordinary_loader() -> None:
    def after(wrapped: bool, generator: torch.Generator | None) -> list[Any]:
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        it = loader(generator=generator, sampler=Python(), shuffle=None)
        list(workers(1)[0].shard(it) if wrapped else range(1))
        return [random.random(), np.random.rand()]

    assert after(True, None) == after(False, None)
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(3)
    list(workers(1)[0].shard(loader(generator=generator)))
    ordinary = torch.Generator().manual_seed(5)
    torch.empty((), dtype=torch.int64).random_(generator=ordinary)  # DataLoader's seed for its processes
    assert torch.equal(generator.get_state(), ordinary.get_state())
    assert torch.initial_seed() == 3
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(3)))


def looks(worker: Worker, batches: ShardedLoader, how: str) -> Any:
    """Look at the loader in some way; gives what keeps the look alive."""
    match how:
        case "first":
            next(iter(batches), None)
        case "held":
            held = iter(batches)
            next(held, None)
            return held
        case "all":
            list(batches)
        case "length":
            len(batches)
        case "unread":
            return iter(batches)
    return None


HOW = ["first", "held", "all", "length", "unread"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("when", ["before", "during", "last", "after"])
@pytest.mark.parametrize("steps", [5, 1])
def test_a_look_by_one_worker_shifts_nobody(how: str, when: str, steps: int) -> None:
    a, b = workers(2)
    batches = {w: w.shard(loader(size=20 // steps)) for w in (a, b)}
    held = []
    for epoch in range(3):
        parts = []
        for w in (a, b):
            peeks = w is a and epoch != 2

            def during(step: int, w: Worker = w, peeks: bool = peeks) -> None:
                if peeks and step == {"during": steps // 2, "last": steps - 1}.get(when):
                    held.append(looks(w, batches[w], how))

            if peeks and when == "before":
                held.append(looks(w, batches[w], how))
            parts += flat(w.epoch(batches[w], during=during))
            if peeks and when == "after":
                held.append(looks(w, batches[w], how))
        assert sorted(parts) == list(range(40)), epoch


def test_breaking_out_early_ends_the_epoch() -> None:
    a, b = workers(2)
    batches = {w: w.shard(loader()) for w in (a, b)}
    firsts = []
    for _ in range(3):
        parts = [flat(w.epoch(batches[w], most=2)) for w in (a, b)]
        assert len(set(parts[0] + parts[1])) == 16
        firsts.append(tuple(parts[0]))
    assert len(set(firsts)) == 3


def test_a_batch_fetched_anew_for_each_step_is_another_each_time() -> None:
    (a,) = workers(1)
    batches, found = a.shard(loader()), set()
    for _ in range(5):
        found.add(tuple(flat([next(iter(batches))])))
        a.step()
    assert len(found) == 5


def test_steps_made_after_the_loop_count_too() -> None:
    (a,) = workers(1)
    batches, orders = a.shard(loader()), set()
    for _ in range(3):
        orders.add(tuple(flat(list(batches))))
        a.step()
    assert len(orders) == 3


def test_training_and_validation_do_not_shift_each_other() -> None:
    a, b = workers(2)
    train, test = numbers(40), numbers(12)
    for epoch in range(3):
        parts, tested = [], []
        for w in (a, b):
            parts += flat(w.epoch(w.shard(DataLoader(train, 4, shuffle=True))))
            if epoch == 1 or w is b:  # worker 0 skips it once, or rather most times
                tested += flat(list(w.shard(DataLoader(test, 4)))) if epoch == 1 else []
        assert sorted(parts) == list(range(40))
        assert sorted(tested) == (list(range(12)) if epoch == 1 else [])


def test_two_data_sets_of_the_same_size_have_orders_of_their_own() -> None:
    (a,) = workers(1)
    first, second = a.shard(loader()), a.shard(loader())
    pairs = [(x[0].tolist(), y[0].tolist()) for x, y in zip(first, second, strict=True)]
    assert [x for x, _ in pairs] != [y for _, y in pairs]


def test_two_parts_of_one_data_set() -> None:
    a, b = workers(2)
    data = numbers(30)
    for _ in range(2):
        seen: dict[str, list[int]] = {"train": [], "test": []}
        for w in (a, b):
            seen["train"] += flat(w.epoch(w.shard(DataLoader(data, 3, sampler=SubsetRandomSampler(range(24))))))
            seen["test"] += flat(list(w.shard(DataLoader(data, 3, sampler=SubsetRandomSampler(range(24, 30))))))
        assert (sorted(seen["train"]), sorted(seen["test"])) == (list(range(24)), list(range(24, 30)))


def test_the_epoch_can_be_set_to_go_on_from_a_checkpoint() -> None:
    (a,), (again,) = workers(1), workers(1)
    torch.manual_seed(0)
    batches, resumed = a.shard(loader()), again.shard(loader())
    whole = [flat(a.epoch(batches)) for _ in range(4)]
    resumed.set_epoch(2)
    assert [flat(again.epoch(resumed)) for _ in range(2)] == whole[2:]


def test_nothing_is_kept_of_data_sets_that_are_gone() -> None:
    (a,) = workers(1)
    for _ in range(5):
        a.epoch(a.shard(loader()))
    gc.collect()
    assert a.sets._known == {}


class Python(Sampler[int]):
    """Draws from Python's and numpy's global generators."""

    def __len__(self) -> int:
        return 40

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.permutation(random.sample(range(40), 40)).tolist())


class Own(Python):
    """Draws from generators of its own, seeded differently everywhere."""

    def __init__(self) -> None:
        self.numpy, self.python, self.torch = np.random.default_rng(), random.Random(), torch.Generator()
        self.torch.seed()

    def __iter__(self) -> Iterator[int]:
        first = self.numpy.permutation(40)[torch.randperm(40, generator=self.torch)].tolist()
        return iter(self.python.sample(first, 40))


class Hidden(Python):
    """Draws in a way that nobody can make common."""

    def __iter__(self) -> Iterator[int]:
        return iter(random.SystemRandom().sample(range(40), 40))


class Endless(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(40).tolist()


class Pairs(Sampler[list[int]]):
    """A batch sampler: batches of neighbours, shuffled."""

    def __init__(self, count: int = 20) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        for i in torch.randperm(self.count).tolist():
            yield [2 * i, 2 * i + 1]


def parts_of(make: Callable[[], Any], count: int = 2) -> list[list[int]]:
    return [flat(w.epoch(w.shard(make()))) for w in workers(count)]


@pytest.mark.parametrize("sampler", [Python, Own])
def test_custom_samplers_draw_alike_on_all_workers(sampler: type[Sampler[int]]) -> None:
    first, second = parts_of(lambda: DataLoader(numbers(40), 4, sampler=sampler()))
    assert sorted(first + second) == list(range(40)) != first + second


def test_a_sampler_that_cannot_draw_alike_is_refused() -> None:
    with pytest.raises(
        UsageError,
        match="worker-1 draws another order than worker-0 of TensorDataset of 40 by Hidden of 40, in epoch 0",
    ):
        parts_of(lambda: DataLoader(numbers(40), 4, sampler=Hidden()))


def test_another_data_set_than_worker_0s_is_refused() -> None:
    a, b = workers(2)
    a.shard(DataLoader(numbers(13), 4))
    with pytest.raises(
        UsageError,
        match=r"worker-1 gave paceline.shard\(\) TensorDataset of 12 by SequentialSampler of 12 where worker-0 gave it TensorDataset of 13",
    ):
        list(b.shard(DataLoader(numbers(12), 4)))


def test_a_random_split_that_differs_between_workers_is_refused() -> None:
    a, b = workers(2)
    parts = [random_split(numbers(40), [30, 10], torch.Generator().manual_seed(s))[0] for s in (1, 1, 2)]
    a.shard(DataLoader(parts[0], 4))
    assert len(list(b.shard(DataLoader(parts[1], 4)))) == 4
    b = Worker(1, 2, a.sets._store._said)  # type: ignore[attr-defined]
    with pytest.raises(
        UsageError, match=r"Subset of 30 \(\w{8}\) .*a random_split with a generator that is seeded alike"
    ):
        list(b.shard(DataLoader(parts[2], 4)))


def test_drawing_with_replacement_and_weights() -> None:
    def weighted() -> DataLoader[Any]:
        return DataLoader(numbers(40), 4, sampler=WeightedRandomSampler([1.0] * 20 + [0.0] * 20, 100))

    def replaced() -> DataLoader[Any]:
        return DataLoader(numbers(40), 4, sampler=RandomSampler(range(40), replacement=True, num_samples=100))

    for make in (weighted, replaced):
        first, second = parts_of(make)
        assert (len(first), len(second)) == (50, 50)
        assert first != second
    assert max(i for part in parts_of(weighted) for i in part) < 20


def test_custom_batch_samplers_are_divided_by_batch() -> None:
    first, second = parts_of(lambda: DataLoader(numbers(40), batch_sampler=Pairs()))
    assert sorted(first + second) == list(range(40))
    assert all(a + 1 == b for a, b in zip(first[::2], first[1::2], strict=True))
    sizes = [len(part) for part in parts_of(lambda: DataLoader(numbers(40), batch_sampler=Pairs(5)), 3)]
    assert sizes == [4, 4, 4], "the rest is filled up"


def test_a_data_set_that_reads_whole_batches() -> None:
    def bulk() -> DataLoader[Any]:
        return DataLoader(numbers(40), batch_size=None, sampler=BatchSampler(RandomSampler(range(40)), 4, False))

    first, second = parts_of(bulk)
    assert sorted(first + second) == list(range(40))
    a, b = workers(2)
    single = [
        [int(i) for (i,) in w.epoch(w.shard(DataLoader(numbers(40), batch_size=None, shuffle=True)))] for w in (a, b)
    ]
    assert sorted(single[0] + single[1]) == list(range(40))


def test_a_sampler_without_an_end() -> None:
    parts = [flat(w.epoch(w.shard(DataLoader(numbers(40), 4, sampler=Endless())), most=5)) for w in workers(2)]
    assert sorted(parts[0] + parts[1]) == list(range(40))
    with pytest.raises(TypeError):
        len(workers(1)[0].shard(DataLoader(numbers(40), 4, sampler=Endless())))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_every_sample_once_over_all_workers_whoever_looks(data: st.DataObject) -> None:
    count, size, world = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 7)), data.draw(st.integers(1, 5))
    drop, seeds = data.draw(st.booleans()), data.draw(st.lists(st.integers(0, 9), min_size=world, max_size=world))
    anew, epochs, most = (
        data.draw(st.booleans()),
        data.draw(st.integers(1, 3)),
        data.draw(st.sampled_from([2, 1 << 30])),
    )
    sampler = data.draw(
        st.sampled_from([RandomSampler, SequentialSampler, lambda it: SubsetRandomSampler(range(len(it)))])
    )
    team, held = workers(world), []
    for w, seed in zip(team, seeds, strict=True):
        torch.manual_seed(seed)
        it = numbers(count)
        w.loader = DataLoader(it, size, sampler=sampler(it), drop_last=drop)  # type: ignore[attr-defined]
        if drop and len(w.loader) and not share_length(count, world, drop) // size:  # type: ignore[attr-defined]
            with pytest.raises(UsageError, match="less than one batch, which drop_last=True leaves out"):
                w.shard(w.loader)  # type: ignore[attr-defined]
            return
        w.batches = w.shard(w.loader)  # type: ignore[attr-defined]
    for _ in range(epochs):
        parts, steps = [], set()
        for w in team:
            peek = {s: data.draw(st.sampled_from(HOW)) for s in data.draw(st.sets(st.integers(-1, 4), max_size=2))}
            batches = w.shard(w.loader) if anew else w.batches  # type: ignore[attr-defined]

            def during(step: int, w: Worker = w, peek: dict[int, str] = peek, batches: Any = batches) -> None:
                if step in peek:
                    held.append(looks(w, batches, peek[step]))

            during(-1)
            given = w.epoch(batches, most, during)
            assert len(given) == min(most, len(batches))
            steps.add(len(given))
            parts.append(flat(given))
        assert len(steps) == 1, "all make the same number of steps"
        if most == 2:
            continue
        each = share_length(count, world, drop)
        kept = each // size * size if drop else each
        seen = [i for part in parts for i in part]
        assert [len(part) for part in parts] == [kept] * world
        assert len(seen) - len(set(seen)) <= max(0, each * world - count)
        if not drop:
            assert set(seen) == set(range(count))


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(1, 9), st.booleans(), st.integers(1, 6))
def test_shares(count: int, world: int, drop: bool, size: int) -> None:
    parts = [list(share(range(count), rank, world, drop)) for rank in range(world)]
    assert {len(p) for p in parts} == {share_length(count, world, drop)}
    whole = [item for group in zip(*parts, strict=True) for item in group]
    assert whole[:count] == list(range(len(whole)))[:count]
    assert not count or whole[count:] == [i % count for i in range(len(whole) - count)]
    assert len(list(batched(range(count), size, drop))) == batches_length(count, size, drop)


@pytest.mark.parametrize(("count", "world"), [(10, 4), (3, 8), (16, 4)])
@pytest.mark.parametrize("drop", [True, False])
def test_the_division_is_that_of_distributed_sampler(count: int, world: int, drop: bool) -> None:
    for rank in range(world):
        theirs = DistributedSampler(range(count), world, rank, shuffle=False, drop_last=drop)  # type: ignore[arg-type]
        if not drop or count >= world:
            assert list(share(range(count), rank, world, drop)) == list(theirs)


def test_seeds_are_mixed() -> None:
    assert len({mix(a, b) for a in range(50) for b in range(50)}) == 2500
    assert all(0 <= mix(-(2**63), i) < 2**63 for i in range(100))


def test_common_random_numbers_leave_the_scripts_own_alone() -> None:
    class Owner:
        def __init__(self) -> None:
            self.own = [torch.Generator(), np.random.RandomState(4)]

    owner = Owner()
    it, other = CommonRandom(1, [owner]), CommonRandom(1, [Owner()])
    before = torch.get_rng_state(), random.getstate()
    drawn = []
    for each, holder in ((it, owner), (other, None)):
        with each.drawing():
            drawn.append((torch.rand(2).tolist(), random.random(), np.random.rand()))
            if holder:
                holder.own[0].seed()  # type: ignore[union-attr]
    assert drawn[0] == drawn[1]
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert owner.own[0].initial_seed() == torch.Generator().initial_seed()  # type: ignore[union-attr]


def test_an_epoch_without_steps_is_begun_again() -> None:
    made = 0
    epochs = Epochs(lambda: made)
    first = epochs.begin()
    epochs.end(first)
    again = epochs.begin()
    made = 1
    assert (first.epoch, again.epoch, epochs.begin().epoch) == (0, 0, 1)


class Shuffled(IterableDataset[Any]):
    """A stream in an order drawn anew each time; divided among a DataLoader's processes."""

    def __init__(self, count: int = 48) -> None:
        self.count = count

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        mine = torch.arange(self.count)[info.id :: info.num_workers] if info else torch.arange(self.count)
        yield from ((i,) for i in mine[torch.randperm(len(mine))])


@pytest.mark.parametrize("processes", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_streams_give_every_nth_batch(processes: int) -> None:
    a, b = workers(2)
    data = [Shuffled(), Shuffled()]
    orders = set()
    for epoch in range(2):
        parts = []
        for w, it in zip((a, b), data, strict=True):
            batches = w.shard(DataLoader(it, 4, num_workers=processes, persistent_workers=processes > 0))
            if w is a and epoch == 0:
                next(iter(batches))
            parts.append(flat(w.epoch(batches)))
        assert sorted(parts[0] + parts[1]) == list(range(48))
        orders.add(tuple(parts[0]))
    assert len(orders) == 2


class Batches:
    """An iterable of batches that is no DataLoader and has no length."""

    def __init__(self, count: int, unlike: int = 0) -> None:
        self.count, self.unlike = count, unlike

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for i in range(self.count):
            yield {"x": torch.full((2,), i + self.unlike), "text": ["a", "b"]}


def test_other_iterables_of_batches() -> None:
    parts = [[int(b["x"][0]) for b in w.epoch(w.shard(Batches(7)))] for w in workers(2)]
    assert parts == [[0, 2, 4], [1, 3, 5]], "an uneven rest is dropped"
    parts = [w.epoch(w.shard([10, 11, 12, 13])) for w in workers(2)]
    assert parts == [[10, 12], [11, 13]]
    assert len(workers(2)[0].shard([1, 2, 3])) == 1


def test_a_stream_that_is_divided_already_is_told(caplog: pytest.LogCaptureFixture) -> None:
    for w in workers(2):
        w.epoch(w.shard(Batches(6, unlike=100 * w.rank)))
    assert [m for m in caplog.messages if "begins with another batch on worker-1 than on worker-0" in m]


def test_an_iterator_is_read_once_or_refused() -> None:
    (a,) = workers(1)
    batches = a.shard(iter([1, 2, 3]))
    assert a.epoch(batches) == [1, 2, 3]
    with pytest.raises(UsageError, match="an iterator, which can be read only once"):
        next(iter(batches))


def test_fewer_batches_than_workers_are_refused() -> None:
    with pytest.raises(UsageError, match="fewer batches than there are workers, 3"):
        [w.epoch(w.shard(Batches(2))) for w in workers(3)]


def test_what_gives_no_batches_is_refused_by_name() -> None:
    (a,) = workers(1)
    with pytest.raises(UsageError, match="takes a DataLoader: make one of the TensorDataset"):
        a.shard(numbers(4))
    with pytest.raises(UsageError, match="takes a DataLoader or an iterable of batches, not int"):
        a.shard(5)
    with pytest.raises(UsageError, match="in_order=False"):
        a.shard(DataLoader(Shuffled(), 4, num_workers=2, in_order=False))


def test_data_pipes_are_refused_by_name() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.utils.data.datapipes.iter import IterableWrapper

        with pytest.raises(UsageError, match="cannot divide a torch data pipe"):
            workers(1)[0].shard(DataLoader(IterableWrapper(range(4)), 2))


class Longer(DistributedSampler[Any]):
    """One of the script's own."""


@pytest.mark.parametrize("kind", [DistributedSampler, Longer])
def test_a_distributed_sampler_of_the_script_is_honoured(kind: type[DistributedSampler[Any]]) -> None:
    parts, plain = [], []
    for w in workers(2):
        sampler = kind(numbers(40), 2, w.rank, seed=5)
        it = DataLoader(numbers(40), 4, sampler=sampler)
        batches = w.shard(it)
        batches.sampler.set_epoch(3)
        parts.append(flat(w.epoch(batches)))
        plain.append(flat(list(it)))
        assert len(batches) == 5
    assert parts == plain
    assert sorted(parts[0] + parts[1]) == list(range(40))


@pytest.mark.parametrize("batch", [True, False])
def test_a_distributed_sampler_for_another_place_is_refused(batch: bool) -> None:
    _, b = workers(2)
    sampler = DistributedSampler(numbers(40), 4, 0)
    it = (
        DataLoader(numbers(40), batch_sampler=BatchSampler(sampler, 4, False))
        if batch
        else DataLoader(numbers(40), 4, sampler=sampler)
    )
    with pytest.raises(
        UsageError, match=r"DistributedSampler is for rank 0 of 4, and this is worker 1 of 2: give it paceline.rank\(\)"
    ):
        b.shard(it)


class Rows:
    """As the map-style data sets of Hugging Face: rows are dicts, fetched many at a time, with a format."""

    def __init__(self, count: int, tensors: bool = False) -> None:
        self.count, self.tensors, self.fetched = count, tensors, 0

    def with_format(self, kind: str) -> "Rows":
        return Rows(self.count, kind == "torch")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.tensor(index) if self.tensors else index}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        self.fetched += len(indices)
        return [self[i] for i in indices]


def test_data_sets_of_rows_with_a_format() -> None:
    seen = []
    for w in workers(2):
        data = Rows(40).with_format("torch")
        for batch in w.epoch(w.shard(DataLoader(data, 4, shuffle=True))):
            seen += batch["x"].tolist()
        assert data.fetched == 20, "only this worker's rows are read"
        assert w.training.samples == 20
    assert sorted(seen) == list(range(40))


class Kept(DataLoader[Any]):
    """A loader of another class, with attributes of its own."""

    mark = "kept"


@pytest.mark.parametrize("kind", [DataLoader, Kept])
def test_it_answers_like_the_loader_and_leaves_it_as_it_is(kind: type[DataLoader[Any]]) -> None:
    a, _ = workers(2)
    it = kind(numbers(40), 4, shuffle=True, drop_last=True)
    before = dict(vars(it))
    batches = a.shard(it)
    a.epoch(batches)
    assert (batches.dataset, batches.sampler, batches.batch_size, batches.num_workers) == (it.dataset, it.sampler, 4, 0)
    assert (len(batches), len(it), getattr(batches, "mark", None)) == (5, 10, getattr(it, "mark", None))
    assert vars(it) == before
    assert len(list(it)) == 10
    assert len(list(copy.copy(batches))) == 5
    with pytest.raises(AttributeError):
        getattr(batches, "nothing")  # noqa: B009


class Indices(Dataset[int]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [True, False])
def test_processes_that_prefetch(persistent: bool) -> None:
    a, b = workers(2)
    both = {}
    for w in (a, b):
        both[w] = w.shard(DataLoader(Indices(), 4, shuffle=True, num_workers=2, persistent_workers=persistent))
    orders = set()
    for epoch in range(3):
        parts = []
        for w in (a, b):

            def during(step: int, w: Worker = w, epoch: int = epoch) -> None:
                if step == 2 and w is a and epoch == 1:
                    next(iter(both[w]))

            parts.append([int(i) for batch in w.epoch(both[w], during=during) for i in batch])
        assert sorted(parts[0] + parts[1]) == list(range(40))
        orders.add(tuple(parts[0]))
    assert len(orders) == 3


def rejected(worker: Worker, stale: bool) -> None:
    worker.step()
    worker.training.last = LastStep(1, 9, not stale, "stale" if stale else "")


def test_all_batches_of_an_accumulated_step_come_again() -> None:
    (a,) = workers(1)
    a.training.recomputes = True
    other = Worker(0, 1, {})
    other.training = a.training
    batches, also = a.shard(range(6)), other.shard(range(10, 16))
    given, with_it, outcomes = [], [], [True, True, False, False, True, False]
    for number, (batch, more) in enumerate(zip(batches, also, strict=False)):
        given.append(batch)
        with_it.append(more)
        if number % 2:
            rejected(a, outcomes[number // 2])
    assert given == [0, 1] * 3 + [2, 3] + [4, 5] * 2
    assert with_it == [10 + i for i in given]


def test_batches_are_kept_only_until_their_step_is_accepted() -> None:
    (a,) = workers(1)
    for recomputes in (True, False):
        a.training.recomputes = recomputes
        alive: list[int] = []
        for batch in a.shard(Fresh(alive)):
            rejected(a, stale=False)
            assert batch.number >= 0
            assert sum(alive) <= 3


class Fresh:
    """Counts the batches of it that are alive."""

    def __init__(self, alive: list[int]) -> None:
        self.alive = alive

    def __iter__(self) -> Iterator[Any]:
        alive = self.alive
        alive[:] = [0] * 50

        class Batch:
            def __init__(self, number: int) -> None:
                self.number = number
                alive[number] = 1

            def __del__(self) -> None:
                alive[self.number] = 0

        return map(Batch, range(50))
