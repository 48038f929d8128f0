"""Everything observable of real trainings, through Debian's Prometheus: queries, rules, and who is named."""

import subprocess
import urllib.request

import pytest
import yaml

from charts.dashboards.queries import NO_MODE, Presence
from tests.charts.test_chart import CHART
from tests.cluster.conftest import wait_for
from tests.observability import grafana
from tests.observability.conftest import RUNS, Watched
from tests.observability.runs import LATE, PAUSE, SLOW, WORKERS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
MODES = {asked.name: asked.mode for asked in RUNS}
each_training = pytest.mark.parametrize("name", MODES)
GROUPS = yaml.safe_load((CHART / "rules/paceline.yaml").read_text())["groups"]
RECORDED = {rule["record"]: rule["expr"] for group in GROUPS for rule in group["rules"] if "record" in rule}
ALERTS = {rule["alert"]: rule["expr"] for group in GROUPS for rule in group["rules"] if "alert" in rule}
EVERY = frozenset(MODES.values())
ROUNDS, SERVERS = EVERY - {"Asynchronous"}, EVERY - {"AllReduce"}
# In which modes a training without an operator has a recorded series, if not in all.
RECORDED_IN = {
    "training_worker:paceline_lag_share:ratio5m": ROUNDS,
    "training_worker:paceline_lag_per_round_seconds:mean5m": ROUNDS,
    "training:paceline_round_duration_seconds:mean5m": ROUNDS,
    "training:paceline_gradient_staleness_steps:p99_5m": SERVERS,
    "training_server:paceline_apply:ratio5m": SERVERS,
    "training:paceline_stale_gradients:ratio5m": NO_MODE,  # only when something was rejected
    "training_phase:paceline_training_phase:min15m": NO_MODE,  # all below are about what the operator exports
    "training_reason:paceline_training_reason:top5m": NO_MODE,
    "training_role_reason:paceline_training_restarts_total:max": NO_MODE,
    "training_role_reason:paceline_training_restarts:increase1h": NO_MODE,
}


def local(presence: Presence) -> bool:
    """Whether some training without an operator has an answer."""
    return bool(presence.modes) and presence is not Presence.OPERATOR


@each_training
def test_every_query_about_a_training_has_an_answer(watched: Watched, name: str) -> None:
    (asked,) = (asked for asked in RUNS if asked.name == name)
    special = {
        Presence.STRAGGLER: bool(asked.slow) and asked.mode in ROUNDS,
        Presence.SAVES: "checkpoint" in asked.more,
    }

    def wanted(presence: Presence) -> bool:
        return (asked.mode in presence.modes and local(presence)) or special.get(presence, False)

    grafana.until_answered(lambda: watched.dashboard(name).unanswered(wanted))


@pytest.mark.parametrize("name", ["fleet", "operator"])
def test_every_query_about_all_trainings_has_an_answer(watched: Watched, name: str) -> None:
    wanted = lambda presence: name == "fleet" and (local(presence) or presence is Presence.STRAGGLER)  # noqa: E731
    grafana.until_answered(lambda: grafana.opened(watched.prometheus, name, watched.since).unanswered(wanted))


def test_every_rule_is_healthy(watched: Watched) -> None:
    def rules() -> list[dict[str, str]]:
        found = [rule for group in watched.prometheus.get("rules")["groups"] for rule in group["rules"]]
        return [] if any(rule["health"] == "unknown" for rule in found) else found

    found = wait_for(rules, "all rules to be evaluated")
    assert {rule["name"] for rule in found} == {*RECORDED, *ALERTS}
    assert [rule for rule in found if (rule["health"], rule.get("lastError", "")) != ("ok", "")] == []


