"""all_gather, mean, and what else the workers hold in common, in every topology."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.server.coordinator import Coordinator
from paceline.server.membership.key_value_store import COMPARISONS, KEY_BYTES, Comparisons, Keys
from paceline.server.membership.membership import Membership
from paceline.server.observability.same_loss import MOST_OPEN, STEPS, SameLoss
from paceline.server.observability.training_status import TrainingStatus
from paceline.wire import endpoint
from paceline.wire.frames import FrameKind, Header
from paceline.worker.collectives.all_gather import all_gather, mean
from paceline.worker.collectives.json_values import decode, encode
from paceline.worker.collectives.store_client import StoreClient
from paceline_core.errors import PacelineError, PeerLost, ProtocolError, UsageError
from paceline_core.launch import Launch, Role
from paceline_core.modes import MODES

from . import inprocess, test_ring
from .inprocess import Cutting, Served, end_at_once

WORKERS = 3


def within(it: Launch, seconds: float) -> Launch:
    """The same training, in which nobody is waited for longer."""
    policy = it.spec.run_policy.model_copy(update={"start_timeout_seconds": seconds})
    gradients = it.spec.gradients.model_copy(update={"timeout_seconds": seconds})
    return replace(it, spec=it.spec.model_copy(update={"run_policy": policy, "gradients": gradients}))


class Common:
    """A server or coordinator in a thread, and its workers' connections."""

    def __init__(self, kind: str, seconds: float) -> None:
        self.kind, self.seconds = kind, seconds
        if kind == "AllReduce":
            self.server: Any = Coordinator(within(self._launch(Role.COORDINATOR, 0), seconds))
        else:
            self.server = inprocess.ParameterService(within(self._launch(Role.SERVER, 0), seconds))
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self.address = self.server.acceptor.address
        self.clients = [self.connect(w) for w in range(WORKERS)]

    def _run(self) -> None:
        try:
            self.server.run()
        except PacelineError:
            pass  # each worker is told, and the test looks there

    def _launch(self, role: Role, ordinal: int, address: str = "127.0.0.1:1", **more: Any) -> Launch:
        if self.kind == "AllReduce":
            it = test_ring.launch(role, ordinal, address, **more)
            workers = it.spec.workers.model_copy(update={"replicas": WORKERS})
            return replace(it, spec=it.spec.model_copy(update={"workers": workers}))
        return inprocess.launch(role, address, self.kind, WORKERS, 1, ordinal, **more)

    def connect(self, ordinal: int, incarnation: int = 0, address: str = "") -> StoreClient:
        it = self._launch(Role.WORKER, ordinal, address or self.address, incarnation=incarnation)
        return StoreClient(within(it, self.seconds))

    def on_each(self, call: Callable[[StoreClient], Any]) -> list[Any]:
        with ThreadPoolExecutor(WORKERS) as pool:
            return list(pool.map(call, self.clients))

    def close(self) -> None:
        for client in self.clients:
            client.close(leave=False)
        end_at_once(self.server)
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture(params=MODES)
def common(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Common]:
    monkeypatch.setattr("paceline_core.limits.REFUSAL_SECONDS", 2.0)
    it = Common(request.param, seconds=getattr(request.node.get_closest_marker("seconds"), "args", [20.0])[0])
    yield it
    it.close()


def of(client: StoreClient) -> dict[str, Any]:
    return {"rank": client.rank, "loss": 0.5 * client.rank, "names": ["a", None, True], "weights": {"w": 1}}


def test_every_worker_gets_every_value_in_rank_order(common: Common) -> None:
    found = common.on_each(lambda client: all_gather(of(client), client))
    assert found == [[of(e) for e in common.clients]] * WORKERS


def test_the_mean_is_that_of_all_and_has_the_inputs_type(common: Common) -> None:
    def call(client: StoreClient) -> Any:
        number = mean(client.rank + 1, client)
        tensor = mean(torch.tensor([1.0, 3.0], dtype=torch.bfloat16) * client.rank, client)
        return number, tensor, mean({"loss": 1.0 * client.rank, "accuracy": 1}, client)

    for number, tensor, values in common.on_each(call):
        assert number == 2.0
        assert (tensor.dtype, tensor.tolist()) == (torch.bfloat16, [1.0, 3.0])
        assert values == {"loss": 1.0, "accuracy": 1.0}


