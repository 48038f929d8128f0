"""The dashboard of one training: is it healthy, who is slow, and why; what is asked less often is collapsed."""

from charts.dashboards import details, diagnosis
from charts.dashboards.layout import Dashboard, Row, Variable
from charts.dashboards.queries import (
    NAMESPACES,
    TRAINING,
    WHOLE,
    Presence,
    Target,
    averaged,
    of,
    own,
    restarted,
    within,
)

MANY = 256  # workers; a heatmap with a row for each of more cannot be read
LAG_SHARE = averaged(of("training_worker:paceline_lag_share:ratio5m"))
OWN = own(window=WHOLE)
KNOWN = f"last_over_time({within('paceline_training_info')}{WHOLE})"
SCRAPED = f"last_over_time({within('paceline_build_info')}{WHOLE})"  # there is no operator in a local run

CHOICES = (
    Variable(
        "namespace",
        "Namespace",
        "Of the trainings in the time that is shown. All includes series without a namespace.",
        Target(f"group by (namespace) (last_over_time(paceline_training_info{WHOLE}))", presence=Presence.OPERATOR),
        label="namespace",
        every=True,
    ),
    Variable(
        "training",
        "Training",
        "Those in the time that is shown, finished ones too. If several have one name, choose the namespace.",
        Target(f"group by (training) ({KNOWN} or {SCRAPED})"),
        label="training",
    ),
    Variable(
        "worker",
        "Worker",
        "For the panels about one worker; the slowest first.",
        Target(f"sort_desc({OWN})", presence=Presence.WORKERS),
        label="worker",
        ranked=True,
    ),
)
FOUND = (
    Variable(
        "lagging",
        "Make the others wait",
        "The ten workers that cause most of the waiting in the time that is shown.",
        Target(f"topk(10, {LAG_SHARE})", presence=Presence.ROUNDS),
        label="worker",
        hidden=True,
    ),
    Variable(
        "each",
        "Each worker",
        f"Every worker that causes waiting, or none if there are more than {MANY}.",
        Target(f"{LAG_SHARE} and on () (count({LAG_SHARE}) <= {MANY})", presence=Presence.FEW),
        label="worker",
        hidden=True,
    ),
    Variable(
        "slowest",
        "Slowest",
        "The ten workers with the most own seconds per step in the time that is shown.",
        Target(f"topk(10, {OWN})", presence=Presence.WORKERS),
        label="worker",
        hidden=True,
    ),
    Variable(
        "typical",
        "Typical",
        "The worker whose own seconds per step are the median in the time that is shown.",
        Target(f"bottomk(1, abs({OWN} - on () group_left () quantile(0.5, {OWN})))", presence=Presence.WORKERS),
        label="worker",
        hidden=True,
    ),
)

DASHBOARD = Dashboard(
    name="training",
    title="Training",
    description="One training: is it healthy, which worker makes the others wait, and why.",
    variables=(*CHOICES, *FOUND),
    rows=(
        Row("Is it healthy?", diagnosis.HEALTHY),
        Row("Who is slow?", diagnosis.SLOW),
        Row("Why?", diagnosis.WHY),
        Row("GPUs", details.GPU, collapsed=True),
        Row("Is it learning?", details.LEARNING, collapsed=True),
        Row("Servers", details.SERVING, collapsed=True),
        Row("Safety", details.SAFETY, collapsed=True),
    ),
    restarts=restarted(NAMESPACES, TRAINING),
)
