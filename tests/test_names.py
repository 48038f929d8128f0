"""A name has one meaning: no module name twice in one package, no class name twice in the whole project."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(p.parent for folder in ("trainer", "operator") for p in (ROOT / folder).glob("*/__init__.py"))
MOST_FILES = 13  # in one folder: a dozen and what makes it a package


def modules(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*.py")) if p.stem not in ("__init__", "__main__")]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_no_module_name_is_there_twice(package: Path) -> None:
    places = defaultdict(list)
    for path in modules(package):
        places[path.stem].append(str(path.relative_to(ROOT)))
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_no_class_name_is_there_twice() -> None:
    places = defaultdict(list)
    for path in (p for folder in ("trainer", "operator", "charts") for p in modules(ROOT / folder)):
        for name in re.findall(r"^class (\w+)", path.read_text(), flags=re.MULTILINE):
            places[name].append(str(path.relative_to(ROOT)))
    assert not {name: found for name, found in places.items() if len(found) > 1}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.name)
def test_a_folder_with_more_than_a_dozen_files_has_subfolders(package: Path) -> None:
    crowded = {}
    for folder in {p.parent for p in package.rglob("*.py")}:
        files = len(list(folder.glob("*.py")))
        if files > MOST_FILES and not any(p.parent.parent == folder for p in folder.rglob("__init__.py")):
            crowded[str(folder.relative_to(ROOT))] = files
    assert not crowded
