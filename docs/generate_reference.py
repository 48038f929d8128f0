"""Writes docs/reference.md from the models of the specification. With --check, only says whether it is current."""

import sys
from collections.abc import Iterator
from enum import EnumType
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from paceline_core.pod_template import PodTemplate
from paceline_core.spec import DistributedTraining

TARGET = Path(__file__).with_name("reference.md")
HEAD = """# Reference of the resource

Every field of a `DistributedTraining`. Written by `make docs` from `paceline_core.spec`; do not edit.
Pod templates are Kubernetes PodTemplateSpecs; all their fields are passed through.

| field | type | meaning |
|---|---|---|
"""


def rows(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """One row for each field of the model, those of its members below it."""
    for name, field in model.model_fields.items():
        here = f"{path}.{field.alias or name}".lstrip(".")
        inner = next(_models(field.annotation), None)
        yield f"| `{here}` | {_type(field)} | {field.description} |\n"
        if inner is not None and inner is not PodTemplate:
            yield from rows(inner, here)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in get_args(annotation):
        yield from _models(each)


def _type(field: FieldInfo) -> str:
    kinds = [k for k in (get_args(field.annotation) or (field.annotation,)) if k is not type(None)]
    if next(_models(field.annotation), None) is not None:
        text = "object"
    elif get_origin(field.annotation) is tuple:
        text = "list of strings"
    elif isinstance(kinds[0], EnumType):
        text = ", ".join(str(v) for v in kinds[0])  # type: ignore[var-annotated]
    elif isinstance(kinds[0], str):
        text = ", ".join(map(str, kinds))
    else:
        words = {int: "integer", float: "number", str: "string", bool: "true or false"}
        text = words.get(kinds[0], "object")
    return text + (" (required)" if field.is_required() else "")


def main() -> int:
    """Write or check."""
    text = HEAD + "".join(rows(DistributedTraining))
    if "--check" not in sys.argv:
        TARGET.write_text(text)
        return 0
    if not TARGET.exists() or TARGET.read_text() != text:
        print("docs/reference.md is not current: run `make docs`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