def test_nothing_is_kept_of_calls_that_all_have_made(common: Common) -> None:
    def call(client: StoreClient) -> list[Any]:
        return [all_gather((client.rank, number), client) for number in range(100)]

    for found in common.on_each(call):
        assert found == [[[w, number] for w in range(WORKERS)] for number in range(100)]
    gathering = common.server.store.gathering
    assert common.server.store.keys.count() == 0
    assert (gathering._open.values, len(gathering._last.values)) == ({}, WORKERS)


@pytest.mark.parametrize(("first", "length"), [("a", 1_000_000), ("\\", 500_000)])  # which takes four bytes on the wire
def test_values_of_more_than_one_frame(common: Common, first: str, length: int) -> None:
    letters = [chr(ord(first) + w) for w in range(WORKERS)]

    def call(client: StoreClient) -> list[Any]:
        return all_gather(letters[client.rank] * length, client)

    for found in common.on_each(call):
        assert [(v[0], len(v)) for v in found] == [(letter, length) for letter in letters]


def errors(common: Common, call: Callable[[StoreClient], Any]) -> list[str]:
    def told(client: StoreClient) -> str:
        try:
            return f"no error: {call(client)}"
        except PacelineError as error:
            return f"{type(error).__name__}: {error}"

    return common.on_each(told)


def test_another_call_than_the_others_is_an_error_for_all(common: Common) -> None:
    found = errors(common, lambda e: mean(1, e) if e.rank == 1 else all_gather(1, e))
    assert all("every worker must make the same calls in the same order" in text for text in found), found
    assert all(text.startswith("UsageError: worker-") for text in found), found
    assert common.on_each(lambda e: mean(e.rank, e)) == [1.0] * WORKERS, "the next call is whole again"


@pytest.mark.seconds(0.5)
def test_a_worker_that_never_comes_is_named(common: Common) -> None:
    found = errors(common, lambda e: None if e.rank == 2 else all_gather(1, e))
    assert (
        found[:2]
        == ["PeerLost: waited 0.5 s (spec.runPolicy.startTimeoutSeconds) for worker-2 to call paceline.all_gather()"]
        * 2
    )


def test_a_worker_that_has_left_is_named_at_once(common: Common) -> None:
    common.on_each(lambda e: all_gather(1, e))
    common.clients[2].close(leave=True)
    found = errors(common, lambda e: None if e.rank == 2 else mean(1, e))
    assert found[:2] == ["PeerLost: worker-2 has left: it will not call paceline.mean()"] * 2


def test_a_worker_that_dies_is_named(common: Common, monkeypatch: pytest.MonkeyPatch) -> None:
    common.on_each(lambda e: all_gather(1, e))
    monkeypatch.setattr("paceline.server.membership.membership.GRACE_SECONDS", 0.0)
    common.clients[2].close(leave=False)
    found = errors(common, lambda e: None if e.rank == 2 else mean(1, e))
    assert all("worker-2 was lost" in text for text in found[:2]), found


def test_scripts_that_never_distribute_end_well(common: Common) -> None:
    common.on_each(lambda e: all_gather(1, e))
    for client in common.clients:
        client.close(leave=True)
    common.thread.join(20)
    assert not common.thread.is_alive()
    assert common.server.membership.failure is None


@pytest.mark.parametrize("seed", range(5))
def test_connections_that_break_lose_no_call(common: Common, seed: int) -> None:
    relay = Cutting(common.address, random.Random(seed), cuts=3)
    common.clients[1] = common.connect(1, address=relay.address)

    def call(client: StoreClient) -> list[Any]:
        return [all_gather(str(client.rank) * 20_000, client) for _ in range(12)]

    for found in common.on_each(call):
        assert found == [[str(w) * 20_000 for w in range(WORKERS)]] * 12
    relay.close()


def test_what_worker_0_said_first_holds_for_its_successor_too(common: Common) -> None:
    found = common.on_each(lambda e: e.first("seed", str(100 + e.rank), "paceline.shard()"))
    assert found == ["100"] * WORKERS
    common.clients[0].close(leave=False)
    common.clients[0] = common.connect(0, incarnation=7)
    assert common.clients[0].first("seed", "999", "paceline.shard()") == "100"


