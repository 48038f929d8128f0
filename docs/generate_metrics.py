"""Writes docs/metrics.md from the declarations. With --check, only says whether it is current."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from paceline import metrics as trainer
from paceline_core.metric_series import DETAILED_WORKERS, STANDARD_WORKERS, Metric
from paceline_operator.observability import metrics as operator

TARGET = Path(__file__).with_name("metrics.md")
HEAD = f"""# Metrics

Everything that Paceline exports for Prometheus. Written by `make docs` from the declarations in `paceline.metrics` and
`paceline_operator.observability.metrics`; do not edit. How to collect it: [monitoring](monitoring.md); what the
words mean: [concepts](concepts.md).

**Levels.** `spec.observability.level` says how many series a training exports; `Auto` chooses Detailed for up to
{DETAILED_WORKERS} workers, Standard for up to {STANDARD_WORKERS:,}, and Aggregated above. At Standard a worker has
fewer buckets and four phases (data, compute, send, wait). At Aggregated workers are not scraped: server 0 or the
coordinator tells of them. The column says from which level on a metric is there.
"""
SECTIONS = (
    ("Workers", "Labels of all: `training`, `worker`. Port `metrics` of each worker.", trainer.WORKER),
    (
        "Servers and the coordinator",
        "Labels of all: `training`, `server`. Rounds, lags, verdict and goodput come from server 0 or the coordinator.",
        trainer.SERVER,
    ),
    (
        "Operator",
        "Those about a training have its `namespace` and name, and go with it.",
        operator.DECLARED,
    ),
)


def page() -> Iterator[str]:
    """The page, piece by piece."""
    yield HEAD
    for title, text, declared in SECTIONS:
        yield f"\n## {title}\n\n{text}\n\n| name | type | more labels | level | meaning |\n|---|---|---|---|---|\n"
        yield from rows(declared)


def rows(declared: Iterable[Metric]) -> Iterator[str]:
    """One row for each metric."""
    for metric in declared:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        only = f" ({metric.only} only)" if metric.only else ""
        yield f"| `{metric.name}` | {metric.kind} | {labels} | {metric.level} | {metric.help}{only} |\n"


def main() -> int:
    """Write or check."""
    text = "".join(page())
    if "--check" not in sys.argv:
        TARGET.write_text(text)
        return 0
    if not TARGET.exists() or TARGET.read_text() != text:
        print("docs/metrics.md is not current: run `make docs`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
