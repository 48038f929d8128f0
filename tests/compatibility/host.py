"""A process that runs scripts one after the other, each as a worker of a training of its own, or alone.

Tasks come as lines of JSON, answers go the same way. After a script that failed the process ends, as the worker's would.
"""

import json
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import paceline
from tests.compatibility.table import PRELUDE


class Left(BaseException):
    """This worker joins, and leaves without a step."""


class Said(logging.Handler):
    """Keeps what Paceline says."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main() -> None:
    """Run tasks until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what scripts print is not an answer
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        answer = run(json.loads(line))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if answer["error"]:
            break
    os._exit(0)


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Run one script."""
    said = Said()
    logging.getLogger("paceline").addHandler(said)
    try:
        return _run(task, said)
    finally:
        logging.getLogger("paceline").removeHandler(said)


def _run(task: dict[str, Any], said: Said) -> dict[str, Any]:
    _begin_anew(task)
    names: dict[str, Any] = {"__name__": "__main__", "MODE": task["mode"], "FOLDER": task["folder"]}
    training = paceline._training()
    if task["leaves_after"]:
        _leave_after(task["leaves_after"])
    error = None
    try:
        exec(compile(PRELUDE + task["script"], "train.py", "exec"), names)
    except Left:
        pass
    except BaseException as problem:
        told = training._explain(problem) if training else problem
        error = f"{type(told).__name__}: {told}"
        traceback.print_exc()
    if error is None and training is not None:
        try:
            training._end()
            training._web.shutdown()
            training._web.server_close()
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
    if error is None:
        _save(names, Path(task["weights"]))
    return {"error": error, "result": names.get("result"), "said": said.lines, "first_step": names.get("STEPPED")}


def _begin_anew(task: dict[str, Any]) -> None:
    for name in [n for n in os.environ if n.startswith("PACELINE_")]:
        del os.environ[name]
    os.environ.update(task["environment"])
    paceline.distribute = DISTRIBUTE  # type: ignore[assignment]
    for cached in (paceline._launch, paceline._training):
        cached.cache_clear()
    torch.set_default_dtype(getattr(torch, task["dtype"]))
    torch.manual_seed(99)


DISTRIBUTE = paceline.distribute


def _leave_after(calls: int) -> None:
    """Make the script end after so many calls of paceline.distribute()."""
    made = 0

    def distribute(*arguments: Any, **named: Any) -> Any:
        nonlocal made
        pair = DISTRIBUTE(*arguments, **named)
        made += 1
        if made == calls:
            raise Left
        return pair

    paceline.distribute = distribute  # type: ignore[assignment]


def _save(names: dict[str, Any], folder: Path) -> None:
    models = names.get("models") or [names["model"]] if "model" in names or "models" in names else []
    for number, model in enumerate(models):
        model = getattr(model, "_orig_mod", model)
        tensors = {k: v.detach().contiguous().clone() for k, v in model.state_dict().items()}
        save_file(tensors, folder / f"{number}.safetensors")


if __name__ == "__main__":
    main()
