"""How a worker's Python finds the sitecustomize.py in this folder, which runs before the script."""

import os
from collections.abc import Mapping
from pathlib import Path

from paceline_core.launch import PREFIX


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment with this folder on PYTHONPATH, for a worker; of another process, as it is."""
    if given.get(PREFIX + "ROLE") != "worker":
        return dict(given)
    paths = [str(Path(__file__).parent), *filter(None, [given.get("PYTHONPATH")])]
    return {**given, "PYTHONPATH": os.pathsep.join(paths)}
