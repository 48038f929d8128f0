"""The dashboard of the operator: does it see what happens, does it keep up, and what goes wrong."""

from charts.dashboards.layout import Dashboard, Row, Variable
from charts.dashboards.panels import GREEN, RED, YELLOW, lines, stat, steps
from charts.dashboards.queries import STEP, WHOLE, Presence, Target, restarted, within

EVENT = f"time() - max by (resource) ({within('paceline_operator_last_watch_event_timestamp_seconds')})"
LEADER = within("paceline_operator_is_leader")
SECONDS = "paceline_operator_reconcile_duration_seconds"
ERRORS = within("paceline_operator_reconcile_errors_total")


def _duration(at: float, name: str) -> Target:
    buckets = f"sum by (handler, le) (rate({within(f'{SECONDS}_bucket')}{STEP}))"
    return Target(f"histogram_quantile({at}, {buckets})", f"{name}, {{{{handler}}}}")


STATE = (
    stat(
        "Leaders",
        "Pods that act. There must be one, and no more; the others of the operator's pods are ready to take over.",
        "none",
        Target(f"sum({LEADER})"),
        now=True,
        width=8,
        defaults=steps(RED, (1, GREEN), (2, RED)),
    ),
    stat(
        "Last event",
        "How long ago the operator last knew that a watch told it everything. It makes sure every minute.",
        "s",
        Target(f"min({EVENT})"),
        now=True,
        width=8,
        runbook="PacelineOperatorBlind",
        defaults=steps(GREEN, (300, YELLOW), (900, RED)),
    ),
    stat(
        "Trainings",
        "Trainings that the operator knows.",
        "none",
        Target("count(group by (namespace, training) (paceline_training_info))"),
        now=True,
        width=8,
    ),
)
WORK = (
    lines(
        "Reconciliations",
        "How often the operator looked at a training and acted, by handler and result.",
        "ops",
        Target(f"sum by (handler, result) (rate({within(f'{SECONDS}_count')}{STEP}))", "{{handler}}: {{result}}"),
    ),
    lines(
        "Duration of a reconciliation",
        "99th percentile and median, by handler.",
        "s",
        _duration(0.99, "99 %"),
        _duration(0.5, "median"),
    ),
    lines(
        "Errors",
        "Reconciliations that failed and are made again, by handler and the name of the error.",
        "ops",
        Target(f"sum by (handler, reason) (rate({ERRORS}{STEP}))", "{{handler}}: {{reason}}"),
        presence=Presence.TROUBLE,
    ),
    lines(
        "Errors of the API server",
        "Calls that failed, by the code of HTTP, or none without an answer. 404 and 409 are usual.",
        "ops",
        Target(f"sum by (code) (rate({within('paceline_operator_api_errors_total')}{STEP}))", "{{code}}"),
        presence=Presence.TROUBLE,
    ),
    lines(
        "Age of the last event by resource",
        "How long ago the operator last knew that the watch of a kind of object told it everything.",
        "s",
        Target(EVENT, "{{resource}}"),
        runbook="PacelineOperatorBlind",
    ),
    lines(
        "Watches begun anew",
        "How often the watch of a kind of object lost its place, and everything was listed anew.",
        "none",
        Target(
            f"sum by (resource) (increase({within('paceline_operator_watch_restarts_total')}{STEP}))", "{{resource}}"
        ),
        presence=Presence.TROUBLE,
    ),
    lines(
        "Leader",
        "The pod that acts.",
        "none",
        Target(f"max by (pod) ({LEADER})", "{{pod}}"),
        stacked=True,
    ),
)

DASHBOARD = Dashboard(
    name="operator",
    title="Operator",
    description="The operator: does it see what happens, does it keep up, and what goes wrong.",
    variables=(
        Variable(
            "namespace",
            "Namespace",
            "Of the operator.",
            Target(
                f"group by (namespace) (last_over_time(paceline_operator_is_leader{WHOLE}))", presence=Presence.OPERATOR
            ),
            label="namespace",
            every=True,
        ),
    ),
    rows=(Row("Does it act?", STATE), Row("Work", WORK)),
    restarts=restarted(),
)
