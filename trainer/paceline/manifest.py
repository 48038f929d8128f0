"""Reads manifests: YAML with line numbers, so that an error says where to look."""

from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from paceline_core import validation
from paceline_core.errors import SpecError
from paceline_core.spec import KIND, DistributedTraining

Lines = dict[tuple[str | int, ...], int]  # path of a field -> its line, from 1


def read(path: Path) -> DistributedTraining:
    """The one DistributedTraining in a file. Raises SpecError, with the line of each problem."""
    found = read_all(path)
    if len(found) != 1:
        raise SpecError([f"{path}: holds {len(found)} trainings; `paceline run` takes exactly one"])
    return found[0]


def read_all(path: Path) -> list[DistributedTraining]:
    """Every DistributedTraining in a file; documents of other kinds are errors. Raises SpecError."""
    trainings, wrong = [], []
    for data, lines in _documents(path):
        problems = validation.problems(data)
        if isinstance(data, dict) and data.get("kind") not in (None, KIND):
            problems = [p for p in problems if p.path == ("kind",)]  # the rest follows from it
        wrong += [f"{path}:{_line(lines, p.path)}: {p}" for p in problems]
        if not problems:
            trainings.append(validation.training(data))
    if wrong:
        raise SpecError(wrong)
    return trainings


def _documents(path: Path) -> list[tuple[Any, Lines]]:
    try:
        text = path.read_text(encoding="utf-8")
        nodes = [n for n in yaml.compose_all(text, Loader=yaml.SafeLoader) if n is not None]
        documents = [(_value(path, n), _lines(n)) for n in nodes]
    except FileNotFoundError:
        raise SpecError([f"{path}: there is no such file"]) from None
    except UnicodeDecodeError:
        raise SpecError([f"{path}: is not a text file in UTF-8"]) from None
    except OSError as error:
        raise SpecError([f"{path}: cannot be read: {error.strerror}"]) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError([f"{path}:{line}: not valid YAML: {error.problem}"]) from None
    except yaml.YAMLError as error:
        raise SpecError([f"{path}: not valid YAML: {error}"]) from None
    if not documents:
        raise SpecError([f"{path}: is empty; it should hold a {KIND}"])
    for data, _ in documents:
        if not isinstance(data, dict):
            raise SpecError([f"{path}: should hold a {KIND} with apiVersion, kind, metadata and spec"])
    return documents


def _value(path: Path, node: yaml.Node) -> Any:
    for mapping in _mappings(node):
        seen: set[Hashable] = set()
        for key, _ in mapping.value:
            if key.value in seen:
                raise SpecError([f"{path}:{key.start_mark.line + 1}: `{key.value}` is there twice"])
            seen.add(key.value)
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _mappings(node: yaml.Node) -> Iterator[yaml.MappingNode]:
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _mappings(value)


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
