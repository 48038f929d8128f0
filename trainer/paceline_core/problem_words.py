"""What to write in the place of a wrong value: words for every kind of error that pydantic finds in a manifest."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paceline_core.checkpoint_policy import PLACE
from paceline_core.pod_template import NO_NUL, VARIABLE
from paceline_core.spec import NAME_PATTERN, OPTIMIZER_PATTERN

Error = Mapping[str, Any]
EXAMPLE = "[python, train.py]"
SIMPLE = re.compile(r"[\w./=-]+( +[\w./=-]+)*")  # words that stand in a YAML list as they are


def instead(error: Error, fields: Sequence[str], hidden: bool) -> str:
    """What to write, after the word *write*; `fields` are those of a mapping, a `hidden` value is not repeated."""
    kind, given, limits = str(error["type"]), error["input"], error.get("ctx", {})
    if kind in LIMITS:
        name, words = LIMITS[kind]
        return words.format(_number(limits[name]))
    match kind:
        case "enum" | "literal_error":
            return str(limits["expected"]).replace("'", "")
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"a mapping, with the fields {', '.join(fields)}" if fields else "a mapping"
        case "tuple_type" | "list_type":
            return "a list" if hidden else _list(given, str(error["loc"][-1]))
        case "string_type":
            return "a text" + ("" if hidden or not _is_scalar(given) else f', in quotes: "{given}"')
        case "string_pattern_mismatch" if limits["pattern"] in PATTERNS:
            return PATTERNS[limits["pattern"]](str(given))
    return KINDS.get(kind) or f"something else ({error['msg']})"


def _name(given: str) -> str:
    rule = "lower-case letters, digits and dashes, a letter first"
    near = re.sub(r"[^a-z0-9]+", "-", given.lower()).strip("-")
    return rule + (f", for example {near}" if re.fullmatch(NAME_PATTERN, near) else "")


PATTERNS: Mapping[str, Callable[[str], str]] = {
    NAME_PATTERN: _name,
    OPTIMIZER_PATTERN: lambda _: "the module and the class, as in mine:MyOptimizer",
    VARIABLE: lambda _: "printable ASCII characters without =",
    PLACE: lambda _: (
        "a folder's path from the root, or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX "
        "(credentials are taken from the environment)"
    ),
    NO_NUL: lambda _: "a text without NUL characters",
}
LIMITS = {  # the bound in the error's context, and what it means
    "greater_than": ("gt", "a number greater than {}"),
    "greater_than_equal": ("ge", "a number of at least {}"),
    "less_than": ("lt", "a number less than {}"),
    "less_than_equal": ("le", "a number of at most {}"),
    "string_too_long": ("max_length", "at most {} characters"),
    "too_long": ("max_length", "a list of at most {}"),
    "too_short": ("min_length", "a list of at least {}"),
}
KINDS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "finite_number": "a finite number",
    "invalid_key": "a text for a key",
}


def _list(given: Any, field: str) -> str:
    if field not in ("command", "args"):
        return "a list"
    simple = isinstance(given, str) and SIMPLE.fullmatch(given)
    return f"a list: [{', '.join(given.split())}]" if simple else f"a list of texts, as in {EXAMPLE}"


def _is_scalar(given: Any) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool)


def _number(value: float) -> str:
    return f"{value:.15g}"
