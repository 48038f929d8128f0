"""Last of all: what the operator did in all these tests is exactly what it may do."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.charts.test_chart import of_kind, render
from tests.cluster.conftest import HOME, OWN

pytestmark = [pytest.mark.slow]
ACCOUNT = "system:serviceaccount:paceline-system:paceline"
NEVER = "9999"  # sorts after every timestamp
Right = tuple[str, str, str]  # group, resource with subresource, verb


def asked() -> tuple[set[Right], list[str]]:
    """What the audit log shows the operator to have asked for, and what was forbidden while it had its rights."""
    used: set[Right] = set()
    forbidden = []
    events = [json.loads(line) for line in Path(HOME / "state/log/audit.log").read_text().splitlines()]
    without = times_without_rights(events)
    for event in events:
        reference = event.get("objectRef")
        if event["user"]["username"] != ACCOUNT or reference is None:
            continue
        resource = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
        used |= {(reference.get("apiGroup", ""), resource, verb) for verb in verbs(event["verb"])}
        answer = event["responseStatus"]
        deprived = any(lost <= event["stageTimestamp"] <= granted_anew for lost, granted_anew in without)
        if answer.get("code") == 403 and "PodSecurity" not in answer["message"] and not deprived:
            forbidden.append(answer["message"])
    return used, forbidden


def times_without_rights(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """From when to when the chart was uninstalled: an operator that is about to end may still ask for something then."""
    objects, times = render(), []
    for binding in of_kind(objects, "ClusterRoleBinding") + of_kind(objects, "RoleBinding"):
        resource, name = binding["kind"].lower() + "s", binding["metadata"]["name"]
        at = [e for e in events if about(e) == (resource, name)]
        made = [e["stageTimestamp"] for e in at if e["verb"] != "delete"]
        lost = [e["requestReceivedTimestamp"] for e in at if e["verb"] == "delete"]
        times += [(time, min((m for m in made if m > time), default=NEVER)) for time in lost]
    return times


def about(event: dict[str, Any]) -> tuple[str | None, str | None]:
    reference = event.get("objectRef", {})
    return reference.get("resource"), reference.get("name")


def verbs(verb: str) -> set[str]:
    """A server-side apply needs the right to create too, which the API server checks without saying so."""
    return {"patch", "create"} if verb == "patch" else {verb}


def granted(objects: list[dict[str, Any]]) -> set[Right]:
    roles = [r for r in of_kind(objects, "ClusterRole") + of_kind(objects, "Role") if "helm.sh/hook" not in str(r)]
    rules = [rule for role in roles for rule in role["rules"]]
    return {(g, r, v) for rule in rules for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}


def test_no_right_is_missing_and_none_is_unused(cluster: None) -> None:
    if not OWN:
        pytest.skip("reads the audit log of the tests' own cluster")
    used, forbidden = asked()
    meant = ("PriorityClass with name", "because it is being terminated")  # refused whatever the rights are
    missing = [m for m in forbidden if not any(words in m for words in meant)]
    assert missing == []
    rights = granted(render())
    if ("", "events", "list") not in used and "CI" not in os.environ:
        pytest.skip("only after all other tests of the cluster, which use every right")
    assert used - rights == set()
    assert rights - used == set()
