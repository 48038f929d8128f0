"""`python -m paceline.server`: a parameter server, or the coordinator of an all-reduce, as the environment says."""

import ctypes
import logging
import os
import signal
import sys

from paceline import failure
from paceline_core.errors import LaunchError, PacelineError
from paceline_core.launch import Launch, Role

M_ARENA_MAX = -8  # malloc.h


def main() -> int:
    """Serve until the training is over; 0 when it went well."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    launch = Launch.from_environment(os.environ)
    if launch is None or launch.role is Role.WORKER:
        raise LaunchError("a server is started by `paceline run` or by the operator, not by hand")
    try:
        service = _service(launch)
        signal.signal(signal.SIGTERM, lambda *_: service.stopping.set())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the runner, which ends us in order
        service.run()
    except Exception as error:
        failure.write(error, launch.termination_log)
        if isinstance(error, PacelineError):
            logging.getLogger("paceline").error("%s: %s", type(error).__name__, error)
            return 1
        raise
    return 0


def _one_arena() -> None:
    """Keep glibc to one heap: in a thread's own, the optimizer's temporaries fragment it by half of what it holds."""
    try:
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    except (OSError, AttributeError):
        pass  # not glibc


def _service(launch: Launch):  # type: ignore[no-untyped-def]
    if launch.role is Role.COORDINATOR:
        from paceline.server.store import Coordinator

        return Coordinator(launch)
    _one_arena()
    import torch

    from paceline.server.service import ParameterService

    threads = os.environ.get("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(threads) if threads.isdigit() else 1)
    return ParameterService(launch)


if __name__ == "__main__":
    sys.exit(main())
