"""``python -m benchmarks.fidelity [schedule|sweep|others|live ...]``: the simulator against vLLM.

Prints tables and writes ``out/fidelity/NAME.json``. Needs vLLM (``make e2e`` installs it for CPUs);
docs/fidelity.md discusses the figures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saga.sim.engine_model import MakeEngine

OUT = Path("out/fidelity")


def _parts() -> dict[str, Callable[[MakeEngine], dict[str, Any]]]:
    from benchmarks.fidelity import live, schedule, sweep

    return {
        "schedule": schedule.main,
        "sweep": sweep.sweep,
        "others": sweep.others,
        "live": live.main,
    }


def main() -> None:
    if find_spec("vllm") is None:
        raise SystemExit("vLLM is not installed: make e2e")
    from saga.engine.vllm.simulated.engine import vllm_engine

    parts = _parts()
    wanted = sys.argv[1:] or list(parts)
    unknown = [name for name in wanted if name not in parts]
    if unknown:
        raise SystemExit(f"no part {unknown[0]!r}; known are {', '.join(parts)}")
    OUT.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        print(f"\n== {name}", flush=True)
        document = parts[name](vllm_engine)
        (OUT / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
