"""`helm test`, against a real HTTP server and a real operator."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kubernetes.aio import client

from paceline_core import validation
from paceline_operator import helm_test
from paceline_operator.kubernetes_api.cluster import Key
from tests.operator.api import Api, run

NAME = Key("paceline-system", "paceline-test")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helm_test, "POLL_SECONDS", 0.01)


def wanted(*secrets: str) -> dict[str, Any]:
    return helm_test.training(NAME.name, NAME.namespace, "example/trainer:1", secrets)


@contextmanager
def ended(api: Api, phase: str) -> Iterator[None]:
    """An operator that ends each training at once."""

    async def end() -> None:
        while True:
            if NAME in api.trainings:
                api.trainings[NAME]["status"] = {"phase": phase, "message": "as it went"}
            await asyncio.sleep(0)

    task = asyncio.create_task(end())
    yield
    task.cancel()


@pytest.mark.parametrize("secrets", [(), ("registry", "other")])
def test_the_training_is_a_right_one_and_has_the_secrets_of_the_chart(secrets: tuple[str, ...]) -> None:
    found = wanted(*secrets)
    assert validation.problems(found) == []
    pod = found["spec"]["workers"]["template"]["spec"]
    assert pod.get("imagePullSecrets", []) == [{"name": name} for name in secrets]
    assert pod["containers"][0]["image"] == "example/trainer:1"


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_it_waits_for_either_end_and_cleans_up(phase: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        with ended(api, phase):
            assert await helm_test.HelmTest(found, wanted()).run() == phase
        assert api.trainings == {}

    run(test)
    assert f"{phase}: as it went" in capsys.readouterr().out


def test_the_training_of_an_interrupted_test_is_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        api.trainings[NAME] = {**wanted(), "status": {"phase": "Failed", "message": "of old"}}
        with ended(api, "Succeeded"):
            assert await helm_test.HelmTest(found, wanted()).run() == "Succeeded"
        assert api.trainings == {}

    run(test)
    assert "deleting the training of an earlier test" in capsys.readouterr().out
