"""Manifests that somebody hostile, or a broken tool, may hand in: each is refused, or works, within limits."""

import os
from collections.abc import Callable
from pathlib import Path

ESCAPE = "\x1b[31mred\x1b]0;title\x07"
HEAD = "apiVersion: paceline.dev/v1alpha1\nkind: DistributedTraining\nmetadata: {name: t}\n"
CONTAINER = "{name: trainer, command: [python, train.py]}"


def a_manifest(spec: str = "", container: str = CONTAINER, template: str = "", workers: str = "", end: str = "") -> str:
    """A right manifest; the texts are further fields in flow style, each after a comma, and what follows it."""
    inner = f"template: {{spec: {{containers: [{container}]}}{template}}}{workers}"
    return f"{HEAD}spec: {{topology: ParameterServer, workers: {{{inner}}}{spec}}}\n{end}"


def with_container(fields: str) -> str:
    return a_manifest(container=f"{{name: trainer, command: [python, train.py], {fields}}}")


def with_limits(limits: str) -> str:
    return with_container(f"resources: {{limits: {limits}}}")


def with_annotation(value: str) -> str:
    return a_manifest(template=f", metadata: {{annotations: {{a: {value}}}}}")


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
NESTED_ALIASES = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 5000))

REFUSED: dict[str, tuple[str | bytes, str]] = {  # name -> what the file says, part of the message
    # its size and its shape
    "billion laughs": (a_manifest(end=LAUGHS), "with its aliases it holds more than 20,000 values"),
    "billion merges": (a_manifest(end=MERGES), "with its aliases it holds more than 20,000 values"),
    "5,000 aliases in a chain": (NESTED_ALIASES, "nested deeper than 64"),
    "a recursive alias": (a_manifest(end="a: &a [*a]\n"), ":5: an alias in it stands for the whole of it"),
    "a recursive mapping": (a_manifest(end="a: &a {b: *a}\n"), ":5: an alias in it stands for the whole of it"),
    "a recursive merge": (a_manifest(end="a: &a {<<: *a}\n"), ":5: an alias in it stands for the whole of it"),
    "a recursive key": (a_manifest(end="a: &a {? *a : 1}\n"), ":5: an alias in it stands for the whole of it"),
    "100,000 entries": ("".join(f"k{i}: {i}\n" for i in range(100_000)), "is larger than 1 MiB"),
    "90,000 short entries": ("- 1\n" * 90_000, "holds more than 20,000 values"),
    "9,000 unknown fields": (a_manifest(end="".join(f"k{i}: 1\n" for i in range(9000))), "more problems"),
    "300,000 empty documents": ("---\n" * 250_000, "holds more than 20,000 values"),
    "a comment of 10 MB": (a_manifest(end="#" * 10_000_000), "is larger than 1 MiB"),
    "a million comments": (a_manifest(end="#\n" * 1_000_000), "is larger than 1 MiB"),
    "1 GB": (b"sparse", "is larger than 1 MiB"),
    "depth 5,000 in brackets": ("[" * 5000, ":1: not valid YAML: exceeded maximum nesting depth"),
    "depth 5,000 in braces": ("{a: " * 5000, ":1: is nested deeper than 64"),
    "depth 500,000": ("[" * 500_000, ":1: not valid YAML: exceeded maximum nesting depth"),
    "depth 300 by indentation": ("".join(" " * i + f"a{i}:\n" for i in range(300)), "nested deeper than 64"),
    "an unclosed quote of 900 kB": ('a: "' + "x" * 900_000, "not valid YAML"),
    "a key of 900 kB": (a_manifest(end="k" * 900_000 + ": 1\n"), "not valid YAML"),
    "a value of 900 kB": (a_manifest(spec=f", gradients: {{connections: {'9x' * 450_000}}}"), "connections: '9x9x"),
    # keys
    "keys that are lists": (a_manifest(end="? [a]\n: b\n"), ":5: a key is a list or a mapping"),
    "keys that are mappings": (a_manifest(end="? {a: b}\n: b\n"), ":5: a key is a list or a mapping"),
    "a key that is a number": (a_manifest(end="1: b\n"), ":5: the key `1` is of type int"),
    "a key that is a boolean": (a_manifest(end="on: b\n"), ":5: the key `on` is of type bool"),
    "a key that is nothing": (a_manifest(end="~: b\n"), ":5: the key `~` is of type null"),
    "a key that is a date": (a_manifest(end="2024-01-01: b\n"), ":5: the key `2024-01-01` is of type timestamp"),
    "a key twice": (a_manifest(end="kind: x\n"), ":5: `kind` is there twice"),
    "a key with an escape character": (a_manifest(end=f'"{ESCAPE!r}": 1\n'.replace("'", "")), "unknown field"),
    # values
    "a day that is not": (with_annotation("2024-02-31"), ":4: `2024-02-31` cannot be read (day is out of range"),
    "an hour that is not": (with_annotation("2024-02-01T99:00:00Z"), ":4: `2024-02-01T99:00:00Z` cannot be read"),
    "a time zone that is not": (with_annotation("2024-01-01T00:00:00+99:00"), ":4: `2024-01-01"),
    "a number of a million digits": (
        a_manifest(spec=f", a: {'9' * 900_000}"),
        ":4: a number of more than 40 characters",
    ),
    "a number in base 60": (a_manifest(spec=f", a: {'1' + ':1' * 400_000}"), ":4: a number of more than 40 characters"),
    "no digits": (a_manifest(spec=", a: 0b_"), ":4: `0b_` cannot be read"),
    "an object of Python": (a_manifest(end="a: !!python/object/apply:os.system [id]\n"), ":5: the tag"),
    "binary": (a_manifest(end="a: !!binary aGVsbG8=\n"), ":5: the tag"),
    "a set": (a_manifest(end="a: !!set {b}\n"), ":5: the tag"),
    "an ordered map": (a_manifest(end="a: !!omap [b: 1]\n"), ":5: the tag"),
    "a tag of its own": (a_manifest(end='a: !<\\e[31m> "b"\n'), "not valid YAML"),
    "a merge of a number": (a_manifest(end="a: {<<: 5}\n"), ":5: not valid YAML: expected a mapping"),
    "the value key": (a_manifest(end="a: =\n"), ":5: the tag"),
    "a wrong integer by tag": (a_manifest(end="a: !!int x\n"), ":5: `x` cannot be read"),
    "a mapping called an integer": (a_manifest(end="a: !!int {x: y}\n"), ":5:"),
    "a list called a mapping": (a_manifest(end="a: !!map [x]\n"), ":5:"),
    "infinity where all is free": (with_annotation(".inf"), ":4: `.inf` is not finite; as a text write it in quotes"),
    # characters
    "bytes that are not UTF-8": (a_manifest().encode() + b"a: \xff\xfe\n", ":5: is not a text file in UTF-8"),
    "UTF-16": (a_manifest().encode("utf-16"), "is not a text file in UTF-8"),
    "a NUL byte": (a_manifest(end="a: \x00\n"), ":5: not valid YAML: holds the control character U+0000"),
    "an escape character": (a_manifest(end=f"a: {ESCAPE}\n"), ":5: not valid YAML: holds the control character U+001B"),
    "a C1 character": (a_manifest(end="a: \x9b31m\n"), ":5: not valid YAML: holds the control character U+009B"),
    "an escape character in an escape": (a_manifest(spec=', topologie: "\\e[31m\\e]0;x\\a"'), "spec.topologie"),
    "an escape character in a key's escape": (a_manifest(spec=', "\\e[31m": 1'), "unknown field"),
    "an escape character in a program": (a_manifest(container='{name: "\\e[31m", command: [x]}'), "found: ?[31m"),
    "text that turns around": (a_manifest(container='{name: "\u202eevil", command: [x]}'), "found: ?evil"),
    "half a character": (a_manifest(end='a: "\\ud800"\n'), ":5: not valid YAML"),
    "no character": (a_manifest(end='a: "\\U00110000"\n'), ":5: not valid YAML"),
    "tabs": ("a:\n\t- b\n", ":2: not valid YAML"),
    # documents
    "nothing": ("", "is empty"),
    "comments only": ("# nothing\n", "is empty"),
    "a list": ("[1, 2]", ":1: should hold a DistributedTraining"),
    "a word": ("hello", ":1: should hold a DistributedTraining"),
    "nothing by name": ("null", ":1: should hold a DistributedTraining"),
    "no YAML": ("a: b: c", ":1: not valid YAML"),
    "a second document that is none": (a_manifest(end="---\na: [\n"), "not valid YAML"),
    "an alias of nothing": (a_manifest(end="a: *b\n"), ":5: not valid YAML: found undefined alias"),
    "another version of YAML": ("%YAML 9.9\n---\na: 1\n", ":1: not valid YAML"),
    "a program": (b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 20, "is not a text file in UTF-8"),
    # the specification
    "a GPU count of ²": (with_limits("{nvidia.com/gpu: ²}"), "limit nvidia.com/gpu is '²', and must be a whole number"),
    "a GPU count in Arabic digits": (with_limits("{nvidia.com/gpu: '٣'}"), "must be a whole number"),
    "a GPU count of a million": (with_limits("{nvidia.com/gpu: 1000000}"), "1000000 GPUs, the most are 64"),
    "a GPU count below nothing": (with_limits("{nvidia.com/gpu: -1}"), "must be a whole number"),
    "a GPU count that is a list": (with_limits("{nvidia.com/gpu: [1]}"), "must be a whole number"),
    "limits that are a list": (with_limits("[a]"), "container `trainer`: limits is ['a'], and must be a mapping"),
    "limits that are a number": (with_limits("5"), "container `trainer`: limits is 5, and must be a mapping"),
    "resources that are a word": (with_container("resources: many"), "resources is 'many', and must be a mapping"),
    "an infinite time-out": (
        a_manifest(spec=", gradients: {timeoutSeconds: .inf}"),
        "timeoutSeconds: inf is not allowed: write a finite number",
    ),
    "an infinite time-out in quotes": (
        a_manifest(spec=", gradients: {timeoutSeconds: 'inf'}"),
        "write a finite number",
    ),
    "a time-out that is no number": (
        a_manifest(spec=", runPolicy: {startTimeoutSeconds: .nan}"),
        "startTimeoutSeconds: nan is not allowed",
    ),
    "a time-out of ages": (
        a_manifest(spec=", gradients: {timeoutSeconds: 1e300}"),
        "gradients.timeoutSeconds: '1e300' is not allowed",
    ),
    "a deadline of ages": (
        a_manifest(spec=", runPolicy: {activeDeadlineSeconds: 1e18}"),
        "activeDeadlineSeconds: '1e18' is not allowed",
    ),
    "a count beyond 32 bits": (
        a_manifest(spec=", runPolicy: {backoffLimit: 99999999999}"),
        "backoffLimit: 99999999999",
    ),
    "a variable's name with =": (with_container("env: [{name: 'A=B', value: c}]"), "env[0].name: 'A=B' is not allowed"),
    "a variable without a name": (with_container("env: [{name: '', value: c}]"), "env[0].name: '' is not allowed"),
    "a variable's name with a line end": (with_container('env: [{name: "A\\n", value: c}]'), "env[0].name: 'A\\n'"),
    "a variable's value with NUL": (
        with_container('env: [{name: A, value: "\\0"}]'),
        "env[0].value: its value is not allowed",
    ),
    "a program with NUL": (a_manifest(container='{name: trainer, command: ["a\\0"]}'), "command[0]: 'a\\x00'"),
    "a folder with NUL": (with_container('workingDir: "a\\0"'), "workingDir: 'a\\x00'"),
    "a name with a line end": (a_manifest().replace("{name: t}", '{name: "t\\n"}'), "metadata.name: 't\\n'"),
}
SMALL = {name for name, (text, _) in REFUSED.items() if len(text) < 100_000}


def a_file(folder: Path, name: str) -> Path:
    """The file of a row of the table."""
    path, text = folder / "hostile.yaml", REFUSED[name][0]
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    if name == "1 GB":
        os.truncate(path, 1 << 30)
    return path


def a_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def a_folder(path: Path) -> Path:
    path.mkdir()
    return path


def a_loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


SPECIAL: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a pipe that nobody writes to": (a_pipe, "is a pipe that nobody writes to"),
    "a folder": (a_folder, "cannot be read: Is a directory"),
    "a link to itself": (a_loop, "cannot be read: Too many levels of symbolic links"),
    "a device without end": (lambda _: Path("/dev/zero"), "is larger than 1 MiB"),
    "a device with nothing": (lambda _: Path("/dev/null"), "is empty"),
    "a name that is too long": (lambda p: p.with_name("x" * 300), "cannot be read: File name too long"),
    "a name with an escape character": (lambda p: p.with_name("\x1b[31m"), "?[31m: there is no such file"),
    "a file in a file": (lambda _: Path(__file__, "x"), "cannot be read: Not a directory"),
}
