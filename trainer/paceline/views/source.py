"""Which training a user means: a run folder, a name in the cluster, or, without a word, the newest run."""

import re

from paceline.views import kubectl, runs
from paceline.views.cluster import ClusterTraining
from paceline.views.look import Source
from paceline_core.errors import SpecError

NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # of a training


def find(named: str | None, namespace: str | None, going_on_first: bool = False) -> Source:
    """The training to look at. Raises SpecError."""
    if named is None and namespace is not None:
        raise SpecError([f"-n {namespace}: name the training in that namespace, too"])
    if named is None:
        return runs.newest(going_on_first)
    run = runs.at(named) if namespace is None else None
    if run is not None:
        return run
    if not NAME.fullmatch(named):
        raise SpecError([f"{named}: is not the folder of a run (there is no {runs.MANIFEST} in it)"])
    try:
        return ClusterTraining(named, namespace or kubectl.namespace())
    except kubectl.Refused as error:
        raise SpecError([f"there is no run folder {named}, and no cluster to ask for it: {error}"]) from None
