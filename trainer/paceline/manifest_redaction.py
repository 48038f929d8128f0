"""A manifest without what may be secret: in a page, which is for others, without any value of a variable; in the copy
that a run keeps, without those whose names or values look like a secret, so that the rest is still on record.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from paceline import manifest_nodes
from paceline.manifest_nodes import BadYaml

HIDDEN = "(not shown)"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"  # an annotation that holds a whole manifest
_NAME = re.compile(
    r"secret|token|passw|passphrase|pwd|credential|keys?($|_)|private|auth|bearer|jwt|cert|dsn|cookie|session|salt|"
    r"signature|webhook|conn(ection)?_?str|pass($|_)|_pat$",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"://[^/\s]*:[^/\s]*@|-----BEGIN|[?&](sig|token|key|password|secret)=|"
    r"\b(gh[pousr]_|github_pat_|hf_|sk-|xox[abp]-|AKIA|AIza|glpat-|eyJ)[\w-]{10,}"
)
_BEFORE = re.compile(r"(?:[&!]\S*\s+)*")  # an anchor or a tag, which stays


def secret(name: str, value: str) -> bool:
    """Whether a variable looks like one that nobody else may read."""
    return bool(_NAME.search(name) or _VALUE.search(value))


def redacted(text: str) -> str:
    """The text of a manifest with its comments and order, but no value of a variable."""
    try:
        return _without(text, [node for _, node in _values(text)])
    except BadYaml:
        return "(not valid YAML, so it is not known what may be shown)"


def masked(text: str) -> str:
    """The text of a manifest, still one, without the values that look like secrets. Raises BadYaml."""
    out = _without(text, [node for name, node in _values(text) if name is None or secret(name, str(node.value))])
    try:
        whole = [manifest_nodes.data(node) for node in manifest_nodes.compose(out)]
        if [_hidden(each) for each in whole] == whole:
            return out
    except BadYaml:
        pass  # something odd stood around a value
    documents = [manifest_nodes.data(node) for node in manifest_nodes.compose(text)]
    return yaml.safe_dump_all([_hidden(each) for each in documents], sort_keys=False, allow_unicode=True)


def _without(text: str, values: list[yaml.Node]) -> str:
    marks = {(_index(node.start_mark), _index(node.end_mark)) for node in values}
    for begin, end in sorted(marks, reverse=True):
        was = text[begin:end]
        before, inside = _BEFORE.match(was), was.rstrip()
        if before is not None and inside:
            text = text[:begin] + before[0] + HIDDEN + was[len(inside) :] + text[end:]
    return text


def _index(mark: Any) -> int:
    return int(mark.index)


def _values(text: str) -> Iterator[tuple[str | None, yaml.Node]]:
    """The values of variables, each with its variable's name; None where that is not known. Raises BadYaml."""
    for document in manifest_nodes.compose(text):
        for node in manifest_nodes.nodes(document):
            for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
                if key.value == "env" and isinstance(value, yaml.SequenceNode):
                    for variable in value.value:
                        yield from _of_variable(variable)
                elif key.value == LAST_APPLIED:
                    yield None, value


def _of_variable(variable: yaml.Node) -> Iterator[tuple[str | None, yaml.Node]]:
    """One value, as a rule; what stands in a mapping that is merged into the variable has no name of its own."""
    fields = variable.value if isinstance(variable, yaml.MappingNode) else []
    names = [str(value.value) for key, value in fields if key.value == "name"]
    for key, value in fields:
        if key.value == "value" and value.value != "":
            yield (names[0] if names else None), value
        elif key.value == "<<":
            merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for each in merged:
                yield from ((None, node) for _, node in _of_variable(each))


def _hidden(data: Any) -> Any:
    """Plain data in the same way."""
    if isinstance(data, list):
        return [_hidden(each) for each in data]
    if not isinstance(data, dict):
        return data
    out: dict[str, Any] = {}
    for key, value in data.items():
        if key == LAST_APPLIED:
            out[key] = HIDDEN
        elif key == "env" and isinstance(value, list):
            out[key] = [_hidden_variable(each) for each in value]
        else:
            out[key] = _hidden(value)
    return out


def _hidden_variable(variable: Any) -> Any:
    value = variable.get("value") if isinstance(variable, dict) else None
    if value is None or value == "":
        return variable
    return {**variable, "value": HIDDEN} if secret(str(variable.get("name", "token")), str(value)) else variable