@pytest.mark.seconds(0.5)
def test_worker_0_is_waited_for_by_name(common: Common) -> None:
    with pytest.raises(
        PeerLost, match=r"waited 0.5 s \(spec.runPolicy.startTimeoutSeconds\) for worker-0 to call paceline.shard\(\)"
    ):
        common.clients[1].first("seed", "", "paceline.shard()")
    common.clients[0].differs_from("x", "y")
    common.clients[0].close(leave=True)
    with pytest.raises(PeerLost, match=r"worker-0 has left: it will not call paceline.shard\(\)"):
        common.clients[1].first("seed", "", "paceline.shard()")


def test_a_replaced_worker_joins_the_call_that_is_open() -> None:
    common = Common("Asynchronous", 20.0)
    common.on_each(lambda e: [all_gather(1, e) for _ in range(3)])
    common.clients[1].close(leave=False)
    common.clients[1] = common.connect(1, incarnation=5)
    assert common.on_each(lambda e: all_gather(e.rank, e)) == [[0, 1, 2]] * WORKERS
    common.close()


def test_a_store_is_for_workers_and_each_speaks_for_itself(common: Common) -> None:
    client = common.clients[0]
    assert client.differs_from("x", "y") is None
    channel = client._channel
    assert channel is not None
    channel.send_json(replace(client._header(FrameKind.STORE), worker=1), {"op": "count"})
    with pytest.raises(PeerLost):
        channel.control(FrameKind.VALUE)


@pytest.mark.parametrize("role", ["ps", "coordinator", None])
def test_a_store_serves_no_servers(common: Common, role: str | None) -> None:
    channel = endpoint.connect(common.address, bytes.fromhex(inprocess.ID), "x", None, 5, 5)
    with pytest.raises(PeerLost):
        channel.introduce(Header(FrameKind.HELLO, channel.training), {"role": role, "channel": "store"})


ASKED = [
    {},
    {"op": "eval"},
    {"op": "set", "key": "a"},
    {"op": "gather", "call": 1, "what": "f", "value": "x" * (1 << 20) + "x"},
    {"op": "gather", "call": "x", "what": "f", "value": ""},
    {"op": "gather", "call": 1, "what": "f", "value": [1]},
    {"op": "first", "name": "a", "value": None},
    {"op": "agree", "name": "a" * 2000, "text": ""},
]


@pytest.mark.parametrize("ask", ASKED)
def test_what_cannot_be_read_ends_its_connection_only(common: Common, ask: dict[str, Any]) -> None:
    stranger = common.connect(0)
    stranger.differs_from("x", "y")
    assert stranger._channel is not None
    stranger._channel.send_json(stranger._header(FrameKind.STORE), ask)
    with pytest.raises(PeerLost):
        stranger._channel.control(FrameKind.VALUE)
    stranger.close(leave=False)
    assert common.on_each(lambda e: mean(e.rank, e)) == [1.0] * WORKERS


def test_the_first_to_speak_is_the_one_that_others_differ_from() -> None:
    it = Comparisons()
    assert [it.differs_from(w, "order", t) for w, t in ((2, "a"), (0, "a"), (1, "b"), (0, "a"))] == [
        None,
        None,
        2,
        None,
    ]
    for number in range(2 * COMPARISONS):
        it.differs_from(0, str(number), "x")
    assert len(it._said) == COMPARISONS


def test_keys_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.server.membership.key_value_store.TOTAL_LIMIT", KEY_BYTES + 100)
    keys = Keys(Membership(2, 1.0))
    for _ in range(10):
        keys.set("a", b"x" * 60)
    with pytest.raises(UsageError, match="no room for the key 'b'"):
        keys.set("b", b"x" * 60)
    keys.delete("a")
    keys.set("b", b"x" * 60)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.bool, torch.int64, torch.complex64]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_tensors_keep_dtype_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.ones(shape).to(dtype).T if len(shape) == 2 else torch.ones(shape).to(dtype)
    found = decode(encode([tensor], "f"))[0]
    assert (found.dtype, found.shape) == (dtype, tensor.shape)
    assert torch.equal(found, tensor)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@settings(deadline=None)
