"""What Grafana would ask of Prometheus for the dashboards, and with which values of their variables."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from charts.dashboards import DASHBOARDS, Query, filled, queries
from charts.dashboards.layout import Dashboard
from charts.dashboards.queries import Presence
from tests.observability.prometheus import Api

Wanted = Callable[[Presence], bool]
PANELS = {(d.name, p.title): p for d in DASHBOARDS for row in d.rows for p in row.panels}


@dataclass(frozen=True)
class Viewer:
    """Somebody who has opened a dashboard, with these values of its variables; its graphs begin at `since`."""

    api: Api
    dashboard: Dashboard
    values: dict[str, str]
    since: float  # Unix time

    def unanswered(self, wanted: Wanted) -> list[str]:
        """Asks everything, which must be without an error, and tells what of the wanted has no answer."""
        found = [(query, self._asked(query)) for query in queries() if query.dashboard == self.dashboard.name]
        return [f"{q.dashboard}, {q.panel}: {q.expr}" for q, answered in found if wanted(q.presence) and not answered]

    def shown(self, panel: str, legend: str | None = None) -> list[tuple[str, float, dict[str, str]]]:
        """Worker, value and labels of each series of a panel's query, which has this legend or is the only one."""
        targets = PANELS[self.dashboard.name, panel].targets
        (target,) = [t for t in targets if legend in (None, t.legend)]
        found = self.api.ask(filled(target.expr, **self.values))
        rows = [(labels.get("worker", ""), value, labels) for labels, value in found]
        return sorted(rows, key=lambda row: row[1], reverse=True)  # the greatest first

    def _asked(self, query: Query) -> bool:
        expr = filled(query.expr, **self.values)
        panel = PANELS.get((query.dashboard, query.panel))
        answered = bool(self.api.ask(expr))
        if panel is not None and not panel.query.get("instant"):
            return bool(self.api.graph(expr, self.since)) and answered
        return answered


def opened(api: Api, name: str, since: float, **chosen: str) -> Viewer:
    """A dashboard with what is chosen; other variables take the first value that there is, hidden ones all."""
    (dashboard,) = (d for d in DASHBOARDS if d.name == name)
    values = dict(chosen)
    for variable in dashboard.variables:
        if variable.name in values:
            continue
        found = list(_labels(api, filled(variable.target.expr, **values), variable.label))
        values[variable.name] = "|".join(found) if variable.hidden else ".*" if variable.every else "".join(found[:1])
    return Viewer(api, dashboard, values, since)


def _labels(api: Api, expr: str, label: str) -> Iterator[str]:
    return (labels[label] for labels, _ in api.ask(expr) if label in labels)


def until_answered(unanswered: Callable[[], list[str]], limit: float = 60) -> None:
    """Ask again until everything has an answer; fails with what has none."""
    until = time.monotonic() + limit
    while (left := unanswered()) and time.monotonic() < until:
        time.sleep(1)
    assert left == [], "\n".join(left)
