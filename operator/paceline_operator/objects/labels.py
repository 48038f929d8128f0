"""Labels and names of objects: made here, and nowhere else."""

from paceline_core.launch import Role

GROUP, VERSION, PLURAL, KIND = "paceline.dev", "v1alpha1", "distributedtrainings", "DistributedTraining"
MANAGER = f"{GROUP}/operator"  # field manager, component of events, and default of runPolicy.managedBy
TRAINING, ROLE, ORDINAL, ATTEMPT = (f"{GROUP}/{name}" for name in ("training", "role", "ordinal", "attempt"))
SCRAPED = {f"{GROUP}/scrape": "true"}  # what the PodMonitor selects
OPERATOR = {"app.kubernetes.io/name": "paceline-operator"}  # the operator's own pods


def pod_name(training: str, role: Role, ordinal: int) -> str:
    """For example digits-worker-3."""
    return f"{training}-{role}-{ordinal}"


def replica_name(role: Role, ordinal: int) -> str:
    """For example worker-3."""
    return f"{role}-{ordinal}"


def secret_name(training: str, uid: str) -> str:
    """The Secret of one training; a later training of the same name has another."""
    return f"{training}-tls-{uid[:8]}"


def of_training(training: str) -> dict[str, str]:
    """The labels that every object of a training has."""
    return {TRAINING: training, "app.kubernetes.io/managed-by": "paceline"}


def of_pod(training: str, role: Role, ordinal: int, attempt: int) -> dict[str, str]:
    """The labels of a pod."""
    return of_training(training) | {ROLE: str(role), ORDINAL: str(ordinal), ATTEMPT: str(attempt)}


def selector(training: str) -> str:
    """Selects the pods of a training."""
    return f"{TRAINING}={training}"
