"""The command `paceline`. Exit codes: 0 succeeded, 1 training failed, 2 bad input, 130 interrupted."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from paceline import __version__, manifest, standard_streams
from paceline.files import private_writing
from paceline.terminal import printable
from paceline_core.errors import SpecError

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
ELSEWHERE = "choose another place with --run-dir"
LONGEST = 2000  # characters of a problem


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    try:
        with standard_streams.ready():
            return _command(arguments)
    except standard_streams.OutputLost as error:
        if not error.closed:
            standard_streams.say(str(error))
        return FAILED


def _command(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except SpecError as error:
        for problem in error.problems:
            standard_streams.say(printable(problem, LONGEST))
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # what was to be written into, for example `head`, has seen enough
        return FAILED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="paceline", description="Train one PyTorch model on many machines.")
    parser.add_argument("--version", action="version", version=f"paceline {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    validate = commands.add_parser("validate", help="check manifests")
    validate.add_argument("files", nargs="+", type=_given, metavar="FILE")
    validate.set_defaults(command=_validate)
    run = commands.add_parser("run", help="run a training on this machine")
    run.add_argument("file", type=_given, metavar="FILE", help="a DistributedTraining, in YAML; - is standard input")
    run.add_argument("--replay", type=Path, metavar="RUN", help="folder of a run to reproduce exactly")
    run.add_argument(
        "--resume", metavar="RUN", help="go on from the newest checkpoint of a run, or from one: a folder, or its URL"
    )
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


def _given(name: str) -> Path:
    """The file of this name."""
    return Path("/dev/stdin" if name == "-" else name)


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
    checkpoint = commands.add_parser("checkpoint", help="what a run has saved").add_subparsers(
        required=True, metavar="WHAT"
    )
    for name, about in (
        ("list", "every checkpoint of a run"),
        ("verify", "read each file, and compare it with what was written"),
        ("show", "what is in one"),
        ("export", "its weights as one safetensors file"),
    ):
        what = checkpoint.add_parser(name, help=about)
        what.add_argument(
            "run", metavar="RUN", help="a run folder, a folder of checkpoints or a checkpoint, or one's URL"
        )
        if name == "export":
            what.add_argument("to", type=Path, metavar="FILE")
        what.set_defaults(command=_checkpoint, what=name)


def _validate(options: argparse.Namespace) -> int:
    wrong = []
    for file in options.files:
        try:
            for training in manifest.every(manifest.text(file), file):
                print(printable(f"{file}: {training.metadata.name} is valid", LONGEST))
        except SpecError as error:
            wrong += error.problems
    if wrong:
        raise SpecError(wrong)
    return 0


def _run(options: argparse.Namespace) -> int:
    from paceline.checkpoints.finding import place_of
    from paceline.local.background_output import in_background
    from paceline.local.display import JsonDisplay, TextDisplay
    from paceline.local.preflight import Request, earlier_checkpoints, parse_slow
    from paceline.local.run import run
    from paceline.views.checkpoint_command import checkpoint_of, told_as_problems

    written = manifest.text(options.file)  # once: it may be a pipe
    training = manifest.one(written, options.file)
    slow = parse_slow(options.slow)
    with told_as_problems():
        asked = place_of(options.resume) if options.resume else None
        if asked is None and options.replay is None:
            asked = earlier_checkpoints(training)
        resume = asked and checkpoint_of(asked)
    folder = options.run_dir or new_folder(training.metadata.name)
    request = Request(
        options.file, written, training, folder, options.replay, resume, slow, options.port, options.metrics_port,
    )  # fmt: skip
    try:
        lost = lambda trouble: standard_streams.say(f"{trouble}; everything is in {printable(str(folder))}")  # noqa: E731
        with told_as_problems(), in_background(lost):
            return run(request, JsonDisplay() if options.output == "json" else TextDisplay())
    except SpecError:
        if options.run_dir is None:
            with suppress(OSError):
                folder.rmdir()  # it was made for this run, and nothing is in it
        raise


def _top(options: argparse.Namespace) -> int:
    from paceline.views.sources.selection import find
    from paceline.views.top import Options, top

    source = find(options.training, options.namespace, going_on_first=True)
    top(source, Options(options.once, options.output, by_lag=options.sort == "lag"))
    return 0


def _trace(options: argparse.Namespace) -> int:
    from paceline.views.sources.selection import find
    from paceline.views.trace_command import trace

    trace(find(options.training, options.namespace), options.output)
    return 0


def _report(options: argparse.Namespace) -> int:
    from paceline.views.report.command import report
    from paceline.views.sources import run_folders

    run = run_folders.newest() if options.training is None else run_folders.at(options.training)
    if run is None:
        raise SpecError([f"{options.training}: is not the folder of a run (there is no {run_folders.MANIFEST} in it)"])
    report(run, options.output)
    return 0


def _checkpoint(options: argparse.Namespace) -> int:
    from paceline.checkpoints.finding import place_of
    from paceline.views import checkpoint_command as those

    with those.told_as_problems():
        given = place_of(options.run)
        if options.what == "export":
            return those.export(given, options.to)
        return {"list": those.show_all, "verify": those.verify, "show": those.show}[options.what](given)


def new_folder(name: str) -> Path:
    """Make a folder for this run alone: others may begin in the same moment. Raises SpecError."""
    first = Path("runs", f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
    folder, number = first, 1
    while True:
        try:
            first.parent.mkdir(exist_ok=True)
            folder.mkdir(mode=private_writing.FOLDER)
            return folder
        except FileExistsError as error:
            if not first.parent.is_dir():
                raise SpecError([f"{first.parent}: cannot be written: {error.strerror}; {ELSEWHERE}"]) from None
            number += 1
            folder = first.with_name(f"{first.name}-{number}")
        except OSError as error:
            raise SpecError([f"{first.parent}: cannot be written: {error.strerror}; {ELSEWHERE}"]) from None


if __name__ == "__main__":
    sys.exit(main())
