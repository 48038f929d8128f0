"""The data sets that a training reads: what of each is the same on all workers, and lasts as long as the training."""

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from paceline.worker.data.epochs import DataPosition, Epochs
from paceline.worker.data.random_state import CommonRandom
from paceline.worker.data.sampling import mix
from paceline_core.errors import UsageError

log = logging.getLogger("paceline")


class CommonStore(Protocol):
    """What all workers hold in common."""

    @property
    def rank(self) -> int:
        """This worker's number."""

    @property
    def world_size(self) -> int:
        """How many workers there are."""

    def first(self, name: str, value: str, waits_for: str) -> str:
        """What worker 0 said first under this name."""

    def differs_from(self, name: str, text: str) -> int | None:
        """A worker that said something else under this name."""


class DataSet:
    """One data set: `about` describes it, and is the same on all workers, as its number is."""

    def __init__(
        self, number: int, about: str, generator: torch.Generator | None, steps: Any, store: CommonStore
    ) -> None:
        self.epochs = Epochs(steps)
        self.rank, self.world_size = store.rank, store.world_size
        self.number, self._about, self._store = number, about, store
        self._own_seed = generator.initial_seed() if generator else torch.initial_seed()
        self._seed: int | None = None
        self._compared = -1
        if self.rank == 0:
            self.seed()  # at once, so that no other worker has to wait until this one reads the data

    def seed(self) -> int:
        """Worker 0's seed. Raises PeerLost, and UsageError when worker 0 reads another data set here."""
        if self._seed is None:
            own = f"{self._own_seed} {self._about}"
            seed, _, about = self._store.first(f"data/{self.number}", own, "paceline.shard()").partition(" ")
            if about != self._about:
                raise UsageError(
                    f"worker-{self.rank} gave paceline.shard() {self._about} where worker-0 gave it {about}: give it "
                    "the same data sets, undivided and in the same order, on every worker (a random_split with a "
                    "generator that is seeded alike)"
                )
            self._seed = int(seed)
        return self._seed

    def random(self, epoch: int, owners: Iterable[object]) -> CommonRandom:
        """Generators with which every worker draws alike in this epoch."""
        return CommonRandom(mix(self.seed(), self.number, epoch), owners)

    def differs_from(self, epoch: int, text: str) -> int | None:
        """The worker whose data begins otherwise in this epoch; asked once for each epoch."""
        if self._compared == epoch:
            return None
        self._compared = epoch
        return self._store.differs_from(f"data/{self.number}/{epoch}", text)

    def check_order(self, epoch: int, text: str) -> None:
        """Compare the beginning of the order. Raises UsageError when it is not the same on all workers."""
        other = self.differs_from(epoch, text)
        if other is not None:
            raise UsageError(
                f"worker-{self.rank} draws another order than worker-{other} of {self._about}, in epoch {epoch}: a "
                "sampler must draw from torch's, numpy's or Python's global generator or from one in an attribute of "
                "its own, and depend on nothing else that differs between workers"
            )

    def check_stream(self, epoch: int, text: str) -> None:
        """Compare the first batch of a stream, and warn: it may be the same samples, changed at random."""
        other = self.differs_from(epoch, text)
        if other is not None:
            log.warning(
                "%s begins with another batch on worker-%d than on worker-%d: paceline.shard() gives each worker every "
                "%d-th batch of a stream that must be the same everywhere; do not shard one that is divided already",
                self._about, self.rank, other, self.world_size,
            )  # fmt: skip


class DataSets:
    """The data sets of a training, in the order of their first use; none is kept alive."""

    def __init__(self, store: CommonStore) -> None:
        self._store, self._steps, self._count = store, 0, 0
        self._epochs: dict[int, Epochs] = {}  # of each, also of those that are gone
        self._known: dict[int, tuple[weakref.ref[Any], dict[str, DataSet]]] = {}
        self._described: dict[str, DataSet] = {}  # those that cannot be referred to weakly, as a list
        self._goals: dict[int, DataPosition] = {}  # where to go on, by the number of the data set
        self._asker: int | None = None
        self._reached: Callable[[], None] = lambda: None
        register_optimizer_step_post_hook(self._stepped)

    def get(self, held: object, about: str, generator: torch.Generator | None) -> DataSet:
        """The data set that is in `held`, read in the way that `about` describes."""
        known = self._of(held)
        if about not in known:
            known[about] = DataSet(self._count, about, generator, lambda: self._steps, self._store)
            self._epochs[self._count] = known[about].epochs
            self._send(self._count)
            self._count += 1
        return known[about]

    def places(self) -> dict[int, DataPosition]:
        """Where each data set is that steps were made with."""
        found = {number: epochs.place() for number, epochs in self._epochs.items()}
        return {number: place for number, place in found.items() if place is not None}

    def training(self) -> bool:
        """Whether one of them is in an iteration with which steps were made."""
        return any(epochs.training() for epochs in self._epochs.values())

    def go_on(self, places: Mapping[int, DataPosition], asker: int, reached: Callable[[], None]) -> None:
        """Go on at these places; `reached` is called once this data set is where it was.

        Others may come later to where they were, as one that is read beside it.
        """
        self._goals, self._asker, self._reached = dict(places), asker, reached
        for number in self._epochs:
            self._send(number)

    def _send(self, number: int) -> None:
        """Tell a data set where to go on, if it is to."""
        if number in self._goals:
            ended = self._abandon_others if number == self._asker else lambda: None
            self._epochs[number].go_on(self._goals[number], partial(self._has_reached, number), ended)

    def _has_reached(self, number: int) -> None:
        place = self._goals.pop(number)
        if place.given is not None:
            self._pass_finished_epochs_of_others()
        if number == self._asker:
            self._reached()

    def _pass_finished_epochs_of_others(self) -> None:
        """What is read together with a data set, as in `zip`, is not begun in the epochs that pass at once."""
        for number, place in self._goals.items():
            if place.given is not None and number in self._epochs:
                self._epochs[number].pass_finished()

    def _abandon_others(self) -> None:
        for number, place in self._goals.items():
            if place.given and number in self._epochs:
                self._epochs[number].abandon()

    def _of(self, held: object) -> dict[str, DataSet]:
        key = id(held)
        if key not in self._known:
            try:
                self._known[key] = weakref.ref(held, lambda _: self._known.pop(key, None)), {}
            except TypeError:
                return self._described
        return self._known[key][1]

    def _stepped(self, *_: Any) -> None:
        self._steps += 1
