"""Going on from checkpoints: which attempts do, what the status shows, and what is said."""

import json
from dataclasses import replace
from typing import Any

import pytest
from kubernetes.aio import client

from paceline_core.launch import NEWEST, Launch, Role
from paceline_operator.decisions import resumption, training_answer
from paceline_operator.decisions.decide import decide
from paceline_operator.decisions.observe import End
from paceline_operator.decisions.persisted_state import PersistedState
from paceline_operator.decisions.training_answer import CheckpointTold, TrainingProgress
from paceline_operator.objects import pods
from tests.operator.api import Api, Operator, run, running
from tests.operator.builders import NOW, Scene, a_spec, a_subject
from tests.operator.test_decide import settle
from tests.operator.test_pods import environment
from tests.operator.test_status import SLOW, status_of

SAVES = {"everySteps": 50, "to": "/checkpoints"}
SAVED = CheckpointTold(150, NOW, 12)
TOLD = {"step": 150, "time": NOW, "updates_since": 12, "failed": 2, "resumed_from": 100}


def saving(resume: str | None = None, **more: Any) -> dict[str, Any]:
    return a_spec(checkpoint=SAVES | ({"resume": resume} if resume else {}), **more)


@pytest.mark.parametrize(
    ("raw", "trained", "expected"),
    [
        (a_spec(), True, False),
        (saving(), False, False),
        (saving(), True, True),
        (saving("Never"), False, False),
        (saving("Auto"), False, True),
        (saving("Auto"), True, True),
    ],
)
def test_who_goes_on_from_the_newest_checkpoint(raw: dict[str, Any], trained: bool, expected: bool) -> None:
    assert resumption.resumes(Scene(raw, trained=trained).observed) is expected


@pytest.mark.parametrize(("role", "name"), [(Role.WORKER, "trainer"), (Role.SERVER, "server")])
@pytest.mark.parametrize("resumes", [True, False])
def test_every_pod_is_told_whether_to_go_on(role: Role, name: str, resumes: bool) -> None:
    launch = Launch.from_environment(environment(pods.pod(a_subject(saving()), role, 0, 1, 0, resumes), name))
    assert launch is not None
    assert launch.resume == (NEWEST if resumes else None)


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("suspended", [True, False])
def test_with_never_only_what_an_attempt_that_trained_has_saved_is_gone_on_from(joined: bool, suspended: bool) -> None:
    """A training whose pods never ran may stand before a folder of others, also at its second attempt."""
    scene = Scene(saving(), joined=joined).running()
    if suspended:
        scene.state = replace(scene.state, suspended=True)
    else:
        scene.fail("ps-0")
        settle(scene)
        scene.pods.clear()
        scene.now += 10
    settle(scene)
    assert scene.state.attempt == 1
    assert (scene.state.trained, scene.state.joined) == (joined, False)
    assert resumption.resumes(scene.observed) is joined
    assert PersistedState.from_status(scene.state.to_status()).trained is joined
    assert scene.state.next_attempt(scene.now).trained is joined, "and so on"


def test_the_newest_checkpoint_is_shown_and_stays_until_another_is_told_of() -> None:
    scene = Scene(saving()).running()
    first = status_of(scene, replace(SLOW, checkpoint=SAVED))
    assert first["checkpoint"] == {
        "step": 150, "time": "1970-01-12T13:46:40Z", "updatesSince": 12, "failedSaves": 0,
    }  # fmt: skip
    scene.state = replace(scene.state, attempt=1)
    assert status_of(scene, None, first)["checkpoint"] == first["checkpoint"], "in a new attempt too"
    assert status_of(scene, SLOW, first)["checkpoint"] == first["checkpoint"], "an answer of an older trainer"
    none = status_of(scene, replace(SLOW, checkpoint=CheckpointTold(failed=1)), first)
    assert none["checkpoint"] == {"failedSaves": 1}
    assert "checkpoint" not in status_of(Scene().running(), replace(SLOW, checkpoint=SAVED)), "it saves none"


@pytest.mark.parametrize(
    ("raw", "told", "expected"),
    [
        (a_spec(), None, "Everything begins anew"),
        (saving(), None, "Everything begins anew, for no checkpoint has been saved yet"),
        (saving(), CheckpointTold(failed=3), "Everything begins anew, for no checkpoint has been saved yet"),
        (saving("Auto"), None, "The training goes on from its newest checkpoint, if there is one"),
        (saving(), SAVED, "The training goes on from the checkpoint of step 150 (12 updates are made again)"),
        (
            saving(),
            CheckpointTold(150, NOW, 1),
            "The training goes on from the checkpoint of step 150 (1 update is made again)",
        ),
        (saving(), CheckpointTold(150, NOW, 0), "The training goes on from the checkpoint of step 150"),
    ],
)
def test_a_restart_says_from_where_it_goes_on(raw: dict[str, Any], told: CheckpointTold | None, expected: str) -> None:
    scene = Scene(raw).running()
    before = status_of(scene, replace(SLOW, checkpoint=told))
    scene.change("ps-0", terminating=scene.now + 30)
    settle(scene)
    found = status_of(scene, None, before)
    assert (found["phase"], found["reason"]) == ("Restarting", "PodDeleted")
    assert found["message"] == (
        f"ps-0: its pod was deleted. {expected}: restart 1 (0 of 3 that runPolicy.backoffLimit allows are used)"
    )


