"""Turns a manifest's plain data into the model, or into problems that say how to mend it."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from paceline_core.errors import SpecError
from paceline_core.spec import DistributedTraining

Path = tuple[str | int, ...]
SHOWN = 60  # characters of a wrong value


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
    try:
        DistributedTraining.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as error:
        return [_problem(dict(e)) for e in error.errors(include_url=False)]
    return []


def training(data: Any) -> DistributedTraining:
    """The manifest as a model. Raises SpecError."""
    found = problems(data)
    if found:
        raise SpecError([str(p) for p in found])
    return DistributedTraining.model_validate(data, by_alias=True, by_name=False)


def _problem(error: Mapping[str, Any]) -> Problem:
    path: Path = tuple(error["loc"])
    match error["type"]:
        case "extra_forbidden":
            return Problem(path, f"unknown field; {_suggestion(path)}")
        case "missing":
            return Problem(path, "is required but missing")
        case "value_error":
            return Problem(path, str(error["ctx"]["error"]))
    message = str(error["msg"])
    message = message[:1].lower() + message[1:]
    return Problem(path, f"{_shown(error['input'])} is not allowed: {message}")


def _shown(value: Any) -> str:
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
