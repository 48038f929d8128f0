"""Writes the dashboards' JSON into the chart. With --check, only says whether it is current."""

import argparse
import json
import sys
from pathlib import Path

from charts.dashboards import DASHBOARDS

FOLDER = Path(__file__).parents[1] / "paceline/dashboards"


def texts() -> dict[str, str]:
    """What each file has to hold."""
    return {f"{d.name}.json": json.dumps(d.json(), indent=1, ensure_ascii=False) + "\n" for d in DASHBOARDS}


def stale() -> list[Path]:
    """The files that are missing, out of date, or of no dashboard."""
    wanted = texts()
    outdated = [FOLDER / name for name, text in wanted.items() if _read(FOLDER / name) != text]
    return outdated + [path for path in FOLDER.glob("*") if path.name not in wanted]


def write() -> None:
    """Write every file anew."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in texts().items():
        (FOLDER / name).write_text(text)


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(prog="python -m charts.dashboards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a file is out of date")
    if not parser.parse_args().check:
        write()
    for path in stale():
        print(f"{path} is not what charts/dashboards/ gives: run `python -m charts.dashboards`", file=sys.stderr)
    return 1 if stale() else 0


if __name__ == "__main__":
    sys.exit(main())
