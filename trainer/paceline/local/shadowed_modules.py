"""Files beside a script that are imported in the place of a module of Python's or of a package: found by the error."""

import re
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

# what Python says of a module that is not the one that was meant
ERRORS = re.compile(
    r"cannot import name '[^']*' from (?:partially initialized module )?'([\w.]+)'"
    r"|module '([\w.]+)' has no attribute"
    r"|No module named '([\w.]+)'; '[\w.]+' is not a package"
    r"|__path__ attribute not found on '([\w.]+)'"
)


def hint(error: str, folder: Path, command: Sequence[str]) -> str | None:
    """What to do when an error comes from such a file; the command was run in the folder."""
    found = ERRORS.search(error)
    if found is None:
        return None
    name = next(filter(None, found.groups())).partition(".")[0]
    places = [folder, *(folder.joinpath(word).parent for word in command if word.endswith(".py"))]
    for file in _files(name, places):
        if name in sys.stdlib_module_names or _is_elsewhere(name, places):
            return f"{file} is imported in the place of the module {name!r} that was meant: rename it"
    return None


def _files(name: str, places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        yield from (file for file in (place / f"{name}.py", place / name / "__init__.py") if file.is_file())


def _is_elsewhere(name: str, places: Sequence[Path]) -> bool:
    """Whether there is a module of this name among the installed ones."""
    own = {place.resolve() for place in places}
    return PathFinder.find_spec(name, [p for p in sys.path if Path(p).resolve() not in own]) is not None
