"""The rows of a training's dashboard that are open: is it healthy, who is slow, and why."""

from charts.dashboards.panels import GREEN, RED, YELLOW, heatmap, lines, link, override, stat, steps, table
from charts.dashboards.queries import (
    CHOSEN,
    EACH,
    FIXED,
    LAGGING,
    SLOWEST,
    TYPICAL,
    WHOLE,
    Presence,
    Target,
    averaged,
    increase,
    mean,
    of,
    own,
    per_step,
    rate,
    total,
)
from paceline_core import modes

LAG_SHARE = "training_worker:paceline_lag_share:ratio5m"
LAG = "training_worker:paceline_lag_per_round_seconds:mean5m"
LATENCY = "training_worker:paceline_gradient_latency_seconds:mean5m"
COST = of("paceline_server_straggler_cost_ratio")
STALENESS = of("paceline_server_worker_staleness_steps")
CAME_LAST = increase(of("paceline_server_worker_last_arrivals_total", LAGGING), "worker", window=WHOLE)
ROUNDS = increase(of("paceline_server_round_spread_seconds_count"), window=WHOLE)
PHASE = f"max by (phase) ({of('paceline_training_phase')})"
LAST_PHASE = f"max by (phase) (last_over_time({of('paceline_training_phase')}{WHOLE}))"  # of one that was deleted
READY, WANTED = (of("paceline_training_replicas", 'role="worker"', f'state="{s}"') for s in ("ready", "desired"))
DATA = 'phase="data"'
COLOURS = {
    "data": "blue", "forward": "light-green", "backward": "green", "compute": "green", "encode": "light-purple",
    "send": "purple", "wait": "red", "receive": "orange", "apply": "yellow", "checkpoint": "dark-yellow",
    "other": "text",
}  # fmt: skip
PHASE_COLOURS = tuple(override(phase, color={"mode": "fixed", "fixedColor": c}) for phase, c in COLOURS.items())

