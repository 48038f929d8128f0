"""The calls to the API server: every one that the operator makes, beside the watches, is here.

They are made through the client's lowest layer. Its typed methods check bodies against models of their own, which
refuse what the API server takes: a limit written as a number, or a field of a newer Kubernetes in a pod template.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import aiohttp
from kubernetes.aio import client

from paceline_operator.decisions.persisted_state import text
from paceline_operator.objects import labels
from paceline_operator.observability.metrics import Metrics

Object = dict[str, Any]
MERGE, JSON = "application/merge-patch+json", "application/json"
NETWORK_POLICIES = "/apis/networking.k8s.io/v1", "networkpolicies"
RESOURCE = f"/apis/{labels.GROUP}/{labels.VERSION}"
IN_FLIGHT = 50  # writes at once
CALL_SECONDS = 30.0
BAD_REQUEST, NOT_FOUND, CONFLICT, INVALID = 400, 404, 409, 422
DENIED = (" denied the request", " denied request: ")  # by an admission webhook; by an admission policy


@dataclass(frozen=True)
class Key:
    """Namespace and name of a training."""

    namespace: str
    name: str


class CallFailed(Exception):
    """The API server answered with an error; `code` is that of HTTP, `reason` that of Kubernetes."""

    def __init__(self, code: int, message: str, reason: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.reason = code, message, reason

    @property
    def denied(self) -> bool:
        """Whether somebody's admission policy or webhook did it, with whatever code they chose."""
        return any(words in self.message for words in DENIED)


# Of an API server that restarts, is busy, or cannot be reached.
TEMPORARY_ERRORS = (CallFailed, aiohttp.ClientError, OSError)


class Conflict(Exception):
    """The resource changed meanwhile: reconcile again."""


class ObjectRefused(Exception):
    """An object cannot be made: `reason` for programs, the text for people; `permanent` when it never can."""

    def __init__(self, reason: str, message: str, permanent: bool = False) -> None:
        super().__init__(message)
        self.reason, self.permanent = reason, permanent

    @classmethod
    def from_error(cls, error: CallFailed, what: str) -> "ObjectRefused":
        """From an API server's answer. Only an object that it cannot read or that is invalid will never be taken."""
        permanent = error.code in (BAD_REQUEST, INVALID) and not error.denied
        again = "" if permanent else ", and is asked again"
        reason = "InvalidSpec" if permanent else "PodRefused"
        return cls(reason, f"the API server refuses a {what}{again}: {error.message}", permanent)


