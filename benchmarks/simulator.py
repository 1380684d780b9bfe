"""LLM steps per minute of processor time on one core, and memory, on the paper's 16 engines."""

from __future__ import annotations

import json
import subprocess
import sys
from time import process_time

from saga.sim.experiment import Experiment

CASES = (
    ("vllm_apc_affinity", 0.9, 500),
    ("vllm_apc_affinity", 1.1, 500),
    ("saga_paper", 0.9, 500),
    ("saga_paper", 1.1, 500),
    ("saga", 1.1, 500),
    ("saga", 1.1, 2_000),
)


def measure(preset: str, load: float, tasks: int) -> dict[str, object]:
    """One run in this process; memory is the process's peak."""
    experiment = Experiment(
        presets=(preset,), workload="swe-bench", cluster="paper-64xa100", load=load, tasks=tasks
    )
    began = process_time()
    record = experiment.run_one(preset, seed=1)
    seconds = process_time() - began
    steps = sum(workflow.num_steps for workflow in record.workflows)
    return {
        "preset": preset,
        "load": load,
        "tasks": tasks,
        "steps": steps,
        "steps_per_min": steps / seconds * 60,
        "events_per_s": record.num_events / seconds,
        "rss_mib": record.peak_rss_mib,
    }


def main() -> list[dict[str, object]]:
    """One row per case, each in a process of its own; prints as it goes."""
    rows: list[dict[str, object]] = []
    print("preset              load tasks    steps  steps/min  events/s  RSS MiB")
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.simulator", json.dumps(case)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        rows.append(row)
        print(
            f"{row['preset']:18}{row['load']:6}{row['tasks']:6}{row['steps']:9}"
            f"{row['steps_per_min']:11,.0f}{row['events_per_s']:10,.0f}{row['rss_mib']:9.0f}",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(*json.loads(sys.argv[1]))))
    else:
        main()
