"""Cuts the output of a process into lines to show. A bar that redraws itself is a line that does not end for long."""

LONGEST_BYTES = 64 << 10  # of a line that has not ended: a longer one is shown in pieces
UNENDED_SECONDS = 5.0  # between two looks at such a line


class OutputLines:
    """Takes bytes as they come, and gives lines as a terminal would leave them: what the last carriage return left."""

    def __init__(self, now: float) -> None:
        self._rest, self._looked, self._seen = b"", now, b""

    def feed(self, data: bytes, now: float) -> list[str]:
        """The lines that these bytes end; no bytes: time has passed."""
        *ended, rest = (self._rest + data).split(b"\n")
        lines = [_drawn(line) for line in ended]
        if ended:
            self._looked, self._seen = now, b""
        self._rest = _drawn(rest) + b"\r" if rest.endswith(b"\r") else _drawn(rest)
        if len(self._rest) > LONGEST_BYTES:
            lines.append(self._rest)
            self._rest = b""
        elif now - self._looked >= UNENDED_SECONDS:
            lines += self._unended()
            self._looked = now
        return [line.decode(errors="replace") for line in lines]

    def end(self) -> list[str]:
        """What has not ended when the output has."""
        return [line.decode(errors="replace") for line in self._unended()]

    def _unended(self) -> list[bytes]:
        line = _drawn(self._rest)
        if not line or line == self._seen:
            return []
        self._seen = line
        return [line]


def _drawn(line: bytes) -> bytes:
    """The last state of a line that is drawn again and again."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]
