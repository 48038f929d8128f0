"""The calls to the API server: every one that the operator makes, beside the watches, is here."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from paceline_operator import labels
from paceline_operator.memory import text

Object = dict[str, Any]
APPLY = "application/apply-patch+yaml"
RESOURCE = (labels.GROUP, labels.VERSION)
IN_FLIGHT = 50  # writes at once
CALL_SECONDS = 30.0
NOT_FOUND, CONFLICT, INVALID, FORBIDDEN, BAD_REQUEST = 404, 409, 422, 403, 400


@dataclass(frozen=True)
class Key:
    """A training."""

    namespace: str
    name: str


class Conflict(Exception):
    """The resource changed meanwhile: look again."""


class Refused(Exception):
    """The API server does not take an object; `permanent` when it never will."""

    def __init__(self, message: str, permanent: bool) -> None:
        super().__init__(message)
        self.permanent = permanent


class Cluster:
    """Typed in and out as plain objects. Raises ApiException where nothing else is said."""

    def __init__(self, api: client.ApiClient) -> None:
        self._core, self._custom = client.CoreV1Api(api), client.CustomObjectsApi(api)
        self._network = client.NetworkingV1Api(api)
        self._writes = asyncio.Semaphore(IN_FLIGHT)

    async def trainings(self, namespace: str | None) -> list[Object]:
        """All trainings, or those of a namespace."""
        if namespace is None:
            answer: Any = await self._custom.list_cluster_custom_object(*RESOURCE, labels.PLURAL, **_options())
        else:
            answer = await self._custom.list_namespaced_custom_object(*RESOURCE, namespace, labels.PLURAL, **_options())
        return list(answer["items"])

    async def training(self, key: Key) -> Object | None:
        """One training; None when there is none."""
        try:
            found: Any = await self._custom.get_namespaced_custom_object(
                *RESOURCE, key.namespace, labels.PLURAL, key.name, **_options()
            )
        except ApiException as error:
            if error.status == NOT_FOUND:
                return None
            raise
        return dict(found)

    async def pods(self, key: Key) -> list[Object]:
        """A training's pods, as they are now: a list without a resource version is consistent."""
        return await _items(
            self._core.list_namespaced_pod_without_preload_content(
                key.namespace, label_selector=labels.selector(key.name), **_options()
            )
        )

    async def events(self, namespace: str, uid: str) -> list[Object]:
        """What was said about a pod."""
        return await _items(
            self._core.list_namespaced_event_without_preload_content(
                namespace, field_selector=f"involvedObject.uid={uid}", **_options()
            )
        )

    async def create_pod(self, pod: Object) -> bool:
        """Create a pod; False when one of that name is there. Raises Refused."""
        return await self._create(self._core.create_namespaced_pod_without_preload_content, pod)

    async def create_secret(self, secret: Object) -> bool:
        """Create a Secret; False when it is there already. Raises Refused."""
        return await self._create(self._core.create_namespaced_secret_without_preload_content, secret)

    async def apply_service(self, service: Object) -> None:
        """Create or change a Service."""
        await self._apply(self._core.patch_namespaced_service, service)

    async def apply_network_policy(self, policy: Object) -> None:
        """Create or change a NetworkPolicy."""
        await self._apply(self._network.patch_namespaced_network_policy, policy)

    async def delete_pod(self, namespace: str, name: str, uid: str, at_once: bool = False) -> None:
        """Delete this very pod, if it is still there."""
        body = client.V1DeleteOptions(
            preconditions=client.V1Preconditions(uid=uid), grace_period_seconds=0 if at_once else None
        )
        async with self._writes:
            try:
                await self._core.delete_namespaced_pod(name, namespace, body=body, **_options())
            except ApiException as error:
                if error.status not in (NOT_FOUND, CONFLICT):
                    raise

    async def delete_training(self, key: Key, uid: str) -> None:
        """Delete a training, if it is still there; the garbage collector takes its objects."""
        body = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=uid), propagation_policy="Background")
        try:
            await self._custom.delete_namespaced_custom_object(
                *RESOURCE, key.namespace, labels.PLURAL, key.name, body=body, **_options()
            )
        except ApiException as error:
            if error.status not in (NOT_FOUND, CONFLICT):
                raise

    async def write_status(self, training: Mapping[str, Any], status: Object) -> None:
        """Replace the status of the training as it was read. Raises Conflict when it has changed since."""
        metadata = training["metadata"]
        try:
            await self._custom.replace_namespaced_custom_object_status(
                *RESOURCE, metadata["namespace"], labels.PLURAL, metadata["name"],
                {**training, "status": status}, **_options(),
            )  # fmt: skip
        except ApiException as error:
            if error.status in (CONFLICT, NOT_FOUND):
                raise Conflict from error
            raise

    async def tell(self, training: Mapping[str, Any], kind: str, reason: str, message: str, now: float) -> None:
        """Post an event about a training; `kind` is Normal or Warning."""
        metadata = training["metadata"]
        about = {
            "apiVersion": training["apiVersion"],
            "kind": training["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        }
        body: Any = {
            "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
            "involvedObject": about,
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
        await self._core.create_namespaced_event(metadata["namespace"], body, **_options())

    async def _create(self, call: Any, body: Object) -> bool:
        async with self._writes:
            try:
                response = await call(body["metadata"]["namespace"], body, field_manager=labels.MANAGER, **_options())
                if response.status < BAD_REQUEST:
                    return True
                code, said = response.status, await response.text()
            except ApiException as error:
                code, said = error.status, error.body or ""
        if code == CONFLICT:
            return False
        if code in (INVALID, FORBIDDEN, BAD_REQUEST):
            raise Refused(_message(said), permanent=code != FORBIDDEN)
        raise ApiException(status=code, reason=said)

    async def _apply(self, call: Any, body: Object) -> None:
        metadata = body["metadata"]
        async with self._writes:
            try:
                await call(
                    metadata["name"], metadata["namespace"], body,
                    field_manager=labels.MANAGER, force=True, _content_type=APPLY, **_options(),
                )  # fmt: skip
            except ApiException as error:
                if error.status in (INVALID, FORBIDDEN):
                    raise Refused(_message(error.body or ""), permanent=error.status == INVALID) from error
                raise


def _options() -> dict[str, Any]:
    return {"_request_timeout": CALL_SECONDS}


async def _items(call: Any) -> list[Object]:
    response = await call
    if response.status >= BAD_REQUEST:
        raise ApiException(status=response.status, reason=await response.text())
    return list(json.loads(await response.read())["items"])


def _message(body: str) -> str:
    """The message of a Status object."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return str(body)
