"""`helm test`: a small real training, from its creation to its end; exits 1 with what its conditions say."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from paceline_core.spec import MEMBERS
from paceline_operator.kubernetes_api.cluster import CONFLICT, NOT_FOUND
from paceline_operator.objects import labels

POLL_SECONDS = 2.0
Object = dict[str, Any]


def training(name: str, namespace: str, image: str, secrets: Sequence[str]) -> Object:
    """One server and two workers that learn digits for two epochs."""
    command = ["python", "-m", "paceline.examples.digits", "--epochs", "2"]
    pod: Object = {"containers": [{"name": "trainer", "image": image, "command": command}]}
    if secrets:
        pod["imagePullSecrets"] = [{"name": secret} for secret in secrets]
    return {
        "apiVersion": f"{labels.GROUP}/{labels.VERSION}",
        "kind": labels.KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "topology": next(iter(MEMBERS)).value,
            "workers": {"replicas": 2, "template": {"spec": pod}},
            "runPolicy": {"backoffLimit": 0, "activeDeadlineSeconds": 600},
        },
    }


class HelmTest:
    """A training that is made, watched to its end, and deleted."""

    def __init__(self, api: client.ApiClient, wanted: Object) -> None:
        self._custom, self._wanted = client.CustomObjectsApi(api), wanted
        self._where = (labels.GROUP, labels.VERSION, wanted["metadata"]["namespace"], labels.PLURAL)

    async def run(self) -> str:
        """Say how it goes, and give the phase at the end."""
        await self._create()
        try:
            return await self._end()
        finally:
            await self._delete()

    async def _create(self) -> None:
        """In place of the one that an interrupted test has left."""
        while True:
            try:
                await self._custom.create_namespaced_custom_object(*self._where, self._wanted)
                return
            except ApiException as error:
                if error.status != CONFLICT:
                    raise
            print("deleting the training of an earlier test", flush=True)
            await self._delete()
            await asyncio.sleep(POLL_SECONDS)

    async def _delete(self) -> None:
        try:
            await self._custom.delete_namespaced_custom_object(*self._where, self._wanted["metadata"]["name"])
        except ApiException as error:
            if error.status != NOT_FOUND:
                raise

    async def _end(self) -> str:
        said = ""
        while True:
            found: Any = await self._custom.get_namespaced_custom_object(*self._where, self._wanted["metadata"]["name"])
            status = found.get("status", {})
            line = f"{status.get('phase', 'Pending')}: {status.get('message', 'not seen by the operator yet')}"
            if line != said:
                print(line, flush=True)
                said = line
            if status.get("phase") in ("Succeeded", "Failed"):
                return str(status["phase"])
            await asyncio.sleep(POLL_SECONDS)


async def run(wanted: Object) -> int:
    """0 when it succeeded."""
    config.load_incluster_config()  # type: ignore[no-untyped-call]
    async with client.ApiClient() as api:
        return 0 if await HelmTest(api, wanted).run() == "Succeeded" else 1


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Those of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--name", "--namespace", "--image"):
        parser.add_argument(name, required=True)
    parser.add_argument("--image-pull-secret", action="append", default=[], help="may be given several times")
    return parser.parse_args(given)


def main() -> int:
    """Run as the arguments say."""
    given = arguments()
    return asyncio.run(run(training(given.name, given.namespace, given.image, given.image_pull_secret)))


if __name__ == "__main__":
    sys.exit(main())
