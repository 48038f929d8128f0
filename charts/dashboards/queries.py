"""PromQL: what the dashboards' queries have in common, and in which trainings a query has an answer."""

from dataclasses import dataclass
from enum import Enum
from string import Template

from paceline_core import modes

ALL = frozenset(modes.MODES)
WAITING = frozenset(modes.names(lambda it: it.knobs.names_lag))
LATE = frozenset(modes.names(lambda it: it.knobs.rejects_late))
WITH_SERVERS = frozenset(modes.names(lambda it: not it.ring))
NO_MODE = frozenset[str]()
NAMESPACES = 'namespace=~"$namespace"'  # All is `.*`, which a series without a namespace matches too
TRAINING = 'training="$training"'
CHOSEN = 'worker="$worker"'
LAGGING, EACH, SLOWEST, TYPICAL = (f'worker=~"${name}"' for name in ("lagging", "each", "slowest", "typical"))
STEP, WHOLE = "[$__rate_interval]", "[$__range]"  # windows: one for each point of a graph; all that is shown
FIXED = f"{WHOLE} @ end()"  # all that is shown, and the same at every point of a graph
EXAMPLE = {  # what Grafana would put in, for a query that is asked outside of it
    "namespace": ".*",
    "training": "digits",
    "worker": "0",
    "typical": "1",
    "lagging": "0|1|2|3",
    "slowest": "0|1|2|3",
    "each": "0|1|2|3",
    "__interval": "15s",
    "__range": "1h",
    "__rate_interval": "1m",
}


class Presence(Enum):
    """In which modes every healthy training gives a query an answer, and what a panel says that has none."""

    ALWAYS = (ALL, "No data")
    OPERATOR = (ALL, "Only with the operator")
    WORKERS = (ALL, "Workers are not scraped")  # so it is at level Aggregated
    DETAILED = (ALL, "Only at level Detailed")
    REPORTED = (ALL, "The script reports no loss")
    ROUNDS = (WAITING, f"Nobody waits in {modes.NOT_WAITING}")
    FEW = (WAITING, "Nobody waits, or there are more than 256 workers")
    STALENESS = (LATE, f"Only in {modes.either(lambda it: it.knobs.rejects_late)}")
    SERVERS = (WITH_SERVERS, "Only with parameter servers")
    STRAGGLER = (NO_MODE, "No worker is named")
    SAVES = (NO_MODE, "Only with spec.checkpoint")
    FINISHED = (NO_MODE, "None has finished")
    TROUBLE = (NO_MODE, "None")
    GPU = (NO_MODE, "Only on GPUs")
    DCGM = (NO_MODE, "Only with NVIDIA's DCGM exporter")

    def __init__(self, modes: frozenset[str], otherwise: str) -> None:
        self.modes, self.otherwise = modes, otherwise


@dataclass(frozen=True)
class Target:
    """One query. `legend` names its lines, or its column in a table; what is not set is as its panel's."""

    expr: str
    legend: str = ""
    presence: Presence | None = None
    unit: str = ""


def filled(expr: str, **values: str) -> str:
    """The query with every variable of Grafana replaced: by `values`, or else by those of EXAMPLE."""
    return Template(expr).substitute(EXAMPLE | values)


def of(metric: str, *matchers: str) -> str:
    """The series of the chosen training."""
    return f"{metric}{{{','.join([NAMESPACES, TRAINING, *matchers])}}}"


def within(metric: str, *matchers: str) -> str:
    """The series of all trainings, or operators, in the chosen namespaces."""
    return f"{metric}{{{','.join([NAMESPACES, *matchers])}}}"


def total(vector: str, *labels: str) -> str:
    """The sum, by the labels if there are any."""
    return f"sum by ({', '.join(labels)}) ({vector})" if labels else f"sum({vector})"


def rate(series: str, *labels: str, window: str = STEP) -> str:
    """Per second, summed by the labels."""
    return total(f"rate({series}{window})", *labels)


def increase(series: str, *labels: str, window: str = STEP) -> str:
    """How much was counted, summed by the labels."""
    return total(f"increase({series}{window})", *labels)


def mean(histogram: str, *labels: str) -> str:
    """The mean of what the chosen training's histogram observed."""
    observed, count = (rate(of(f"{histogram}_{part}"), *labels) for part in ("sum", "count"))
    return f"{observed} / ({count} > 0)"


def averaged(series: str, window: str = WHOLE) -> str:
    """The mean of each worker's series in the window."""
    return f"max by (worker) (avg_over_time({series}{window}))"


def per_step(phases: str = "", workers: str = "", by: str = "worker", window: str = STEP) -> str:
    """Seconds a step, by `worker` or by `worker, phase`; `phases` and `workers` are matchers."""
    matchers = [matcher for matcher in (workers, phases) if matcher]
    seconds = rate(of("paceline_worker_phase_seconds_total", *matchers), by, window=window)
    made = rate(of("paceline_worker_steps_total", *matchers[: bool(workers)]), "worker", window=window)
    return f"{seconds} / on (worker) group_left () ({made} > 0)"


def own(workers: str = "", window: str = STEP) -> str:
    """Seconds a step in which a worker depends on nobody."""
    return per_step('phase!~"wait|receive"', workers, window=window)


def restarted(*matchers: str) -> Target:
    """Restarts, for marks in graphs. A counter appears with its first count, which `changes` does not see."""
    counted = f"training_role_reason:paceline_training_restarts_total:max{{{','.join(matchers)}}}"
    first = f"{counted} unless max_over_time({counted}[1h] offset 1m)"
    return Target(f"changes({counted}[1m]) > 0 or ({first})", presence=Presence.TROUBLE)
