"""The command `paceline`. Exit codes: 0 succeeded, 1 training failed, 2 bad input, 130 interrupted."""

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from paceline import __version__, manifest
from paceline_core.errors import SpecError

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
        sys.stdout.flush()
    except SpecError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # who reads, for example `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
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
    _add_views(commands)
    return parser


def _add_views(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("training", nargs="?", metavar="RUN|NAME", help="a run folder, or a training in the cluster")
    which.add_argument("-n", "--namespace", help="namespace of the training (default: that of kubectl's context)")
    top = commands.add_parser("top", parents=[which], help="how a training is now, and who makes whom wait")
    top.add_argument("--once", action="store_true", help="print it once, as when the output is not a terminal")
    top.add_argument("--sort", choices=("lag", "worker"), default="lag", help="order of the workers (default: lag)")
    top.add_argument("-o", "--output", choices=("text", "json"), default="text", help="for people, or JSON once")
    top.set_defaults(command=_top)
    trace = commands.add_parser("trace", parents=[which], help="what every process did when, for Perfetto")
    trace.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to write it; .gz compresses")
    trace.set_defaults(command=_trace)
    report = commands.add_parser("report", help="a run as one HTML page")
    report.add_argument("training", nargs="?", metavar="RUN", help="a run folder (default: the newest in ./runs)")
    report.add_argument("-o", "--output", type=Path, metavar="FILE", help="the page (default: RUN/report.html)")
    report.set_defaults(command=_report)


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


def _top(options: argparse.Namespace) -> int:
    from paceline.views.source import find
    from paceline.views.top import Options, top

    source = find(options.training, options.namespace, going_on_first=True)
    top(source, Options(options.once, options.output, by_lag=options.sort == "lag"))
    return 0


def _trace(options: argparse.Namespace) -> int:
    from paceline.views.source import find
    from paceline.views.trace import trace

    trace(find(options.training, options.namespace), options.output)
    return 0


def _report(options: argparse.Namespace) -> int:
    from paceline.views import runs
    from paceline.views.report import report

    run = runs.newest() if options.training is None else runs.at(options.training)
    if run is None:
        raise SpecError([f"{options.training}: is not the folder of a run (there is no {runs.MANIFEST} in it)"])
    report(run, options.output)
    return 0


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
