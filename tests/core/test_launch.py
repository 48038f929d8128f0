"""The launch contract survives the environment."""

import pytest

from paceline_core.errors import LaunchError
from paceline_core.launch import Launch, Role, Slowdown, replicas
from paceline_core.spec import TrainingSpec

SPEC = TrainingSpec.model_validate(
    {
        "topology": "ParameterServer",
        "parameterServer": {"replicas": 2, "strategy": "Asynchronous"},
        "workers": {"replicas": 3, "template": {"spec": {"containers": [{"name": "trainer", "command": ["x"]}]}}},
    }
)
LAUNCH = Launch(Role.WORKER, 2, "t", "ab" * 16, SPEC, ("a:1", "b:2"), tls="/x", slowdown="30ms")


def test_environment_round_trip() -> None:
    assert Launch.from_environment(LAUNCH.to_environment()) == LAUNCH


def test_no_training_in_the_environment() -> None:
    assert Launch.from_environment({"PATH": "/bin"}) is None


@pytest.mark.parametrize("change", [{"PACELINE_TRAINING_ID": "zz"}, {"PACELINE_ROLE": "boss"}, {"PACELINE_SPEC": "{"}])
def test_a_broken_environment_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(LaunchError, match="PACELINE"):
        Launch.from_environment(LAUNCH.to_environment() | change)


def test_an_incomplete_environment_names_the_variable() -> None:
    environment = LAUNCH.to_environment()
    del environment["PACELINE_SERVERS"]
    with pytest.raises(LaunchError, match="PACELINE_SERVERS"):
        Launch.from_environment(environment)


def test_replicas() -> None:
    assert [f"{role}-{i}" for role, i in replicas(SPEC)] == ["ps-0", "ps-1", "worker-0", "worker-1", "worker-2"]


@pytest.mark.parametrize(("text", "expected"), [("30ms", (0.03, 1)), ("0.5s", (0.5, 1)), ("10x", (0, 10))])
def test_slowdown(text: str, expected: tuple[float, float]) -> None:
    assert (Slowdown.parse(text).seconds, Slowdown.parse(text).factor) == expected


@pytest.mark.parametrize("text", ["", "ms", "0.5x", "-3ms", "fast"])
def test_wrong_slowdown(text: str) -> None:
    with pytest.raises(ValueError, match="not a slowdown"):
        Slowdown.parse(text)
