"""Reads manifests: YAML with line numbers, so that an error says where to look."""

from pathlib import Path
from typing import Any

import yaml

from paceline import manifest_nodes
from paceline.files import bounded_reading
from paceline.files.bounded_reading import MIB
from paceline.manifest_nodes import BadYaml
from paceline_core import validation
from paceline_core.errors import SpecError
from paceline_core.spec import KIND, DistributedTraining

MOST_BYTES = MIB  # of a file: what Kubernetes takes is not much more
Lines = dict[tuple[str | int, ...], int]  # path of a field -> its line, from 1


def read(path: Path) -> DistributedTraining:
    """The one DistributedTraining in a file. Raises SpecError, with the line of each problem."""
    return one(text(path), path)


def text(path: Path) -> str:
    """What is written in a file or pipe that the user named. Raises SpecError."""
    return decoded(bounded_reading.given(path, MOST_BYTES), path)


def decoded(data: bytes, path: Path) -> str:
    """The text of a file. Raises SpecError when it is none."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError([f"{path}:{line}: is not a text file in UTF-8"]) from None


def one(written: str, path: Path) -> DistributedTraining:
    """The one DistributedTraining in the text of `path`. Raises SpecError."""
    found = every(written, path)
    if len(found) != 1:
        raise SpecError([f"{path}: holds {len(found)} trainings; `paceline run` takes exactly one"])
    return found[0]


def every(written: str, path: Path) -> list[DistributedTraining]:
    """Every DistributedTraining in the text of `path`; documents of other kinds are errors. Raises SpecError."""
    trainings, wrong = [], []
    for node, data in _documents(written, path):
        problems = validation.problems(data)
        if data.get("kind") not in (None, KIND):
            problems = [p for p in problems if p.path == ("kind",)]  # the rest follows from it
        lines = _lines(node)
        wrong += [f"{path}:{_line(lines, p.path)}: {p}" for p in problems]
        if not problems:
            trainings.append(_training(node, data, path))
    if wrong:
        raise SpecError(wrong)
    return trainings


def _training(node: yaml.Node, data: Any, path: Path) -> DistributedTraining:
    try:
        manifest_nodes.check_finite(node)  # in fields that pass through; of the others their own problem is told
    except BadYaml as error:
        raise SpecError([f"{path}:{error.line}: {error}"]) from None
    return validation.training(data)


def _documents(written: str, path: Path) -> list[tuple[yaml.Node, dict[str, Any]]]:
    try:
        nodes = manifest_nodes.compose(written)
        documents = [(node, manifest_nodes.data(node)) for node in nodes]
    except BadYaml as error:
        raise SpecError([f"{path}:{error.line}: {error}"]) from None
    if not documents:
        raise SpecError([f"{path}: is empty; it should hold a {KIND}"])
    for node, data in documents:
        if not isinstance(data, dict):
            line = node.start_mark.line + 1
            raise SpecError([f"{path}:{line}: should hold a {KIND} with apiVersion, kind, metadata and spec"])
    return documents


def _lines(node: yaml.Node, path: tuple[str | int, ...] = ()) -> Lines:
    lines: Lines = {path: node.start_mark.line + 1}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines |= _lines(value, (*path, key.value)) | {(*path, key.value): key.start_mark.line + 1}
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines |= _lines(value, (*path, index))
    return lines


def _line(lines: Lines, path: tuple[str | int, ...]) -> int:
    """The line of a field, or of the nearest one around it when it is missing."""
    while path not in lines:
        path = path[:-1]
    return lines[path]
