"""Parameter servers and several workers in threads of this process: each runs a function on its own model."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from paceline import merged_weights, weight_files
from paceline.worker.data.datasets import DataSets
from paceline.worker.observability.measuring import Measuring
from paceline.worker.own_state import OwnState
from paceline.worker.parameter_server.session import Session
from paceline_core.errors import PeerLost
from paceline_core.launch import Role

from .inprocess import Served, launch


class NobodyElse:
    """The store of a worker whose script reads no data set."""

    rank, world_size = 0, 1

    def first(self, name: str, value: str, waits_for: str) -> str:
        return value

    def differs_from(self, name: str, text: str) -> int | None:
        return None


@dataclass
class Worker:
    """One worker, as a script sees itself."""

    rank: int
    session: Session

    def distribute(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.session.add(model, optimizer)


def together(
    script: Callable[[Worker], Any], output: Path, workers: int = 2, shards: int = 1, **more: Any
) -> list[Any]:
    """Run the script on each worker; gives what each returned. What a server or a worker raises is raised."""
    asked = {"workers": workers, "shards": shards, **more}
    servers = [Served(output, **asked)]
    first = servers[0].address
    servers += [Served(output, addresses=first, ordinal=k, **asked) for k in range(1, shards)]
    addresses = ",".join(s.address for s in servers)

    def run(rank: int) -> Any:
        it = launch(Role.WORKER, addresses, ordinal=rank, **asked)
        worker = Worker(rank, Session(it, Measuring.of(it), OwnState(DataSets(NobodyElse()))))
        result = script(worker)
        worker.session.leave()
        return result

    try:
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(run, rank) for rank in range(workers)]
        errors = [e for e in (f.exception() for f in futures) if e is not None]
        if errors:
            raise next((e for e in errors if not isinstance(e, PeerLost)), errors[0])
        for server in servers:
            server.thread.join(30)
            if server.error:
                raise server.error
    finally:
        for server in servers:
            server.stop()
    return [f.result() for f in futures]


def saved(output: Path, model: int = 0) -> dict[str, torch.Tensor]:
    merged_weights.merge(output)
    return load_file(output / weight_files.file(model))
