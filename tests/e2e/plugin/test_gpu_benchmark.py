"""The benchmark for GPUs, tried with a tiny model on the CPU: what it plays, not how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
AGENTS = ("--max-agents", "3", "--seeds", "1", "--rounds", "1", "--tool-scale", "0.02")
ENGINE = ("--block-size", "32", "--num-gpu-blocks-override", "400", "--enforce-eager")


def test_both_servers_serve_the_same_agents(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--shape", "tiny", "--max-len", "4096"]
    done = subprocess.run(
        [*command, *AGENTS, "--json", str(file), "--", *ENGINE, "--max-num-seqs", "16"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed prompts, share cached" in done.stdout
    runs = json.loads(file.read_text())["shapes"]["tiny"]["runs"]
    sizes = {}
    for engine, [run] in runs.items():
        steps = [step for workflow in run["workflows"] for step in workflow["steps"]]
        sizes[engine] = [(step["prompt_tokens"], step["output_tokens"]) for step in steps]
        assert any(step["cached_tokens"] for step in steps if step["resumed"])
        assert all(step["ttft_s"] > 0 for step in steps)
    assert sizes["stock"] == sizes["plugin"]
    assert len(sizes["stock"]) > 3