HEALTHY = (
    stat(
        "Phase",
        "Where in its life the training is.",
        "string",
        Target(f"{PHASE} == 1 or ({LAST_PHASE} == 1 unless on () {PHASE})", "{{phase}}"),
        names=True,
        presence=Presence.OPERATOR,
        runbook="PacelineStalled",
    ),
    stat(
        "Progress",
        "Share of the steps that every worker has made.",
        "percentunit",
        Target(f"max({of('paceline_training_progress_ratio')})"),
        presence=Presence.OPERATOR,
    ),
    stat(
        "Expected end",
        "When the training will be done if it goes on as it did.",
        "dateTimeFromNow",
        Target(f"max({of('paceline_training_estimated_completion_timestamp_seconds')}) * 1000"),
        presence=Presence.OPERATOR,
    ),
    stat(
        "Goodput",
        "Share of the last hour in which the training went on. The row Safety shows where the rest went.",
        "percentunit",
        Target(f"max({of('training:paceline_goodput:ratio1h')})"),
        runbook="PacelineGoodputLow",
        defaults=steps(RED, (0.7, YELLOW), (0.9, GREEN)),
    ),
    stat(
        "Workers",
        "Workers that are ready, or, without the operator, connected; and how many there should be.",
        "none",
        Target(f"max({READY}) or max({of('paceline_server_connected_workers')})", "ready"),
        Target(f"max({WANTED})", "wanted", Presence.OPERATOR),
        runbook="PacelineWorkerMissing",
    ),
    stat(
        "Mode and level",
        "How gradients are applied, and how much is exported: Detailed up to 256 workers, Standard up to 2,048, "
        "Aggregated above, unless observability.level says otherwise.",
        "string",
        Target(
            f"group by (mode, level) (last_over_time({of('paceline_training_info')}{WHOLE}))", "{{mode}}, {{level}}"
        ),
        names=True,
        presence=Presence.OPERATOR,
    ),
)
SLOW = (
    table(
        "Who makes the others wait",
        "The ten workers that cause most of the waiting, in the time that is shown. Lag: how long after the median a "
        "worker's gradient arrives. Cost: the greatest share of the throughput that the worker cost while it was "
        "named, and the cause. Choose a worker to see below where its time goes.",
        {"worker": "Worker", "node": "Node", "cause": "Cause"},
        Target(averaged(of(LAG_SHARE, LAGGING)), "Share of all waiting", unit="percentunit"),
        Target(averaged(of(LAG, LAGGING)), "Lag per round", unit="s"),
        Target(f"{CAME_LAST} / on () group_left () ({ROUNDS} > 0)", "Came last", unit="percentunit"),
        Target(averaged(of(LATENCY, LAGGING)), "Gradient latency", unit="s"),
        Target(
            f"topk by (worker) (1, max by (worker, cause) (max_over_time({COST}{WHOLE})))",
            "Cost",
            Presence.STRAGGLER,
            "percentunit",
        ),
        Target(f"group by (worker, node) ({of('paceline_worker_info', LAGGING)})"),
        presence=Presence.ROUNDS,
        runbook="PacelineWorkerStraggling",
        overrides=(
            override(
                "Worker",
                links=[
                    link(
                        "Where its time goes",
                        "${namespace:queryparam}&${training:queryparam}&var-worker=${__value.text}",
                    )
                ],
            ),
        ),
    ),
    heatmap(
        "Lag by worker",
        "How long after the median each worker's gradient arrives, per round; a row is a worker. With more than 256 "
        "workers there are only the ten beside.",
        "s",
        Target(f"max by (worker) ({of(LAG, EACH)})", "{{worker}}"),
        presence=Presence.FEW,
        width=12,
    ),
    lines(
        "Lag of the ten that cause most",
        "How long after the median a worker's gradient arrives, per round.",
        "s",
        Target(f"max by (worker) ({of(LAG, LAGGING)})", "worker {{worker}}"),
        presence=Presence.ROUNDS,
        width=12,
        runbook="PacelineWorkerStraggling",
    ),
    lines(
        "Rounds",
        "How long a round takes, and how much of it passes from the first arrival to the last: the price of "
        "stragglers.",
        "s",
        Target(f"max({of('training:paceline_round_duration_seconds:mean5m')})", "round"),
        Target(mean("paceline_server_round_spread_seconds"), "first to last arrival"),
        presence=Presence.ROUNDS,
    ),
    lines(
        "Gradient latency",
        "From the last local gradient being ready until the parameters that include it, or in "
        f"{modes.NOT_WAITING} the answer with fresh ones, can be used.",
        "s",
        Target(f"max({of('training:paceline_gradient_latency_seconds:p99_5m')})", "99th percentile"),
        Target(f"max({of('training:paceline_gradient_latency_seconds:median5m')})", "median worker"),
    ),
    lines(
        "Own seconds per step",
        "Time in which a worker depends on nobody: all phases but wait and receive. The ten slowest workers. In "
        f"{modes.NOT_WAITING}, where nobody waits for all, this shows who is slow.",
        "s",
        Target(own(SLOWEST), "worker {{worker}}"),
        presence=Presence.WORKERS,
    ),
    lines(
        "Staleness by worker",
        "How many updates the parameters had seen since the worker received them, smoothed. The ten workers with the "
        "most. A gradient above the limit is rejected.",
        "none",
        Target(
            f"max by (worker) ({STALENESS}) and on (worker) topk(10, {averaged(STALENESS, FIXED)})", "worker {{worker}}"
        ),
        Target(f"max({of('paceline_server_max_staleness_steps')})", "limit"),
        presence=Presence.STALENESS,
        width=12,
        runbook="PacelineStalenessHigh",
    ),
    lines(
        "Cost of the straggler",
        "Share of the throughput that is lost to one worker, while it is named as the one that makes the others wait.",
        "percentunit",
        Target(f"max by (worker, cause) ({COST})", "worker {{worker}}: {{cause}}"),
        presence=Presence.STRAGGLER,
        width=12,
        runbook="PacelineWorkerStraggling",
    ),
)
WHY = (
    lines(
        "Phases of worker $worker",
        "Where a step of the chosen worker goes. The choice at the top lists the slowest first.",
        "s",
        Target(per_step(workers=CHOSEN, by="worker, phase"), "{{phase}}"),
        presence=Presence.WORKERS,
        width=12,
        stacked=True,
        overrides=PHASE_COLOURS,
    ),
    lines(
        "Phases of the median, worker $typical",
        "Where a step of a typical worker goes: the one whose own seconds per step are the median.",
        "s",
        Target(per_step(workers=TYPICAL, by="worker, phase"), "{{phase}}"),
        presence=Presence.WORKERS,
        width=12,
        stacked=True,
        overrides=PHASE_COLOURS,
    ),
    lines(
        "Waiting for data",
        "Seconds of a step in which a worker waits for its own data. The ten slowest workers.",
        "s",
        Target(per_step(DATA, SLOWEST), "worker {{worker}}"),
        presence=Presence.WORKERS,
    ),
    lines(
        "Gradient bytes of worker $worker",
        "What the chosen worker sends and receives, and what it would send without encoding.",
        "Bps",
        Target(rate(of("paceline_worker_gradient_bytes_total", CHOSEN), "direction"), "{{direction}}"),
        Target(rate(of("paceline_worker_gradient_raw_bytes_total", CHOSEN)), "before encoding"),
        presence=Presence.DETAILED,
    ),
    lines(
        "Retries",
        "Connections that broke and were made anew, by reason, since the workers began.",
        "none",
        Target(total(of("paceline_worker_retries_total"), "reason"), "{{reason}}"),
        presence=Presence.TROUBLE,
    ),
)
