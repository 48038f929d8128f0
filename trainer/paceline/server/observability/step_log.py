"""The log of steps: one CSV row for each step of each worker, in the run folder."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paceline_core.attribution import PHASES

COLUMNS = ("worker", "step", "version", "time", "loss", "latency", "wall", "staleness", "accepted", "reason")
FILE = "steps.csv"


class StepLog:
    """Writes as reports come; without a folder, nothing. Raises OSError."""

    def __init__(self, folder: str | None) -> None:
        self._file = Path(folder, FILE).open("w", newline="") if folder else None
        self._rows = csv.writer(self._file) if self._file else None
        if self._rows:
            self._rows.writerow([*COLUMNS, *PHASES])

    def write(self, worker: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows as a worker reports them."""
        if self._rows and self._file:
            self._rows.writerows(
                [worker, *(row.get(c, "") for c in COLUMNS[1:]), *(row["phases"].get(p, 0.0) for p in PHASES)]
                for row in rows
            )
            self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        if self._file:
            self._file.close()
