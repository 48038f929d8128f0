"""Whether the script ends itself as failed: by sys.exit() with a code other than 0, which the interpreter tells nobody.

At exit the code is not known any more, so the calls of sys.exit are noted. One that was caught ended nothing: the
frame that caught it went on, and returned. Of a bare `raise SystemExit(1)` only the process's parent learns.
"""

import dis
import sys
import threading
from types import FrameType
from typing import Any, NoReturn


class Exits:
    """Takes the place of sys.exit."""

    def __init__(self) -> None:
        self._last: SystemExit | None = None
        self._exit, sys.exit = sys.exit, self._noted

    def failed(self) -> SystemExit | None:
        """The exception that ends the script with a code other than 0, if that is how it ends. To be asked at exit."""
        last = self._last
        return last if last is not None and _code(last) and _ended_everything(last) else None

    def _noted(self, status: Any = None, /) -> NoReturn:
        try:
            self._exit(status)
        except SystemExit as error:
            if threading.current_thread() is threading.main_thread():  # another would end only itself
                self._last = error
            raise


def _code(error: SystemExit) -> int:
    """What the parent is told: a text is printed instead, and means 1."""
    if isinstance(error.code, int):
        return error.code & 0xFF
    return 0 if error.code is None else 1


def _ended_everything(error: SystemExit) -> bool:
    """Whether no frame caught it: each, from the last that it is known to have passed, was left without a return."""
    assert error.__traceback__ is not None, "it was raised"
    frame: FrameType | None = error.__traceback__.tb_frame
    while frame is not None:
        if dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith("RETURN"):
            return False
        frame = frame.f_back
    return True
