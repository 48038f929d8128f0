"""The table of update strategies: a file and a line each. The first is the default."""

from collections.abc import Mapping

from paceline_core.strategies.asynchronous import ASYNCHRONOUS
from paceline_core.strategies.backup_workers import BACKUP_WORKERS
from paceline_core.strategies.declaration import Strategy
from paceline_core.strategies.synchronous import SYNCHRONOUS

STRATEGIES: Mapping[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        SYNCHRONOUS,
        ASYNCHRONOUS,
        BACKUP_WORKERS,
    )
}
DEFAULT = next(iter(STRATEGIES.values()))
