"""A pod template may be large: processes are handed only what they need, and what no system hands on is refused."""

from typing import Any

import pytest

from paceline_core.launch import Launch, Role
from paceline_core.pod_template import MOST_BYTES
from paceline_core.spec import TrainingSpec
from paceline_core.validation import problems

from .test_validation import PLACE, manifest, workers

LARGE = "x" * 100_000


def a_spec(**given: Any) -> TrainingSpec:
    container = {"name": "trainer", "command": ["python", "train.py"], **given}
    return TrainingSpec.model_validate(manifest()["spec"] | workers(**container))


def test_a_process_is_not_handed_the_templates() -> None:
    variables = [{"name": f"V{i}", "value": LARGE} for i in range(5)]
    spec = a_spec(env=variables, args=[LARGE], resources={"limits": {"nvidia.com/gpu": 4, "cpu": 3}})
    launch = Launch(Role.SERVER, 0, "t", "ab" * 16, spec, ("a:1",))
    handed = launch.to_environment()
    assert max(len(f"{k}={v}") for k, v in handed.items()) < 1000
    read = Launch.from_environment(handed)
    assert read is not None
    assert (read.spec.workers.gpus, read.spec.workers.processes, read.world_size) == (4, 4, 8)
    assert read.spec == spec.without_templates()


def test_a_secret_of_the_workers_is_not_handed_to_the_servers() -> None:
    spec = a_spec(env=[{"name": "TOKEN", "value": "hidden-from-others"}])
    assert "hidden-from-others" not in str(Launch(Role.SERVER, 0, "t", "ab" * 16, spec, ("a:1",)).to_environment())


TOO_LONG = "is longer than 131,071 bytes, the most that Linux hands to a program: put it in a file"


@pytest.mark.parametrize(
    ("container", "where"),
    [
        ({"command": ["python", "-c", "#" * (MOST_BYTES + 1)]}, "command[2]"),
        ({"args": ["é" * MOST_BYTES]}, "args[0]"),
        ({"env": [{"name": "A", "value": "x" * (MOST_BYTES + 1)}]}, "env[0].value"),
        ({"env": [{"name": "A", "value": "x" * (MOST_BYTES - 1)}]}, "env[0]"),
    ],
)
def test_what_no_system_hands_to_a_program_is_refused(container: dict[str, Any], where: str) -> None:
    assert [str(p) for p in problems(manifest(**workers(**container)))] == [f"{PLACE}.{where}: {TOO_LONG}"]


def test_what_fits_is_taken() -> None:
    fits = {"args": ["x" * MOST_BYTES], "env": [{"name": "A", "value": "x" * (MOST_BYTES - 2)}]}
    assert problems(manifest(**workers(**fits))) == []
