"""Who may send what: every kind of connection and frame against every certificate, and values that must not come in."""

import json
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import paceline_credentials
from paceline import optimizers
from paceline.server.gradients.sequencer import from_wire, to_wire
from paceline.wire import endpoint
from paceline.wire.channel import Channel
from paceline.wire.connections import CONNECTIONS
from paceline.wire.frames import BULK, FrameKind, Header, from_json
from paceline_core.errors import PacelineError, PeerLost, ProtocolError
from paceline_core.state_machine import Admit, Apply, Joined, Left, Pushed, Reject, Repeat, Reply

from .inprocess import ID, Served, Trainee, equal, train
from .test_wire import refused

TRAINING = bytes.fromhex(ID)
CERTIFICATES = ("worker-0", "worker-1", "ps-0", "ps-1", "another training's worker-0")


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("credentials")
    paceline_credentials.write(folder, "test", ["ps-0", "ps-1"], 2)
    paceline_credentials.write(folder / "another", "test", ["ps-0"], 1)
    return folder


class Attacked:
    """A server with one honest worker, reached by whoever has some certificate."""

    def __init__(self, credentials: Path) -> None:
        self.credentials = credentials
        self.served = Served(tls=str(credentials / "ps-0"))
        self.honest = Trainee(self.served.address, tls=str(credentials / "worker-0"))
        self.signature = self.honest.session.exchanges[0].pair.signature.to_json()

    def connect(self, certificate: str) -> Channel:
        name = certificate.removeprefix("another training's ")
        folder = self.credentials / name if name == certificate else self.credentials / "another" / name
        return endpoint.connect(self.served.address, TRAINING, "ps-0", str(folder), 0, 10)

    def hello(self, certificate: str, channel: str, **more: Any) -> Channel:
        """A connection that the server has taken. Raises PacelineError or EOFError when it has not."""
        role = "worker" if "worker" in certificate else "server"
        asked = {"role": role, "channel": channel, "lane": 0, "pair": 0, "signature": self.signature, **more}
        found = self.connect(certificate)
        found.introduce(Header(FrameKind.HELLO, TRAINING), asked)
        return found


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    plain = Served()
    found = train(plain.address, 5)
    plain.stop()
    return found


@pytest.fixture
def attacked(credentials: Path, expected: dict[str, torch.Tensor]) -> Iterator[Attacked]:
    it = Attacked(credentials)
    yield it
    it.honest.steps(range(5))
    found = it.honest.weights()
    it.served.stop()
    assert it.served.error is None
    assert equal(found, expected), "no weight was changed by it"


def ends(channel: Channel) -> bool:
    """Whether the server ends the connection instead of answering."""
    try:
        channel.header()
    except (PacelineError, EOFError):
        return True
    finally:
        channel.close()
    return False


def test_each_connection_is_opened_by_its_role_alone(attacked: Attacked) -> None:
    for certificate in CERTIFICATES:
        for kind in CONNECTIONS.values():
            for said in ("worker", "server", "nobody", None, 1, ["worker"]):
                channel = None
                try:
                    channel = attacked.connect(certificate)
                    asked = {"role": said, "channel": kind.name, "signature": attacked.signature, "lane": 0, "pair": 0}
                    channel.introduce(Header(FrameKind.HELLO, TRAINING, worker=0), asked)
                    taken = True
                except (PacelineError, EOFError):
                    taken = False
                if channel is not None:
                    channel.close()
                may = (certificate, said, kind.role) == ("worker-0", "worker", "worker") and kind.name != "inquiry"
                assert taken == may, (certificate, kind.name, said)
    assert refused(attacked.served) > 50


def test_each_connection_takes_the_frames_of_the_table_alone(attacked: Attacked) -> None:
    for name in ("lane", "report", "store"):
        for kind in FrameKind:
            if kind in CONNECTIONS[name].frames:
                continue
            channel = attacked.hello("worker-0", name)
            payload = b"" if kind in BULK else b"{}"
            channel.send(Header(kind, TRAINING), (memoryview(payload),))
            assert ends(channel), (name, kind.name)


@pytest.mark.parametrize("name", ["lane", "report", "store"])
@pytest.mark.parametrize("change", [{"worker": 1}, {"worker": 1 << 31}, {"incarnation": 1}], ids=str)
def test_nobody_speaks_for_another(attacked: Attacked, name: str, change: dict[str, int]) -> None:
    kind = min(CONNECTIONS[name].frames - BULK)
    channel = attacked.hello("worker-0", name)
    channel.send_json(replace(Header(kind, TRAINING), **change), {})
    assert ends(channel)


def raw(channel: Channel, kind: FrameKind, text: str, **fields: int) -> None:
    with suppress(PeerLost):  # it may be refused before all of it was sent
        channel.send(Header(kind, TRAINING, **fields), (memoryview(text.encode()),))


NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"]


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        *(("store", FrameKind.STORE, f'{{"op":"get","key":"k","timeout":{number}}}') for number in NUMBERS),
        *(("report", FrameKind.REPORT, f'{{"rows":[],"reported":{{"a":{number}}}}}') for number in NUMBERS),
        ("store", FrameKind.STORE, '{"op":"get","key":"k","timeout":-1}'),
        ("store", FrameKind.STORE, '{"op":"get","key":"k","timeout":"nan"}'),
        ("store", FrameKind.STORE, '{"op":"add","key":"k","amount":' + "9" * 4000 + "}"),
        ("store", FrameKind.STORE, '{"op":"wait","keys":' + "[" * 5000 + "]" * 5000 + "}"),
        ("store", FrameKind.STORE, '{"op":"wait","keys":[' + '"a",' * 200_000 + '"a"]}'),
        ("report", FrameKind.REPORT, '{"rows":[' + "[]," * 600_000 + "[]]}"),
        ("report", FrameKind.REPORT, '{"rows":1,"reported":{}}'),
        ("report", FrameKind.REPORT, "[]"),
        ("report", FrameKind.REPORT, '{"rows":[],"reported":{"a":1' + "0" * 400 + "}}"),
        ("report", FrameKind.REPORT, '{"rows":[],"reported":{},"not_finite":["\\ud800"]}'),
        ("report", FrameKind.REPORT, '{"rows":[{"step":{}}],"reported":{}}'),
        ("store", FrameKind.STORE, '{"op":"get","key":"k","timeout":1' + "0" * 400 + "}"),
        ("store", FrameKind.STORE, '{"op":"set","key":"\xff","value":""}'),
        ("report", FrameKind.LEAVE, '{"a":"' + "b" * 70_000 + '"}'),
    ],
    ids=lambda it: str(getattr(it, "name", it))[:40],
)
def test_a_wrong_value_ends_its_connection_alone(attacked: Attacked, name: str, kind: FrameKind, text: str) -> None:
    channel = attacked.hello("worker-0", name)
    raw(channel, kind, text, step=1)
    assert ends(channel)


def settings_of(attacked: Attacked) -> list[dict[str, Any]]:
    return [dict(s) for s in attacked.signature["settings"]]


@pytest.mark.parametrize(
    "change",
    [
        {"lr": "NaN"},
        {"lr": "Infinity"},
        {"lr": '{"a": 1}'},
        {"params": "[]"},
        {"betas": "[[0.9, 0.9], 0.9]"},
        {"betas": "[" + "0.9," * 20 + "0.9]"},
        {"maximize": '"' + "a" * 300 + '"'},
        {"__class__": "1"},
    ],
    ids=str,
)
def test_settings_that_the_optimizer_does_not_have_are_refused(attacked: Attacked, change: dict[str, str]) -> None:
    values = {k: json.dumps(v) for k, v in settings_of(attacked)[0].items()} | change
    group = "{" + ",".join(f'"{k}":{v}' for k, v in values.items()) + "}"
    channel = attacked.hello("worker-0", "lane")
    raw(channel, FrameKind.COMMIT, f'{{"absent":[],"settings":[{group}]}}', step=1)
    assert ends(channel)


@pytest.mark.parametrize("groups", [[], [{}], "all but one"])
def test_another_number_of_groups_is_refused(attacked: Attacked, groups: Any) -> None:
    given = settings_of(attacked) * 2 if groups == "all but one" else groups
    channel = attacked.hello("worker-0", "lane")
    channel.send_json(Header(FrameKind.COMMIT, TRAINING, step=1), {"absent": [], "settings": given})
    assert ends(channel)


@pytest.mark.parametrize("scale", ["0", "-1", "1e-999", '"nan"', '"inf"'])
def test_a_scale_that_is_none_is_refused(attacked: Attacked, scale: str) -> None:
    channel = attacked.hello("worker-0", "lane")
    group = json.dumps(settings_of(attacked))
    raw(channel, FrameKind.COMMIT, f'{{"absent":[],"settings":{group},"unscale":{scale}}}', step=1)
    assert ends(channel)


def test_an_older_process_of_a_worker_cannot_come_back(attacked: Attacked) -> None:
    attacked.served.service.membership.connected(0, 3)
    attacked.served.service.membership.disconnected(0)
    try:
        for name in ("lane", "report", "store"):
            with pytest.raises((PacelineError, EOFError)):
                attacked.hello("worker-0", name)
    finally:
        attacked.served.service.membership.incarnations[0] = 0


def test_what_is_large_is_refused_before_it_is_built() -> None:
    data = b'{"a":[' + b"[]," * 5_000_000 + b"[]]}"
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(ProtocolError, match="more than 800000 elements"):
        from_json(data)
    seconds, (_, most) = time.monotonic() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 20
    assert seconds < 2


PUSH = Pushed(1, 0, 3, 2)
ACTIONS = [Admit(1, 0, 2, 0), Apply(3, (PUSH, Pushed(2, 0, 1, 2)), 0.5, 1), Reply(1, 0, 3, 3, 0), Repeat(1, 0, 3)]


def test_orders_come_as_they_went() -> None:
    for event in (Joined(1, 0), Left(1, 0), PUSH):
        actions = [*ACTIONS, Reject(1, 0, 3, "stale", 9, 7, 1)]
        assert from_wire(json.loads(json.dumps(to_wire(2, event, actions)))) == (2, event, actions)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "State", "knobs": 1, "expected": 2},
        {"type": "replace", "obj": 1},
        {"type": "Knobs"},
        {"type": "constant", "delay": 1},
        {"type": ["Left"]},
        {"type": "Left", "worker": "1", "incarnation": 0},
        {"type": "Left", "worker": True, "incarnation": 0},
        {"type": "Left", "worker": 1},
        {"type": "Left", "worker": 1, "incarnation": 0, "more": 1},
        {"worker": 1},
        [],
        None,
    ],
    ids=str,
)
def test_an_order_is_of_a_known_type_with_whole_numbers(event: Any) -> None:
    with pytest.raises(ProtocolError, match="not an order"):
        from_wire({"pair": 0, "event": event, "actions": []})


def test_options_may_change_their_values_and_nothing_else() -> None:
    agreed = [{"lr": 0.1, "betas": [0.9, 0.99], "maximize": False, "momentum": None}]
    assert optimizers.same_options([{"lr": 1, "betas": (0.5, 0.5), "maximize": True, "momentum": 0.9}], agreed)
    assert not optimizers.same_options([{"lr": 10**400, "betas": [0.9], "maximize": True, "momentum": 1}], agreed)
    assert not optimizers.same_options([{"lr": 1}], agreed)