class Cluster:
    """Plain objects in and out. Raises CallFailed where nothing else is said."""

    def __init__(self, api: client.ApiClient, metrics: Metrics) -> None:
        self._api, self._metrics = api, metrics
        self._writes = asyncio.Semaphore(IN_FLIGHT)

    async def trainings(self, namespace: str | None) -> list[Object]:
        """All trainings, or those of a namespace."""
        where = f"/namespaces/{namespace}" if namespace else ""
        return list((await self._call("GET", f"{RESOURCE}{where}/{labels.PLURAL}"))["items"])

    async def training(self, key: Key) -> Object | None:
        """One training; None when there is none."""
        return await self._get(_path(key))

    async def pods(self, key: Key) -> list[Object]:
        """A training's pods, as they are now: a list without a resource version is consistent."""
        query = {"labelSelector": labels.selector(key.name)}
        return list((await self._call("GET", f"/api/v1/namespaces/{key.namespace}/pods", query))["items"])

    async def events(self, namespace: str, uid: str) -> list[Object]:
        """What was said about a pod."""
        query = {"fieldSelector": f"involvedObject.uid={uid}"}
        return list((await self._call("GET", f"/api/v1/namespaces/{namespace}/events", query))["items"])

    async def pod(self, namespace: str, name: str) -> Object | None:
        """The pod of that name, whoever made it; None when there is none."""
        query = {"fieldSelector": f"metadata.name={name}"}
        found = await self._call("GET", f"/api/v1/namespaces/{namespace}/pods", query)
        return next(iter(found["items"]), None)

    async def service(self, key: Key) -> Object | None:
        """The Service of a training's name, whoever made it; None when there is none."""
        return await self._get(f"/api/v1/namespaces/{key.namespace}/services/{key.name}")

    async def network_policy(self, key: Key) -> Object | None:
        """The NetworkPolicy of a training's name, whoever made it; None when there is none."""
        group, plural = NETWORK_POLICIES
        return await self._get(f"{group}/namespaces/{key.namespace}/{plural}/{key.name}")

    async def create_pod(self, pod: Object) -> bool:
        """Create a pod; False when one of that name is there. Raises ObjectRefused, Conflict."""
        return await self._create("/api/v1", "pods", pod)

    async def create_secret(self, secret: Object, dry_run: bool = False) -> bool:
        """Create a Secret, or find out whether that could be done; False when it is there already.

        Raises ObjectRefused, Conflict.
        """
        return await self._create("/api/v1", "secrets", secret, {"dryRun": "All"} if dry_run else {})

    async def create_service(self, service: Object) -> bool:
        """Create a Service; False when one of that name is there. Raises ObjectRefused, Conflict."""
        return await self._create("/api/v1", "services", service)

    async def create_network_policy(self, policy: Object) -> bool:
        """Create a NetworkPolicy; False when one of that name is there. Raises ObjectRefused, Conflict."""
        return await self._create(*NETWORK_POLICIES, policy)

    async def change_network_policy(self, key: Key, spec: Object) -> None:
        """Give a NetworkPolicy another specification."""
        group, plural = NETWORK_POLICIES
        path = f"{group}/namespaces/{key.namespace}/{plural}/{key.name}"
        async with self._writes:
            await self._call("PATCH", path, {"fieldManager": labels.MANAGER}, {"spec": spec}, MERGE)

    async def delete_pod(self, namespace: str, name: str, uid: str, at_once: bool = False) -> None:
        """Delete this very pod, if it is still there."""
        options = {"preconditions": {"uid": uid}} | ({"gracePeriodSeconds": 0} if at_once else {})
        await self._delete(f"/api/v1/namespaces/{namespace}/pods/{name}", options)

    async def delete_training(self, key: Key, uid: str) -> None:
        """Delete a training, if it is still there; the garbage collector takes its objects."""
        await self._delete(_path(key), {"preconditions": {"uid": uid}, "propagationPolicy": "Background"})

    async def write_status(self, training: Mapping[str, Any], status: Object) -> None:
        """Replace the status of the training as it was read. Raises Conflict when it has changed since."""
        key = Key(training["metadata"]["namespace"], training["metadata"]["name"])
        try:
            await self._call("PUT", f"{_path(key)}/status", body={**training, "status": status})
        except CallFailed as error:
            if error.code in (CONFLICT, NOT_FOUND):
                raise Conflict from error
            raise

    async def post_event(self, training: Mapping[str, Any], kind: str, reason: str, message: str, now: float) -> None:
        """Post an event about a training; `kind` is Normal or Warning."""
        metadata = training["metadata"]
        about = {k: metadata[k] for k in ("name", "namespace", "uid", "resourceVersion")}
        body = {
            "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
            "involvedObject": {"apiVersion": training["apiVersion"], "kind": training["kind"], **about},
            "type": kind,
            "reason": reason,
            "message": message[:1024],
            "count": 1,
            "firstTimestamp": text(now),
            "lastTimestamp": text(now),
            "source": {"component": labels.MANAGER},
            "reportingComponent": labels.MANAGER,
            "reportingInstance": "operator",
        }
        await self._call("POST", f"/api/v1/namespaces/{metadata['namespace']}/events", body=body)

    async def _create(
        self, group: str, plural: str, body: Object, query: Mapping[str, str] = MappingProxyType({})
    ) -> bool:
        path = f"{group}/namespaces/{body['metadata']['namespace']}/{plural}"
        async with self._writes:
            try:
                await self._call("POST", path, {"fieldManager": labels.MANAGER, **query}, body)
            except CallFailed as error:
                if error.reason == "AlreadyExists":
                    return False
                if error.reason == "Conflict" and not error.denied:  # over a quota that others use at the same time
                    raise Conflict from error
                raise ObjectRefused.from_error(error, body["kind"]) from error
        return True

    async def _get(self, path: str) -> Object | None:
        try:
            return await self._call("GET", path)
        except CallFailed as error:
            if error.code == NOT_FOUND:
                return None
            raise

    async def _delete(self, path: str, options: Object) -> None:
        async with self._writes:
            try:
                await self._call("DELETE", path, body=options)
            except CallFailed as error:
                if error.code not in (NOT_FOUND, CONFLICT):
                    raise

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        kind: str = JSON,
    ) -> Object:
        headers = {"Accept": JSON} | ({"Content-Type": kind} if body is not None else {})
        method, url, headers, data, posted = await self._api.param_serialize(
            method, path, query_params=list((query or {}).items()), header_params=headers, body=body,
            auth_settings=["BearerToken"],
        )  # fmt: skip
        try:
            response: Any = await self._api.call_api(method, url, headers, data, posted, CALL_SECONDS)
            answer = await response.read()
        except (aiohttp.ClientError, OSError):  # also when it takes too long
            self._metrics.api_error("none")
            raise
        if response.status >= BAD_REQUEST:
            self._metrics.api_error(str(response.status))
            raise _failed(response.status, answer)
        try:
            return dict(json.loads(answer))
        except (ValueError, TypeError) as error:
            raise CallFailed(response.status, f"the answer is not an object: {error}") from error


def _path(key: Key) -> str:
    return f"{RESOURCE}/namespaces/{key.namespace}/{labels.PLURAL}/{key.name}"


def _failed(code: int, body: bytes) -> CallFailed:
    """What a Status object says; a proxy in front of the API server may answer with anything."""
    try:
        status = json.loads(body)
        return CallFailed(code, str(status["message"]), str(status.get("reason", "")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return CallFailed(code, body.decode(errors="replace"))
