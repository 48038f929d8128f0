"""When a checkpoint is due, after which steps it is asked, and what becomes of the answers in a ring."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from paceline import metrics
from paceline.checkpoints import checkpoint_folder, checkpoint_manifest
from paceline.server.checkpoints.ring_checkpoints import RingCheckpoints
from paceline.server.checkpoints.save_schedule import LONGEST_SECONDS, QUESTIONS, SaveSchedule
from paceline.server.membership.key_value_store import Asker, KeyValueStore
from paceline.server.membership.membership import Membership
from paceline.server.observability.checkpoint_record import CheckpointRecord
from paceline_core.checkpoint_policy import Checkpoint
from paceline_core.errors import ProtocolError
from paceline_core.launch import Launch, Role
from paceline_core.spec import Level, TrainingSpec

from .conftest import eventually
from .inprocess import ID


def walked(asked: Checkpoint, step_seconds: float, seconds: float, begin: int = 0) -> tuple[list[int], int]:
    """The steps that are saved, and how often it was asked, when each step takes this long."""
    schedule = SaveSchedule(asked, begin, 0.0)
    saved, questions, step, ask_at = list[int](), 0, begin, begin
    while (now := (step - begin) * step_seconds) < seconds:
        step, now = step + 1, now + step_seconds
        if step >= ask_at:
            questions += 1
            if schedule.due(step, now):
                saved.append(step)
            ask_at = schedule.next_question(step, now)
            assert ask_at > step
    return saved, questions


@pytest.mark.parametrize(("begin", "expected"), [(0, [700, 1400, 2100]), (10, [710, 1410, 2110])])
def test_by_steps_it_is_asked_about_once_a_second(begin: int, expected: list[int]) -> None:
    saved, questions = walked(Checkpoint(everySteps=700), 0.01, 21, begin)
    assert saved == expected
    assert 21 / LONGEST_SECONDS <= questions <= 21 / LONGEST_SECONDS + len(expected) + 8, "they double at first"


@pytest.mark.parametrize("step_seconds", [0.001, 0.07, 1, 45])
@pytest.mark.parametrize("every", [6.0, 60.0])
def test_by_time_a_checkpoint_is_at_most_a_share_late_and_seldom_asked_for(every: float, step_seconds: float) -> None:
    count, every = 5, max(every, step_seconds)
    saved, questions = walked(Checkpoint(everySeconds=every), step_seconds, 1.1 * every * count)
    times = [0.0, *(step * step_seconds for step in saved)]
    between = [after - before for before, after in itertools.pairwise(times)]
    late = min(every / QUESTIONS, LONGEST_SECONDS) + step_seconds
    assert len(between) >= every * count // (every + late)
    assert all(every - step_seconds <= each <= every + late for each in between)
    assert questions <= max(QUESTIONS + 3, every / LONGEST_SECONDS + 3) * (count + 1) + 20


def test_who_asks_has_one_at_once() -> None:
    schedule = SaveSchedule(Checkpoint(everySteps=10), 0, 0.0)
    assert schedule.due(3, 1.0, asked=True)
    assert not schedule.due(4, 1.0)
    assert not schedule.due(12, 1.0)
    assert schedule.due(13, 1.0), "the next is due as long after it"


def test_both_are_heeded() -> None:
    saved, _ = walked(Checkpoint(everySteps=100, everySeconds=30), 1.0, 200)
    assert saved == sorted(set(saved))
    assert all(25 <= b - a <= 33 for a, b in itertools.pairwise([0, *saved]))
    saved, _ = walked(Checkpoint(everySteps=10, everySeconds=30), 1.0, 60)
    assert saved == [10, 20, 30, 40, 50, 60]


class Asked:
    """A coordinator's part in a ring of two workers, which saves every four steps."""

    def __init__(self, root: Path) -> None:
        spec = {
            "topology": "AllReduce",
            "workers": {"replicas": 2, "template": {"spec": {"containers": [{"name": "trainer", "command": ["x"]}]}}},
            "checkpoint": {"everySteps": 4, "keep": 9},
        }
        asked = TrainingSpec.model_validate(spec)
        launch = Launch(Role.COORDINATOR, 0, "test", ID, asked, ("127.0.0.1:1",), output=str(root))
        self.membership = Membership(2, 10)
        store = KeyValueStore(self.membership, 10, lambda *_: None, lambda: None)
        self.checkpoints = RingCheckpoints(
            launch, self.membership, store, CheckpointRecord(metrics.of_server("test", 0, Level.DETAILED))
        )
        self._operations = store._operations

    def ask(self, worker: int, op: str, **more: Any) -> Any:
        return self._operations[op](Asker(worker, 0, 0, None), more)  # type: ignore[arg-type]

    def saved(self, worker: int, step: int, versions: Sequence[int] = (5,)) -> None:
        """A worker has written an empty part, and told its state."""
        self.ask(worker, "saved", part={"step": step, "versions": list(versions), "files": []})
        self.checkpoints.hear_worker(worker, step, b"state")


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    it = Asked(tmp_path)
    yield it
    it.checkpoints.close()


