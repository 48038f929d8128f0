"""A ring that breaks: the coordinator finds out who did it."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from paceline.server.coordinator import Coordinator
from paceline.server.membership import ring_diagnosis
from paceline.server.observability.same_loss import MOST_OPEN
from paceline.wire import endpoint
from paceline.wire.frames import FrameKind, Header
from paceline.worker.all_reduce.diagnosis_responder import DiagnosisResponder
from paceline.worker.collectives.rendezvous_store import RendezvousStore
from paceline_core.errors import PeerLost
from paceline_core.launch import Launch, Role
from paceline_core.spec import TrainingSpec

from .inprocess import ID, Cutting, end_at_once

WORKERS, STEP = 4, 7


def launch(role: Role, ordinal: int = 0, address: str = "127.0.0.1:1", **more: object) -> Launch:
    container = {"name": "trainer", "command": ["x"]}
    spec = {
        "topology": "AllReduce",
        "workers": {"replicas": WORKERS, "template": {"spec": {"containers": [container]}}},
        "gradients": {"timeoutSeconds": 3},
        "security": {"transport": "Insecure"},
    }
    return Launch(role, ordinal, "test", ID, TrainingSpec.model_validate(spec), (address,), **more)  # type: ignore[arg-type]


class Member:
    """What a worker of the ring has open towards the coordinator."""

    def __init__(self, address: str, ordinal: int, waits_in: int | None) -> None:
        it = launch(Role.WORKER, ordinal, address)
        self.store = RendezvousStore(it)
        if waits_in is None:  # it is stopped, as by SIGSTOP: its connections stand, but nobody answers
            self.line = endpoint.connect(address, bytes.fromhex(ID), "coordinator-0", None, 10, 10)
            hello = Header(FrameKind.HELLO, bytes.fromhex(ID), ordinal)
            self.line.introduce(hello, {"role": "worker", "channel": "inquiry"})
        else:
            self.line = DiagnosisResponder(it, lambda: waits_in)

    def says_that_the_ring_broke(self, too_late: bool) -> str:
        try:
            self.store.broken(STEP, too_late)
        except PeerLost as error:
            return str(error)
        return "nobody"

    def close(self) -> None:
        self.store.close()
        self.line.close()


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Coordinator]:
    monkeypatch.setattr(ring_diagnosis, "ANSWER_SECONDS", 1.0)
    it = Coordinator(launch(Role.COORDINATOR))
    thread = threading.Thread(target=it.run)
    thread.start()
    yield it
    end_at_once(it)
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("second", "too_late", "found"),
    [
        (0, True, "waited 3 s (spec.gradients.timeoutSeconds) for worker-2, which did not finish step 7"),
        (STEP - 1, True, "waited 3 s (spec.gradients.timeoutSeconds) for worker-2, which did not finish step 7"),
        (None, True, "waited 3 s (spec.gradients.timeoutSeconds) for worker-2, which did not finish step 7"),
        (0, False, "worker-2 broke off in step 7"),
        ("gone", False, "worker-2 broke off in step 7"),
        ("left", False, "worker-2 left before step 7: in a ring every worker must make the same number of steps"),
        (STEP, True, "nobody"),
    ],
)
def test_who_neither_complains_nor_waits_broke_the_ring(
    coordinator: Coordinator, second: int | str | None, too_late: bool, found: str
) -> None:
    waits_in = [STEP, STEP, 0 if isinstance(second, str) else second, STEP]
    members = [Member(coordinator.acceptor.address, ordinal, step) for ordinal, step in enumerate(waits_in)]
    if isinstance(second, str):
        if second == "left":
            coordinator.membership.leave(2, 0)
        members[2].close()
    with ThreadPoolExecutor(2) as pool:
        said = pool.map(lambda member: member.says_that_the_ring_broke(too_late), (members[0], members[3]))
    assert list(said) == [found, found]
    assert coordinator.diagnosis.verdict == (None if found == "nobody" else found)
    for member in members:
        member.close()


@pytest.mark.parametrize("seed", range(5))
def test_a_counter_counts_once_though_connections_break(coordinator: Coordinator, seed: int) -> None:
    relay = Cutting(coordinator.acceptor.address, random.Random(seed), cuts=8, most=4000)
    stores = [RendezvousStore(launch(Role.WORKER, rank, relay.address)) for rank in range(WORKERS)]

    def count(store: RendezvousStore) -> list[int]:
        return [store.add("n", 1) for _ in range(60)]

    with ThreadPoolExecutor(WORKERS) as pool:
        found = [number for numbers in pool.map(count, stores) for number in numbers]
    assert sorted(found) == list(range(1, 60 * WORKERS + 1)), f"seed {seed}, {relay.done} cuts"
    assert relay.done >= 3
    for store in stores:
        store.close()
    relay.close()


def test_rounds_are_made_of_steps_that_workers_report_many_at_a_time(coordinator: Coordinator) -> None:
    steps, status = 5000, coordinator.training_status  # a millisecond each, reported every five seconds
    row = {"version": 1, "staleness": 0, "time": 1.0, "latency": 0.001, "wall": 0.001, "loss": None, "accepted": True}
    rows = [row | {"step": step, "reason": "", "phases": {"wait": 0.0005}} for step in range(1, steps + 1)]
    for rank in range(WORKERS):
        status.report(rank, rows, {})
    assert status.version == steps
    assert [worker.applied for worker in status.workers.values()] == [steps] * WORKERS


def test_steps_that_only_one_worker_reports_are_not_kept_without_end(coordinator: Coordinator) -> None:
    status = coordinator.training_status
    for step in range(MOST_OPEN + 100):
        status._ring(0, {"step": step, "phases": {}, "wall": 0.0})
    assert len(status._waits) == MOST_OPEN