@given(JSON)
def test_plain_values_come_back(value: Any) -> None:
    assert decode(encode(value, "f")) == value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({1, 2}, "takes numbers, strings, None, tensors, and lists and dicts .* not set"),
        ({1: 2}, "not a dict whose keys are not all strings"),
        (b"x", "not bytes"),
        ("x" * (1 << 20), "small values: this one takes 1048578 bytes, and 1048576 are allowed"),
        (torch.ones(1 << 20), "takes 4194304 bytes"),
        (torch.ones(2, 2).to_sparse(), "cannot take a tensor of torch.float32, torch.sparse_coo, on cpu"),
        (torch.ones(2, device="meta"), "on meta"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_other_values_are_refused_alone_too(value: Any, words: str, alone: bool) -> None:
    client = None if alone else StoreClient(inprocess.launch(Role.WORKER))
    with pytest.raises(UsageError, match=words):
        all_gather(value, client)


@pytest.mark.parametrize("value", [torch.ones(2, dtype=torch.int64), "x", [1, 2], {"a": None}])
def test_what_has_no_mean_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=r"paceline.mean\(\) takes"):
        mean(value, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[{}]",
        '{"tensor": ["float32", [2], "AAAA"]}',
        '{"tensor": ["load", [1], "AAAA"]}',
        '{"tensor": ["uint8", [-1, -3], "AAAA"]}',
    ],
)
def test_a_value_that_is_none_is_a_protocol_error(text: str) -> None:
    with pytest.raises(ProtocolError):
        decode(text)


def test_workers_whose_values_differ_in_kind_are_named(common: Common) -> None:
    found = errors(common, lambda e: mean({"b": 1} if e.rank == 1 else {"a": 1}, e))
    assert found == ["UsageError: worker-1 gave a dict of b to paceline.mean(), and worker-0 a dict of a"] * WORKERS


def run_of(losses: Callable[[int, int], float | None], steps: int = 3 * STEPS, workers: int = 2) -> list[bool]:
    it = SameLoss(workers)
    return [it.add(w, s, losses(w, s)) for s in range(steps) for w in range(workers)]


@pytest.mark.parametrize(
    ("losses", "times"),
    [
        (lambda w, s: 1 / (s + 1), 1),
        (lambda w, s: 1 / (s + 1) + w, 0),
        (lambda w, s: 1 / (s + 1) + w * (s % STEPS == 0), 0),
        (lambda w, s: 0.0, 0),
        (lambda w, s: None, 0),
        (lambda w, s: float("nan"), 0),
    ],
)
def test_the_same_loss_on_all_workers_is_told_once(losses: Callable[[int, int], float | None], times: int) -> None:
    assert sum(run_of(losses)) == times


def test_a_worker_alone_has_the_same_loss_as_itself() -> None:
    assert not any(run_of(lambda w, s: 1 / (s + 1), workers=1))


def test_workers_far_apart_are_compared_by_their_own_steps_in_limited_memory() -> None:
    it = SameLoss(2)
    assert not any(it.add(0, s, 1 / (s + 1)) for s in range(MOST_OPEN + 100))
    assert len(it._open) == MOST_OPEN
    assert [it.add(1, s, 1 / (s + 1)) for s in range(4000, 4000 + STEPS)][-1]


@pytest.mark.parametrize(("every", "times"), [(1, 0), (50, 1)])
def test_losses_that_the_workers_average_are_the_same_for_that_reason(every: int, times: int) -> None:
    it, told = SameLoss(2), 0
    for step in range(10 * STEPS):
        if step % every == 0:
            it.averaged()
        told += sum(it.add(w, step, 1 / (step + 1)) for w in (0, 1))
    assert told == times


def test_it_is_told_in_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    served = Served(workers=2)
    training_status: TrainingStatus = served.service.training_status
    row = {
        "version": 1,
        "time": time.time(),
        "latency": 0.1,
        "wall": 0.2,
        "phases": {},
        "staleness": 0,
        "accepted": True,
        "reason": "",
    }
    for step in range(1, 4 * STEPS):
        for worker in (0, 1):
            training_status.report(worker, [row | {"step": step, "loss": 1 / step}], {})
    served.stop()
    assert caplog.messages == [
        "all workers have reported the same loss for 20 steps: do they all read the same data? see paceline.shard"
    ]
