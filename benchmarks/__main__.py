"""`make bench`: every measurement, printed as it comes and written to benchmarks/RESULTS.md."""

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks import attacks, attribution, cost, goodput, memory, scale, steps, stragglers

RESULTS = Path(__file__).with_name("RESULTS.md")
PARTS = {
    "memory": memory,
    "steps": steps,
    "stragglers": stragglers,
    "goodput": goodput,
    "cost": cost,
    "attribution": attribution,
    "scale": scale,
    "attacks": attacks,
}


def main() -> None:
    """Run the parts that are named, or all."""
    machine = f"{os.cpu_count()} CPUs, Python {platform.python_version()}, torch {version('torch')}"
    text = f"# Measurements\n\n{datetime.now(UTC):%Y-%m-%d}, {machine}. Baselines in the same minutes.\n"
    for name in sys.argv[1:] or PARTS:
        part = PARTS[name]
        repeats = f" Medians of {part.REPEATS}." if hasattr(part, "REPEATS") else ""
        text += f"\n## {name}\n\n{part.__doc__}{repeats}\n\n"
        print(f"\n{name}: {part.__doc__}")
        for row in part.rows():
            print(row, flush=True)
            text += row + "\n"
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
