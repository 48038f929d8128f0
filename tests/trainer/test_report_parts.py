"""The parts of a report: curves, the log of steps, axes, and the manifest without secrets."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline import manifest_redaction as redaction
from paceline.views.report import axes, steps_csv
from paceline.views.report.downsampling import Curves

from .made import a_row, write_steps


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=300), st.integers(2, 20))
def test_curves_keep_every_value_in_few_bins(values: list[tuple[float, float]], most: int) -> None:
    curves = Curves(most)
    for time, value in values:
        curves.add("x", time, value)
    points = curves.points("x")
    assert len(points) <= most
    assert [p.time for p in points] == sorted(p.time for p in points)
    assert min(p.least for p in points) == min(v for _, v in values)
    assert max(p.greatest for p in points) == max(v for _, v in values)
    assert all(p.least - 1e-6 <= p.mean <= p.greatest + 1e-6 for p in points)


def test_a_bin_holds_the_mean_the_least_and_the_greatest() -> None:
    curves = Curves(most=4, width=1.0)
    for time, value in ((0.5, 1.0), (1.5, 3.0), (7.5, 10.0)):
        curves.add("x", time, value)
    assert curves.width == 2.0
    assert curves.points("x") == [(1.0, 2.0, 1.0, 3.0), (7.0, 10.0, 10.0, 10.0)]
    assert curves.points("y") == []


def test_half_a_line_and_rubbish_are_counted_and_left_out(tmp_path: Path) -> None:
    write_steps(
        tmp_path, [a_row(0, 1), a_row(0, 2, loss="x"), a_row(0, 3, loss="nan"), a_row(0, 4, loss="")], "0,5,5,1."
    )
    read = steps_csv.read(tmp_path, 1, rounds=True)
    assert read.workers[0].steps == 3
    assert read.unreadable == 2
    assert [p.mean for p in read.loss.points("loss")] == [1.0]


def test_there_may_be_no_file(tmp_path: Path) -> None:
    assert steps_csv.read(tmp_path, 4, rounds=True).workers == {}


@pytest.mark.parametrize(
    ("made", "labels"),
    [
        (axes.linear(0), ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (axes.linear(7), ["0", "2", "4", "6", "8"]),
        (axes.linear(1000, "{:,.0f}".format), ["0", "200", "400", "600", "800", "1,000"]),
        (axes.durations(0.0421), ["0", "10 ms", "20 ms", "30 ms", "40 ms", "50 ms"]),
        (axes.durations(90, exact=True), ["0", "0.5 min", "1 min", "1.5 min"]),
        (axes.durations(0), ["0", "0.2 µs", "0.4 µs", "0.6 µs", "0.8 µs", "1 µs"]),
        (axes.values(0.0002, 5), ["1e-4", "0.001", "0.01", "0.1", "1", "10"]),
        (axes.values(0.5, 2), ["0", "0.5", "1", "1.5", "2"]),
        (axes.values(-1, 2), ["-1", "0", "1", "2"]),
        (axes.values(3, 3), ["0", "1", "2", "3"]),
        (axes.values(-3, -3), ["-3", "-2"]),
    ],
)
def test_axes_have_round_numbers(made: axes.Scale, labels: list[str]) -> None:
    assert [text for _, text in made.ticks] == labels
    assert made.low < made.high
    assert 0 <= made.place(made.low) < made.place(made.high) <= 1


MANIFEST = """# a comment
spec:
  env: not a list
  template:
    containers:
      - name: trainer
        env:
          - name: TOKEN
            value: hunter2
          - {name: KEY, value: "hunter3"} # no secret here
          - name: FROM
            valueFrom: {secretKeyRef: {name: x, key: y}}
          - name: LONG
            value: |
              hunter4
              hunter5
        command: [python, train.py]
"""


def test_values_of_variables_are_left_out_of_a_manifest() -> None:
    shown = redaction.redacted(MANIFEST)
    assert "hunter" not in shown
    assert "# a comment" in shown
    assert "{name: KEY, value: (not shown)} # no secret here" in shown
    assert "secretKeyRef: {name: x, key: y}" in shown
    assert "command: [python, train.py]" in shown
    assert "hunter" not in redaction.redacted("env: [{name: A, value: hunter2}")  # not even when it is no YAML
