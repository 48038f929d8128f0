"""The rows of a training's dashboard that are collapsed: GPUs, learning, servers, safety."""

from charts.dashboards.panels import heatmap, lines
from charts.dashboards.queries import CHOSEN, NAMESPACES, Presence, Target, increase, mean, of, rate, total

APPLY = "paceline_server_apply_seconds"
RESTARTS = of("training_role_reason:paceline_training_restarts_total:max")


def _spread(metric: str) -> tuple[Target, ...]:
    """A gauge of all workers, and of the chosen one."""
    every = of(metric)
    return (
        Target(f"max({every})", "highest"),
        Target(f"quantile(0.5, {every})", "median"),
        Target(f"min({every})", "lowest"),
        Target(f"max({of(metric, CHOSEN)})", "worker $worker"),
    )


def _gpu(metric: str, scale: str = "") -> Target:
    """Of the training's workers. Prometheus renames the exporter's labels unless it honours them."""
    plain, renamed = (f'{p}{NAMESPACES},{p}pod=~"$training-worker-.+"' for p in ("", "exported_"))
    return Target(f"({metric}{{{plain}}} or {metric}{{{renamed}}}){scale}", "{{pod}} {{exported_pod}} GPU {{gpu}}")


GPU = (
    lines(
        "GPU utilisation",
        "Share of the time in which the GPU did something.",
        "percentunit",
        _gpu("DCGM_FI_DEV_GPU_UTIL", " / 100"),
        presence=Presence.DCGM,
    ),
    lines(
        "Multiprocessors",
        "Share of the multiprocessors' time with work on them: says more than utilisation.",
        "percentunit",
        _gpu("DCGM_FI_PROF_SM_ACTIVE"),
        presence=Presence.DCGM,
    ),
    lines(
        "Tensor cores",
        "Share of the time in which tensor cores worked.",
        "percentunit",
        _gpu("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"),
        presence=Presence.DCGM,
    ),
    lines(
        "GPU errors",
        "Number (XID) of the last error that the driver reported; 0 is none.",
        "none",
        _gpu("DCGM_FI_DEV_XID_ERRORS"),
        presence=Presence.DCGM,
        width=12,
    ),
    lines(
        "Device memory of worker $worker",
        "What PyTorch has allocated and reserved on the chosen worker's device.",
        "bytes",
        Target(f"max by (state) ({of('paceline_worker_device_memory_bytes', CHOSEN)})", "{{state}}"),
        presence=Presence.GPU,
        width=12,
    ),
)
LEARNING = (
    lines(
        "Loss",
        "The last finite loss of the workers.",
        "none",
        *_spread("paceline_worker_loss"),
        presence=Presence.REPORTED,
        from_zero=False,
    ),
    lines(
        "Gradient norm",
        "Euclidean norm of all gradients of a worker, looked at every 5 seconds.",
        "none",
        *_spread("paceline_worker_gradient_norm"),
        presence=Presence.DETAILED,
    ),
    lines(
        "Samples",
        "Samples that all workers together take from paceline.shard.",
        "cps",
        Target(rate(of("paceline_worker_samples_total")), "all workers"),
        presence=Presence.DETAILED,
    ),
    lines(
        "Rejected gradients",
        "Gradients that the servers rejected, by reason.",
        "none",
        Target(increase(of("paceline_server_gradients_rejected_total"), "reason"), "{{reason}}"),
        presence=Presence.TROUBLE,
        runbook="PacelineGradientNormRejected",
    ),
    lines(
        "Not finite",
        "Losses, and norms of gradients, that were not finite numbers, since the workers began.",
        "none",
        Target(total(of("paceline_worker_nonfinite_total"), "worker", "where"), "worker {{worker}}: {{where}}"),
        presence=Presence.TROUBLE,
        runbook="PacelineNonFiniteGradients",
    ),
    heatmap(
        "Staleness",
        "How many gradients were how many updates old when they arrived.",
        "none",
        Target(increase(of("paceline_server_gradient_staleness_steps_bucket"), "le"), "{{le}}"),
        buckets=True,
        presence=Presence.STALENESS,
        runbook="PacelineStalenessHigh",
    ),
)
SERVING = (
    lines(
        "Duration of an update",
        "Of each server's part of the parameters: 99th percentile and mean.",
        "s",
        Target(f"histogram_quantile(0.99, {rate(of(f'{APPLY}_bucket'), 'server', 'le')})", "99 %, server {{server}}"),
        Target(mean(APPLY, "server"), "mean, server {{server}}"),
        presence=Presence.SERVERS,
    ),
    lines(
        "Time spent updating",
        "Share of the time in which a server does nothing else. Near 1 the workers wait for it.",
        "percentunit",
        Target(f"max by (server) ({of('training_server:paceline_apply:ratio5m')})", "server {{server}}"),
        presence=Presence.SERVERS,
        runbook="PacelineServerSaturated",
    ),
    lines(
        "Updates that could not begin",
        "Share of the time in which an update was decided but the server was not free to make it.",
        "percentunit",
        Target(rate(of("paceline_server_lock_wait_seconds_total"), "server"), "server {{server}}"),
        presence=Presence.SERVERS,
    ),
    lines(
        "Queue",
        "Gradients that are there whole and not yet applied.",
        "none",
        Target(f"max by (server) ({of('paceline_server_queue_depth')})", "server {{server}}"),
        presence=Presence.SERVERS,
    ),
    lines(
        "Bytes by server",
        "What each server sends and receives. One that has much more than the others makes the workers wait.",
        "Bps",
        Target(rate(of("paceline_server_bytes_total"), "server", "direction"), "server {{server}}, {{direction}}"),
        presence=Presence.SERVERS,
    ),
    lines(
        "Connected workers",
        "Workers with an open connection, by server.",
        "none",
        Target(f"max by (server) ({of('paceline_server_connected_workers')})", "server {{server}}"),
    ),
)
SAFETY = (
    lines(
        "Where the time went",
        "Share of the last hour that was lost, by reason; the rest was productive.",
        "percentunit",
        Target(f"max by (reason) ({of('training_reason:paceline_lost:ratio1h')})", "{{reason}}"),
        stacked=True,
        runbook="PacelineGoodputLow",
    ),
    lines(
        "Restarts",
        "Restarts since the training began, by role and reason.",
        "none",
        Target(f"max by (role, reason) ({RESTARTS})", "{{role}}: {{reason}}"),
        presence=Presence.TROUBLE,
        runbook="PacelineRestartLoop",
    ),
    lines(
        "Rejected peers",
        "Connections that servers ended for what was sent, by reason, since they began.",
        "none",
        Target(total(of("paceline_server_peers_rejected_total"), "reason"), "{{reason}}"),
        presence=Presence.TROUBLE,
        runbook="PacelinePeersRejected",
    ),
    lines(
        "Age of the newest checkpoint",
        "How long ago it was saved: what would have to be made again.",
        "s",
        Target(f"time() - max({of('paceline_checkpoint_last_success_timestamp_seconds')})", "age"),
        presence=Presence.SAVES,
        runbook="PacelineCheckpointStale",
    ),
    lines(
        "Time to save and to restore",
        "Until a checkpoint is whole, while the training goes on; and to read the one that it goes on from.",
        "s",
        Target(mean("paceline_checkpoint_duration_seconds", "op"), "{{op}}"),
        presence=Presence.SAVES,
    ),
    lines(
        "Size of the newest checkpoint",
        "Bytes of all its files.",
        "bytes",
        Target(f"max({of('paceline_checkpoint_bytes')})", "size"),
        presence=Presence.SAVES,
    ),
    lines(
        "Checkpoints that failed",
        "Could not be saved, or were passed over as damaged, by reason, since the servers began.",
        "none",
        Target(total(of("paceline_checkpoint_failures_total"), "op", "reason"), "{{op}}: {{reason}}"),
        presence=Presence.TROUBLE,
        runbook="PacelineCheckpointStale",
    ),
)
