"""Run folders that somebody hostile, or a full disk, may leave: what is shown of them is within limits, and safe."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.trainer.made import COLUMNS, a_result, a_row, a_run, a_status, a_trace, a_worker, straggling, write_steps

ESCAPE = "\x1b[31mred\x1b]0;title\x07\u202e\x9b\x7f"
SECRET = "root:x:0:0"
DEEP = "[" * 100_000 + "]" * 100_000
ARRIVALS = "kind,version,worker,incarnation,step,delay,reason\n"
ALL = ("report", "top", "replay")


def a_good_run(folder: Path, **files: Any) -> None:
    """A run of four workers that succeeded, with a trace, a log of arrivals, and these JSON files in place of its own."""
    a_run(folder, **{"result": a_result(straggling()), "status": straggling()} | files)
    write_steps(folder, [a_row(w, s) for s in range(1, 30) for w in range(4)])
    for name in ("traces", "logs"):
        (folder / name).mkdir()
    for replica in ("ps-0", "worker-0"):
        (folder / "traces" / f"{replica}.json").write_text(json.dumps(a_trace(replica)))
    manifest = (folder / "manifest.yaml").read_text()
    (folder / "manifest.yaml").write_text(manifest.replace("strategy: Synchronous", "strategy: Asynchronous"))
    (folder / "arrivals-ps-0.csv").write_text(ARRIVALS + "".join(f"join,0,{w},0,0,0,\n" for w in range(4)))


@dataclass(frozen=True)
class Hostile:
    """How to make it, which commands look at it, and a part of what they say (nothing: they show what there is)."""

    make: Callable[[Path], object]
    commands: tuple[str, ...] = ("report",)
    message: str = ""
    code: int = 2  # with a message


def text(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def steps(*rows: dict[str, Any], tail: str = "") -> Callable[[Path], object]:
    return lambda folder: write_steps(folder, [a_row(0, 1), *rows], tail)


def result(**given: Any) -> Callable[[Path], object]:
    return text("result.json", json.dumps(a_result(straggling()) | given))


def status(**given: Any) -> Callable[[Path], object]:
    return text("status.json", json.dumps(straggling() | given))


def goes_on(endpoints: Any) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / "result.json").unlink()
        (folder / "endpoints.json").write_text(json.dumps(endpoints))

    return make


def link(name: str, target: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            for each in path.iterdir():
                each.unlink()
            path.rmdir()
        path.unlink(missing_ok=True)
        path.symlink_to(folder.parent / "outside" / target)

    return make


def pipe(name: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def failed(replica: str) -> Callable[[Path], object]:
    error = {"replica": replica, "message": ESCAPE, "traceback": f"a\n{ESCAPE}\n", "victims": [ESCAPE]}
    return result(result="Failed", error=error)


def both(*makes: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [make(folder) for make in makes]


MANY = [{"worker": w} for w in range(150_000)]
FOLDERS: dict[str, Hostile] = {
    # steps.csv
    "time=inf": Hostile(steps(a_row(0, 2, time="inf"))),
    "time=nan": Hostile(steps(a_row(0, 2, time="nan"))),
    "time=1e300": Hostile(steps(a_row(0, 2, time="1e300"))),
    "time=1e11 from 0": Hostile(steps(a_row(0, 2, time="0"), a_row(0, 3, time="1e11"))),
    "steps that are no numbers": Hostile(steps(*[a_row(0, s, time="x") for s in range(1, 10)]), message="9 lines cannot be read", code=0),
    "infinite durations": Hostile(steps(a_row(0, 2) | {"wall": "inf"}, a_row(0, 3, latency="inf"), a_row(0, 4, wait=float("inf")))),
    "durations below nothing": Hostile(steps(a_row(0, 2) | {"wall": "-1e9"}, a_row(1, 2, latency=-1))),
    "huge losses": Hostile(steps(a_row(0, 2, loss="1.7e308"), a_row(0, 3, loss="-1.7e308"), a_row(0, 4, loss="5e-324"))),
    "a loss from 1e-99 to 1e99": Hostile(steps(a_row(0, 2, loss="1e-99"), a_row(0, 3, loss="1e99"))),
    "workers beyond all": Hostile(steps(a_row(10**18, 2), a_row(-1, 2), a_row(4, 2)), message="3 lines cannot be read", code=0),
    "100,000 workers": Hostile(steps(*[a_row(w, 2) for w in range(100_000)]), message="lines cannot be read", code=0),
    "a number of 5,000 digits": Hostile(steps(a_row(0, 2) | {"step": "9" * 5000}, a_row(0, 1) | {"worker": "9" * 5000})),
    "huge staleness": Hostile(steps(a_row(0, 2, staleness=10**15), a_row(0, 3, staleness=10**9))),
    "100,000 reasons": Hostile(steps(*[a_row(0, s, reason=f"r{s}{ESCAPE}") for s in range(1, 20_000)])),
    "missing columns": Hostile(text("steps.csv", "worker,step\n" + "0,1\n" * 50_000), message="50,000 lines", code=0),
    "columns twice": Hostile(text("steps.csv", ",".join(COLUMNS * 2) + "\n" + "1," * 39 + "1\n")),
    "200,000 columns": Hostile(text("steps.csv", "a," * 200_000 + "\n" + "1," * 200_000 + "\n")),
    "NUL bytes": Hostile(text("steps.csv", ",".join(COLUMNS) + "\n" + "\x00" * 1_000_000)),
    "a line of 10 MB": Hostile(steps(a_row(0, 2, reason="x" * 10_000_000)), message=""),
    "a quote that does not end": Hostile(steps(a_row(0, 2), tail='0,"' + "1\n" * 500_000), message="lines cannot be", code=0),
    "random bytes": Hostile(lambda f: (f / "steps.csv").write_bytes(bytes(range(256)) * 10_000)),
    "carriage returns": Hostile(steps(tail="0,\r1,\r\r2\n")),
    "steps that are a folder": Hostile(both(lambda f: (f / "steps.csv").unlink(), lambda f: (f / "steps.csv").mkdir()), message="is not a plain file"),
    "steps that are a pipe": Hostile(pipe("steps.csv"), message="steps.csv: is not a plain file"),
    "steps that are a link": Hostile(link("steps.csv", "secret"), message="steps.csv: is a link, and none is followed"),
    # result.json, status.json, endpoints.json
    "deep JSON": Hostile(text("result.json", DEEP), ALL, "result.json: cannot be read: it is nested too deeply"),
    "deep objects": Hostile(text("result.json", '{"a":' * 50_000), ALL, "result.json: cannot be read: it is nested too deeply"),
    "deep JSON in status": Hostile(text("status.json", DEEP), ("report", "top"), "status.json: cannot be read"),
    "JSON of 70 MB": Hostile(text("result.json", "[" + " " * 70_000_000 + "]"), ALL, "result.json: is larger than 64 MiB"),
    "JSON of 10 million lists": Hostile(text("result.json", "[" + "[]," * 10_000_000 + "[]]"), ALL, "it holds more than 600,000 values"),
    "a number of a million digits in JSON": Hostile(text("result.json", '{"result": ' + "9" * 1_000_000 + "}"), ALL, "cannot be read"),
    "no object": Hostile(text("result.json", "[1]"), ALL, "result.json: should hold a JSON object"),
    "no JSON": Hostile(text("result.json", "{"), ALL, "result.json: cannot be read"),
    "half a character": Hostile(text("result.json", '{"result": "\\ud800", "training": "\\ud800"}'), ("report", "top")),
    "bytes that are not UTF-8": Hostile(text("result.json", b'{"a": "\xff\xfe"}'), ALL, "result.json: cannot be read"),
    "fields of other types": Hostile(result(duration_seconds="long", machine=5), ALL, "result.json: cannot be read: duration_seconds"),
    "a result that is a list": Hostile(result(result=["x"]), ALL, "result.json: cannot be read: result"),
    "an error that is a word": Hostile(result(error="x"), ALL, "result.json: cannot be read: error"),
    "figures without end": Hostile(text("result.json", '{"duration_seconds": 1e999, "goodput": {"seconds": NaN, "productive": Infinity}}')),
    "long fields": Hostile(both(result(result="x" * 1_000_000, training="y" * 1_000_000), status(strategy="z" * 1_000_000)), ("report", "top")),
    "escape characters": Hostile(both(failed("worker-0"), status(training=ESCAPE, strategy=ESCAPE)), ("report", "top", "trace")),
    "escape characters in keys": Hostile(status(workers=[a_worker(0, reported={ESCAPE: 1.0}, state=ESCAPE, verdicts=[ESCAPE], rejected=1, rejected_by_reason={ESCAPE: 1})]), ("report", "top")),
    "a failure with a name elsewhere": Hostile(failed("../../outside/secret"), ("report", "top")),
    "no workers": Hostile(status(workers=[]), ("report", "top"), "status.json: answered something that is no status (workers"),
    "150,000 workers": Hostile(status(workers=MANY), ("report", "top"), "status.json: answered something that is no status (workers"),
    "steps below nothing": Hostile(status(workers=[a_worker(0, step=-1)]), ("report", "top"), "no status (workers.0.step"),
    "times without end": Hostile(text("status.json", json.dumps(a_status([a_worker(0, step_seconds=float("inf"), lag_seconds=float("nan"), loss=float("nan"))]))), ("report", "top")),
    "a phase without end": Hostile(text("status.json", json.dumps(a_status([a_worker(0, phases={"data": float("inf")})]))), ("report", "top"), "no status (workers.0.phases.data"),
    "a verdict from the end of time": Hostile(status(overall_verdict={"worker": 2, "lag_share": 1e300, "lag_seconds": 1, "round_seconds": 1}), ("report", "top"), "no status (overall_verdict.lag_share"),
    "an address elsewhere": Hostile(goes_on({"status": "http://192.0.2.1:80/status", "metrics": {}}), ("report", "top", "trace")),
    "an address of a file": Hostile(goes_on({"status": "file:///etc/passwd", "metrics": {"a": "file:///etc/passwd"}}), ("report", "top", "trace")),
    "an address with a password": Hostile(goes_on({"status": "http://127.0.0.1:80@192.0.2.1/status"}), ("report", "top")),
    "addresses of other types": Hostile(goes_on({"status": 5, "metrics": [1]}), ("report", "top", "trace"), "endpoints.json: cannot be read: status"),
    # links, pipes and folders
    "report.html is a link": Hostile(link("report.html", "victim")),
    "report.html is a link to nothing": Hostile(link("report.html", "new")),
    "report.html is a folder": Hostile(lambda f: (f / "report.html").mkdir(), message="report.html: cannot be written: Is a directory"),
    "report.html is a pipe": Hostile(pipe("report.html")),
    "trace.json is a link": Hostile(link("trace.json", "victim"), ("trace",)),
    "result.json is a link": Hostile(link("result.json", "secret"), ALL, "result.json: is a link, and none is followed"),
    "result.json is a pipe": Hostile(pipe("result.json"), ALL, "result.json: is not a plain file"),
    "result.json is a link to itself": Hostile(lambda f: [(f / "result.json").unlink(), (f / "result.json").symlink_to("result.json")], ALL, "result.json: is a link"),
    "a log is a link": Hostile(both(failed("worker-0"), link("logs/worker-0.log", "secret"))),
    "the logs are a link": Hostile(both(failed("secret"), link("logs", ""))),
    "a log of 1 GB": Hostile(both(failed("worker-0"), lambda f: (f / "logs/worker-0.log").touch(), lambda f: os.truncate(f / "logs/worker-0.log", 1 << 30))),
    "a log with escape characters": Hostile(both(failed("worker-0"), text("logs/worker-0.log", f"{ESCAPE}\n" * 100))),
    "traces are a link": Hostile(link("traces", ""), ("trace",), "is a link, and none is followed"),
    "a trace is a link": Hostile(link("traces/worker-0.json", "secret.json"), ("trace",), "worker-0.json: is a link", 0),
    # traces
    "a trace with times without end": Hostile(text("traces/worker-0.json", '{"replica": "worker-0", "spans": [["data", 1e999, 0, 1]]}'), ("trace",), "left out: worker-0", 0),
    "a trace at the end of time": Hostile(text("traces/worker-0.json", '{"replica": "worker-0", "offset": -1e11, "spans": [["data", -1e11, 1e11, 1]]}'), ("trace",)),
    "a deep trace": Hostile(text("traces/worker-0.json", DEEP), ("trace",), "it is nested too deeply", 0),
    "a trace of 10 million lists": Hostile(text("traces/worker-0.json", '{"spans": [' + "[]," * 10_000_000), ("trace",), "holds more than", 0),
    "a trace with a strange name": Hostile(text(f"traces/{ESCAPE}.json", json.dumps(a_trace(f"worker-²{ESCAPE}"))), ("trace",)),
    "a trace that is none": Hostile(text("traces/worker-0.json", '{"replica": 5}'), ("trace",), "left out: worker-0", 0),
    # manifest.yaml
    "a manifest of laughs": Hostile(text("manifest.yaml", "a: &a [x, x]\nb: &b [*a, *a]\n" * 2), ("report", "top", "trace")),
    "a manifest that is binary": Hostile(text("manifest.yaml", bytes(range(256)) * 100), ("report", "top", "trace")),
    "a manifest of 10 MB": Hostile(text("manifest.yaml", "#" * 10_000_000), ("report",)),
    "a manifest that is a link": Hostile(link("manifest.yaml", "secret"), ("report",)),
    "a manifest that cannot be replayed": Hostile(text("manifest.yaml", "a: &a [*a]"), ("replay",), "an alias in it stands for the whole"),
    # arrivals
    "arrivals that are binary": Hostile(text("arrivals-ps-0.csv", bytes(range(256)) * 1000), ("replay",), "is not a log of arrivals"),
    "arrivals with a long field": Hostile(text("arrivals-ps-0.csv", ARRIVALS + "x" * 10_000_000), ("replay",), "line 2 does not end"),
    "arrivals with ²": Hostile(text("arrivals-ps-0.csv", ARRIVALS + "join,²,0,0,0,0,\n"), ("replay",), "is not a log of arrivals"),
    "arrivals of a million digits": Hostile(text("arrivals-ps-0.csv", ARRIVALS + f"join,{'9' * 5000},0,0,0,0,\n"), ("replay",), "is no line of it"),
    "arrivals with an escape character": Hostile(text("arrivals-ps-0.csv", ARRIVALS + f"{ESCAPE},1\n"), ("replay",), "is no line of it"),
    "arrivals that are a link": Hostile(link("arrivals-ps-0.csv", "secret"), ("replay",), "is a link"),
    "arrivals without a column": Hostile(text("arrivals-ps-0.csv", "kind,version\njoin,1\n"), ("replay",), "its first line is not kind,version,worker"),
}  # fmt: skip


def make(folder: Path, name: str) -> Path:
    """The run folder of a row, beside a folder with what must not be read or written."""
    outside = folder / "outside"
    outside.mkdir()
    (outside / "secret").write_text(SECRET)
    (outside / "secret.log").write_text(SECRET)
    (outside / "secret.json").write_text(json.dumps(a_trace(SECRET)))
    (outside / "victim").write_text("as it was")
    a_good_run(folder / "run")
    FOLDERS[name].make(folder / "run")
    return folder / "run"
