"""Which training a user means: a run folder, a name in the cluster, or, if none is named, the newest run."""

import re

from paceline.views.sources import kubectl, run_folders
from paceline.views.sources.cluster import ClusterTraining
from paceline.views.sources.training_source import TrainingSource
from paceline_core.errors import SpecError

NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # of a training


def find(named: str | None, namespace: str | None, going_on_first: bool = False) -> TrainingSource:
    """The training to look at. Raises SpecError."""
    if named is None and namespace is not None:
        raise SpecError([f"-n {namespace}: name the training in that namespace, too"])
    if named is None:
        return run_folders.newest(going_on_first)
    run = run_folders.at(named) if namespace is None else None
    if run is not None:
        return run
    if not NAME.fullmatch(named):
        raise SpecError([f"{named}: is not the folder of a run (there is no {run_folders.MANIFEST} in it)"])
    try:
        return ClusterTraining(named, namespace or kubectl.namespace())
    except kubectl.KubectlError as error:
        raise SpecError([f"there is no run folder {named}, and no cluster to ask for it: {error}"]) from None
