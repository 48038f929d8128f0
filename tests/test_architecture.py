"""docs/architecture.md tells the truth: what it names is there, and what must be on it is named."""

import ast
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text()
BASES = (ROOT / "trainer/paceline", ROOT / "trainer", ROOT / "operator", ROOT)  # where a path on the page may begin
DIAGRAMS = re.findall(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)
SPANS = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))
PATH = re.compile(r"(\w[\w.-]*(?:/[\w.-]+)*(?:/|\.py))(?:: (.+))?|(\w[\w.-]*(?:/[\w.-]+)+)")
OF_A_RUN = ("traces/", "logs/")  # folders of a run, and no paths of the repository
WATCHED = re.compile(r"\bThread\(|\bLock\(\)|threading\.Condition\(|ThreadPoolExecutor\(")


def paths() -> dict[str, set[str]]:
    """The paths on the page, each with the functions and classes that are said to be there."""
    found: dict[str, set[str]] = {}
    for match in filter(None, map(PATH.fullmatch, SPANS)):
        path = match[1] or match[3]
        if not path.startswith(OF_A_RUN):
            found.setdefault(path, set()).update((match[2] or "").split(", ") if match[2] else ())
    return found


def places(path: str) -> list[Path]:
    return [base / path for base in BASES if (base / path).exists()]


@cache
def names(file: Path) -> set[str]:
    """Functions, classes, and the methods, fields and attributes of each class as `Class.name`."""
    tree, out = ast.parse(file.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            out.add(node.name)
        if isinstance(node, ast.ClassDef):
            out |= {f"{node.name}.{name}" for name in members(node)}
    return out


def members(of: ast.ClassDef) -> set[str]:
    out = {n.name for n in of.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
    out |= {n.target.id for n in of.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    return out | {n.attr for n in ast.walk(of) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}


def modules() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "trainer", "operator"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.split() if name.endswith(".py") and (ROOT / name).is_file()]


def test_the_page_names_something() -> None:
    assert len(paths()) > 100
    assert sum(map(len, paths().values())) > 100


@pytest.mark.parametrize("path", sorted(paths()))
def test_a_path_leads_to_one_place(path: str) -> None:
    assert len(places(path)) == 1, places(path)


@pytest.mark.parametrize("path", sorted(p for p, said in paths().items() if said))
def test_what_is_said_to_be_in_a_file_is_in_it(path: str) -> None:
    assert paths()[path] <= names(places(path)[0])


def test_a_member_that_is_named_without_its_file_exists() -> None:
    known = set[str]().union(*map(names, modules()))
    assert {s for s in SPANS if re.fullmatch(r"[A-Z]\w+\.\w+", s)} <= known


def test_files_in_the_diagrams_exist() -> None:
    known = {file.name for file in modules()}
    assert set(re.findall(r"\w+\.py", "".join(DIAGRAMS))) <= known


def test_every_thread_and_lock_is_on_the_page() -> None:
    part = PAGE.partition("## Threads\n")[2].partition("## Membership\n")[0]
    holding = [file for file in modules() if WATCHED.search(file.read_text())]
    missing = [file for file in holding if not any(f"`{file.relative_to(base)}" in part for base in bases(file))]
    assert holding
    assert not missing


def bases(file: Path) -> list[Path]:
    return [base for base in BASES if file.is_relative_to(base)]


def test_every_contract_of_the_layers_is_on_the_page() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert [c["name"] for c in contracts if f"*{c['name']}*" not in PAGE] == []


def test_lines_are_short_enough_to_read() -> None:
    assert [line for line in PAGE.splitlines() if len(line) > 120 and not line.startswith("|")] == []
