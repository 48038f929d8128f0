"""A dashboard: rows of panels put into their places, variables, annotations and links."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from charts.dashboards.panels import DATASOURCE, DOCS, Json, Panel
from charts.dashboards.queries import Target

WIDTH = 24
BUILT_IN = {"type": "grafana", "uid": "-- Grafana --"}


@dataclass(frozen=True)
class Variable:
    """A choice at the top of the dashboard, or a hidden one of all values: those of `label` in what `target` finds."""

    name: str
    title: str
    description: str
    target: Target
    label: str
    every: bool = False  # whether "All" is offered, which also matches series without the label
    ranked: bool = False  # in the order of the query, not of the alphabet
    hidden: bool = False

    def json(self) -> Json:
        """What Grafana reads."""
        query = f"query_result({self.target.expr})"
        return {
            "type": "query",
            "name": self.name,
            "label": self.title,
            "description": self.description,
            "datasource": DATASOURCE,
            "definition": query,
            "query": {"qryType": 3, "query": query, "refId": self.name},
            "regex": f'/\\b{self.label}="([^"]+)"/',
            "refresh": 2,  # when the time range changes
            "sort": 0 if self.ranked else 7,  # 7: natural order
            **self._choice(),
        }

    def _choice(self) -> Json:
        every = {"includeAll": True, "current": {"text": "All", "value": "$__all"}}
        if self.hidden:
            return every | {"hide": 2, "multi": True, "skipUrlSync": True}
        return every | {"allValue": ".*"} if self.every else {"includeAll": False}


@dataclass(frozen=True)
class Row:
    """Panels under a heading; those of a collapsed one ask nothing until it is opened."""

    title: str
    panels: tuple[Panel, ...]
    collapsed: bool = False


@dataclass(frozen=True)
class Dashboard:
    """One dashboard; `name` is also its file's."""

    name: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    restarts: Target  # marked in every graph

    def json(self) -> Json:
        """What Grafana reads."""
        return {
            "uid": f"paceline-{self.name}",
            "title": f"Paceline / {self.title}",
            "description": self.description,
            "tags": ["paceline"],
            "schemaVersion": 39,
            "editable": True,
            "graphTooltip": 1,  # one crosshair in all graphs
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "links": _links(),
            "annotations": {"list": [_alerts(), _restarts(self.restarts)]},
            "templating": {"list": [_datasource(), *(v.json() for v in self.variables)]},
            "panels": list(_rows(self.rows)),
        }


def _rows(rows: tuple[Row, ...]) -> Iterator[Json]:
    number, y = 0, 0
    for row in rows:
        number += 1
        heading: Json = {"id": number, "type": "row", "title": row.title, "collapsed": row.collapsed, "panels": []}
        heading["gridPos"] = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        placed = list(_placed(row.panels, number + 1, y + 1))
        number += len(placed)
        if row.collapsed:
            yield heading | {"panels": placed}
            y += 1
        else:
            yield heading
            yield from placed
            y = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in placed)


def _placed(panels: tuple[Panel, ...], number: int, y: int) -> Iterator[Json]:
    """Each panel right of the one before; below all of them where the width does not suffice."""
    x, below = 0, y
    for at, panel in enumerate(panels):
        if x + panel.width > WIDTH:
            x, y = 0, below
        yield panel.json(number + at, x, y)
        x, below = x + panel.width, max(below, y + panel.height)


def _datasource() -> Json:
    return {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus"}


def _alerts() -> Json:
    shown = {"enable": True, "hide": True, "iconColor": "blue"}
    return {"name": "Annotations & Alerts", "type": "dashboard", "builtIn": 1, "datasource": BUILT_IN} | shown


def _restarts(target: Target) -> Json:
    texts = {"titleFormat": "{{training}}: {{role}} restarted", "textFormat": "{{reason}}", "step": "30s"}
    shown = {"enable": True, "hide": False, "iconColor": "red"}
    return {"name": "Restarts", "datasource": DATASOURCE, "expr": target.expr} | texts | shown


def _links() -> list[Json]:
    def page(title: str, url: str) -> Json:
        return {"type": "link", "title": title, "url": url, "icon": "doc", "targetBlank": True}

    others: dict[str, Any] = {"type": "dashboards", "title": "Paceline", "tags": ["paceline"], "asDropdown": True}
    return [
        others | {"keepTime": True, "includeVars": True},
        page("What the words mean", f"{DOCS}/concepts.md"),
        page("Monitoring", f"{DOCS}/monitoring.md"),
        page("What to do", f"{DOCS}/runbooks/README.md"),
    ]