def test_what_a_server_leaves_when_it_fails_is_newer_than_what_was_heard() -> None:
    scene = Scene(saving()).running()
    before = status_of(scene, replace(SLOW, checkpoint=SAVED))
    details = {"kind": "PeerLost", "message": "worker-1 was lost", "victim": True, "checkpoint": TOLD | {"step": 200}}
    scene.fail("worker-1").fail("ps-0", details=details)
    settle(scene)
    assert "from the checkpoint of step 200 (12 updates are made again)" in status_of(scene, None, before)["message"]


def test_what_a_server_saved_before_it_ended_as_it_was_told_to_is_newer_than_what_was_heard() -> None:
    scene = Scene(saving()).running()
    before = status_of(scene, replace(SLOW, checkpoint=SAVED))
    scene.change("worker-1", terminating=scene.now + 30)
    settle(scene)
    scene.change("ps-0", end=End(0, details={"summary": {"checkpoint": TOLD | {"step": 163, "updates_since": 0}}}))
    message = status_of(scene, None, before)["message"]
    assert "goes on from the checkpoint of step 163: restart 1 (0 of 3" in message


def test_a_suspended_training_and_one_that_goes_on_say_so() -> None:
    scene = Scene(saving()).running()
    before = status_of(scene, replace(SLOW, checkpoint=replace(SAVED, resumed_from=100)))
    assert before["message"] == "all workers train; this attempt went on from the checkpoint of step 100"
    assert status_of(scene, None, before)["message"] == before["message"], "an operator that was just started"
    scene = Scene(saving(runPolicy={"suspend": True}), suspended=True)
    suspended = status_of(scene, None, before)
    assert suspended["message"] == (
        "runPolicy.suspend is true: set it to false to run the training, which goes on from the checkpoint of step 150"
    )


SAID: dict[str, Any] = {"workers": [], "verdict": None, "missing": []}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (TOLD, CheckpointTold(150, NOW, 12, 2, 100)),
        ({"step": None, "time": None, "updates_since": None, "failed": 0, "resumed_from": None}, CheckpointTold()),
        (None, None),
        (7, None),
        ({"step": -1}, None),
        ({"step": True}, None),
        ({"step": "150"}, None),
        ({"step": 1, "failed": "many"}, None),
        ({"step": 1, "time": 1e300}, CheckpointTold(1)),
    ],
)
def test_what_a_pod_tells_of_checkpoints_is_read_with_care(told: Any, expected: CheckpointTold | None) -> None:
    found = TrainingProgress.from_status(SAID | {"checkpoint": told}, NOW).checkpoint
    assert found == expected
    scene = Scene(saving()).running().fail("ps-0", details={"kind": "PeerLost", "checkpoint": told})
    assert training_answer.checkpoint_at_failure(scene.observed.pods) == expected


def test_updates_since_alone_are_no_news() -> None:
    assert replace(SAVED, updates_since=13) == SAVED
    assert replace(SLOW, checkpoint=SAVED) != replace(SLOW, checkpoint=replace(SAVED, step=200))


MOUNT = {"name": "work", "mountPath": "/checkpoints"}
CLAIM = {"name": "work", "persistentVolumeClaim": {"claimName": "work"}}
WHERE = "spec.checkpoint.to: /checkpoints/a is"


def servers(mount: dict[str, Any] | None = None, volume: dict[str, Any] = CLAIM) -> dict[str, Any]:
    container = {"name": "server", "volumeMounts": [mount] if mount else []}
    return {"template": {"spec": {"containers": [container], "volumes": [volume]}}}


@pytest.mark.parametrize(
    ("given", "to", "said"),
    [
        ({}, None, "spec.checkpoint.to: is required in a cluster: a folder on a volume that is mounted by the servers "
         "(spec.parameterServer.template, container `server`)"),
        ({}, "/checkpoints/a", f"{WHERE} on no volume of the servers: mount one there in spec.parameterServer.template, "
         "container `server`"),
        (servers(), "/checkpoints/a", f"{WHERE} on no volume of the servers"),
        (servers(MOUNT), "/checkpoints/a", None),
        (servers(MOUNT), "/checkpoints", None),
        (servers(MOUNT), "/checkpoints/", None),
        (servers(MOUNT | {"mountPath": "/checkpoints/"}), "/checkpoints/a", None),
        ({}, "s3://bucket/some/where", None),
        (servers(MOUNT), "/checkpoints2", "/checkpoints2 is on no volume"),
        (servers(MOUNT), "/checkpoints/../tmp", "is on no volume"),
        (servers(MOUNT | {"readOnly": True}), "/checkpoints/a", f"{WHERE} on the volume work, which is mounted readOnly by the servers"),
        (servers(MOUNT, {"name": "work", "emptyDir": {}}), "/checkpoints/a",
         f"{WHERE} on the volume work, an emptyDir, which is gone with its pod: use a persistentVolumeClaim"),
    ],
)  # fmt: skip
def test_the_folder_must_be_on_a_volume_of_the_servers(given: dict[str, Any], to: str | None, said: str | None) -> None:
    raw = a_spec(checkpoint={"everySteps": 5} | ({"to": to} if to else {}))
    raw["parameterServer"] |= given
    found = "; ".join(pods.problems(a_subject(raw)))
    assert found == "" if said is None else said in found


