"""What the tests' own cluster wrote down of what operators asked for, and what they may ask for."""

import json
from pathlib import Path
from typing import Any

from tests.charts.test_chart import of_kind
from tests.cluster.conftest import HOME

NEVER = "9999"  # sorts after every timestamp
Object = dict[str, Any]
Right = tuple[str, str, str]  # group, resource with subresource, verb


def asked(account: str, objects: list[Object]) -> tuple[set[Right], list[str]]:
    """What an operator with this account asked for, and what was forbidden while these objects gave it its rights."""
    used: set[Right] = set()
    forbidden = []
    events = [json.loads(line) for line in Path(HOME / "state/log/audit.log").read_text().splitlines()]
    without = times_without_rights(events, objects)
    for event in events:
        reference = event.get("objectRef")
        if event["user"]["username"] != account or reference is None:
            continue
        resource = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
        used |= {(reference.get("apiGroup", ""), resource, verb) for verb in verbs(event["verb"])}
        answer = event["responseStatus"]
        deprived = any(lost <= event["stageTimestamp"] <= granted_anew for lost, granted_anew in without)
        if answer.get("code") == 403 and "PodSecurity" not in answer["message"] and not deprived:
            forbidden.append(answer["message"])
    return used, forbidden


def times_without_rights(events: list[Object], objects: list[Object]) -> list[tuple[str, str]]:
    """From when to when the chart was uninstalled: an operator that is about to end may still ask for something then."""
    times = []
    for binding in of_kind(objects, "ClusterRoleBinding") + of_kind(objects, "RoleBinding"):
        metadata = binding["metadata"]
        which = binding["kind"].lower() + "s", metadata.get("namespace"), metadata["name"]
        at = [e for e in events if about(e) == which]
        made = [e["stageTimestamp"] for e in at if e["verb"] != "delete"]
        lost = [e["requestReceivedTimestamp"] for e in at if e["verb"] == "delete"]
        times += [(time, min((m for m in made if m > time), default=NEVER)) for time in lost]
    return times


def about(event: Object) -> tuple[str | None, ...]:
    reference = event.get("objectRef", {})
    return tuple(reference.get(part) for part in ("resource", "namespace", "name"))


def verbs(verb: str) -> set[str]:
    """A server-side apply needs the right to create too, which the API server checks without saying so."""
    return {"patch", "create"} if verb == "patch" else {verb}


def granted(objects: list[Object]) -> set[Right]:
    roles = [r for r in of_kind(objects, "ClusterRole") + of_kind(objects, "Role") if "helm.sh/hook" not in str(r)]
    rules = [rule for role in roles for rule in role["rules"]]
    return {(g, r, v) for rule in rules for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}
