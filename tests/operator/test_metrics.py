"""What the operator exports, from reconciling trainings through a real client."""

import json
import shutil
import subprocess
import time
from typing import Any

import aiohttp
import pytest
from kubernetes.aio import client
from prometheus_client.metrics_core import Metric as Family

from paceline_operator.decisions.goodput import Ledger, Stage
from paceline_operator.kubernetes_api.cluster import CallFailed
from paceline_operator.observability import http_pages, metrics
from paceline_operator.observability.training_series import TrainingSeries, series
from tests.operator.api import KEY, Api, Operator, finished, run, running
from tests.operator.builders import NOW, Scene, value
from tests.operator.test_status import status_of

OF = {"namespace": "team", "training": "digits"}
TRAINING = "paceline_training_"


def of_trainings(operator: Operator) -> dict[tuple[str, Any], float]:
    """All series about single trainings."""
    samples = [s for family in operator.metrics.collect() for s in family.samples if "training" in s.labels]
    return {(s.name, tuple(s.labels.items())): s.value for s in samples}


def test_a_training_from_its_first_pods_to_its_end() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)

        def of(name: str, **labels: str) -> float | None:
            return value(operator.metrics, TRAINING + name, **OF, **labels)

        api.create()
        await operator.reconcile()
        assert of("phase", phase="Pending") == 1
        assert of("reason", reason="PodsStarting") == 1
        assert of("replicas", role="worker", state="pending") == 2
        assert of("step") is None
        await running(api, operator)
        info = {"uid": "uid-1", "mode": "Synchronous", "device": "cpu", "level": "Detailed"}
        assert of("info", **info) == 1
        assert (of("phase", phase="Running"), of("phase", phase="Pending")) == (1, 0)
        assert (
            of("condition", condition="Ready", status="True"),
            of("condition", condition="Ready", status="False"),
        ) == (1, 0)
        assert [of("replicas", role=r, state="ready") for r in ("worker", "server")] == [2, 1]
        assert (of("step"), of("target_steps"), of("progress_ratio")) == (10, 40, 0.25)
        now, last, end = time.time(), of("last_step_timestamp_seconds"), of("estimated_completion_timestamp_seconds")
        assert last == pytest.approx(now, abs=5)
        assert end == pytest.approx((last or 0) + 30 * 0.4 / 30)
        assert value(operator.metrics, "paceline_trainings_finished_total", result="Succeeded") is None
        await finished(api, operator)
        assert of("phase", phase="Succeeded") == 1
        assert of("replicas", role="server", state="pending") == 0, "what the end removed is not awaited"
        status = api.status()
        assert of("productive_seconds_total") == status["goodput"]["productiveSeconds"]
        assert of("badput_seconds_total", reason="straggler") == status["goodput"]["lostSeconds"]["straggler"]
        assert of("badput_seconds_total", reason="checkpoint") == 0

    run(test)


def test_each_end_is_counted_once_and_outlives_the_training() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        names = (
            "paceline_trainings_finished_total",
            f"{TRAINING}startup_seconds_count",
            f"{TRAINING}duration_seconds_count",
        )
        for count in (1, 2):
            api.create()
            await running(api, operator)
            await finished(api, operator)
            await operator.reconcile()
            del api.trainings[KEY]
            await operator.reconcile(1)
            api.collect()
            assert [value(operator.metrics, name, result="Succeeded") for name in names] == [count] * 3
        assert of_trainings(operator) == {}

    run(test)


def test_a_new_operator_exports_the_same_and_does_not_count_old_ends() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        old, new = Operator(found), Operator(found)
        api.create()
        await running(api, old)
        api.end("digits-worker-1", code=1)
        await old.reconcile()
        restarts = ("restarts_total", {"role": "worker", "reason": "crash"})
        assert value(old.metrics, TRAINING + restarts[0], **OF, **restarts[1]) == 1
        assert api.pods == {}, "it waits before it begins anew"
        api.age(10)
        await running(api, old, step=5)
        await finished(api, old)
        await new.reconcile()
        assert of_trainings(new) == of_trainings(old)
        assert value(new.metrics, TRAINING + restarts[0], **OF, **restarts[1]) == 1
        assert value(old.metrics, "paceline_trainings_finished_total", result="Succeeded") == 1
        assert value(new.metrics, "paceline_trainings_finished_total", result="Succeeded") is None
        assert api.status()["goodput"]["lostSeconds"]["rework"] > 0, "steps were made again"

    run(test)


@pytest.mark.parametrize("how", ["deleted", "being deleted", "given away"])
def test_a_training_that_is_no_longer_here_is_not_exported(how: str) -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        api.create()
        await running(api, operator)
        assert of_trainings(operator) != {}
        if how == "deleted":
            del api.trainings[KEY]
        elif how == "being deleted":
            api.trainings[KEY]["metadata"]["deletionTimestamp"] = "2026-11-24T10:00:00Z"
        else:
            api.change("runPolicy.managedBy", "example.com/other")
        await operator.reconcile(1)
        assert of_trainings(operator) == {}
        assert operator.progress is None

    run(test)


def test_a_training_made_anew_under_the_same_name_begins_at_nothing() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        api.create()
        await running(api, operator)
        await finished(api, operator)
        api.create()  # both in one reconciliation
        await operator.reconcile(1)
        exported = of_trainings(operator)
        assert "uid-1" not in str(exported)
        assert value(operator.metrics, f"{TRAINING}productive_seconds_total", **OF) == 0
        assert value(operator.metrics, f"{TRAINING}step", **OF) is None

    run(test)


