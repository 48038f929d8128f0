"""What a worker puts into a checkpoint beside the model, and goes on from: random generators, its place in the data,
how many steps it has made, and the script's own states (a scheduler's, say)."""

import copy
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim.lr_scheduler import LRScheduler

from paceline.checkpoints import state_values
from paceline.worker.data.datasets import DataSets
from paceline.worker.data.epochs import DataPosition, Pass
from paceline_core.errors import UsageError

CHANGED_AFTER_A_STEP = (LRScheduler, GradScaler, torch.nn.Module, torch.optim.Optimizer)
KEEP_SECONDS = 0.2  # between two places that are kept, at least
KEEP_SECONDS_EACH = 0.002  # for each worker: one server hears all
KEEP_SHARE = 1000  # and so many times as long as it takes to put one together: 0.1 % of the time
LAST = 0  # in place of a checkpoint's number: what a worker ends with
OTHER_ORDER = (
    "servers save when the optimizer has stepped that was distributed last, and here another steps after it, with the "
    "same batch: a run that goes on leaves that step out; call paceline.distribute() in the order of the steps"
)
log = logging.getLogger("paceline")


class Stateful(Protocol):
    """What has a state that can be saved, as torch's schedulers, GradScaler and modules have."""

    def state_dict(self) -> Mapping[str, Any]:
        """Its state."""

    def load_state_dict(self, state: Any) -> Any:
        """Take over a state."""


class Trained(Protocol):
    """An optimizer that takes part in the training."""

    number: int  # of its last step

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """It."""

    @property
    def shared(self) -> tuple[int, int]:
        """Reductions of gradients and exchanges of buffers among the workers so far; (0, 0) where servers do that."""


