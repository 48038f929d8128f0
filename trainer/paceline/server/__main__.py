"""`python -m paceline.server`: a parameter server, or the coordinator of an all-reduce, as the environment says."""

import ctypes
import logging
import os
import resource
import signal
import sys

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
    try:
        service = _service(launch)
        signal.signal(signal.SIGTERM, lambda *_: service.stopping.set())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the runner, which ends us in order
        service.run()
        if launch.ordinal == 0:
            failure.write_summary(service.aggregator.summary(), launch.termination_log)
    except Exception as error:
        failure.write(error, launch.termination_log)
        if isinstance(error, PacelineError):
            logging.getLogger("paceline").error("%s: %s", type(error).__name__, error)
            return 1
        raise
    return 0


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
        from paceline.server.store import Coordinator

        return Coordinator(launch)
    _compact_heap()
    import torch

    from paceline.server import eager
    from paceline.server.service import ParameterService

    eager.only()
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(threads) if threads.isdigit() else 1)
    return ParameterService(launch)


if __name__ == "__main__":
    sys.exit(main())
