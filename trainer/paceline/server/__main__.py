"""`python -m paceline.server`: a parameter server, or the coordinator of an all-reduce, as the environment says."""

import ctypes
import gc
import logging
import os
import resource
import signal
import sys
from typing import Any

from paceline import failure
from paceline_core.errors import LaunchError, PacelineError
from paceline_core.launch import Launch, Role

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # malloc.h
LARGE_BYTES = 256 * 1024


def main() -> int:
    """Serve until the training is over; 0 when it went well."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    launch = Launch.from_environment(os.environ)
    if launch is None or launch.role is Role.WORKER:
        raise LaunchError("a server is started by `paceline run` or by the operator, not by hand")
    _open_more_files()
    sys.path.append(os.getcwd())  # last: for optimizers of one's own, and never in the place of what we import
    service = None
    try:
        service = _service(launch)
        signal.signal(signal.SIGTERM, service.told_to_end.hear)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the runner, which ends us in order
        service.run()
        if launch.ordinal == 0:
            _write_summary(service.training_status.summary(), launch.termination_log)
    except Exception as error:
        known = service.training_status.at_failure() if service else {}
        failure.write(error, launch.termination_log, known)
        if isinstance(error, PacelineError):
            logging.getLogger("paceline").error("%s: %s", type(error).__name__, error)
            return 1
        raise
    return 0


def _write_summary(summary: dict[str, Any], path: str | None) -> None:
    """It only tells how the training ended: a full disk does not make it a failed one."""
    try:
        failure.write_summary(summary, path)
    except OSError as error:
        logging.getLogger("paceline").warning("the summary of the training could not be written: %s", error)


def _open_more_files() -> None:
    """Take as many connections as the system allows; by default a process has only 1024 open files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass  # macOS allows less than it says


def _compact_heap() -> None:
    """Give large tensors pages of their own, and keep glibc to one heap for the rest.

    An optimizer's temporaries would otherwise leave holes in the heap, and in each thread's: up to half of what the
    shard holds. Their page faults are lost in the noise of a step of Adam (docs/decisions/0005).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    mallopt(M_ARENA_MAX, 1)
    mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def _service(launch: Launch):  # type: ignore[no-untyped-def]
    if launch.role is Role.COORDINATOR:
        from paceline.server.coordinator import Coordinator

        return Coordinator(launch)
    _compact_heap()
    gc.disable()  # nothing of what is imported is garbage: see startup/sitecustomize.py
    import torch

    from paceline.server.gradients import no_compile
    from paceline.server.service import ParameterService

    gc.freeze()
    gc.enable()
    no_compile.install()
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(threads) if threads.isdigit() else 1)
    return ParameterService(launch)


if __name__ == "__main__":
    sys.exit(main())
