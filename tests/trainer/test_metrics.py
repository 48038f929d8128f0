"""What is exported, and how much of it."""

import math
from dataclasses import replace

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse

from paceline import metrics
from paceline.metrics import Instruments
from paceline.worker.observability.cuda_events import DeviceClock, with_device_times
from paceline.worker.observability.phase_clock import Step
from paceline.worker.observability.step_metrics import LastStep, StepMetrics, StepRow
from paceline_core.attribution import PHASES
from paceline_core.metric_series import MetricKind
from paceline_core.spec import Level

MARKS = [(phase, 10.0 + index) for index, phase in enumerate(PHASES)]


def row(**more: object) -> StepRow:
    step = Step(MARKS, 10.0 + len(PHASES))
    return replace(StepRow(7, step, LastStep(7, 0, True, ""), 0.02, (30, 40), DeviceClock(), {}), **more)


def samples(made: Instruments) -> dict[str, float]:
    families = list(parse(generate_latest(made).decode()))
    return {f"{s.name}{sorted(s.labels.items())}": s.value for f in families for s in f.samples}


def value(made: Instruments, name: str, **labels: str) -> float:
    everything = {"training": "t", "worker": "3", **labels}
    return samples(made)[f"{name}{sorted(everything.items())}"]


def recorded(level: Level, *rows: StepRow) -> Instruments:
    made = metrics.of_worker("t", 3, level)
    step_metrics = StepMetrics(made, DeviceClock(), 80)
    rows = rows or (row(),)
    assert all(each.settle() for each in rows)
    step_metrics.steps(rows)
    made.set(metrics.INFO, 1, "cpu", "gloo", "2.13", "0.1", "node")
    return made


@pytest.mark.parametrize(("level", "most"), [(Level.DETAILED, 46), (Level.STANDARD, 17), (Level.AGGREGATED, 0)])
def test_a_worker_keeps_to_its_budget_of_series(level: Level, most: int) -> None:
    made = recorded(level)
    made.add(metrics.SAMPLES)
    for each in (metrics.NORM, metrics.LOSS, metrics.CLOCK_OFFSET):
        made.set(each, 1)
    assert len(samples(made)) <= most
    assert not any("_created" in name for name in samples(made))


@pytest.mark.parametrize("level", [Level.DETAILED, Level.STANDARD])
def test_the_phases_add_up_to_the_wall_time(level: Level) -> None:
    made = recorded(level, row(), row())
    found = {k: v for k, v in samples(made).items() if k.startswith("paceline_worker_phase_seconds_total")}
    assert math.isclose(sum(found.values()), 2 * len(PHASES))
    assert len(found) == (len(PHASES) if level is Level.DETAILED else 4)


def test_a_wait_in_which_it_still_sent_is_sending() -> None:
    each = row(sending=0.25)
    assert each.settle()
    assert (each.phases["wait"], each.phases["send"]) == (0.75, 1.25)
    assert math.isclose(sum(each.phases.values()), each.step.wall)


def test_what_is_no_number_is_counted_and_not_shown() -> None:
    made = recorded(Level.DETAILED, row(norm=math.nan), row(norm=2.0))
    step_metrics = StepMetrics(made, DeviceClock(), 80)
    for loss in (1.5, math.inf, math.nan):
        step_metrics.reported({"loss": loss})
    assert value(made, "paceline_worker_gradient_norm") == 2.0
    assert value(made, "paceline_worker_loss") == 1.5
    assert value(made, "paceline_worker_nonfinite_total", where="gradient") == 1
    assert value(made, "paceline_worker_nonfinite_total", where="loss") == 2


def test_bytes_are_counted_through_a_connection_made_anew() -> None:
    made = recorded(
        Level.DETAILED, row(traffic=(10, 20)), row(traffic=(30, 50)), row(traffic=(5, 60)), row(traffic=(9, 61))
    )
    assert value(made, "paceline_worker_gradient_bytes_total", direction="sent") == 34
    assert value(made, "paceline_worker_gradient_bytes_total", direction="received") == 61
    assert value(made, "paceline_worker_gradient_raw_bytes_total") == 320


class LateClock(DeviceClock):
    """A device that finishes a step only after some looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def read(self, marks: dict[str, object]) -> tuple[float, float] | None:
        self.looks -= 1
        return (3.0, 2.0) if self.looks < 0 else None


def test_a_step_is_recorded_when_the_device_has_finished_it() -> None:
    each = row(device=LateClock(2), marks={"ready": object()})
    assert [each.settle(), each.settle(), each.settle()] == [False, False, True]
    assert (each.phases["forward"], each.phases["backward"]) == (3.0, 2.0)
    assert math.isclose(sum(each.phases.values()), each.step.wall)
    unfinished = row(device=LateClock(9), marks={"ready": object()})
    assert unfinished.settle(now=True)  # at the end nobody waits for it


@pytest.mark.parametrize(
    ("phases", "device", "expected"),
    [
        (
            {"forward": 1.0, "backward": 1.0, "encode": 5.0},
            (3.0, 2.0),
            {"forward": 3.0, "backward": 2.0, "encode": 2.0},
        ),
        ({"forward": 1.0, "backward": 1.0, "wait": 1.0}, (9.0, 1.0), {"forward": 2.0, "backward": 1.0, "wait": 0.0}),
        ({"forward": 4.0, "backward": 1.0, "wait": 1.0}, (3.0, 1.0), {"forward": 4.0, "backward": 1.0, "wait": 1.0}),
    ],
)
def test_device_times_move_what_the_cpu_waited(
    phases: dict[str, float], device: tuple[float, float], expected: dict[str, float]
) -> None:
    assert with_device_times(phases, *device) == expected


def test_every_metric_can_be_recorded_and_forgotten() -> None:
    for make, declared in ((metrics.of_worker, metrics.WORKER), (metrics.of_server, metrics.SERVER)):
        made = make("t", 0, Level.DETAILED)
        for each in declared:
            labels = ["x"] * len(each.labels)
            match each.kind:
                case MetricKind.COUNTER:
                    made.add(each, 1.0, *labels)
                case MetricKind.GAUGE:
                    made.set(each, 1.0, *labels)
                case MetricKind.HISTOGRAM:
                    made.observe(each, 1.0, *labels)
        text = generate_latest(made).decode()
        assert all(f"# HELP {each.name} " in text for each in declared), text
        made.clear(metrics.STRAGGLER)
        assert "paceline_server_straggler_cost_ratio{" not in generate_latest(made).decode()


def test_names_are_declared_once() -> None:
    names = [m.name for m in metrics.DECLARED]
    assert len(names) == len(set(names))