@pytest.mark.parametrize(
    ("strategy", "member", "role"),
    [("Synchronous", "parameterServer", Role.SERVER), ("AllReduce", "allReduce", Role.COORDINATOR)],
)
def test_who_writes_to_an_object_store_has_the_credentials_that_its_template_names(
    strategy: str, member: str, role: Role
) -> None:
    raw = a_spec(strategy=strategy, checkpoint={"everySteps": 5, "to": "s3://bucket/some"})
    raw["workers"]["template"]["spec"]["serviceAccountName"] = "saves"
    plain = pods.pod(a_subject(raw), role, 0, 0, 0)["spec"]
    assert plain["serviceAccountName"] == "saves", "without a template of their own"
    secret = [{"secretRef": {"name": "s3-credentials"}}]
    raw.setdefault(member, {})["template"] = {"spec": {"containers": [{"name": "server", "envFrom": secret}]}}
    assert pods.problems(a_subject(raw)) == []
    (server,) = pods.pod(a_subject(raw), role, 0, 0, 0)["spec"]["containers"]
    (trainer,) = pods.pod(a_subject(raw), Role.WORKER, 0, 0, 0)["spec"]["containers"]
    assert server["envFrom"] == secret
    assert server["image"] == trainer["image"]
    assert "envFrom" not in trainer


def test_in_a_ring_the_coordinator_and_every_worker_mount_the_folder() -> None:
    raw = a_spec(strategy="AllReduce", checkpoint={"everySteps": 5, "to": "/checkpoints"})
    said = "on no volume of the coordinator: mount one there in spec.allReduce.template, container `server`"
    assert said in str(pods.problems(a_subject(raw)))
    raw["allReduce"] = servers(MOUNT)
    said = "on no volume of the workers: mount one there in spec.workers.template, container `trainer`"
    assert said in str(pods.problems(a_subject(raw)))
    pod = raw["workers"]["template"]["spec"]
    pod["containers"][0]["volumeMounts"], pod["volumes"] = [MOUNT], [CLAIM]
    assert pods.problems(a_subject(raw)) == []


def test_workers_alone_may_mount_nothing() -> None:
    raw = saving()
    raw["parameterServer"] |= servers(MOUNT)
    worker = pods.pod(a_subject(raw), Role.WORKER, 0, 0, 0)["spec"]
    assert "work" not in {v["name"] for v in worker["volumes"]}
    server = pods.pod(a_subject(raw), Role.SERVER, 0, 0, 0)["spec"]
    assert CLAIM in server["volumes"]
    assert MOUNT in server["containers"][0]["volumeMounts"]


def test_decisions_go_on_as_without_checkpoints() -> None:
    scene = Scene(saving("Auto"))
    assert len(decide(scene.observed).create) == 3


def told(pod: dict[str, Any]) -> str | None:
    """From which checkpoint a pod that the operator has made goes on."""
    launch = Launch.from_environment(environment(pod, pod["spec"]["containers"][0]["name"]))
    assert launch is not None
    return launch.resume


@pytest.mark.parametrize("heard", [True, False])
def test_pods_that_the_operator_makes_anew_go_on(heard: bool) -> None:
    """Also when nobody heard that the training trains, before its server failed and left word of what it has saved."""

    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        mounted = {"strategy": "Synchronous", **servers(MOUNT)}
        api.create(checkpoint=SAVES, parameterServer=mounted)
        if heard:
            await running(api, operator)
        else:
            await operator.reconcile()
            api.start()
            await operator.reconcile()
        assert {told(pod) for pod in api.pods.values()} == {None}
        left = {"kind": "PeerLost", "message": "worker-1 was lost", "victim": True, "checkpoint": TOLD}
        api.end("digits-worker-1", code=1)
        api.end("digits-ps-0", code=1, message=json.dumps({} if heard else left))
        await operator.reconcile()
        status = api.status()
        assert status["phase"] == "Restarting"
        assert ("from the checkpoint of step 150 (12 updates" in status["message"]) is not heard
        api.age(10)
        await operator.reconcile(8)
        assert len(api.pods) == 3
        assert {told(pod) for pod in api.pods.values()} == {NEWEST}
        assert api.status()["trained"] is True

    run(test)
