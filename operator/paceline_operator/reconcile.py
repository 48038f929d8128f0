"""Reconciles one training with its resource: observe, decide, persist or act, one status write, events."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from paceline_core.errors import SpecError
from paceline_core.launch import Role
from paceline_operator.decisions import observe, resumption, status, training_answer
from paceline_operator.decisions.decide import decide
from paceline_operator.decisions.decision import Decision, Observed
from paceline_operator.decisions.observe import Pod
from paceline_operator.decisions.persisted_state import PersistedState, text
from paceline_operator.kubernetes_api import owned_objects
from paceline_operator.kubernetes_api.cluster import Cluster, Conflict, Key, Object, ObjectRefused
from paceline_operator.kubernetes_api.kubelet import KubeletWarnings
from paceline_operator.kubernetes_api.owned_objects import OwnedObjects
from paceline_operator.kubernetes_api.status_poller import StatusPoller
from paceline_operator.kubernetes_api.watch_health import Health
from paceline_operator.objects import pods
from paceline_operator.objects.labels import MANAGER
from paceline_operator.objects.pods import Subject
from paceline_operator.observability.metrics import Metrics
from paceline_operator.observability.training_series import TrainingSeries
from paceline_operator.settings import Settings

SOON_SECONDS = 1.0
REFUSED_SECONDS = 15.0
WRITE_SECONDS = 10.0  # between two writes of a status in which only figures have changed
FIGURES = ("step", "progress", "loss", "reported", "totalSteps", "lastStepTime", "goodput", "checkpoint")
GOOD = ("PodsStarting", "WorkersJoining", "Training", "ServersEnding", "Suspended", "TrainingSucceeded")
log = logging.getLogger("paceline.operator")


class Reconciler:
    """`reconcile(key)` may be called at any time and any number of times."""

    def __init__(
        self,
        cluster: Cluster,
        poller: StatusPoller,
        settings: Settings,
        health: Health,
        metrics: Metrics,
        series: TrainingSeries,
    ) -> None:
        self._cluster, self._poller, self._settings = cluster, poller, settings
        self._health, self._metrics, self._series = health, metrics, series
        self._owned_objects, self._kubelet_warnings = OwnedObjects(cluster, settings), KubeletWarnings(cluster)
        self._written: dict[Key, float] = {}  # when the status was last written

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile once; gives the seconds after which to do so again."""
        training = await self._cluster.training(key)
        if training is None or training["metadata"].get("deletionTimestamp") or not _is_ours(training):
            self._forget(key)
            return None
        self._series.update(key, training)
        try:
            return await self._reconcile(key, training)
        except Conflict:
            return SOON_SECONDS

    def _forget(self, key: Key) -> None:
        self._poller.forget(key)
        self._series.forget(key)
        self._owned_objects.forget(key)
        self._kubelet_warnings.forget(key)
        self._written.pop(key, None)

    async def _reconcile(self, key: Key, training: Object) -> float | None:
        subject = await self._subject(training)
        if subject is None:
            return None
        items = await self._cluster.pods(key)
        self._health.pods.listed(versions(items))
        pods = observe.pods(items, subject.uid)
        state, now = PersistedState.from_status(training.get("status", {})), time.time()
        if state.reason == "InvalidSpec" and state.generation != training["metadata"]["generation"]:
            state = PersistedState()  # it was mended
        generation = training["metadata"]["generation"]
        it = Observed(subject.spec, key.namespace, generation, state, pods, now, self._settings.decisions)
        progress = training_answer.final_progress(it.current) or self._poller.follow(key, _server(it))
        told = training_answer.checkpoint_at_failure(it.current)
        it = replace(it, joined=told is not None or (progress is not None and progress.training))
        it = replace(it, replaceable=progress.replaceable if progress is not None else None)
        decision = decide(it)
        if decision.state == state:
            try:
                await self._act(subject, it, decision, observe.earlier(items, subject.uid))
            except ObjectRefused as problem:
                return await self._refuse(training, problem)
        warnings = await self._kubelet_warnings.warnings(key, pods, now)
        it = replace(it, state=decision.state)
        after = status.status(it, decision, progress, warnings, training.get("status", {}))
        wait = await self._write(training, after, now)
        return min((t for t in (decision.requeue_after, wait) if t is not None), default=None)

    async def _subject(self, training: Object) -> Subject | None:
        """The training as a model; None, with a condition that says why, when it cannot be run as it is written."""
        wrong: Sequence[str]
        try:
            subject = Subject.of(training)
            wrong = pods.problems(subject)
        except SpecError as error:
            subject, wrong = None, error.problems
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            subject, wrong = None, [f"a pod template cannot be read: {type(error).__name__}: {error}"]
        if not wrong:
            return subject
        await self._fail(training, "InvalidSpec", wrong)
        return None

    async def _refuse(self, training: Object, problem: ObjectRefused) -> float | None:
        if problem.permanent:
            await self._fail(training, problem.reason, [str(problem)])
            return None
        now, before = time.time(), training.get("status", {})
        generation = training["metadata"]["generation"]
        await self._write(training, status.refused(generation, now, before, problem.reason, [str(problem)], True), now)
        return REFUSED_SECONDS

    async def _fail(self, training: Object, reason: str, problems: Sequence[str]) -> None:
        now, before = time.time(), training.get("status", {})
        after = status.refused(training["metadata"]["generation"], now, before, reason, problems)
        if before.get("phase") not in ("Succeeded", "Failed") or before.get("reason") == reason:
            after.setdefault("completionTime", text(now))
            await self._write(training, after, now)

    async def _act(self, subject: Subject, it: Observed, decision: Decision, earlier: bool) -> None:
        """Carry out a decision; pods of an earlier training of this name go first. Raises ObjectRefused, Conflict."""
        key = Key(subject.namespace, subject.name)
        if decision.remove:
            await self._cluster.delete_training(key, subject.uid)
            return
        overdue = {p.uid for p in decision.kill}
        await asyncio.gather(
            *(
                self._cluster.delete_pod(key.namespace, p.name, p.uid, at_once=p.uid in overdue)
                for p in (*decision.delete, *decision.kill)
            )
        )
        if decision.create and not earlier:
            await self._owned_objects.create(subject)
            made = [self._create(subject, it, role, i) for role, i in decision.create]
            for problem in await asyncio.gather(*made, return_exceptions=True):
                if problem is not None:
                    raise problem  # of the first pod, whichever was answered first: the message does not change
        elif it.pods and it.state.result is None:
            await self._owned_objects.update(subject)

    async def _create(self, subject: Subject, it: Observed, role: Role, ordinal: int) -> None:
        # A pod made later has a greater incarnation, whatever the operator knows of those before it.
        incarnation = max(0, int(it.now - it.state.attempt_start))
        pod = pods.pod(subject, role, ordinal, it.state.attempt, incarnation, resumption.resumes(it))
        if not await self._cluster.create_pod(pod):
            name = pod["metadata"]["name"]
            owned_objects.check_owner(await self._cluster.pod(subject.namespace, name), subject, "Pod", name)

    async def _write(self, training: Object, after: Object, now: float) -> float | None:
        """Write the status if it has changed, figures alone not too often; then tell what is new, once it is there."""
        key = Key(training["metadata"]["namespace"], training["metadata"]["name"])
        before = training.get("status", {})
        wait = self._written.get(key, 0.0) + WRITE_SECONDS - now
        quiet = _without(after, FIGURES) == _without(before, FIGURES)
        if after == before or (quiet and wait > 0):
            return None if after == before else wait
        await self._cluster.write_status(training, after)
        self._written[key] = now
        self._series.update(key, {**training, "status": after})
        if "completionTime" in after and "completionTime" not in before:
            self._metrics.finished(after)
        await self._post_events(training, before, after, now)
        return None

    async def _post_events(self, training: Object, before: Object, after: Object, now: float) -> None:
        """Post what is new as events."""
        if (before.get("phase"), before.get("reason")) != (after["phase"], after["reason"]):
            kind = "Normal" if after["reason"] in GOOD else "Warning"
            await self._cluster.post_event(training, kind, after["reason"], after["message"], now)
        was, is_now = _straggler(before), _straggler(after)
        condition = _condition(after, status.STRAGGLING)
        if is_now is not None and is_now != was:
            await self._cluster.post_event(training, "Warning", condition["reason"], condition["message"], now)
        if was is not None and is_now is None and after["phase"] == "Running":
            message = f"{was} no longer makes the others wait"
            await self._cluster.post_event(training, "Normal", condition["reason"], message, now)


def versions(items: Sequence[Object]) -> dict[str, str]:
    """The resource version of each object, by uid."""
    return {i["metadata"]["uid"]: i["metadata"]["resourceVersion"] for i in items}


def _is_ours(training: Object) -> bool:
    return bool((training["spec"].get("runPolicy") or {}).get("managedBy", MANAGER) == MANAGER)


def _server(it: Observed) -> Pod | None:
    """Shard 0 or the coordinator of this attempt, while it runs."""
    if it.state.result is not None:
        return None
    first = (p for p in it.current if not p.is_worker and p.ordinal == 0)
    return next((p for p in first if p.phase == "Running" and p.terminating is None), None)


def _straggler(of: Mapping[str, Any]) -> str | None:
    """The worker that makes the others wait."""
    return of.get("slowestWorker") if _condition(of, status.STRAGGLING).get("status") == "True" else None


def _condition(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next((c for c in of.get("conditions", ()) if c["type"] == name), {})


def _without(value: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A status without what changes all the time."""
    kept = {k: v for k, v in value.items() if k not in names}
    kept["conditions"] = [{k: v for k, v in c.items() if k != "message"} for c in kept.get("conditions", ())]
    return kept
