"""`helm test`: a small real training, from its creation to its end; exits 1 with what its conditions say."""

import argparse
import asyncio
import sys
from typing import Any

from kubernetes.aio import client, config

from paceline_operator import labels

POLL_SECONDS = 2.0
RESOURCE = (labels.GROUP, labels.VERSION)


def training(name: str, namespace: str, image: str) -> dict[str, Any]:
    """One server and two workers that learn digits for two epochs."""
    command = ["python", "-m", "paceline.examples.digits", "--epochs", "2"]
    container = {"name": "trainer", "image": image, "command": command}
    return {
        "apiVersion": f"{labels.GROUP}/{labels.VERSION}",
        "kind": labels.KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "topology": "ParameterServer",
            "workers": {"replicas": 2, "template": {"spec": {"containers": [container]}}},
            "runPolicy": {"backoffLimit": 0, "activeDeadlineSeconds": 600},
        },
    }


async def run(name: str, namespace: str, image: str) -> int:
    """Create, wait, say how it went, delete. 0 when it succeeded."""
    config.load_incluster_config()  # type: ignore[no-untyped-call]
    async with client.ApiClient() as api:
        custom = client.CustomObjectsApi(api)
        where = (*RESOURCE, namespace, labels.PLURAL)
        await custom.create_namespaced_custom_object(*where, training(name, namespace, image))
        try:
            phase = await _end(custom, where, name)
        finally:
            await custom.delete_namespaced_custom_object(*where, name)
    return 0 if phase == "Succeeded" else 1


async def _end(custom: client.CustomObjectsApi, where: tuple[str, str, str, str], name: str) -> str:
    said = ""
    while True:
        found: Any = await custom.get_namespaced_custom_object(*where, name)
        status = found.get("status", {})
        line = f"{status.get('phase', 'Pending')}: {status.get('message', 'not seen by the operator yet')}"
        if line != said:
            print(line, flush=True)
            said = line
        if status.get("phase") in ("Succeeded", "Failed"):
            return str(status["phase"])
        await asyncio.sleep(POLL_SECONDS)


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--name", "--namespace", "--image"):
        parser.add_argument(name, required=True)
    options = parser.parse_args()
    return asyncio.run(run(options.name, options.namespace, options.image))


if __name__ == "__main__":
    sys.exit(main())
