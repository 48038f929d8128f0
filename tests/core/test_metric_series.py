"""Levels, and how metrics are declared."""

import pytest

from paceline_core.metric_series import Metric, MetricKind, exported, level, why
from paceline_core.spec import Level, TrainingSpec


def spec(workers: int, asked: str = "Auto") -> TrainingSpec:
    container = {"name": "trainer", "command": ["python", "train.py"]}
    template = {"spec": {"containers": [container]}}
    return TrainingSpec.model_validate(
        {
            "topology": "ParameterServer",
            "workers": {"replicas": workers, "template": template},
            "observability": {"level": asked},
        }
    )


@pytest.mark.parametrize(
    ("workers", "asked", "expected"),
    [
        (1, "Auto", Level.DETAILED),
        (256, "Auto", Level.DETAILED),
        (257, "Auto", Level.STANDARD),
        (2048, "Auto", Level.STANDARD),
        (2049, "Auto", Level.AGGREGATED),
        (3, "Aggregated", Level.AGGREGATED),
        (10_000, "Detailed", Level.DETAILED),
    ],
)
def test_the_level_fits_the_size_unless_it_is_asked_for(workers: int, asked: str, expected: Level) -> None:
    assert level(spec(workers, asked)) is expected
    assert ("asked for" in why(spec(workers, asked))) is (asked != "Auto")


def test_each_level_exports_what_the_one_below_does() -> None:
    metrics = [
        Metric(f"m{i}", MetricKind.GAUGE, "help", level=each)
        for i, each in enumerate((Level.AGGREGATED, Level.STANDARD, Level.DETAILED))
    ]
    assert [len(exported(metrics, at)) for at in (Level.AGGREGATED, Level.STANDARD, Level.DETAILED)] == [1, 2, 3]


def test_a_counter_is_named_as_one() -> None:
    with pytest.raises(AssertionError, match="misnamed"):
        Metric("seconds", MetricKind.COUNTER, "help")
    with pytest.raises(AssertionError, match="buckets"):
        Metric("seconds", MetricKind.HISTOGRAM, "help")
