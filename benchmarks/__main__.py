"""``python -m benchmarks [FILE]``: every speed and memory figure, printed, and as JSON if asked."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import saga
from benchmarks import core, simulator


def main() -> None:
    print(f"saga {saga.__version__}, Python {platform.python_version()}, one core\n")
    print("Scheduler.handle, microseconds per event")
    figures: dict[str, object] = {"core": core.main()}
    print("\nSimulator, paper-64xa100, swe-bench")
    figures["simulator"] = simulator.main()
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
