"""The paper's claims, one experiment each: ``python -m benchmarks.reproduce [NAME ...]``.

Every case is a ``saga`` command line; its JSON goes to ``out/reproduce/NAME.json`` and is not run
again while that file is there. docs/reproduce.md discusses the figures.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from saga.cli import main as saga

OUT = Path("out/reproduce")
ALL = "vllm_apc_affinity,vllm,saga_paper,saga,batch_optimal"
BEST = "vllm_apc_affinity,saga_paper,saga,batch_optimal"
SMALL = "--cluster paper-16xa100 --tasks 400 --seeds 12"
ABLATION = (
    "saga_paper,saga_paper_no_affinity,saga_paper_no_wa_lru,saga_paper_no_ttl,"
    "saga_paper_no_stealing,saga_paper_no_prefetch,saga_paper_no_afs"
)
ORDERS = ",".join(
    f"saga_paper+ordering={order}" for order in ("hybrid_order", "breadth_first", "depth_first")
)
BELADY = "vllm_apc_affinity+eviction=lru,vllm_apc_affinity,saga_paper,saga,oracle"
THREE = "vllm_apc_affinity,saga_paper,saga"
KNOWN = {
    **{load: f"--workload swe-bench --load {load}" for load in ("0.9", "1.0", "1.1")},
    "agents-72": "--workload swe-agent --agents 72",
    "mix": "--workload burstgpt-mix --load 0.8",
}
"""Where it is asked what knowing agents' graphs is worth."""

CASES: dict[str, str] = {
    "main-swe": f"compare --presets {ALL} --workload swe-bench --cluster paper-64xa100 "
    "--load 1.0 --tasks 1000 --seeds 8",
    "main-web": f"compare --presets {ALL} --workload webarena --cluster paper-64xa100 "
    "--load 1.0 --tasks 1000 --seeds 8",
    **{
        f"load-{load}": f"compare --presets {BEST} --workload swe-bench --load {load} {SMALL}"
        for load in ("0.8", "1.0", "1.1")
    },
    **{
        f"agents-{agents}": f"compare --presets {BEST} --workload swe-agent --agents {agents} "
        f"{SMALL}"
        for agents in (56, 72)
    },
    "ablation": f"compare --presets {ABLATION} --workload swe-bench --load 1.0 {SMALL}",
    "slo": f"compare --presets {BEST} --workload burstgpt-mix --cluster paper-64xa100 "
    "--load 0.8 --tasks 800 --seeds 8",
    **{
        f"slo-{load}": "compare --presets vllm_apc_affinity,saga_paper,saga "
        f"--workload burstgpt-mix --cluster paper-64xa100 --load {load} --tasks 800 --seeds 4"
        for load in ("0.95", "1.1")
    },
    "overload": "compare --presets vllm,vllm_apc_affinity,saga --workload swe-agent --agents 92 "
    "--cluster paper-16xa100 --tasks 600 --seeds 2 --set client_timeout_s=600",
    "slo-small": f"compare --presets {BEST} --workload burstgpt-mix --load 0.8 {SMALL}",
    **{
        f"tool-cv-{cv}": f"compare --presets vllm_apc_affinity,saga_paper --workload swe-bench "
        f"--load 1.0 --set tool_cv={cv} {SMALL}"
        for cv in ("0.5", "3")
    },
    "tools-x20": f"compare --presets {BEST} --workload swe-bench --load 1.0 "
    f"--set tool_scale=20 {SMALL}",
    "orders": f"compare --presets {ORDERS} --workload swe-bench --load 1.0 "
    "--cluster paper-32xa100 --tasks 600 --seeds 8",
    "host-tier": f"compare --presets {BEST} --workload swe-bench --load 1.1 "
    f"--set host_memory_gib=366 {SMALL}",
    **{
        f"graphs-{graphs}-{name}": f"compare --presets {THREE} {what} --set graphs={graphs} "
        "--cluster paper-16xa100 --tasks 400 --seeds 8"
        for graphs in ("declared", "learned", "oracle")
        for name, what in KNOWN.items()
    },
    "oracle-swe": f"oracle --presets {BELADY} --workload swe-bench --cluster paper-16xa100 "
    "--load 0.8 --tasks 300 --seeds 2",
}


def run(name: str) -> None:
    path = OUT / f"{name}.json"
    print(f"\n== {name}: saga {CASES[name]}", flush=True)
    if not path.exists():
        arguments = [*shlex.split(CASES[name]), "--json", str(path)]
        quiet = ["--quiet"] if arguments[0] == "compare" else []
        if saga(arguments + quiet):
            raise SystemExit(f"{name} failed")
    show(json.loads(path.read_text()))


def show(document: dict[str, Any]) -> None:
    if "presets" not in document:
        for preset, ratios in document.items():
            print(
                f"  {preset:38}", {key: ratio and round(ratio, 2) for key, ratio in ratios.items()}
            )
        return
    reference = next(iter(document["presets"]))
    for preset, figures in document["presets"].items():
        comparison = document["comparisons"].get(f"{reference} vs {preset}")
        speedup = "reference"
        if comparison and comparison["speedup_geomean"]:
            low, high = comparison["ci95"] or (float("nan"), float("nan"))
            speedup = f"{comparison['speedup_geomean']:.2f} [{low:.2f}, {high:.2f}]"
        print(
            f"  {preset:34} {speedup:20} mean {figures['tct_mean_s'] or 0:7.0f} s"
            f"  regen {figures['regenerated_fraction'] or 0:6.1%}"
            f"  useful {figures['kv_useful'] or 0:5.2f}"
            f"  {figures['throughput_tasks_per_min'] or 0:6.2f}/min"
            f"  SLO {figures['slo_attainment'] or 0:6.1%}"
            f"  wait {figures['longest_wait_s'] or 0:6.0f} s"
        )
        if len(figures["slo_by_class"] or {}) > 1:
            print(f"    {figures['slo_by_class']}")


if __name__ == "__main__":
    unknown = [name for name in sys.argv[1:] if name not in CASES]
    if unknown:
        raise SystemExit(f"no case {unknown[0]!r}; known are {', '.join(CASES)}")
    OUT.mkdir(parents=True, exist_ok=True)
    for case in sys.argv[1:] or CASES:
        run(case)