def test_all_workers_get_the_answer_that_the_first_got(asked: Asked) -> None:
    for step, expected in ((1, (False, 3)), (4, (True, 8))):
        answers = [asked.ask(worker, "save", step=step) for worker in (0, 1, 0)]
        assert answers[1:] == answers[:1] * 2
        assert (answers[0]["save"], answers[0]["ask_after"], answers[0]["last"]) == (*expected, False)
    with pytest.raises(ValueError, match="a question about step 3 after one about 4"):
        asked.ask(1, "save", step=3)
    assert not asked.ask(0, "save", step=9)["save"], "one is on its way"


def test_who_is_told_to_end_has_the_next_step_saved_as_the_last(asked: Asked) -> None:
    assert asked.ask(0, "save", step=1) == {"save": False, "ask_after": 3, "last": False}
    assert asked.ask(1, "ending", step=0, ends=True) == {"over": False, "saved": 0}
    answers = [asked.ask(worker, "save", step=3) for worker in (0, 1)]
    assert [(it["save"], it["last"]) for it in answers] == [(True, True)] * 2
    assert not asked.ask(1, "ending", step=3, ends=True)["over"]
    assert not asked.checkpoints.may_end()
    asked.saved(0, 3)
    asked.saved(1, 3)
    eventually(asked.checkpoints.idle)
    assert asked.ask(1, "ending", step=3, ends=True) == {"over": True, "saved": 3}
    assert asked.checkpoints.may_end()


def test_nothing_is_waited_for_without_a_step_or_without_who_makes_the_next(asked: Asked) -> None:
    assert asked.checkpoints.may_end(), "nothing was made"
    asked.ask(0, "save", step=1)
    assert not asked.checkpoints.may_end()
    asked.membership.lost[1] = 0.0
    assert asked.checkpoints.may_end(), "worker-1 is gone, and all make each step together"


def test_a_last_checkpoint_that_cannot_be_saved_is_not_waited_for(asked: Asked) -> None:
    asked.ask(0, "save", step=1)
    asked.ask(1, "ending", step=0, ends=True)
    asked.ask(0, "save", step=3)
    asked.ask(0, "saved", part={"step": 3, "error": "No space left on device"})
    eventually(asked.checkpoints.idle)
    assert asked.ask(1, "ending", step=3, ends=True) == {"over": True, "saved": 0}
    assert asked.checkpoints.may_end()


def test_a_ring_says_after_which_step_it_saved(asked: Asked, tmp_path: Path) -> None:
    assert asked.ask(0, "save", step=4)["save"]
    asked.saved(0, 5)
    asked.saved(1, 4)  # not of it
    asked.saved(1, 5)
    eventually(asked.checkpoints.idle)
    (found,) = checkpoint_folder.complete(tmp_path / "checkpoints")
    made = checkpoint_manifest.read(found)
    assert made is not None
    assert (found.name, made.step, made.versions, made.shards) == ("step-000000005", 5, (5,), 2)


def test_parts_of_other_updates_make_no_checkpoint(
    asked: Asked, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert asked.ask(0, "save", step=4)["save"]
    asked.saved(0, 5, (3, 2))
    asked.saved(1, 5, (2, 3))
    eventually(lambda: "worker-1 is at updates [2, 3], others at [3, 2]" in caplog.text)
    assert asked.checkpoints.idle()
    assert checkpoint_folder.complete(tmp_path / "checkpoints") == []


def test_a_worker_that_leaves_without_its_part_keeps_nobody_waiting(
    asked: Asked, caplog: pytest.LogCaptureFixture
) -> None:
    assert asked.ask(0, "save", step=4)["save"]
    asked.saved(0, 4)
    asked.membership.leave(1, 0)
    asked.checkpoints.look()
    eventually(lambda: "worker-1 has gone without writing its part" in caplog.text)
    assert asked.checkpoints.idle()


@pytest.mark.parametrize(
    "part",
    [
        {},
        {
            "step": 4,
            "versions": [4],
            "files": [{"name": "ps-0.0.parameters.safetensors", "nbytes": 1, "sha256": "a" * 64}],
        },
        {"step": 4, "versions": [4], "files": [{"name": "../../x", "nbytes": 1, "sha256": "a" * 64}]},
        {"step": 4, "versions": [4], "files": [{"name": "ps-1.0.optimizer.safetensors", "nbytes": 1, "sha256": "a"}]},
        {"step": 4, "versions": None, "files": []},
        "part",
    ],
)
def test_what_is_no_part_of_this_worker_is_refused(asked: Asked, part: Any) -> None:
    with pytest.raises(ProtocolError, match="not the files of a part"):
        asked.ask(1, "saved", part=part)
