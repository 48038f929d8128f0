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

    from paceline.worker.observability.step_metrics import LastStep
    from paceline.worker.training import Training

    Model = TypeVar("Model", bound=torch.nn.Module)
    Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)

__all__ = ["all_gather", "distribute", "last_step", "mean", "no_sync", "rank", "report", "shard", "state", "world_size"]
__version__ = "0.1.0"


def distribute(model: "Model", optimizer: "Optimizer", total_steps: int | None = None) -> "tuple[Model, Optimizer]":
    """Let this process take part in its training; call it before the first step, once for each optimizer.

    Returns the objects that it was given. They hold worker 0's parameters and buffers (on a parameter server also its
    optimizer's state, if it has one), and after each `optimizer.step()` the model holds the parameters for the next
    forward pass. What the script changes between two steps is carried out for all, from the lowest worker that takes
    part; `optimizer.state_dict()` has the training's state, and `load_state_dict()` sets it. A script with several
    optimizers or models calls it once for each, in the same order on every worker.

    `total_steps`, the optimizer steps that this worker will make, is used only to estimate when the training ends.

    Raises UsageError (called twice with one optimizer, or an optimizer, a module or a tensor that cannot be
    distributed), ModelMismatch (this worker's model differs from worker 0's, or from the checkpoint's),
    CheckpointDamaged (of the checkpoint to go on from) and PeerLost (another process did not come, or went away).
    `step()` raises PeerLost too, and UsageError for a change that one worker alone has made.
    """
    training = _training()
    if training is None:
        return model, optimizer
    return training.begin(model, optimizer, total_steps)  # type: ignore[return-value]


def shard(loader: Iterable[Any]) -> Any:
    """This worker's part of a loader's batches, to be iterated once for each epoch. Alone, it is the loader itself.

    Call it on every worker with the same loaders, whole and in the same order; once for a loader or anew in each
    epoch. The batch size is that of one worker. The result answers like the loader (`dataset`, `sampler`,
    `batch_size`, `len`), which stays as it is; iterate it in the thread that trains.

    *A DataLoader over a data set with indices*: every worker runs the loader's own sampler, whichever it is, with
    random generators in the same state, and takes every `world_size`-th index, or batch of a batch sampler of one's
    own. An uneven rest is filled up with the first samples of the epoch (with `drop_last` it is left out), so that
    all workers make equally many steps. The order follows from worker 0's `torch.manual_seed`, or its loader's
    generator, and from the epoch. A DistributedSampler of the script's own is honoured if it is for this rank.

    *A stream* (an IterableDataset, or another iterable of batches): every worker reads all of it, and takes every
    `world_size`-th batch; an uneven rest is left out. It must be the same on all workers; a warning tells if not.

    *An epoch* is an iteration with which optimizer steps were made, to its end or not. One without, to look at a
    batch or to evaluate, does not count, on whichever worker; `set_epoch(n)` of the result makes the next one epoch n.

    With `onStale: Recompute` all batches since the last optimizer step come again when its gradient was rejected
    (as long as the loop asks for another batch); until then they are kept in memory.

    Raises UsageError for what cannot be divided (a data set without a loader, a data pipe, an iterator read twice, a
    sampler whose order differs between workers, a DistributedSampler of another rank, epochs without a whole batch)
    and PeerLost (worker 0 did not shard this data set), some of it when the iteration begins.
    """
    training = _training()
    return loader if training is None else training.shard(loader)


def rank() -> int:
    """This worker's number, from 0, to seed a generator of the script's own: Paceline leaves torch's as it is."""
    launch = _launch()
    return launch.ordinal if launch else 0


def world_size() -> int:
    """How many workers there are."""
    launch = _launch()
    return launch.world_size if launch else 1


def all_gather(value: Any) -> list[Any]:
    """Every worker's value, in rank order, on every worker; of a script that runs alone, its own.

    For small things: numbers, strings, None, tensors (which come back with their dtype and shape, on the CPU), and
    lists and dicts with string keys of these (a tuple comes back as a list), at most 1 MiB as JSON. Every worker must
    call `all_gather` and `mean` equally often and in the same order, before `distribute` or after it. Of a worker that
    was replaced the first call is matched with the one that the others wait in.

    Raises UsageError (another kind of value, too large, or a worker called `mean` here) and PeerLost (a worker has
    left, was lost, or did not come within the longer of `startTimeoutSeconds` and `gradients.timeoutSeconds`).
    """
    from paceline.worker.collectives.all_gather import all_gather

    training = _training()
    return all_gather(value, training.store_client if training else None)


def mean(value: Any) -> Any:
    """The mean over all workers of a number, a floating-point tensor, or a dict of these, on every worker.

    It is computed in float64 and is the same everywhere; a number comes back as a float, a tensor with its dtype,
    shape and device. Of a script that runs alone it is the value itself. Called as `all_gather` is, and raises what it
    raises; UsageError too when the workers' values differ in kind, shape or keys.
    """
    from paceline.worker.collectives.all_gather import mean

    training = _training()
    return mean(value, training.store_client if training else None)


def no_sync() -> AbstractContextManager[None]:
    """Within this context backward accumulates gradients without sending them; the next step sends their sum."""
    training = _training()
    return training.no_sync() if training else nullcontext()


def state(**objects: Any) -> None:
    """Put these objects into the training's checkpoints: a scheduler, a GradScaler, an average of the weights.

    Each has `state_dict()` and `load_state_dict()`, and the state is of numbers, texts, tensors, and lists, tuples and
    dicts of these. A training that goes on from a checkpoint sets them where it goes on in the data: call it on every
    worker, with the same names, before the loop. The model, the optimizer, the place in the data and the states of
    torch's, numpy's and Python's global random generators are part of every checkpoint. A script that runs alone has
    none, and nothing happens.

    Raises UsageError for what has no state that can be saved.
    """
    training = _training()
    if training:
        training.own_state.register(objects)


def last_step() -> "LastStep | None":
    """What came of this worker's last step: `version`, `staleness`, `accepted` and `reason`. None before the first."""
    training = _training()
    return training.last_step() if training else None


def report(**values: Any) -> None:
    """Show numbers (or tensors with one element) of this worker, `loss` above all, in the live table and the run's log.

    What is no number is left out, with a warning; so is what is reported in a process that this one has forked, and
    what comes under more than 100 names.
    """
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
