"""The operator's settings, from its environment; the chart writes them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paceline_operator.decisions.decision import DecisionSettings

PREFIX = "PACELINE_OPERATOR_"


@dataclass(frozen=True)
class Settings:
    """Defaults are those of an operator started by hand."""

    watch: str | None = None  # the one namespace to look after; None: all of them
    namespace: str = "default"  # the operator's own
    identity: str = "paceline-operator"  # of this process among its replicas
    lease: str = "paceline-operator"
    leader_election: bool = False
    web: str = "127.0.0.1:8080"  # /healthz and /metrics; :8080 for every address
    poll_seconds: float = 5.0  # between two looks at a training's progress
    resync_seconds: float = 60.0  # between two looks at all trainings, in case a watch missed something
    decisions: DecisionSettings = field(default_factory=DecisionSettings)
    metrics_from: tuple[dict[str, Any], ...] = ()  # NetworkPolicyPeers that may reach the metrics


def read(environment: Mapping[str, str]) -> Settings:
    """The settings that PACELINE_OPERATOR_* describe. Raises ValueError, naming the variable."""
    given = {k.removeprefix(PREFIX): v for k, v in environment.items() if k.startswith(PREFIX)}
    default = Settings()

    def number(name: str, otherwise: float) -> float:
        try:
            return float(given.get(name, otherwise))
        except ValueError:
            raise ValueError(f"{PREFIX}{name} is {given[name]!r}, and must be a number of seconds") from None

    try:
        metrics_from = tuple(json.loads(given.get("METRICS_FROM", "[]")))
    except (ValueError, TypeError):
        raise ValueError(f"{PREFIX}METRICS_FROM must be a JSON list of NetworkPolicyPeers") from None
    return Settings(
        watch=given.get("WATCH") or None,
        namespace=given.get("NAMESPACE", default.namespace),
        identity=given.get("IDENTITY", default.identity),
        lease=given.get("LEASE", default.lease),
        leader_election=given.get("LEADER_ELECTION", "") == "true",
        web=given.get("WEB", default.web),
        poll_seconds=number("POLL_SECONDS", default.poll_seconds),
        resync_seconds=number("RESYNC_SECONDS", default.resync_seconds),
        decisions=DecisionSettings(
            force_delete_seconds=number("FORCE_DELETE_SECONDS", default.decisions.force_delete_seconds)
        ),
        metrics_from=metrics_from,
    )
