"""``python -m benchmarks.deadlines``: who makes its deadline, and who is refused for it.

Clients declare deadlines of a multiple of the TCT that is expected of their very workflow. Each
preset runs with refusals and without; refused wrongly is who makes it without them. Simulated.
"""

from __future__ import annotations

import argparse

from saga.config import load_preset
from saga.report.records import Outcome, WorkflowRecord
from saga.sim.experiment import Experiment
from saga.sim.host import Simulation

LENIENT = "+admission.refuse_hopeless=false"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", default="saga+ordering=program_fcfs,saga+ordering=edf,saga")
    parser.add_argument("--workload", default="swe-bench")
    parser.add_argument("--load", type=float, default=1.5)
    parser.add_argument("--factor", type=float, default=2.0, help="times the expected TCT")
    parser.add_argument("--tasks", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    print(
        f"{'preset':30}{'seed':>5}{'made':>8}{'without':>9}{'refused':>9}{'wrongly':>9}{'late':>8}"
    )
    for preset in arguments.presets.split(","):
        for seed in range(1, arguments.seeds + 1):
            strict, lenient = (
                measured(
                    preset + refusing,
                    Experiment(
                        presets=(preset,),
                        workload=arguments.workload,
                        cluster="paper-16xa100",
                        load=arguments.load,
                        tasks=arguments.tasks,
                        seeds=(seed,),
                        knobs={"deadline_factor": arguments.factor},
                    ),
                    seed,
                )
                for refusing in ("", LENIENT)
            )
            made, without = (
                {one.id for one in run if in_time(one, arguments.factor)}
                for run in (strict, lenient)
            )
            refused = {one.id for one in strict if one.outcome is Outcome.REJECTED}
            num = len(strict)
            print(
                f"{preset:30}{seed:5}{len(made) / num:8.1%}{len(without) / num:9.1%}"
                f"{len(refused) / num:9.1%}{len(refused & without):9}"
                f"{1 - (len(made) + len(refused)) / num:8.1%}",
                flush=True,
            )


def measured(preset: str, experiment: Experiment, seed: int) -> list[WorkflowRecord]:
    plan, _ = experiment.plan(seed)
    simulation = Simulation(
        plan,
        load_preset(preset).policies,
        experiment.cluster_spec,
        step_time=experiment.step_time,
        preset=preset,
        seed=seed,
    )
    return [one for one in simulation.run().workflows if one.measured]


def in_time(one: WorkflowRecord, factor: float) -> bool:
    """Whether it made the deadline that ``deadline_factor`` gave it."""
    return one.outcome is Outcome.FINISHED and one.finished_tct_us <= factor * one.expected_us


if __name__ == "__main__":
    main()
