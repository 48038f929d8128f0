"""Nobody asks for a strategy or a topology by its name: what it does is in its knobs (paceline_core/state_machine.py)."""

import re
import subprocess
from pathlib import Path

import pytest

from paceline_core.modes import MODES
from paceline_core.spec import Topology

ROOT = Path(__file__).parents[1]
CORE = "trainer/paceline_core"
ITS_OWN = re.compile(
    rf"{CORE}/strategies/.*"  # each its file; the table
    rf"|{CORE}/spec\.py|{CORE}/modes\.py"  # the specification
    r"|charts/paceline/templates/crd\.yaml|charts/paceline/dashboards/.*\.json"  # generated from it
)
NAMES = sorted({*MODES, *Topology})
ASKED = re.compile(rf"\b({'|'.join(NAMES)}|Topology\.\w+|{'|'.join(t.name for t in Topology)})\b|\.(a?synchronous)\b")


def test_a_strategy_s_name_is_in_its_file_the_table_and_the_specification_alone() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "trainer", "operator", "charts"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in listed.stdout.split()
        if not ITS_OWN.fullmatch(name) and (ROOT / name).is_file()
        for number, line in enumerate((ROOT / name).read_text(errors="replace").splitlines(), start=1)
        if ASKED.search(line)
    ]
    assert not found, "ask the knobs, or paceline_core.modes:\n" + "\n".join(found)


@pytest.mark.parametrize("name", NAMES)
def test_the_rule_finds_each_name(name: str) -> None:
    assert ASKED.search(f'if strategy == "{name}":')
