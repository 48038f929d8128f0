"""The objects beside the pods: made once, brought up to date, and never taken from others."""

import asyncio

import pytest
from kubernetes.aio import client

import paceline_credentials
from paceline_operator.kubernetes_api.owned_objects import OwnedObjects
from paceline_operator.objects.pods import Subject
from paceline_operator.settings import Settings
from tests.operator.api import KEY, Api, Object, Operator, run, running

MONITORING = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
NAMES = {"Service": ("services", "digits"), "NetworkPolicy": ("networkpolicies", "digits")}


def foreign(kind: str, name: str, owner: Object | None = None) -> Object:
    metadata: Object = {"name": name, "namespace": "team", "uid": "foreign"}
    if owner:
        metadata["ownerReferences"] = [owner]
    return {"kind": kind, "metadata": metadata, "spec": {"mine": True}}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("owner", [None, {"kind": "Deployment", "uid": "other"}], ids=["no owner", "another owner"])
def test_what_belongs_to_others_is_left_alone_and_told(kind: str, owner: Object | None) -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator, (plural, name) = Operator(found), NAMES[kind]
        theirs = foreign(kind, name, owner)
        api.others[plural] = {name: theirs}
        api.create()
        await operator.reconcile()
        status = api.status()
        assert (status["phase"], status["reason"]) == ("Pending", "NameTaken")
        assert status["message"] == f"a {kind} digits exists that is not this training's: rename one of them"
        assert api.others[plural][name] == theirs == foreign(kind, name, owner)
        assert api.pods == {}
        assert ("Warning", "NameTaken", status["message"]) in api.events
        del api.others[plural][name]
        await operator.reconcile()
        assert len(api.pods) == 3, "it begins by itself"

    run(test)


def test_a_pod_of_others_is_left_alone_and_told() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        theirs = api.pods["digits-worker-1"] = foreign("Pod", "digits-worker-1")
        api.create()
        await operator.reconcile()
        assert api.status()["reason"] == "NameTaken"
        assert api.status()["message"].startswith("a Pod digits-worker-1 exists that is not this training's")
        assert api.pods["digits-worker-1"] is theirs
        del api.pods["digits-worker-1"]
        await operator.reconcile()
        assert len(api.pods) == 3
        assert api.status()["reason"] == "PodsStarting"

    run(test)


def test_what_is_left_of_an_earlier_training_goes_first() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        api.create()
        await running(api, operator)
        api.create()
        for _ in range(3):
            await operator.reconcile()
            assert "NameTaken" not in str(api.events)
        left = {"kind": "DistributedTraining", "uid": "uid-1"}
        api.pods.clear()
        await operator.reconcile()
        assert api.pods == {}, "its Service and its NetworkPolicy are still there"
        assert api.others["services"]["digits"]["metadata"]["ownerReferences"][0].items() >= left.items()
        api.collect()
        await operator.reconcile()
        uid = api.trainings[KEY]["metadata"]["uid"]
        assert {p["metadata"]["ownerReferences"][0]["uid"] for p in api.pods.values()} == {uid}
        assert api.others["services"]["digits"]["metadata"]["ownerReferences"][0]["uid"] == uid

    run(test)


def sources(api: Api) -> list[Object]:
    """Who reaches the metrics."""
    peers: list[Object] = api.others["networkpolicies"]["digits"]["spec"]["ingress"][1]["from"]
    return peers


def test_a_new_setting_reaches_trainings_that_run_with_one_call_for_each() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        api.create()
        await running(api, Operator(found))
        assert MONITORING not in sources(api)
        new = Operator(found, Settings(metrics_from=(MONITORING,)))
        api.calls.clear()
        await new.reconcile()
        assert MONITORING in sources(api)
        assert [c for c in api.calls if c[1] == "networkpolicies"] == [
            ("GET", "networkpolicies"),
            ("PATCH", "networkpolicies"),
        ]
        api.calls.clear()
        await new.reconcile()
        assert [c for c in api.calls if c[1] == "networkpolicies"] == [], "compared once"
        await Operator(found).reconcile()
        assert MONITORING not in sources(api)

    run(test)


def test_what_is_as_it_should_be_is_not_written() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        api.create()
        await running(api, Operator(found))
        api.calls.clear()
        await Operator(found).reconcile()
        assert {c for c in api.calls if c[1] in ("services", "networkpolicies")} == {("GET", "networkpolicies")}
        api.end("digits-worker-1", code=1)
        operator = Operator(found)
        await operator.reconcile()
        api.age(10)
        await operator.reconcile()
        assert api.status()["attempt"] == 1
        assert len(api.pods) == 3
        assert ("PATCH", "networkpolicies") not in api.calls

    run(test)


def test_a_policy_that_somebody_removed_is_made_anew_and_a_foreign_one_left_alone() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        api.create()
        await running(api, Operator(found))
        del api.others["networkpolicies"]["digits"]
        await Operator(found).reconcile()
        assert sources(api)
        theirs = api.others["networkpolicies"]["digits"] = foreign("NetworkPolicy", "digits")
        await Operator(found).reconcile()
        assert api.others["networkpolicies"]["digits"] is theirs
        assert api.status()["reason"] == "Training", "it runs on"

    run(test)


def test_two_operators_at_once_take_nothing_from_each_other() -> None:
    """One has lost its lease, and does not know it yet."""

    async def test(api: Api, found: client.ApiClient) -> None:
        api.create()
        await asyncio.gather(*(Operator(found).reconcile() for _ in range(3)))
        assert len(api.pods) == 3
        assert api.status()["reason"] == "PodsStarting"

    run(test)


def test_certificates_are_made_once_and_again_only_where_their_secret_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    issue = paceline_credentials.issue
    monkeypatch.setattr(paceline_credentials, "issue", lambda name, *more: made.append(name) or issue(name, *more))

    async def test(api: Api, found: client.ApiClient) -> None:
        owned = OwnedObjects(Operator(found).cluster, Settings())
        subject = Subject.of(api.create())
        for _ in range(3):
            await owned.create(subject)
        ((name, secret),) = api.others["secrets"].items()
        assert made == ["digits"]
        del api.others["secrets"][name]
        await owned.create(subject)
        assert made == ["digits", "digits"]
        assert api.others["secrets"][name]["data"].keys() == secret["data"].keys()

    run(test)
