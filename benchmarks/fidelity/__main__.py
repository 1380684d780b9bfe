"""``python -m benchmarks.fidelity [--quick] [PART ...]``: the simulator against vLLM.

Prints tables and writes ``out/fidelity/PART.json``. Needs vLLM (``make e2e`` installs it for CPUs);
docs/fidelity.md discusses the figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

OUT = Path("out/fidelity")
PARTS = ("schedule", "sweep", "others", "plugin", "live")


def _parts() -> dict[str, Callable[..., dict[str, Any]]]:
    from benchmarks.fidelity import live, schedule, sweep
    from saga.engine.vllm.simulated.models import plugin_engine, vllm_engine

    parts = (
        partial(schedule.main, vllm_engine),
        partial(sweep.sweep, vllm_engine),
        partial(sweep.others, vllm_engine),
        partial(sweep.plugin, plugin_engine),
        partial(live.main, vllm_engine),
    )
    return dict(zip(PARTS, parts, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="one seed and less of everything")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {min(unknown)!r}; known are {', '.join(PARTS)}")
    if find_spec("vllm") is None:
        raise SystemExit("vLLM is not installed: make e2e")
    parts = _parts()
    folder = OUT / "quick" if arguments.quick else OUT
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.parts or PARTS:
        print(f"\n== {name}", flush=True)
        document = parts[name](quick=arguments.quick)
        (folder / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
