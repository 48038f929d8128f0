"""YAML within limits: a few letters of it can ask for more memory than there is, or never end.

Limits hold before anything is built: of the events for what is written, of the nodes for what aliases repeat.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from paceline.terminal import printable

MOST_NODES = 20_000  # keys, values, lists and mappings of a file, those that aliases repeat included
MOST_DEPTH = 64
MOST_DIGITS = 40  # characters of a number: it takes long to read one of a million
_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + kind for kind in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map", "merge")}
_NUMBERS = (_TAG + "int", _TAG + "float")
_CONTROL = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # written in C: some ten times as fast


class BadYaml(ValueError):
    """The text cannot be used; `line` is counted from 1."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


def compose(text: str) -> list[yaml.Node]:
    """The documents in a text. Raises BadYaml."""
    control = _CONTROL.search(text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        raise BadYaml(line, f"not valid YAML: holds the control character U+{ord(control[0]):04X}; remove it")
    try:
        _check_events(text)
        documents = [node for node in yaml.compose_all(text, Loader=_Loader) if node is not None]
        for node in documents:
            _Expansion().size(node)
            _check_nodes(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadYaml(line, f"not valid YAML: {printable(str(error.problem))}") from None
    except yaml.YAMLError as error:
        raise BadYaml(1, f"not valid YAML: {printable(str(error))}") from None
    return documents


def data(document: yaml.Node) -> Any:
    """A document as plain data: what JSON can say, and nothing else. Raises BadYaml."""
    loader = _PlainData("")
    try:
        return loader.construct_document(document)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadYaml(line, f"not valid YAML: {printable(str(error.problem))}") from None
    finally:
        loader.dispose()


def check_finite(document: yaml.Node) -> None:
    """Raise BadYaml for a number that JSON, and so Kubernetes, cannot say."""
    for node in nodes(document):
        if node.tag == _TAG + "float" and node.value.lower().lstrip("+-") in (".inf", ".nan"):
            raise BadYaml(_line(node), f"`{node.value}` is not finite; as a text write it in quotes")


class _PlainData(yaml.SafeLoader):
    """Says where a value stands that cannot be read, and leaves dates as they are written, as Kubernetes does."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            found = super().construct_object(node, deep)
        except (ValueError, ArithmeticError, TypeError) as error:
            shown = printable(str(node.value), 60)
            raise BadYaml(_line(node), f"`{shown}` cannot be read ({error}); as a text write it in quotes") from None
        return node.value if node.tag == _TAG + "timestamp" else found


class _Expansion:
    """Counts what a document is with every alias replaced by what it stands for."""

    def __init__(self) -> None:
        self._sizes: dict[int, tuple[int, int]] = {}  # nodes, depth
        self._open: set[int] = set()

    def size(self, node: yaml.Node) -> tuple[int, int]:
        if id(node) in self._sizes:
            return self._sizes[id(node)]
        if id(node) in self._open:
            raise BadYaml(_line(node), "an alias in it stands for the whole of it: write it out")
        self._open.add(id(node))
        nodes, depth = 1, 0
        for child in _children(node):
            more, below = self.size(child)
            nodes, depth = nodes + more, max(depth, below)
        self._open.discard(id(node))
        if nodes > MOST_NODES:
            raise BadYaml(_line(node), f"with its aliases it holds more than {MOST_NODES:,} values: write it shorter")
        if depth >= MOST_DEPTH:
            raise BadYaml(_line(node), f"is nested deeper than {MOST_DEPTH} levels")
        self._sizes[id(node)] = nodes, depth + 1
        return self._sizes[id(node)]


def _check_events(text: str) -> None:
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        line = event.start_mark.line + 1  # type: ignore[union-attr]
        if count > 2 * MOST_NODES:
            raise BadYaml(line, f"holds more than {MOST_NODES:,} values: is it a manifest?")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MOST_DEPTH:
            raise BadYaml(line, f"is nested deeper than {MOST_DEPTH} levels")


def _check_nodes(document: yaml.Node) -> None:
    """What is only seen from the nodes: keys, tags, lengths of numbers."""
    for node in nodes(document):
        if node.tag not in _PLAIN:
            raise BadYaml(_line(node), f"the tag {printable(node.tag, 60)} has no meaning in a manifest; remove it")
        if node.tag in _NUMBERS and len(node.value) > MOST_DIGITS:
            raise BadYaml(_line(node), f"a number of more than {MOST_DIGITS} characters; as a text write it in quotes")
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)


def _check_keys(mapping: yaml.MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in mapping.value:
        if not isinstance(key, yaml.ScalarNode):
            raise BadYaml(_line(key), "a key is a list or a mapping, and must be a text")
        if key.tag not in (_TAG + "str", _TAG + "merge"):
            kind = key.tag.removeprefix(_TAG)
            raise BadYaml(_line(key), f"the key `{printable(key.value, 60)}` is of type {kind}: write it in quotes")
        if key.value in seen:
            raise BadYaml(_line(key), f"`{printable(key.value, 60)}` is there twice")
        seen.add(key.value)


def nodes(document: yaml.Node) -> Iterator[yaml.Node]:
    """Every node once, however many aliases it has."""
    waiting, seen = [document], set()
    while waiting:
        node = waiting.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            waiting += _children(node)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
