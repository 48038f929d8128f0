"""The kinds of panel, as Grafana's JSON. All share the data source; each says what it shows and in which unit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from charts.dashboards.queries import Presence, Target

Json = dict[str, Any]
DOCS = "https://github.com/paceline/paceline/blob/main/docs"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
GREEN, YELLOW, RED = "green", "yellow", "red"


@dataclass(frozen=True)
class Panel:
    """A panel before it has its place."""

    kind: str
    title: str
    description: str
    unit: str
    targets: tuple[Target, ...]
    width: int = 8  # of 24
    height: int = 8
    presence: Presence = Presence.ALWAYS  # of its queries
    runbook: str = ""  # an alert
    query: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[Json, ...] = ()
    transformations: tuple[Json, ...] = ()

    def json(self, number: int, x: int, y: int) -> Json:
        """What Grafana reads."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "links": [_runbook(self.runbook)] if self.runbook else [],
            "targets": [self._target(at, target) for at, target in enumerate(self.targets)],
            "fieldConfig": {
                "defaults": {"unit": self.unit, "noValue": self.presence.otherwise, **self.defaults},
                "overrides": list(self.overrides),
            },
            "options": dict(self.options),
            "transformations": list(self.transformations),
        }

    def _target(self, at: int, target: Target) -> Json:
        legend = target.legend or "__auto"
        shared = {"refId": _letter(at), "datasource": DATASOURCE, "editorMode": "code"}
        return {**shared, "expr": target.expr, "legendFormat": legend, "range": True, **self.query}


def stat(
    title: str,
    description: str,
    unit: str,
    *targets: Target,
    now: bool = False,
    names: bool = False,
    **more: Any,
) -> Panel:
    """The last value in the time that is shown, in large type; with `now` the present one; with `names` its legend."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "name" if names else "auto",
        "colorMode": "value" if "defaults" in more else "none",
        "graphMode": "none",
    }
    query = {"instant": True, "range": False} if now or names else {}
    size = {"width": 4, "height": 4} | more
    return Panel("stat", title, description, unit, targets, **size, options=options, query=query)


def lines(
    title: str,
    description: str,
    unit: str,
    *targets: Target,
    stacked: bool = False,
    from_zero: bool = True,
    **more: Any,
) -> Panel:
    """Lines over time, or areas on top of each other."""
    custom: Json = {"fillOpacity": 0, "lineWidth": 1, "showPoints": "auto"}
    if stacked:
        custom = {
            "fillOpacity": 60,
            "lineWidth": 0,
            "showPoints": "never",
            "stacking": {"mode": "normal", "group": "A"},
        }
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    defaults = {"custom": custom, "min": 0} if from_zero else {"custom": custom}
    return Panel("timeseries", title, description, unit, targets, **more, options=options, defaults=defaults)


def heatmap(title: str, description: str, unit: str, target: Target, *, buckets: bool = False, **more: Any) -> Panel:
    """Colour by time and row. A row is a series, or with `buckets` a bucket of a histogram."""
    options = {
        "calculate": False,
        "cellGap": 1,
        "cellValues": {"unit": unit},
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "min": 0},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto" if buckets else "unknown"},
        "tooltip": {"mode": "single", "yHistogram": False},
        "yAxis": {"axisPlacement": "left", "unit": "none", "decimals": 0},
    }
    query = {"format": "heatmap"} if buckets else {}
    return Panel("heatmap", title, description, unit, (target,), **more, options=options, query=query)


def table(title: str, description: str, labels: Mapping[str, str], *targets: Target, **more: Any) -> Panel:
    """A row for each set of `labels`, under their headings; a column for each target that has a legend."""
    values = {f"Value #{_letter(at)}": target.legend for at, target in enumerate(targets)}
    headings = dict(labels) | {name: legend for name, legend in values.items() if legend}
    columns = {
        "excludeByName": dict.fromkeys(["Time", *(name for name, legend in values.items() if not legend)], True),
        "indexByName": {name: at for at, name in enumerate(headings)},
        "renameByName": headings,
    }
    units = [override(target.legend, unit=target.unit) for target in targets if target.unit]
    return Panel(
        "table",
        title,
        description,
        "none",
        targets,
        width=24,
        query={"format": "table", "instant": True, "range": False},
        options={"showHeader": True, "sortBy": [{"displayName": next(filter(None, values.values())), "desc": True}]},
        overrides=(*units, *more.pop("overrides", ())),
        transformations=({"id": "merge", "options": {}}, {"id": "organize", "options": columns}),
        **more,
    )


def link(title: str, variables: str) -> Json:
    """A link to the dashboard of one training, with the same data source and time."""
    url = "/d/paceline-training?${datasource:queryparam}&${__url_time_range}"
    return {"title": title, "url": f"{url}&{variables}"}


def override(name: str, **properties: Any) -> Json:
    """Other settings for one line or column."""
    listed = [{"id": key.replace("_", "."), "value": value} for key, value in properties.items()]
    return {"matcher": {"id": "byName", "options": name}, "properties": listed}


def steps(first: str, *above: tuple[float, str]) -> Json:
    """Colours by value: `first`, and others from a value on."""
    found = [{"value": None, "color": first}, *({"value": value, "color": colour} for value, colour in above)]
    return {"color": {"mode": "thresholds"}, "thresholds": {"mode": "absolute", "steps": found}}


def _letter(at: int) -> str:
    return chr(ord("A") + at)


def _runbook(alert: str) -> Json:
    return {"title": f"What to do: {alert}", "url": f"{DOCS}/runbooks/{alert}.md", "targetBlank": True}
