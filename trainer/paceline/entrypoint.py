"""`python -m paceline.entrypoint COMMAND ...`: the first process of a pod, which runs the replica's processes.

As process 1 it forwards signals (a process 1 without handlers ignores SIGTERM), reaps orphans, starts one process for
each GPU when the replica has several, and exits with the code of the first that fails.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from paceline import startup
from paceline_core.errors import LaunchError
from paceline_core.launch import PREFIX, local_environments

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
NOT_FOUND, NOT_RUNNABLE = 127, 126  # as a shell says it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and give its exit code; 128 + n when it died of signal n."""
    command = list(sys.argv[1:] if arguments is None else arguments)
    if not command:
        print("usage: python -m paceline.entrypoint COMMAND [ARGUMENT ...]", file=sys.stderr)
        return 2
    try:
        environments = local_environments(os.environ)
    except ValueError as error:
        raise LaunchError(f"the {PREFIX}* variables are not ones that Paceline wrote: {error}") from error
    return _run(command, environments)


def _run(command: list[str], environments: Sequence[Mapping[str, str]]) -> int:
    children: dict[int, subprocess.Popen[bytes]] = {}
    told: list[int] = []

    def forward(number: int, _: object) -> None:
        told.append(number)
        _tell(children, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    try:
        for environment in environments:
            child = subprocess.Popen(command, env={**startup.environment(os.environ), **environment})
            children[child.pid] = child
            for early in tuple(told):  # while it was being started
                _tell([child.pid], early)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        forward(signal.SIGTERM, None)
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE
    return _wait(children)


def _wait(children: dict[int, subprocess.Popen[bytes]]) -> int:
    """Wait for all; when one fails the others are told to end, and its code is the answer."""
    first = 0
    while children:
        pid, status = os.wait()
        child = children.pop(pid, None)
        if child is None:
            continue  # an orphan that fell to process 1
        code = os.waitstatus_to_exitcode(status)
        child.returncode = code
        code = 128 - code if code < 0 else code
        if code and not first:
            first = code
            _tell(children, signal.SIGTERM)
    return first


def _tell(children: Iterable[int], number: int) -> None:
    """Not by Popen.send_signal, which may reap the child that `_wait` waits for."""
    for pid in list(children):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main())