@pytest.mark.parametrize("record", RECORDED)
def test_a_recording_rule_tells_of_every_training_that_it_is_for(watched: Watched, record: str) -> None:
    wanted = {name for name, mode in MODES.items() if mode in RECORDED_IN.get(record, EVERY)}
    about = lambda expr: {labels["training"] for labels, _ in watched.prometheus.ask(expr)}  # noqa: E731
    wait_for(lambda: about(record) == wanted, f"{record} of {wanted}", 30)
    assert about(RECORDED[record]) == wanted


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_about_those_with_a_straggler_and_nobody_else(watched: Watched, alert: str) -> None:
    slow = {("waits", SLOW), ("ring", SLOW)} if alert == "PacelineWorkerStraggling" else set()
    about = lambda: {(it["training"], it.get("worker")) for it, _ in watched.prometheus.ask(ALERTS[alert])}  # noqa: E731
    wait_for(lambda: about() == slow, f"{alert} to be about {slow or 'nobody'}", 30)


def test_the_alert_names_the_worker_in_its_words(watched: Watched) -> None:
    alerts = lambda: watched.prometheus.get("alerts")["alerts"]  # noqa: E731
    wait_for(lambda: len(alerts()) == 2, "both alerts")
    found = {alert["labels"]["training"]: alert["annotations"]["summary"] for alert in alerts()}
    for name in ("waits", "ring"):
        assert found[name].startswith(f"Worker {SLOW} of local/{name} causes"), found
        assert "late in each round of" in found[name], found


@pytest.mark.parametrize(("name", "cause"), [("waits", "compute"), ("ring", "data")])
def test_the_straggler_is_on_top_with_its_cause(watched: Watched, name: str, cause: str) -> None:
    page, table = watched.dashboard(name), "Who makes the others wait"
    worker, share, _ = page.shown(table, "Share of all waiting")[0]
    assert worker == SLOW
    assert share > 0.8
    worker, lag, _ = page.shown(table, "Lag per round")[0]
    assert worker == SLOW
    assert lag == pytest.approx(LATE, rel=0.3)
    ((worker, cost, labels),) = page.shown(table, "Cost")
    assert (worker, labels["cause"]) == (SLOW, cause)
    assert cost == pytest.approx(LATE / (PAUSE + LATE), rel=0.3)
    assert page.values["worker"] == SLOW, "the choice of a worker begins with the slowest"
    assert page.values["typical"] != SLOW
    assert page.values["lagging"].split("|")[0] == SLOW


def test_the_straggler_is_slow_and_stale_where_nobody_waits(watched: Watched) -> None:
    page = watched.dashboard("goes-on")
    (worker, own, _), (_, others, _), *_ = page.shown("Own seconds per step")
    assert worker == SLOW
    assert own - others == pytest.approx(LATE, rel=0.3)
    (worker, staleness, _), (_, others, _), *_ = page.shown("Staleness by worker", "worker {{worker}}")
    assert worker == SLOW
    assert staleness > 1.5 * others
    assert page.values["worker"] == SLOW
    assert page.shown("Cost of the straggler") == []


def test_nobody_is_named_without_a_straggler(watched: Watched) -> None:
    ever = 'max_over_time(paceline_server_straggler_cost_ratio{training="clean"}[1h])'
    rounds = 'paceline_server_round_duration_seconds_count{training="clean"} > 200'
    wait_for(lambda: watched.prometheus.ask(rounds), "rounds enough for a verdict", 60)
    assert watched.prometheus.ask(ever) == []
    assert watched.dashboard("clean").shown("Who makes the others wait", "Cost") == []


def test_every_process_is_scraped(watched: Watched) -> None:
    servers = sum(asked.servers for asked in RUNS)
    wait_for(lambda: watched.prometheus.all_up(servers + WORKERS * len(RUNS)), "every target to be up", 30)


@pytest.mark.parametrize(
    ("name", "process"), [("waits", "ps-1"), ("waits", "worker-0"), ("goes-on", "ps-0"), ("ring", "coordinator-0")]
)
def test_promtool_finds_nothing_wrong_with_what_a_process_exports(watched: Watched, name: str, process: str) -> None:
    with urllib.request.urlopen(watched.trainings[name].metrics[process], timeout=10) as answer:
        page = answer.read()
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
