"""Whether this is the process that joined the training, and not one that it forked.

A forked process (of a DataLoader, of multiprocessing, by os.fork) inherits a copy of everything: of what is called at
exit, of sockets whose other ends are the training's, of locks that nobody will release, and of no thread.
"""

import os

from paceline_core.errors import UsageError


class OwnProcess:
    """Remembers the process in which it was made; true there, false in every process forked from it."""

    def __init__(self) -> None:
        self._number = os.getpid()

    def __bool__(self) -> bool:
        return os.getpid() == self._number

    def demand(self, what: str) -> None:
        """Raise UsageError in a forked process; `what` names what it tried."""
        if not self:
            raise UsageError(
                f"{what} is for the process that takes part in the training, and was called in one forked from it: "
                "train there, or call it on a copy of the model that was made before paceline.distribute()"
            )
