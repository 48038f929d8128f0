"""Whether a worker of a ring waits for others or still sends: seen at its sockets, because gloo does not tell.

Its ring hides who is slow at sending: everyone waits alike. But on the slow one's side of the connection there are
bytes that have not left the machine yet. A thread samples the sockets many times a second; the share of the samples
during a wait in which it found such bytes is the share of the wait that was sending.
"""

import logging
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

from paceline.wire import tcp_state

SAMPLE_SECONDS = 0.01  # between two samples of up to 16 connections
WEIGHT = 0.02  # of the newest sample
log = logging.getLogger("paceline")


def sockets() -> set[int]:
    """The descriptors of this process that are TCP sockets (Linux; elsewhere none)."""
    found = set()
    for name in os.listdir("/proc/self/fd") if tcp_state.KNOWN else ():
        with suppress(OSError):  # closed meanwhile: the listing's own, for example
            if stat.S_ISSOCK(os.stat(int(name)).st_mode) and _is_tcp(int(name)):
                found.add(int(name))
    return found


class SocketQueues:
    """The connections that torch.distributed made; `sending` is the share of the recent waits in which they sent."""

    def __init__(self, descriptors: Iterable[int], waits: Callable[[], bool]) -> None:
        self._sockets: list[socket.socket] = []
        self._waits, self._over = waits, threading.Event()
        self.sending, self._began = 0.0, False
        self._thread = threading.Thread(target=self._sample, name="socket-queues", daemon=True)
        self.add(descriptors)

    def add(self, descriptors: Iterable[int]) -> None:
        """Sample these too."""
        self._sockets = [*self._sockets, *(socket.socket(fileno=os.dup(d)) for d in descriptors)]
        self._seconds = SAMPLE_SECONDS * max(1.0, len(self._sockets) / 16)
        if self._sockets and not self._began:
            self._began = True
            self._thread.start()

    def shut_down(self) -> None:
        """End the connections: whoever waits at one, here or at its other end, is told so at once."""
        for each in self._sockets:
            # not of one that listens: torch.distributed ends the process when it can accept no more
            if not each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                with suppress(OSError):  # it has ended
                    each.shutdown(socket.SHUT_RDWR)

    def replace(self, descriptors: Iterable[int]) -> None:
        """Sample these from now on, and the others no more."""
        before, self._sockets = self._sockets, []
        for each in before:
            each.close()
        self.add(descriptors)

    def pace(self, bytes_per_second: float) -> None:
        """Send no faster than this on any of them."""
        for each in self._sockets:
            tcp_state.pace(each, bytes_per_second)

    def close(self) -> None:
        """Sample no more."""
        self._over.set()
        if self._began:
            self._thread.join()
        for each in self._sockets:
            each.close()

    def _sample(self) -> None:
        try:
            while not self._over.wait(self._seconds):
                if self._waits():
                    self.sending += WEIGHT * (self._sends() - self.sending)
        except Exception as error:
            log.warning("from here on waiting and sending are not told apart: %r", error)

    def _sends(self) -> bool:
        try:
            return any(tcp_state.unsent(each) for each in self._sockets)
        except OSError:
            return False  # the peer has gone; torch.distributed will tell


def _is_tcp(descriptor: int) -> bool:
    copy = socket.socket(fileno=os.dup(descriptor))
    try:
        return copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM
    finally:
        copy.close()