def test_what_cannot_run_is_exported_and_counted_too() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        api.create()
        api.change("nonsense", 1)
        await operator.reconcile()
        assert value(operator.metrics, f"{TRAINING}reason", **OF, reason="InvalidSpec") == 1
        assert value(operator.metrics, "paceline_trainings_finished_total", result="Failed") == 1
        assert value(operator.metrics, f"{TRAINING}duration_seconds_count", result="Failed") is None

    run(test)


def test_time_passes_in_the_series_and_not_in_the_resource() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        api.create()
        await operator.reconcile()
        written = api.writes
        api.age(2000)
        await operator.reconcile()
        assert api.writes == written, "nothing has changed"
        lost = value(operator.metrics, f"{TRAINING}badput_seconds_total", **OF, reason="pending")
        assert lost is not None
        assert lost > 1000

    run(test)


def test_a_counter_never_goes_back() -> None:
    """The workers trained before the operator heard of it: startup was shorter than was exported meanwhile."""
    collector = TrainingSeries()

    def exported(ledger: Ledger) -> dict[str, float]:
        collector.update(KEY, {"metadata": {"uid": "u"}, "status": {"goodput": ledger.to_status()}})
        lost = next(f for f in collector.collect() if f.name == f"{TRAINING}badput_seconds")
        return {s.labels["reason"]: s.value for s in lost.samples if s.value}

    now = time.time()
    assert exported(Ledger(now - 30, Stage.STARTUP))["startup"] == pytest.approx(30, abs=5)
    assert exported(Ledger(now, Stage.TRAINING, {"startup": 20.0}))["startup"] == pytest.approx(30, abs=5)
    assert exported(Ledger(now, Stage.TRAINING, {"startup": 50.0}))["startup"] == 50
    collector.forget(KEY)
    assert exported(Ledger(now, Stage.TRAINING, {"startup": 20.0}))["startup"] == 20


def test_errors_are_counted_where_they_happen() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)

        def errors(code: str) -> float | None:
            return value(operator.metrics, "paceline_operator_api_errors_total", code=code)

        await operator.reconcile(1)
        assert errors("404") == 1, "there is no such training"
        api.broken = True
        with pytest.raises(CallFailed):
            await operator.reconcile(1)
        assert errors("500") is not None
        durations = "paceline_operator_reconcile_duration_seconds_count"
        assert value(operator.metrics, durations, handler="training", result="ok") == 1
        assert value(operator.metrics, durations, handler="training", result="error") == 1
        counted = "paceline_operator_reconcile_errors_total"
        assert value(operator.metrics, counted, handler="training", reason="CallFailed") == 1
        async with client.ApiClient(client.Configuration(host="http://127.0.0.1:9")) as nobody:
            operator.cluster._api = nobody
            with pytest.raises(aiohttp.ClientError):
                await operator.reconcile(1)
        assert errors("none") == 1

    run(test)


async def scraped(operator: Operator) -> str:
    runner = await http_pages.serve("127.0.0.1:0", operator.metrics, operator.health)
    try:
        async with aiohttp.ClientSession() as session:
            host, port = runner.addresses[0]
            async with session.get(f"http://{host}:{port}/metrics") as response:
                return await response.text()
    finally:
        await runner.cleanup()


def exported(operator: Operator) -> dict[str, Family]:
    return {f.name: f for f in operator.metrics.collect() if f.name.startswith("paceline_") and f.samples}


async def everything(api: Api, operator: Operator) -> dict[str, Family]:
    """The life of an operator in which everything happens that it has a metric for."""
    operator.metrics.became_leader()
    operator.health.checked()
    for _ in range(2):
        operator.health.pods.seen("a", "1", first=True)
    api.create()
    await running(api, operator)
    found = exported(operator)
    api.end("digits-worker-1", code=1)
    await operator.reconcile()
    operator.metrics.finished({"phase": "Failed", "goodput": api.status()["goodput"]})
    api.broken = True
    with pytest.raises(CallFailed):
        await operator.reconcile(1)
    return found | exported(operator)


def test_everything_declared_is_exported_as_declared() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        families = await everything(api, Operator(found))
        for metric in metrics.DECLARED:
            family = families.pop(metric.name.removesuffix("_total"))
            assert (family.type, family.documentation) == (metric.kind, metric.help)
            assert {frozenset(s.labels) - {"le"} for s in family.samples} == {frozenset(metric.labels)}, metric.name
        assert families == {}

    run(test)


def test_promtool_takes_what_is_served() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        await everything(api, operator)
        text = await scraped(operator)
        for name in ("paceline_operator_is_leader 1.0", "process_resident_memory_bytes", "python_info", TRAINING):
            assert name in text
        assert "_created" not in text
        promtool = shutil.which("promtool")
        if promtool is None:
            pytest.skip("needs promtool, of Debian's package prometheus")
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
        complaints = [line for line in done.stderr.splitlines() if not line.startswith(("python_", "process_"))]
        assert complaints == []

    run(test)


def test_series_come_from_the_status_alone() -> None:
    assert list(series("u", {})) == [], "nobody has looked at it yet"
    found = status_of(Scene().running())
    first = list(series("u", found))
    assert first == list(series("u", json.loads(json.dumps(found))))
    assert len(first) < 50
    assert NOW not in [v for _, _, v in first]
