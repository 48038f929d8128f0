"""Reconciling a training through a real client: what is written, what is posted as events, what polling finds."""

from typing import Any

import pytest
from kubernetes.aio import client

from tests.operator.api import TIME, Api, Operator, answer, finished, run, running
from tests.operator.test_training_answer import FOUND


def test_figures_alone_are_not_written_all_the_time() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        api.create()
        await running(api, operator, step=10)
        written = api.writes
        for step in range(11, 20):
            api.answer = answer(step)
            await operator.poll_until_step(step)
        assert api.writes == written

    run(test)


def test_a_verdict_is_told_when_it_comes_changes_and_ends() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        api.create()
        await running(api, operator)
        api.events.clear()
        for step, verdict in enumerate((FOUND, FOUND, FOUND | {"worker": 0}, None, None, FOUND), start=20):
            api.answer = answer(step, verdict=verdict)
            await operator.poll_until_step(step)
        api.answer = None
        await Operator(found).reconcile(1)  # has not asked yet, and says nothing new
        await finished(api, operator)
        about = [(kind, reason, message.split(":")[0].split(" since")[0]) for kind, reason, message in api.events]
        assert about == [
            ("Warning", "SlowData", "worker-1 makes the others wait"),
            ("Warning", "SlowData", "worker-0 makes the others wait"),
            ("Normal", "NobodyWaits", "worker-0 no longer makes the others wait"),
            ("Warning", "SlowData", "worker-1 makes the others wait"),
            ("Normal", "TrainingSucceeded", "all workers have ended their scripts"),
        ]

    run(test)


def test_a_long_answer_is_read_whole_and_an_endless_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        api.create()
        await running(api, operator)
        api.answer = answer(11, more="x" * (4 << 20))
        await operator.poll_until_step(11)
        monkeypatch.setattr("paceline_operator.kubernetes_api.status_poller.LIMIT_BYTES", 1 << 20)
        api.answer = answer(12, more="x" * (4 << 20))
        asked = api.asked
        await operator.ask(lambda: api.asked > asked + 3)
        assert operator.progress is not None
        assert operator.progress.step == 11

    run(test)


@pytest.mark.parametrize("said", [[], 7, "x", {"workers": []}, {}, float("inf")])
def test_an_answer_that_is_none_does_not_end_the_asking(said: Any) -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        api.create()
        await running(api, operator)
        api.answer, asked = said, api.asked
        await operator.ask(lambda: api.asked > asked + 3)
        assert operator.progress is not None
        assert operator.progress.step == 10
        api.answer = answer(30)
        await operator.poll_until_step(30)

    run(test)


def test_pods_that_are_late_are_asked_about_a_few_at_a_time() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        api.create(workers=5)
        await operator.reconcile()
        api.make(*api.pods)
        uid = api.pods["digits-worker-4"]["metadata"]["uid"]
        about = {"type": "Warning", "reason": "FailedMount", "involvedObject": {"uid": uid}}
        api.pod_events = [about | {"message": 'configmap "missing" not found', "lastTimestamp": TIME}]
        api.calls.clear()
        await operator.reconcile(1)
        assert api.calls.count(("GET", "events")) == 3
        assert api.status()["reason"] == "PodsStarting"
        for times in (2, 3):  # found in the second, and remembered while others are asked about
            await operator.reconcile(1)
            assert api.calls.count(("GET", "events")) == 3 * times
            told = api.status()["reason"], api.status()["message"]
            assert told == ("FailedMount", 'worker-4: configmap "missing" not found')
        api.pod_events = []
        await operator.reconcile(2)
        assert api.status()["reason"] == "PodsStarting"

    run(test)


def test_scripts_that_trained_and_servers_that_take_long_are_not_taken_for_scripts_that_never_joined() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        api.create()
        await running(api, operator)
        assert api.status()["joined"] is True
        api.end("digits-worker-0", "digits-worker-1")
        await Operator(found).reconcile()
        status = api.status()
        assert (status["phase"], status["reason"], status["endedWorkers"]) == ("Running", "ServersEnding", "0-1")
        assert ("Normal", "ServersEnding", status["message"]) in api.events
        await finished(api, operator)
        assert api.status()["reason"] == "TrainingSucceeded"
        assert api.status()["workers"]["summary"] == "2/2"

    run(test)


def test_an_ended_workers_pod_may_go() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        api.create()
        await running(api, operator)
        api.end("digits-worker-0")
        await operator.reconcile()
        del api.pods["digits-worker-0"]
        await Operator(found).reconcile()
        assert sorted(api.pods) == ["digits-ps-0", "digits-worker-1"]
        assert (api.status()["phase"], api.status()["failures"]) == ("Running", [])

    run(test)
