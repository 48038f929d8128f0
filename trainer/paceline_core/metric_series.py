"""How a metric is declared, and how many series a training of some size exports. Pure.

The levels keep a training's series within a budget: at 10,000 workers a histogram for each would be 180,000 series.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from paceline_core.spec import Level, TrainingSpec

DETAILED_WORKERS, STANDARD_WORKERS = 256, 2048  # the largest trainings of these levels
ORDER = (Level.AGGREGATED, Level.STANDARD, Level.DETAILED)  # each exports what the one before does, and more


class MetricKind(StrEnum):
    """The types of Prometheus' text format that Paceline uses."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, eq=False)  # each is itself alone: they are looked up many times a second
class Metric:
    """One metric: a counter's name ends with `_total`; `labels` are those beside the constant ones of its owner."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    level: Level = Level.AGGREGATED  # the lowest level that exports it
    only: str = ""  # the trainings or machines that have it, in words; empty: all

    def __post_init__(self) -> None:
        assert self.name.endswith("_total") is (self.kind is MetricKind.COUNTER), f"{self.name} is misnamed"
        assert bool(self.buckets) is (self.kind is MetricKind.HISTOGRAM), f"{self.name}: buckets and kind do not agree"


def level(spec: TrainingSpec) -> Level:
    """The level in force: the one that is asked for, or, for Auto, the most detailed that fits the size."""
    asked = spec.observability.level
    if asked is not Level.AUTO:
        return asked
    if spec.world_size <= DETAILED_WORKERS:
        return Level.DETAILED
    return Level.STANDARD if spec.world_size <= STANDARD_WORKERS else Level.AGGREGATED


def why(spec: TrainingSpec) -> str:
    """Why that level is in force, in words."""
    if spec.observability.level is not Level.AUTO:
        return "asked for by observability.level"
    workers = f"{spec.world_size} worker{'s' if spec.world_size > 1 else ''}"
    return f"chosen for {workers}: up to {DETAILED_WORKERS} Detailed, up to {STANDARD_WORKERS:,} Standard"


def exported(metrics: Iterable[Metric], at: Level) -> list[Metric]:
    """Those of the metrics that are exported at a level."""
    return [m for m in metrics if ORDER.index(m.level) <= ORDER.index(at)]
