"""The dashboard of all trainings: what runs, what waits, what is lost, and to whom."""

from charts.dashboards.layout import Dashboard, Row, Variable
from charts.dashboards.panels import GREEN, RED, YELLOW, lines, link, override, stat, steps, table
from charts.dashboards.queries import NAMESPACES, WHOLE, Presence, Target, restarted, within

ACTIVE = within("training:paceline_active:group")
PHASE = f"max by (namespace, training, phase) ({within('paceline_training_phase')})"
GOODPUT = f"{within('training:paceline_goodput:ratio1h')} and on (namespace, training) {ACTIVE}"
COST = f"max by (namespace, training, worker, cause) ({within('paceline_server_straggler_cost_ratio')})"
PENDING = (
    f"""max by (namespace, training) ({within("paceline_training_badput_seconds_total", 'reason="pending"')})"""
    f""" and on (namespace, training) ({within("paceline_training_phase", 'phase="Pending"')} == 1)"""
)


def _replicas(state: str) -> str:
    matchers = ('role="worker"', f'state="{state}"')
    return f"max by (namespace, training) ({within('paceline_training_replicas', *matchers)})"


def _quantiles(histogram: str) -> tuple[Target, ...]:
    buckets = f"sum by (le) (increase({histogram}_bucket{WHOLE}))"
    return tuple(
        Target(f"histogram_quantile({at}, {buckets})", name)
        for at, name in ((0.5, "median"), (0.95, "95th percentile"))
    )


def _each(value: str) -> str:
    return f"max by (namespace, training) ({value})"


NOW = (
    stat(
        "Phases",
        "How many are in each phase.",
        "none",
        Target(f"sum by (phase) ({PHASE})", "{{phase}}"),
        now=True,
        presence=Presence.OPERATOR,
        width=8,
    ),
    stat(
        "Workers",
        "Workers that are ready, and how many there should be.",
        "none",
        Target(f"sum({_replicas('ready')})", "ready"),
        Target(f"sum({_replicas('desired')})", "wanted"),
        now=True,
        presence=Presence.OPERATOR,
        runbook="PacelineWorkerMissing",
    ),
    stat(
        "Goodput",
        "Share of the last hour in which trainings that are under way went on: the mean of all.",
        "percentunit",
        Target(f"avg({GOODPUT})"),
        now=True,
        runbook="PacelineGoodputLow",
        defaults=steps(RED, (0.7, YELLOW), (0.9, GREEN)),
    ),
    stat(
        "Stragglers",
        "Trainings in which one worker makes the others wait.",
        "none",
        Target(f"count({COST}) or vector(0)"),
        now=True,
        runbook="PacelineWorkerStraggling",
        defaults=steps(GREEN, (1, RED)),
    ),
    stat(
        "Longest pending",
        "How long the training that has waited longest has been waiting for machines.",
        "s",
        Target(f"max({PENDING})"),
        now=True,
        presence=Presence.TROUBLE,
        runbook="PacelinePendingTooLong",
        defaults=steps(GREEN, (900, RED)),
    ),
)
TRAININGS = (
    table(
        "Trainings",
        "Every training that is there. Choose one to see more.",
        {"namespace": "Namespace", "training": "Training", "mode": "Mode", "phase": "Phase"},
        Target(f"max by (namespace, training, mode) ({within('paceline_training_info')})"),
        Target(f"{PHASE} == 1"),
        Target(_each(within("paceline_training_progress_ratio")), "Progress", unit="percentunit"),
        Target(_each(GOODPUT), "Goodput", unit="percentunit"),
        Target(_replicas("ready"), "Workers ready"),
        Target(_replicas("desired"), "Workers wanted"),
        Target(_each(within("training:paceline_round_duration_seconds:mean5m")), "Round", Presence.ROUNDS, "s"),
        Target(_each(COST), "Cost of the straggler", Presence.STRAGGLER, "percentunit"),
        Target(
            f"sum by (namespace, training) ({within('training_role_reason:paceline_training_restarts:increase1h')})",
            "Restarts in the last hour",
            Presence.TROUBLE,
        ),
        presence=Presence.OPERATOR,
        overrides=(
            override(
                "Training",
                links=[link("More", "var-namespace=${__data.fields.Namespace}&var-training=${__value.text}")],
            ),
        ),
    ),
)
TIME = (
    lines(
        "Phases over time",
        "How many are in each phase.",
        "none",
        Target(f"sum by (phase) ({PHASE})", "{{phase}}"),
        presence=Presence.OPERATOR,
        stacked=True,
    ),
    lines(
        "Lowest goodput",
        "Share of the last hour in which the training went on: the ten trainings with the least.",
        "percentunit",
        Target(f"bottomk(10, {_each(GOODPUT)})", "{{namespace}}/{{training}}"),
        runbook="PacelineGoodputLow",
    ),
    lines(
        "Lost time",
        "Share of the last hour that trainings which are under way lost, by reason: the mean of all.",
        "percentunit",
        Target(
            f"sum by (reason) ({within('training_reason:paceline_lost:ratio1h')} and on (namespace, training) {ACTIVE})"
            f" / on () group_left () count({ACTIVE})",
            "{{reason}}",
        ),
        stacked=True,
        runbook="PacelineGoodputLow",
    ),
    lines(
        "Cost of stragglers",
        "Share of its throughput that a training loses to one worker, while that is named.",
        "percentunit",
        Target(COST, "{{namespace}}/{{training}}, worker {{worker}}: {{cause}}"),
        presence=Presence.STRAGGLER,
        width=12,
        runbook="PacelineWorkerStraggling",
    ),
    lines(
        "Restarts",
        "Restarts in the last hour, by role and reason.",
        "none",
        Target(
            f"sum by (role, reason) ({within('training_role_reason:paceline_training_restarts:increase1h')})",
            "{{role}}: {{reason}}",
        ),
        presence=Presence.TROUBLE,
        width=12,
        runbook="PacelineRestartLoop",
    ),
)
HISTORY = (
    lines(
        "Finished",
        "Trainings of all namespaces that finished in the time that is shown, by result.",
        "none",
        Target(f"sum by (result) (increase(paceline_trainings_finished_total{WHOLE}))", "{{result}}"),
        presence=Presence.FINISHED,
    ),
    lines(
        "Time to the first step",
        "From a training's creation to its first step, in all namespaces.",
        "s",
        *_quantiles("paceline_training_startup_seconds"),
        presence=Presence.FINISHED,
    ),
    lines(
        "Duration",
        "From a training's creation to its end, in all namespaces.",
        "s",
        *_quantiles("paceline_training_duration_seconds"),
        presence=Presence.FINISHED,
    ),
)

DASHBOARD = Dashboard(
    name="fleet",
    title="Fleet",
    description="All trainings: what runs, what waits, what is lost, and to whom.",
    variables=(
        Variable(
            "namespace",
            "Namespace",
            "Of the trainings in the time that is shown.",
            Target(f"group by (namespace) (last_over_time(paceline_training_info{WHOLE}))", presence=Presence.OPERATOR),
            label="namespace",
            every=True,
        ),
    ),
    rows=(
        Row("Now", NOW),
        Row("Trainings", TRAININGS),
        Row("Over time", TIME),
        Row("History", HISTORY, collapsed=True),
    ),
    restarts=restarted(NAMESPACES),
)
