"""Who reads that a wait was too long is told which field moves its limit."""

import ast
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import paceline
from paceline.server.gradients.executor import waited_for
from paceline.server.gradients.gradient_norm import Norms
from paceline.server.membership.gathering import Gathering
from paceline.server.membership.key_value_store import KeyValueStore
from paceline.server.membership.membership import Membership
from paceline.server.membership.ring_diagnosis import RingDiagnosis
from paceline.wire import endpoint
from paceline.wire.channel import Channel
from paceline.worker.all_reduce.ring_member import RingMember
from paceline_core.errors import PacelineError
from paceline_core.launch import Role
from paceline_core.limits import START, STEP, Limit, words

from .test_ring import launch

ROOT = Path(paceline.__file__).parents[2]
# every other place that writes seconds with a limit's words; why no field moves it
FIXED = {
    "trainer/paceline/files/bounded_reading.py": "a pipe that a user gave: 30 s",
    "trainer/paceline/local/run.py": "names spec.runPolicy.activeDeadlineSeconds; servers end within 60 s",
    "trainer/paceline/server/gradients/followers.py": "10 s for a broken connection between servers to come back",
    "trainer/paceline/server/membership/membership.py": "10 s for a broken connection to come back",
    "trainer/paceline/views/sources/kubectl.py": "20 s for an answer of kubectl",
    "trainer/paceline_core/limits.py": "the words themselves",
    "operator/paceline_operator/decisions/completion.py": "servers save within an hour",
}


def with_seconds(file: Path) -> Iterator[str]:
    """The texts of a file that tell seconds as a limit: f"{...:g} s"."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            text = ast.unparse(node)
            if ":g} s" in text:
                yield text


def test_every_text_about_a_limit_names_its_field_or_has_none() -> None:
    files = [f for part in ("trainer", "operator") for f in (ROOT / part).rglob("*.py")]
    found = {str(f.relative_to(ROOT)) for f in files if any(with_seconds(f))}
    assert found == set(FIXED)


THERE: Any = SimpleNamespace(is_broken=lambda: False)  # a connection whose peer is there
START_LIMIT, STEP_LIMIT = Limit(0.01, START), Limit(0.01, STEP)


def a_store() -> KeyValueStore:
    return KeyValueStore(Membership(2, START_LIMIT), START_LIMIT, lambda *_: None, lambda: None)


def ask(value: dict[str, Any]) -> None:
    store, header = a_store(), SimpleNamespace(worker=1, incarnation=0, number=0, channel=THERE)
    store._operations[value["op"]](header, value)  # type: ignore[arg-type]


def nobody_listens() -> None:
    endpoint.connect("127.0.0.1:9", bytes(16), "ps-0", None, START_LIMIT, STEP_LIMIT)


def silent_peer() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as here,
        server.accept()[0],
    ):
        Channel(here, bytes(16), "ps-0", STEP_LIMIT.plus(0.01)).header()


def ring_diagnosis() -> None:
    diagnosis = RingDiagnosis(launch(Role.WORKER), Membership(3, START_LIMIT))
    raise PacelineError(diagnosis._who_broke_it(2, too_late=True))


def torch_s_own_wait() -> None:
    member = RingMember.__new__(RingMember)
    member.launch, member.number = launch(Role.WORKER), 3
    member._store = SimpleNamespace(broken=lambda *_: None)  # type: ignore[assignment]
    raise member.explain(RuntimeError("[gloo/transport/tcp] Timed out waiting 30000ms for recv operation"))


def raised(what: Callable[[], object]) -> str:
    with pytest.raises(PacelineError) as caught:
        what()
    return str(caught.value)


def no_gathering() -> None:
    Gathering(Membership(2, START_LIMIT), STEP_LIMIT, lambda: None).gather(0, (0, 0), "paceline.mean", "1", THERE)


def waits() -> None:
    raise waited_for([1], STEP_LIMIT)


@pytest.mark.parametrize(
    ("what", "field"),
    [
        (waits, STEP),
        (lambda: Norms(2, STEP_LIMIT).total((0, 1)), STEP),
        (no_gathering, STEP),
        (lambda: Membership(2, START_LIMIT).agree(1, None, THERE), START),  # type: ignore[arg-type]
        (lambda: a_store().keys.get_from(0, "a", START_LIMIT, "paceline.shard()", THERE), START),
        (lambda: ask({"op": "wait", "keys": ["a"], "timeout": 600}), START),
        (lambda: ask({"op": "wait", "keys": ["a"], "timeout": 0}), f"{START} or {STEP}"),
        (ring_diagnosis, STEP),
        (torch_s_own_wait, STEP),
        (nobody_listens, START),
        (silent_peer, STEP),
    ],
)
def test_a_wait_that_was_too_long_names_its_field(what: Callable[[], object], field: str) -> None:
    text = raised(what)
    assert f" s ({field})" in text, text


def test_the_limits_of_a_launch_are_those_of_its_file() -> None:
    it = launch(Role.WORKER)
    assert (it.start_limit, it.start_limit.setting) == (600, START)
    assert (it.step_limit, it.step_limit.setting) == (3, STEP)
    assert words(it.step_limit.plus(15)) == f"18 s ({STEP})"
