"""Turns a manifest's plain data into the model, or into problems that say how to mend it."""

import difflib
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import groupby
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from paceline_core import problem_words
from paceline_core.errors import SpecError
from paceline_core.pod_template import TRAINER_CONTAINER
from paceline_core.spec import DistributedTraining

Path = tuple[str | int, ...]
Error = dict[str, Any]  # of pydantic's
ROUNDS = 3  # of mending
READ = ("strategy", "replicas", "processesPerReplica", "containers", "name")  # by rules about several fields
RIGHT: dict[str, Any] = {  # what is put in the place of a wrong value to look at the rest
    "command": ["x"],
    "args": [],
    "template": {"spec": {"containers": [{"name": TRAINER_CONTAINER, "command": ["x"]}]}},
}
SHOWN = 60  # characters of a wrong value
MOST = 50  # problems that are told: a file of another kind has one in each line


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, and what to do."""

    path: Path
    message: str

    @property
    def field(self) -> str:
        """The path as people write it: spec.workers.template.spec.containers[0].name."""
        text = ""
        for part in self.path:
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
        return text

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.path else self.message


def problems(data: Any) -> list[Problem]:
    """Everything that is wrong with the manifest; empty when it is a DistributedTraining."""
    found = _every_error(data)
    rest = [Problem((), f"and {len(found) - MOST:,} more problems")] if len(found) > MOST else []
    return [*_problems(found[:MOST]), *rest]


def training(data: Any) -> DistributedTraining:
    """The manifest as a model. Raises SpecError."""
    found = problems(data)
    if found:
        raise SpecError([str(p) for p in found])
    return DistributedTraining.model_validate(data, by_alias=True, by_name=False)


def _every_error(data: Any) -> list[Error]:
    """Errors of fields hide those of rules about several fields: the former are mended in a copy, to ask again."""
    found: list[Error] = []
    mended: set[Path] = set()
    for _ in range(ROUNDS):
        known = {_identity(e) for e in found}
        new = [e for e in _errors(data) if _identity(e) not in known and not _follows(e, mended)]
        found += new
        wrong = [e for e in new if e["type"] != "missing" and _path(e)]
        if not wrong:
            break
        data = deepcopy(data)
        for error in wrong:
            _mend(data, error)
            mended.add(_path(error))
    return found


def _errors(data: Any) -> list[Error]:
    try:
        DistributedTraining.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as error:
        found: list[Error] = [dict(e) for e in error.errors(include_url=False)]
        paths = [_path(e) for e in found]
        # an element that is wrong makes pydantic find the list too short
        return [e for e in found if e["type"] != "too_short" or not any(_within(p, e["loc"]) for p in paths)]
    return []


def _identity(error: Error) -> tuple[Any, ...]:
    return (error["loc"], error["type"], str(error["msg"]))


def _within(path: Path, outer: Path) -> bool:
    return len(path) > len(outer) and path[: len(outer)] == outer


def _follows(error: Error, mended: set[Path]) -> bool:
    """Whether an error comes from what was mended: something is missing there, or a rule reads it."""
    path = _path(error)
    if error["type"] != "value_error":
        return any(path == p or _within(path, p) for p in mended)
    return any(_within(p, path) and p[-1] in READ for p in mended)


def _mend(data: Any, error: Error) -> None:
    """Put something right, or nothing, in the place of a wrong value."""
    *outer, last = _path(error)
    for part in outer:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return  # gone with what is around it
    if str(error["type"]).startswith("string"):
        data[last] = "x"
    elif isinstance(data, list):
        data[int(last)] = {}
    elif last in RIGHT:
        data[last] = deepcopy(RIGHT[last])
    else:
        data.pop(last, None)


def _problems(errors: Sequence[Error]) -> Iterator[Problem]:
    """One for each field: of a union pydantic has an error for each member."""
    for path, group in groupby(errors, _path):
        same = list(group)
        union = [e for e in same if tuple(e["loc"]) != path]
        yield from (_problem(path, e) for e in same if e not in union)
        if union:
            words = " or ".join(problem_words.instead(e, (), hidden=False) for e in union)
            yield Problem(path, f"{_shown(union[0]['input'])} is not allowed: write {words}")


def _problem(path: Path, error: Error) -> Problem:
    match error["type"]:
        case "extra_forbidden":
            return Problem(path, f"unknown field; {_suggestion(path)}")
        case "missing":
            return Problem(path, "is required but missing")
        case "value_error":
            return Problem(path, str(error["ctx"]["error"]))
    hidden = "env" in path and path[-1] != "name"  # values of variables may be secrets
    shown = "its value" if hidden else _shown(error["input"])
    words = problem_words.instead(error, sorted(_names(path)), hidden)
    return Problem(path, f"{shown} is not allowed: write {words}")


def _path(error: Error) -> Path:
    """The path of the field, without the member of a union that pydantic adds."""
    path: Path = tuple(error["loc"])
    known = error["type"] == "extra_forbidden" or not path or isinstance(path[-1], int)
    return path if known or str(path[-1]) in _names(path[:-1]) else path[:-1]


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _suggestion(path: Path) -> str:
    names = sorted(_names(path[:-1]))
    near = difflib.get_close_matches(str(path[-1]), names, n=1, cutoff=0.6)
    folded = [n for n in names if n.lower() == str(path[-1]).lower().replace("_", "").replace("-", "")]
    if folded or near:
        return f"did you mean `{(folded or near)[0]}`?"
    return f"the fields here are {', '.join(names)}"


def _names(path: Path) -> Iterator[str]:
    """The names of the fields at `path`."""
    model: type[BaseModel] | None = DistributedTraining
    for part in path:
        if isinstance(part, int) or model is None:
            continue
        fields = {f.alias or n: f for n, f in model.model_fields.items()}
        model = next(_models(fields[part].annotation), None) if part in fields else None
    if model is not None:
        yield from (f.alias or n for n, f in model.model_fields.items())


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
