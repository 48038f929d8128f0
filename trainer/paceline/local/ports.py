"""Sockets of the run: bound by the runner, so that a port in use is an error before anything starts."""

import errno
import socket

from paceline_core.errors import SpecError

HOST = "127.0.0.1"


def bind(port: int, option: str) -> socket.socket:
    """A listening socket that children inherit, on `port` (0: any). Raises SpecError naming the option."""
    try:
        listener = socket.create_server((HOST, port), backlog=512)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            why = "is in use" if error.errno == errno.EADDRINUSE else "needs privileges"
            raise SpecError([f"{option}: port {port} {why}; choose another, or leave {option} out"]) from None
        raise
    except OverflowError:
        raise SpecError([f"{option}: {port} is not a port; they end at 65535"]) from None
    listener.set_inheritable(True)
    return listener


def bind_again(port: int) -> socket.socket:
    """A socket on the port that an earlier one had; on any other where that is taken by now."""
    try:
        return bind(port, "")
    except SpecError:
        return bind(0, "")


def address(listener: socket.socket) -> str:
    """Where it listens, as host:port."""
    return f"{HOST}:{listener.getsockname()[1]}"
