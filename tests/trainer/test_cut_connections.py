"""Runs whose connections are cut at random places and moments, between shards too, in steps longer than every grace.

`make sweep` makes PACELINE_CUT_RUNS=1000 of them; a sample otherwise.
"""

import csv
import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors.torch import load_file

from paceline import merged_weights, weight_files
from paceline.server.gradients.sequencer import arrivals_file
from paceline.server.observability import step_log
from paceline.worker.observability.measuring import Measuring
from paceline.worker.observability.reporter import PERIOD_SECONDS
from paceline.worker.parameter_server.session import Session
from paceline_core.launch import Role
from paceline_core.state_machine import Knobs
from paceline_core.strategies import STRATEGIES

from .inprocess import Cutting, Served, equal, launch

RUNS = int(os.environ.get("PACELINE_CUT_RUNS", "12"))
SEED = int(os.environ.get("PACELINE_SEED", random.randrange(1 << 30)))
STEPS = 25
GRACE = 1.0  # every grace of the product, shortened
LONG_STEP = 1.5 * GRACE
MADE: list[int] = []  # cuts of each run
MOST_BYTES = 15_000  # before a cut


@dataclass(frozen=True)
class Case:
    """One training."""

    strategy: str
    workers: int
    shards: int
    connections: int
    clipped: bool = False  # norms go between shards

    def asked(self) -> dict[str, object]:
        gradients = {"connections": self.connections} | ({"maxNorm": 0.5} if self.clipped else {})
        return {"strategy": self.strategy, "workers": self.workers, "shards": self.shards, "gradients": gradients}

    def knobs(self) -> Knobs:
        return launch(Role.SERVER, **self.asked()).spec.knobs  # type: ignore[arg-type]


@dataclass
class Found:
    """What a training came to."""

    weights: list[dict[str, torch.Tensor]]  # of each worker
    saved: dict[str, torch.Tensor]
    orders: list[list[list[str]]]  # of each shard, line by line
    accounts: list[tuple[int, int]]  # of each worker: gradients applied and rejected
    told: list[list[str]]  # the log of steps


class Script:
    """What a worker's script does, on data of its own."""

    def __init__(self, rank: int) -> None:
        torch.manual_seed(1)
        self.rank = rank
        self.model = torch.nn.Sequential(torch.nn.Linear(40, 60), torch.nn.BatchNorm1d(60), torch.nn.Linear(60, 3))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)

    def run(self, addresses: str, asked: dict[str, object], long_steps: frozenset[int]) -> dict[str, torch.Tensor]:
        here = launch(Role.WORKER, addresses, ordinal=self.rank, **asked)  # type: ignore[arg-type]
        session = Session(here, Measuring.of(here))
        session.add(self.model, self.optimizer)
        x = torch.arange(160, dtype=torch.float32).reshape(4, 40) / 50
        for step in range(STEPS):
            if step in long_steps:
                Event().wait(LONG_STEP)
            self.optimizer.zero_grad()
            self.model((x + step + self.rank).sin()).pow(3).mean().backward()
            self.optimizer.step()
        session.leave()
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def trained(case: Case, output: Path, chance: random.Random | None = None, cuts: int = 0) -> tuple[Found, int]:
    """A training, over relays that cut; gives also how often."""
    output.mkdir()
    relays: list[Cutting] = []
    long_steps = frozenset(chance.sample(range(1, STEPS), chance.randrange(3))) if chance else frozenset[int]()
    longest = LONG_STEP if long_steps else LONG_STEP / 50

    def address(server: Served) -> str:
        if chance is None:
            return server.address
        relays.append(Cutting(server.address, random.Random(chance.random()), cuts, MOST_BYTES, longest))
        return relays[-1].address

    asked = case.asked()
    servers = [Served(output, **asked)]
    addresses = [address(servers[0])]
    try:
        for ordinal in range(1, case.shards):
            servers.append(Served(output, addresses=addresses[0], ordinal=ordinal, **asked))
            addresses.append(address(servers[-1]))
        scripts = [Script(rank) for rank in range(case.workers)]
        with ThreadPoolExecutor(case.workers) as pool:
            waits = [pool.submit(s.run, ",".join(addresses), asked, long_steps) for s in scripts]
        found = [wait.result() for wait in waits]
        for server in servers:
            server.thread.join(30)
            assert not server.thread.is_alive(), "it ends by itself"
            assert server.error is None
            assert server.service.membership.lost == {}, "nobody is retired"
    finally:
        for server in servers:
            server.stop()
        for relay in relays:
            relay.close()
    status = servers[0].service.training_status
    accounts = [(w.applied, w.rejected.total()) for _, w in sorted(status.workers.items())]
    orders = [lines(output / arrivals_file(ordinal)) for ordinal in range(case.shards)]
    return Found(found, merged(output), orders, accounts, lines(output / step_log.FILE)[1:]), sum(
        r.done for r in relays
    )


def lines(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def merged(output: Path) -> dict[str, torch.Tensor]:
    merged_weights.merge(output)
    return load_file(output / weight_files.file(0))


@cache
def undisturbed(case: Case, folder: Path) -> Found:
    return trained(case, folder / str(abs(hash(case))))[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undisturbed")


@pytest.fixture(autouse=True)
def short_graces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.server.membership.membership.GRACE_SECONDS", GRACE)
    monkeypatch.setattr("paceline.wire.retries.TRY_SECONDS", GRACE)
    for level in PERIOD_SECONDS:
        monkeypatch.setitem(PERIOD_SECONDS, level, GRACE / 10)


def a_case(chance: random.Random) -> Case:
    return Case(
        chance.choice(list(STRATEGIES)), chance.choice([2, 2, 3]), chance.choice([1, 2, 2, 3]), chance.choice([1, 2, 3]),
        clipped=chance.random() < 0.3,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.parametrize("number", range(RUNS))
def test_cut_connections_change_nothing(number: int, tmp_path: Path, folder: Path) -> None:
    seed = SEED + number
    chance = random.Random(seed)
    case = a_case(chance)
    print(f"seed {seed}: PACELINE_SEED={seed} PACELINE_CUT_RUNS=1 repeats {case}")
    found, cuts = trained(case, tmp_path / "run", chance, cuts=chance.randrange(4, 12))
    MADE.append(cuts)
    check(case, found, folder)


@pytest.mark.slow
@pytest.mark.sweep
def test_enough_was_cut() -> None:
    print(f"{sum(MADE)} cuts in {len(MADE)} runs")
    assert sum(MADE) >= 5 * len(MADE)


def check(case: Case, found: Found, folder: Path) -> None:
    assert all(order == found.orders[0] for order in found.orders), "every shard follows the same order"
    handled = Counter((row[2], row[4]) for row in found.orders[0][1:] if row[0] in ("apply", "reject"))
    made = {(str(rank), str(step)) for rank in range(case.workers) for step in range(1, STEPS + 1)}
    assert handled == Counter(made), "each gradient is applied or rejected once"
    assert Counter((row[0], row[1]) for row in found.told) == Counter(made), "each step is told once"
    assert [sum(account) for account in found.accounts] == [STEPS] * case.workers
    if not case.knobs().order_matters:
        assert equal(found.saved, undisturbed(case, folder).saved), "bit for bit"
        assert all(map(equal, found.weights, undisturbed(case, folder).weights))
