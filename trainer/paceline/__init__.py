"""Paceline trains one PyTorch model on many machines. These functions are all that a training script needs.

    model, optimizer = paceline.distribute(model, optimizer)
    for x, y in paceline.shard(loader):
        optimizer.zero_grad(); loss_fn(model(x), y).backward(); optimizer.step()

Which strategy is used is said by the DistributedTraining that starts the script. Started by hand, without Paceline's
environment, the functions change nothing, and the script trains alone.
"""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from paceline_core.launch import Launch, Role

if TYPE_CHECKING:
    import torch

    from paceline.worker.record import LastStep
    from paceline.worker.training import Training

    Model = TypeVar("Model", bound=torch.nn.Module)
    Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)

__all__ = ["distribute", "last_step", "no_sync", "rank", "report", "shard", "world_size"]
__version__ = "0.1.0"


def distribute(model: "Model", optimizer: "Optimizer", total_steps: int | None = None) -> "tuple[Model, Optimizer]":
    """Let this process take part in its training; call it once, before the first step.

    Returns the model and the optimizer to use from here on. They hold worker 0's parameters and buffers, and after
    each `optimizer.step()` the model holds the parameters for the next forward pass. `total_steps`, the optimizer
    steps that this worker will make, is used only to estimate when the training ends.

    Raises UsageError (called twice, or an optimizer or a tensor that cannot be distributed), ModelMismatch (this
    worker's model differs from worker 0's) and PeerLost (another process did not come, or went away); `step()` raises
    PeerLost too.
    """
    training = _training()
    if training is None:
        return model, optimizer
    return training.begin(model, optimizer, total_steps)  # type: ignore[return-value]


def shard(loader: Iterable[Any]) -> Any:
    """This worker's part of a loader's batches: an iterable with a length, to be iterated once for each epoch.

    The samples of a torch DataLoader are divided with a DistributedSampler, shuffled alike on all workers and anew in
    each epoch; its batch size is that of one worker. Of any other loader, which must give the same batches
    everywhere, the worker takes every `world_size`-th. With `onStale: Recompute` a batch whose gradient was rejected
    comes again.
    """
    training = _training()
    if training is None:
        return loader
    from paceline.worker.data import ShardedLoader

    return ShardedLoader(loader, rank(), world_size(), training)


def rank() -> int:
    """This worker's number, from 0."""
    launch = _launch()
    return launch.ordinal if launch else 0


def world_size() -> int:
    """How many workers there are."""
    launch = _launch()
    return launch.world_size if launch else 1


def no_sync() -> AbstractContextManager[None]:
    """Within this context backward accumulates gradients without sending them; the next step sends their sum."""
    training = _training()
    return training.no_sync() if training else nullcontext()


def last_step() -> "LastStep | None":
    """What came of this worker's last step: `version`, `staleness`, `accepted` and `reason`. None before the first."""
    training = _training()
    return training.last_step() if training else None


def report(**values: Any) -> None:
    """Show numbers (or scalar tensors) of this worker, `loss` above all, in the live table and in the run's log."""
    training = _training()
    if training:
        training.report(values)


@cache
def _launch() -> Launch | None:
    """What this process was told, if it is a worker or was started by one."""
    launch = Launch.from_environment(os.environ)
    return launch if launch is not None and launch.role is Role.WORKER else None


@cache
def _training() -> "Training | None":
    launch = _launch()
    if launch is None:
        return None
    from paceline.worker.training import Training

    return Training(launch)
