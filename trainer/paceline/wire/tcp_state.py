"""The state of a TCP connection's sending side, as the kernel tells it (Linux; elsewhere nothing is known)."""

import socket
import struct
import sys

TCP_INFO_BYTES, NOTSENT_OFFSET = 192, 144  # of struct tcp_info in linux/tcp.h
SO_MAX_PACING_RATE = 47
KNOWN = sys.platform == "linux"


def unsent(connection: socket.socket) -> int:
    """Bytes that were given to the kernel and have not left this machine yet. Raises OSError."""
    if not KNOWN:
        return 0
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    found: int = struct.unpack_from("=I", info, NOTSENT_OFFSET)[0]
    return found


def pace(connection: socket.socket, bytes_per_second: float) -> None:
    """Send no faster than this. Raises OSError."""
    rate = max(1, min(int(bytes_per_second), 2**31 - 1))
    connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, rate)
