"""Warnings of the kubelets about pods whose containers they cannot make: a volume that cannot be mounted, say."""

import asyncio
from collections.abc import Mapping, Sequence

from paceline_operator.decisions import observe
from paceline_operator.decisions.observe import Pod, Trouble
from paceline_operator.kubernetes_api.cluster import Cluster, Key

CREATING_SECONDS = 10.0  # that containers may take to be made before the kubelet's warnings are read
ASKED_ABOUT = (
    3  # late pods at each reconciliation, in turns: an image may take long on one node, and a volume fail on another
)


class KubeletWarnings:
    """Asks the API server about a few pods at a time, and remembers what was said about the others."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._said: dict[Key, dict[str, Trouble | None]] = {}  # by uid, the longest ago asked about first

    async def warnings(self, key: Key, pods: Sequence[Pod], now: float) -> Mapping[str, Trouble]:
        """The newest warning by uid of those pods that are late and have one."""
        made = {p.uid: p for p in pods if p.creating and p.trouble is None}
        late = {uid: p for uid, p in made.items() if now - (p.scheduled or p.created) > CREATING_SECONDS}
        said = {uid: trouble for uid, trouble in self._said.get(key, {}).items() if uid in late}
        next_ones = [late[uid] for uid in (*(u for u in late if u not in said), *said)][:ASKED_ABOUT]
        answers = await asyncio.gather(*(self._cluster.events(key.namespace, p.uid) for p in next_ones))
        for pod, events in zip(next_ones, answers, strict=True):
            said.pop(pod.uid, None)
            said[pod.uid] = observe.with_warning(pod, events)
        self._said[key] = said
        return {uid: trouble for uid, trouble in said.items() if trouble is not None}

    def forget(self, key: Key) -> None:
        """The training is gone."""
        self._said.pop(key, None)
