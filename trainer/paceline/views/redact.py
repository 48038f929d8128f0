"""A manifest as it may be shown to others: the values of environment variables, which may be secrets, left out."""

from collections.abc import Iterator

import yaml

HIDDEN = "(not shown)"


def redacted(text: str) -> str:
    """The text of a manifest with its comments and order, but no value of a variable."""
    try:
        documents = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
    except yaml.YAMLError:
        return "(not valid YAML, so it is not known what may be shown)"
    marks = sorted((mark for node in documents for mark in _values(node)), reverse=True)
    for begin, end in marks:
        text = text[:begin] + HIDDEN + text[end:]
    return text


def _values(node: yaml.Node) -> Iterator[tuple[int, int]]:
    """Where the values of variables stand."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "env" and isinstance(value, yaml.SequenceNode):
                yield from _of_variables(value)
            else:
                yield from _values(value)
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from _values(each)


def _of_variables(variables: yaml.SequenceNode) -> Iterator[tuple[int, int]]:
    for variable in variables.value:
        if isinstance(variable, yaml.MappingNode):
            for key, value in variable.value:
                if key.value == "value":
                    yield value.start_mark.index, value.end_mark.index
