"""The dashboards for Grafana, as Python: `python -m charts.dashboards` writes charts/paceline/dashboards/*.json.

Three of them: one training, the fleet of all trainings, the operator. Each has its module, from rows of panels; panels
are in `panels`, what their queries have in common in `queries`. `queries()` lists every query for tests.

*Namespaces.* A pod's series carry the `namespace` that the scrape configuration adds, the operator's series about a
training that of the training. A Prometheus on a laptop scrapes `paceline run`: no `paceline_training_*` series, and
perhaps no namespace. So every query matches `namespace=~"$namespace"`, the choice All stands for `.*`, which also
matches a series without the label, and the trainings to choose from are those that the operator or a server tells of.
The recording rules (charts/paceline/rules/paceline.yaml) are needed everywhere.

*Many workers.* The graphs of the ten slowest select these by name: hidden variables have found them, once for each
refresh. At 10,000 workers a graph that ranks them at each of its points takes seconds.

*No data.* A panel whose queries have no answer says when they would have one: only in some modes (`Presence.modes`),
only on GPUs, or only when something went wrong.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from charts.dashboards import fleet, operation, training
from charts.dashboards.layout import Dashboard
from charts.dashboards.queries import Presence, Target, filled

__all__ = ["DASHBOARDS", "Query", "filled", "queries"]

DASHBOARDS: tuple[Dashboard, ...] = (training.DASHBOARD, fleet.DASHBOARD, operation.DASHBOARD)


@dataclass(frozen=True)
class Query:
    """A query and where it is asked; `expr` holds variables of Grafana, which `filled` replaces."""

    dashboard: str
    panel: str  # its title; or $variable; or the marks in graphs
    expr: str
    presence: Presence

    @property
    def optional(self) -> bool:
        """Whether a healthy training on CPUs may leave it without an answer, in every mode."""
        return not self.presence.modes


def queries() -> Iterator[Query]:
    """Every query of the dashboards."""
    for dashboard in DASHBOARDS:
        for panel in (panel for row in dashboard.rows for panel in row.panels):
            for target in panel.targets:
                yield Query(dashboard.name, panel.title, target.expr, target.presence or panel.presence)
        for variable in dashboard.variables:
            yield _query(dashboard, f"${variable.name}", variable.target)
        yield _query(dashboard, "restarts marked", dashboard.restarts)


def _query(dashboard: Dashboard, where: str, target: Target) -> Query:
    return Query(dashboard.name, where, target.expr, target.presence or Presence.ALWAYS)
