"""The objects that a training owns beside its pods: Service, NetworkPolicy, Secret. Nothing is taken from others."""

import asyncio

import paceline_credentials
from paceline_core.spec import Transport
from paceline_operator.decisions import observe
from paceline_operator.kubernetes_api.cluster import Cluster, Conflict, Key, Object, ObjectRefused
from paceline_operator.objects import credentials, pods
from paceline_operator.objects.pods import Subject
from paceline_operator.settings import Settings


class OwnedObjects:
    """Made before the pods. Settings change with the operator's process alone, so each policy is compared once."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster, self._settings = cluster, settings
        self._settled: dict[Key, str] = {}  # uid of the training whose NetworkPolicy is known to be as it should

    async def create(self, subject: Subject) -> None:
        """Create what is missing. Raises ObjectRefused, also when an object of that name is somebody else's."""
        key = Key(subject.namespace, subject.name)
        again = self._settled.get(key) == subject.uid
        if not await self._cluster.create_service(pods.service(subject)):
            check_owner(await self._cluster.service(key), subject, "Service", subject.name)
        if not await self._cluster.create_network_policy(self._policy(subject)):
            found = await self._cluster.network_policy(key)
            await self._settle(subject, check_owner(found, subject, "NetworkPolicy", subject.name))
        self._settled[key] = subject.uid
        if subject.spec.security.transport is Transport.TLS:
            await self._create_secret(subject, again)

    async def update(self, subject: Subject) -> None:
        """Bring the NetworkPolicy of a training that runs to what the settings say now."""
        key = Key(subject.namespace, subject.name)
        if self._settled.get(key) == subject.uid:
            return
        found = await self._cluster.network_policy(key)
        if found is None:
            await self._cluster.create_network_policy(self._policy(subject))
        elif observe.is_owned(found, subject.uid):
            await self._settle(subject, found)
        self._settled[key] = subject.uid

    def forget(self, key: Key) -> None:
        """The training is gone."""
        self._settled.pop(key, None)

    async def _create_secret(self, subject: Subject, again: bool) -> None:
        """Certificates are made, and sent, only where they are missing: of many workers they are a megabyte."""
        if again and not await self._cluster.create_secret(pods.secret(subject, {}), dry_run=True):
            return
        servers, workers = credentials.servers(subject.spec), credentials.workers(subject.spec)
        issued = await asyncio.to_thread(paceline_credentials.issue, subject.name, servers, workers)
        await self._cluster.create_secret(pods.secret(subject, issued))

    async def _settle(self, subject: Subject, found: Object) -> None:
        wanted = self._policy(subject)["spec"]
        if found["spec"] != wanted:
            await self._cluster.change_network_policy(Key(subject.namespace, subject.name), wanted)

    def _policy(self, subject: Subject) -> Object:
        return pods.network_policy(subject, self._settings.namespace, self._settings.metrics_from)


def check_owner(found: Object | None, subject: Subject, kind: str, name: str) -> Object:
    """An object that was there, if it is the training's. Raises ObjectRefused; Conflict when it goes away by itself."""
    if found is None or observe.earlier([found], subject.uid):
        raise Conflict
    if not observe.is_owned(found, subject.uid):
        raise ObjectRefused("NameTaken", f"a {kind} {name} exists that is not this training's: rename one of them")
    return found
