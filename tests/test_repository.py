"""What the repository says about itself is true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from paceline import manifest
from paceline_core.validation import problems

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_manifests_in_the_documentation_are_valid(page: Path) -> None:
    for text in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        document = yaml.safe_load(text)
        if "kind" in document:  # a configuration of something else has tests of its own
            assert problems(document) == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("file", sorted((ROOT / "manifests/examples").glob("*.yaml")), ids=lambda p: p.name)
def test_examples_are_valid(file: Path) -> None:
    manifest.read(file)


@pytest.mark.parametrize("script", ["generate_reference.py", "generate_metrics.py"])
def test_generated_pages_are_current(script: str) -> None:
    subprocess.run([sys.executable, ROOT / "docs" / script, "--check"], check=True)