class OwnState:
    """One worker's. A state is taken between two steps: when the script asks for the next batch.

    A script that makes a step without having asked `paceline.shard` for a batch draws the next one itself, unseen. So
    what that changes (random generators, the script's own objects) is taken at the step's end, and what is changed
    after a step (torch's schedulers, a GradScaler, averages) when the next one begins.
    """

    def __init__(self, data_sets: DataSets) -> None:
        self._data_sets = data_sets
        self._objects: dict[str, Stateful] = {}
        self._trained: Sequence[Trained] = ()
        self._send: Callable[[int, bytes], None] = lambda *_: None
        self._asked = 0  # the checkpoint for which a state is to be sent
        self._last = False  # whether the training ends with it
        self.hold: Callable[[int, bool], None] = lambda *_: None  # when the state for one is sent, between two steps
        self._asked_by = 0  # the optimizer after whose step it is made
        self._warned = False
        self._batches = 0  # how often the script asked for one
        self._batches_before: dict[int, int] = {}  # the last step of each optimizer
        self._reads = 0  # the data set that gave the last batch
        self._undrawn: dict[str, Any] | None = None  # what drawing a batch changes, as it was at the step's end
        self._begins = False  # whether an iteration was about to begin when the state was taken
        self._held: Mapping[str, Any] | None = None  # to go on from, once the data is where it was
        self._at_next = False  # once the next iteration begins
        self._keep: Callable[[int, int, bytes], None] | None = None
        self._keep_at, self._keep_seconds = 0.0, 0.0
        self._stepped = Counter[int]()  # steps of each optimizer since the script asked for a batch
        self._is_asked: Callable[[], None] = lambda: None
        self._restored: Callable[[], None] = lambda: None
        self.shared: list[tuple[int, int]] = []  # of each optimizer, where this process goes on

    def begin(self, trained: Sequence[Trained], send: Callable[[int, bytes], None], state: bytes) -> list[int]:
        """The training has begun, and perhaps goes on from a state; gives the steps made with each optimizer.

        `trained` grows with each call of paceline.distribute().
        """
        self._trained, self._send = trained, send
        if not state:
            return []
        self._held = state_values.decode(state)
        self.shared = [tuple(counts) for counts in self._held.get("shared", ())]
        self._at_next = not any(self._held["numbers"])  # of a worker that had only asked for its first batch
        places = {number: DataPosition(**place) for number, place in self._held["data"].items()}
        self._data_sets.go_on(places, self._held["asker"], self._reached)
        return list(self._held["numbers"])

    def keep(self, keep: Callable[[int, int, bytes], None], world_size: int) -> None:
        """From now on tell now and then where this worker is: updates made, of how many optimizers, and the state."""
        self._keep, self._keep_seconds = keep, max(KEEP_SECONDS, KEEP_SECONDS_EACH * world_size)

    def when_restored(self, restored: Callable[[], None]) -> None:
        """Call this once everything is where it was, before the batch that comes next is drawn."""
        self._restored = restored

    def when_asked(self, asked: Callable[[], None]) -> None:
        """Call this whenever the script asks for a batch, once it is where it was."""
        self._is_asked = asked

    def register(self, objects: Mapping[str, Any]) -> None:
        """Objects whose states belong to a checkpoint. Raises UsageError."""
        for name, it in objects.items():
            if not callable(getattr(it, "state_dict", None)) or not callable(getattr(it, "load_state_dict", None)):
                raise UsageError(
                    f"paceline.state({name}=...): a {type(it).__qualname__} has no state_dict() and load_state_dict()"
                )
            try:
                state_values.encode(it.state_dict())
            except TypeError as error:
                raise UsageError(f"paceline.state({name}=...): its state_dict(){error}") from None
            self._objects[name] = it
        self.settle()

    def settle(self) -> None:
        """Take over at once what does not wait for data: all, of a script that does not use paceline.shard."""
        if self._held is not None and not self._at_next and not self._waits_for_data(self._held):
            self._take_over(self._held)

    def asks(self, data_set: int, it: Pass | None) -> None:
        """The script asks an iteration for another batch, or begins one (None).

        When it asks the one with which it makes steps, or has left that by `break`, it has done with the last step:
        the state that was asked for is sent.
        """
        self._batches += 1
        stepped, self._stepped = self._stepped, Counter()
        if it is None and self._at_next:
            self._at_next = False
            self._restore()
        if self._held is None:
            self._is_asked()
        self._begins = it is None
        self._reads = data_set if it is not None else self._reads
        if it.steps if it is not None else not self._data_sets.training():
            asked = self._send_what_was_asked_for()
            self._keep_place(stepped, at_once=asked > 0)
            self._reads = data_set
            self._hold_after(asked)
        self._reads = data_set

    def step_begins(self, number: int) -> None:
        """Of one optimizer: the last moment to send the state after the step before; without data, to take one over."""
        if self._asked and number != self._asked_by and not self._warned:
            self._warned = True
            log.warning(OTHER_ORDER)
        if self._held is not None and not self._waits_for_data(self._held):
            self._held = None
        self._hold_after(self._send_what_was_asked_for())

    def step_ended(self, number: int, checkpoint: int, last: bool = False) -> None:
        """Of one optimizer. The servers have perhaps saved a checkpoint after this step: its number, or 0.

        With `last` the training ends with it.
        """
        self._stepped[number] += 1
        if checkpoint:
            self._asked, self._asked_by, self._last = checkpoint, number, last
        if self._batches == self._batches_before.get(number, 0):
            self._begins = False
            self._undrawn = self._drawing() if self._asked else None
        self._batches_before[number] = self._batches

    def leave(self) -> None:
        """The script has ended: send what it ends with, for a checkpoint that is on its way and for later ones."""
        if self._held is not None and self._waits_for_data(self._held) and not self._at_next:
            log.warning("the script did not come to the place in its data at which the checkpoint was made")
        self._begins = True
        self._send_what_was_asked_for()
        self._send(LAST, self._now())

    def _send_what_was_asked_for(self) -> int:
        """Gives the checkpoint that it was for, or 0."""
        asked, self._asked = self._asked, 0
        if asked:
            self._send(asked, self._now())
        self._undrawn = None
        return asked

    def _hold_after(self, checkpoint: int) -> None:
        if checkpoint:
            self.hold(checkpoint, self._last)

    def _keep_place(self, stepped: Mapping[int, int], at_once: bool) -> None:
        """Only where a step has just ended, of every optimizer, and in the beginning.

        Between the batches of one step, or of one optimizer's several, the script is where no other can begin.
        """
        began, step = time.monotonic(), sum(it.number for it in self._trained)
        whole = len(stepped) == len(self._trained) if step else not self._keep_at
        if self._keep is None or self._held is not None or not whole:
            return
        if at_once or began >= self._keep_at:
            self._keep(step, len(self._trained), self._now())
            self._keep_at = began + max(self._keep_seconds, KEEP_SHARE * (time.monotonic() - began))

    def _now(self) -> bytes:
        drawing = self._undrawn or self._drawing()
        return state_values.encode(
            {
                "numbers": [it.number for it in self._trained],
                "shared": [it.shared for it in self._trained],
                "groups": [_settings(it.optimizer) for it in self._trained],
                "random": drawing["random"],
                "begins": self._begins,
                "asker": self._reads,
                "data": {number: asdict(place) for number, place in self._data_sets.places().items()},
                "states": {name: it.state_dict() for name, it in self._objects.items()} | drawing["states"],
            }
        )

    def _drawing(self) -> dict[str, Any]:
        """What changes when the script draws a batch itself."""
        own = {name: it for name, it in self._objects.items() if not isinstance(it, CHANGED_AFTER_A_STEP)}
        return {
            "random": _random_states(),
            "states": {name: copy.deepcopy(it.state_dict()) for name, it in own.items()},
        }

    def _reached(self) -> None:
        """The data is where it was."""
        if self._held is not None and self._held["begins"]:
            self._at_next = True
        else:
            self._restore()

    @staticmethod
    def _waits_for_data(held: Mapping[str, Any]) -> bool:
        return held["asker"] in held["data"]

    def _restore(self) -> None:
        held, self._held = self._held, None
        if held is None:
            return
        self._take_over(held)
        self._restored()
        for name in held["states"].keys() - self._objects.keys():
            log.warning("the checkpoint has a state of %s, which paceline.state() was not given", name)

    def _take_over(self, held: Mapping[str, Any]) -> None:
        for name in held["states"].keys() & self._objects.keys():
            self._objects[name].load_state_dict(held["states"][name])
        for it, groups in zip(self._trained, held["groups"], strict=False):
            _set(it.optimizer, groups)
        _set_random_states(held["random"])


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Of each parameter group: the learning rate, for one, which schedulers and scripts change."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _set(optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]]) -> None:
    for group, held in zip(optimizer.param_groups, groups, strict=False):
        for key, value in held.items():
            if isinstance(group.get(key), torch.Tensor):
                group[key].copy_(value)  # schedulers hold the tensor
            else:
                group[key] = value


def _random_states() -> dict[str, Any]:
    version, words, gauss = random.getstate()  # as a tensor: 600 numbers take longer one by one
    found: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": (version, torch.tensor(words, dtype=torch.int64, device="cpu"), gauss),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state_all()
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, *rest = numpy.random.get_state()
        found["numpy"] = (kind, torch.from_numpy(keys.astype("int64")), *rest)
    return found


def _set_random_states(held: Mapping[str, Any]) -> None:
    torch.set_rng_state(held["torch"])
    version, words, gauss = held["python"]
    random.setstate((version, tuple(_numbers(words)), gauss))
    if "cuda" in held and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(held["cuda"])
    if "numpy" in held:
        import numpy

        kind, keys, *rest = held["numpy"]
        numpy.random.set_state((kind, _numbers(keys), *rest))


def _numbers(held: Any) -> Sequence[int]:
    """Of a tensor, or one by one, as checkpoints of before have them."""
    found: Sequence[int] = held.tolist() if isinstance(held, torch.Tensor) else held
    return found
