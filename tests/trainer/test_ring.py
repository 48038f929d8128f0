"""A ring that breaks: the coordinator finds out who did it."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from paceline.server import inquiry
from paceline.server.store import Coordinator
from paceline.wire import endpoint
from paceline.wire.frames import Header, Kind
from paceline.worker.store import WireStore
from paceline.worker.witness import Witness
from paceline_core.errors import PeerLost
from paceline_core.launch import Launch, Role
from paceline_core.spec import TrainingSpec

ID, WORKERS, STEP = "5a" * 16, 4, 7


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
        self.store = WireStore(it)
        if waits_in is None:  # it is stopped, as by SIGSTOP: its connections stand, but nobody answers
            self.line = endpoint.connect(address, bytes.fromhex(ID), "coordinator-0", None, 10, 10)
            hello = Header(Kind.HELLO, bytes.fromhex(ID), ordinal)
            self.line.introduce(hello, {"role": "worker", "channel": "inquiry"})
        else:
            self.line = Witness(it, lambda: waits_in)

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
    monkeypatch.setattr(inquiry, "ANSWER_SECONDS", 1.0)
    it = Coordinator(launch(Role.COORDINATOR))
    thread = threading.Thread(target=it.run)
    thread.start()
    yield it
    it.stopping.set()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("second", "too_late", "found"),
    [
        (0, True, "waited 3 s for worker-2, which did not finish step 7"),
        (STEP - 1, True, "waited 3 s for worker-2, which did not finish step 7"),
        (None, True, "waited 3 s for worker-2, which did not finish step 7"),
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
    members = [Member(coordinator.door.address, ordinal, step) for ordinal, step in enumerate(waits_in)]
    if isinstance(second, str):
        if second == "left":
            coordinator.roll.leave(2, 0)
        members[2].close()
    with ThreadPoolExecutor(2) as pool:
        said = pool.map(lambda member: member.says_that_the_ring_broke(too_late), (members[0], members[3]))
    assert list(said) == [found, found]
    assert coordinator.inquiry.verdict == (None if found == "nobody" else found)
    for member in members:
        member.close()
