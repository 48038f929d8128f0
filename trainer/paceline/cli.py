"""The command `paceline`. Exit codes: 0 succeeded, 1 training failed, 2 bad input, 130 interrupted."""

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from paceline import __version__, manifest
from paceline_core.errors import SpecError

BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except SpecError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return BAD_INPUT
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="paceline", description="Train one PyTorch model on many machines.")
    parser.add_argument("--version", action="version", version=f"paceline {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    validate = commands.add_parser("validate", help="check manifests")
    validate.add_argument("files", nargs="+", type=Path, metavar="FILE")
    validate.set_defaults(command=_validate)
    run = commands.add_parser("run", help="run a training on this machine")
    run.add_argument("file", type=Path, metavar="FILE", help="a DistributedTraining, in YAML")
    run.add_argument("--replay", type=Path, metavar="RUN", help="folder of an asynchronous run to reproduce")
    run.add_argument(
        "--slow", action="append", default=[], metavar="WORKER=AMOUNT",
        help="make a worker slow: worker-2=30ms adds to each step, worker-2=10x multiplies its computing",
    )  # fmt: skip
    run.add_argument("-o", "--output", choices=("text", "json"), default="text", help="for people, or JSON lines")
    run.add_argument("--run-dir", type=Path, metavar="DIR", help="folder for the results (default: runs/NAME-TIME)")
    run.add_argument("--port", type=int, default=0, metavar="BASE", help="first port of the servers (default: any)")
    run.add_argument("--metrics-port", type=int, default=0, metavar="BASE", help="first port for metrics")
    run.set_defaults(command=_run)
    return parser


def _validate(options: argparse.Namespace) -> int:
    wrong = []
    for file in options.files:
        try:
            for training in manifest.read_all(file):
                print(f"{file}: {training.metadata.name} is valid")
        except SpecError as error:
            wrong += error.problems
    if wrong:
        raise SpecError(wrong)
    return 0


def _run(options: argparse.Namespace) -> int:
    from paceline.local.display import Json, Text
    from paceline.local.request import Request, parse_slow
    from paceline.local.run import run

    training = manifest.read(options.file)
    folder = options.run_dir or _new_folder(training.metadata.name)
    request = Request(
        options.file, training, folder, options.replay, parse_slow(options.slow), options.port, options.metrics_port
    )
    return run(request, Json() if options.output == "json" else Text())


def _new_folder(name: str) -> Path:
    """A folder that is not there yet: two runs may begin in the same second."""
    first = Path("runs", f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
    folder, number = first, 1
    while folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder


if __name__ == "__main__":
    sys.exit(main())
