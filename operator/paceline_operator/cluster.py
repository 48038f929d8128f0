"""The calls to the API server: every one that the operator makes, beside the watches, is here.

They are made through the client's lowest layer. Its typed methods check bodies against models of their own, which
refuse what the API server takes: a limit written as a number, or a field of a newer Kubernetes in a pod template.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from kubernetes.aio import client

from paceline_operator import labels
from paceline_operator.memory import text
from paceline_operator.metrics import Metrics

Object = dict[str, Any]
APPLY, JSON = "application/apply-patch+yaml", "application/json"
RESOURCE = f"/apis/{labels.GROUP}/{labels.VERSION}"
IN_FLIGHT = 50  # writes at once
CALL_SECONDS = 30.0
BAD_REQUEST, FORBIDDEN, NOT_FOUND, CONFLICT, INVALID = 400, 403, 404, 409, 422


@dataclass(frozen=True)
class Key:
    """A training."""

    namespace: str
    name: str


class CallFailed(Exception):
    """The API server answered with an error; `code` is that of HTTP."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class Conflict(Exception):
    """The resource changed meanwhile: look again."""


class Refused(Exception):
    """The API server does not take an object; `permanent` when it never will."""

    def __init__(self, error: CallFailed) -> None:
        super().__init__(error.message)
        self.permanent = error.code != FORBIDDEN


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
        try:
            return await self._call("GET", _path(key))
        except CallFailed as error:
            if error.code == NOT_FOUND:
                return None
            raise

    async def pods(self, key: Key) -> list[Object]:
        """A training's pods, as they are now: a list without a resource version is consistent."""
        query = {"labelSelector": labels.selector(key.name)}
        return list((await self._call("GET", f"/api/v1/namespaces/{key.namespace}/pods", query))["items"])

    async def events(self, namespace: str, uid: str) -> list[Object]:
        """What was said about a pod."""
        query = {"fieldSelector": f"involvedObject.uid={uid}"}
        return list((await self._call("GET", f"/api/v1/namespaces/{namespace}/events", query))["items"])

    async def create_pod(self, pod: Object) -> bool:
        """Create a pod; False when one of that name is there. Raises Refused."""
        return await self._create("pods", pod)

    async def create_secret(self, secret: Object) -> bool:
        """Create a Secret; False when it is there already. Raises Refused."""
        return await self._create("secrets", secret)

    async def apply_service(self, service: Object) -> None:
        """Create or change a Service. Raises Refused."""
        await self._apply("/api/v1", "services", service)

    async def apply_network_policy(self, policy: Object) -> None:
        """Create or change a NetworkPolicy. Raises Refused."""
        await self._apply("/apis/networking.k8s.io/v1", "networkpolicies", policy)

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

    async def tell(self, training: Mapping[str, Any], kind: str, reason: str, message: str, now: float) -> None:
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

    async def _create(self, plural: str, body: Object) -> bool:
        path = f"/api/v1/namespaces/{body['metadata']['namespace']}/{plural}"
        async with self._writes:
            try:
                await self._call("POST", path, {"fieldManager": labels.MANAGER}, body)
            except CallFailed as error:
                if error.code == CONFLICT:
                    return False
                if error.code in (INVALID, FORBIDDEN, BAD_REQUEST):
                    raise Refused(error) from error
                raise
        return True

    async def _apply(self, group: str, plural: str, body: Object) -> None:
        metadata = body["metadata"]
        path = f"{group}/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}"
        async with self._writes:
            try:
                await self._call("PATCH", path, {"fieldManager": labels.MANAGER, "force": "true"}, body, APPLY)
            except CallFailed as error:
                if error.code in (INVALID, FORBIDDEN):
                    raise Refused(error) from error
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
            raise CallFailed(response.status, _message(answer))
        return dict(json.loads(answer))


def _path(key: Key) -> str:
    return f"{RESOURCE}/namespaces/{key.namespace}/{labels.PLURAL}/{key.name}"


def _message(body: bytes) -> str:
    """The message of a Status object."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")
