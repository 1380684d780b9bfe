"""``python -m benchmarks.aggressor``: a tenant whose workflows fork 100 sub-agents, beside others.

``burstgpt-mix`` on 64 GPUs and an eleventh tenant, of weight 1, that submits a workflow with every
twentieth of the others. Everything but its number of sub-agents, 1 or 100, is the same, so the
others' slowdown tells what it costs them. Simulated.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from saga.config import load_preset
from saga.report.fairness import slowdown
from saga.sim.experiment import Experiment
from saga.sim.host import Simulation
from saga.sim.paper import BURSTGPT
from saga.sim.plan import Plan
from saga.traces.script import WorkflowScript

AGGRESSOR = "aggressor"
EVERY = 20
FORKS = (1, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", default="vllm_apc_affinity,saga", metavar="A,B")
    parser.add_argument("--load", type=float, default=0.8)
    parser.add_argument("--tasks", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=4)
    arguments = parser.parse_args()
    print("The others' 99th percentile of slowdown, by the aggressor's sub-agents per workflow")
    print(f"{'preset':20}{'seed':>5}" + "".join(f"{number:>9}" for number in FORKS) + "   change")
    for preset in arguments.presets.split(","):
        changes = []
        for seed in range(1, arguments.seeds + 1):
            one, many = (
                others_p99(preset, arguments.load, arguments.tasks, seed, forks) for forks in FORKS
            )
            changes.append(many / one - 1.0)
            print(f"{preset:20}{seed:5}{one:9.3f}{many:9.3f}{changes[-1]:+9.1%}", flush=True)
        print(f"{preset:20} mean{'':18}{np.mean(changes):+9.1%}")


def others_p99(preset: str, load: float, tasks: int, seed: int, forks: int) -> float:
    experiment = Experiment(
        presets=(preset,),
        workload="burstgpt-mix",
        cluster="paper-64xa100",
        load=load,
        tasks=tasks,
        seeds=(seed,),
    )
    plan, _ = experiment.plan(seed)
    simulation = Simulation(
        with_aggressor(plan, experiment, seed, forks),
        load_preset(preset).policies,
        experiment.cluster_spec,
        step_time=experiment.step_time,
        preset=preset,
        seed=seed,
    )
    others = [
        value
        for one in simulation.run().workflows
        if one.measured and one.tenant != AGGRESSOR and (value := slowdown(one)) is not None
    ]
    return float(np.quantile(others, 0.99))


def with_aggressor(plan: Plan, experiment: Experiment, seed: int, forks: int) -> Plan:
    assert plan.arrivals is not None
    own = [(at, 0, script) for at, script in zip(plan.arrivals, plan.scripts, strict=True)]
    its = [(at, 1, script) for at, script in workflows(plan.arrivals[::EVERY], seed, forks)]
    both = sorted(own + its, key=lambda item: item[:2])
    scripts = [script for _, _, script in both]
    return replace(
        plan,
        scripts=scripts,
        arrivals=[at for at, _, _ in both],
        alone_us=[experiment.step_time.alone_us(script) for script in scripts],
        expected_us=[0] * len(scripts),
        share_us=None,
        weights={**plan.weights, AGGRESSOR: 1.0},
    )


def workflows(
    arrivals: Sequence[int], seed: int, forks: int
) -> Iterator[tuple[int, WorkflowScript]]:
    """The same ones whatever ``forks`` is, but for the sub-agents that are left out."""
    rng = np.random.default_rng(seed)
    for number, at in enumerate(arrivals):
        root, *subs = (BURSTGPT["light"].draw(rng).sessions[0] for _ in range(1 + max(FORKS)))
        if len(root.steps) > 1:
            children = [replace(one, parent=0) for one in subs[:forks]]
            yield (
                at,
                WorkflowScript(
                    id=f"{AGGRESSOR}-{number}",
                    sessions=(root, *children),
                    tenant=AGGRESSOR,
                    tenant_class=AGGRESSOR,
                    agent_type=AGGRESSOR,
                ),
            )


if __name__ == "__main__":
    main()
