"""A ring of workers in threads of this process, over real gloo on the loopback interface."""

import copy
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from paceline.worker.all_reduce.ring_optimizer import RingOptimizer, make_ring_optimizer
from paceline.worker.model_description import describe, trained_parameters
from paceline.worker.observability.injected_delay import InjectedDelay
from paceline.worker.observability.phase_clock import PhaseClock
from paceline.worker.observability.phase_hooks import Observer
from paceline.worker.observability.wait_time import Waiting
from paceline_core.spec import Gradients

LIMIT_SECONDS = 20.0
_seeding = threading.Lock()


def seeded(seed: int, build: Callable[[], Any]) -> Any:
    """What `build` makes from this seed: the generator is one for all threads."""
    with _seeding:
        torch.manual_seed(seed)
        return build()


class Worker:
    """One of them: `distribute` as paceline.distribute() with topology AllReduce."""

    def __init__(self, rank: int, group: Any, gradients: Gradients) -> None:
        self.rank, self.group, self._gradients = rank, group, gradients
        self.pairs: list[RingOptimizer] = []
        self.updates = 0
        self._known: dict[torch.Tensor, Any] = {}
        self.clock = PhaseClock()

    def distribute(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> RingOptimizer:
        names = [info.name for info in describe(model, optimizer).parameters]
        observer = Observer(model, trained_parameters(optimizer), self.clock, InjectedDelay(None), self._begins(model))
        made = make_ring_optimizer(
            model, optimizer, names, self._known, self.group, self._gradients, self, Waiting(observer)
        )
        self.pairs.append(made)
        return made

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        reducers = [r for pair in self.pairs for r in pair.reducers]
        for each in reducers:
            each.paused = True
        yield
        for each in reducers:
            each.paused = False

    def before_update(self, pair: RingOptimizer) -> None:
        pass

    def not_finite(self, name: str, own: str | None) -> None:
        """The update is left out."""

    def after_update(self, pair: RingOptimizer, skipped: bool) -> None:
        self.updates += 1

    def _begins(self, model: torch.nn.Module) -> Callable[[], None]:
        def begins() -> None:
            for reducer in (r for pair in self.pairs if pair.model is model for r in pair.reducers):
                reducer.expect()

        return begins


def together(
    work: Callable[[Worker], Any], folder: Path, workers: int = 2, bucket_mib: float = 0.001, **gradients: Any
) -> list[Any]:
    """What `work` gives on each worker. Small buckets, so that there are several."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    file = str(folder / uuid.uuid4().hex)
    found: list[Any] = [None] * workers
    errors: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            store = dist.FileStore(file, workers)
            group = dist.ProcessGroupGloo(store, rank, workers, timedelta(seconds=LIMIT_SECONDS))
            found[rank] = work(Worker(rank, group, Gradients(bucketMib=bucket_mib, **gradients)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * LIMIT_SECONDS)
    if errors:
        raise errors[0]
    return found


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


Step = Callable[[torch.nn.Module, torch.optim.Optimizer, int, int], None]  # model, optimizer, rank, step


def by_one(make: Callable[[], Any], step: Callable[..., None], steps: int, workers: int) -> dict[str, torch.Tensor]:
    """The same by one process: `step(model, rank, number)` makes gradients; their mean is applied.

    Each worker's forward runs on a copy, as each has buffers of its own; worker 0's are kept.
    """
    model, optimizer = make()
    for number in range(steps):
        copies = [copy.deepcopy(model) for _ in range(workers)]
        for rank, each in enumerate(copies):
            each.zero_grad()
            step(each, rank, number)
        for place, parameter in enumerate(model.parameters()):
            gradients = [list(c.parameters())[place].grad for c in copies]
            known = [g for g in gradients if g is not None]
            parameter.grad = None
            if known:
                total = known[0].clone()
                for each in known[1:]:
                    total = total + each
                parameter.grad = total / workers
        for buffer, new in zip(model.buffers(), copies[0].buffers(), strict=True):
            buffer.copy_(new)
        optimizer.step()
    return weights(model)
