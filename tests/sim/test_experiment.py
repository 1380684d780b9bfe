"""What is compared with what: the same work for every preset, paired by seed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.sim.factory import chat, random_scripts, workflow

from saga.core.actions import Action, Retain
from saga.core.events import Event, RequestFinished
from saga.report.metrics import summarise
from saga.report.records import Outcome
from saga.sim.experiment import GRAPHS, KNOBS, Experiment, ExperimentError, parse_knobs, run
from saga.sim.plan import EngineLoss
from saga.traces.writer import write_scripts

PRESETS = ("vllm", "saga_paper", "saga")


def experiment(**changes: Any) -> Experiment:
    """Twenty tasks on one engine of the paper's cluster at 0.9 of its saturation."""
    usual: dict[str, Any] = {
        "presets": ("vllm",),
        "workload": "webarena",
        "cluster": "paper-16xa100",
        "tasks": 20,
        "knobs": {"num_engines": 1},
    }
    if not {"load", "rate_per_min", "agents"} & set(changes):
        usual["load"] = 0.9
    return Experiment(**{**usual, **changes})


# ---- the same for every preset


def test_saturation_and_plan_do_not_depend_on_the_presets() -> None:
    one, other = (experiment(presets=presets) for presets in (("vllm",), ("saga", "oracle")))
    assert one.saturation == other.saturation
    assert one.rate_per_s == other.rate_per_s
    assert one.plan(3) == other.plan(3)


def test_every_preset_plays_the_same_workflows_at_the_same_times() -> None:
    runs = run(experiment(presets=PRESETS, seeds=(1, 2), tasks=8), processes=1, quiet=True)
    assert list(runs) == list(PRESETS)
    played = {
        preset: [
            [(one.id, one.submitted_us, one.num_steps, one.alone_us) for one in record.workflows]
            for record in records
        ]
        for preset, records in runs.items()
    }
    assert played["vllm"] == played["saga_paper"] == played["saga"]
    assert played["vllm"][0] != played["vllm"][1]
    assert [record.seed for record in runs["saga"]] == [1, 2]
    assert {record.preset for record in runs["saga"]} == {"saga"}


def test_a_tenants_share_is_its_weight_over_those_that_have_workflows() -> None:
    mix = experiment(workload="burstgpt-mix", tasks=12)
    plan, _ = mix.plan(1)
    present = {script.tenant for script in plan.scripts}
    assert 1 < len(present) < len(mix.source.tenants)
    total = sum(plan.weights[tenant] for tenant in present)
    assert plan.share_us == [
        mix.step_time.alone_us(script, plan.weights[script.tenant] / total)
        for script in plan.scripts
    ]
    assert all(share > alone for share, alone in zip(plan.share_us, plan.alone_us, strict=True))


def test_a_single_tenants_share_is_the_whole_engine() -> None:
    (record,) = run(experiment(tasks=6), processes=1, quiet=True)["vllm"]
    assert all(one.share_us == one.alone_us > 0 for one in record.workflows)
    summary = summarise(record)
    assert summary.finish_time_fairness_p99 == summary.slowdown_p99 is not None


def test_neither_load_nor_preset_changes_the_bodies() -> None:
    calm, _ = experiment(load=0.2).plan(1)
    busy, _ = experiment(load=1.1).plan(1)
    assert calm.scripts == busy.scripts
    assert calm.arrivals != busy.arrivals


def test_a_longer_run_begins_with_the_shorter_one() -> None:
    short, _ = experiment(tasks=5).plan(1)
    long, _ = experiment(tasks=20).plan(1)
    assert long.arrivals is not None
    assert long.scripts[:5] == short.scripts
    assert long.arrivals[:5] == short.arrivals


def test_runs_are_reproducible() -> None:
    one, other = (experiment(tasks=6).run_one("saga", 7) for _ in range(2))
    assert replace(one, wall_s=0.0, peak_rss_mib=0.0) == replace(
        other, wall_s=0.0, peak_rss_mib=0.0
    )


# ---- load


def test_load_is_relative_to_the_saturation_of_the_cluster() -> None:
    half, full = experiment(load=0.5), experiment(load=1.0)
    assert full.rate_per_s == full.saturation.rate_per_s
    assert half.rate_per_s == pytest.approx(0.5 * full.saturation.rate_per_s)
    four = experiment(load=1.0, knobs={"num_engines": 4})
    assert four.saturation == full.saturation
    assert four.rate_per_s == pytest.approx(4 * full.saturation.rate_per_s)


def test_load_scales_the_arrival_times() -> None:
    slow, _ = experiment(load=0.3).plan(1)
    fast, _ = experiment(load=0.6).plan(1)
    assert slow.arrivals is not None
    assert fast.arrivals is not None
    for later, sooner in zip(slow.arrivals, fast.arrivals, strict=True):
        assert later == pytest.approx(2 * sooner, abs=2)


def test_a_rate_is_what_it_says_and_agents_have_none() -> None:
    assert experiment(rate_per_min=30).rate_per_s == 0.5
    closed = experiment(agents=4)
    assert closed.rate_per_s is None
    plan, _ = closed.plan(1)
    assert (plan.arrivals, plan.agents) == (None, 4)
    assert plan.stagger_us == int(closed.saturation.tct_s * 1e6)


def test_less_memory_saturates_sooner() -> None:
    ample, tight = (
        experiment(knobs={"num_engines": 1, "kv_capacity_tokens": kv}) for kv in (400_000, 60_000)
    )
    assert tight.saturation.rate_per_s < ample.saturation.rate_per_s


# ---- what is left out


def test_sessions_longer_than_the_memory_are_left_out_and_counted() -> None:
    capacity = 20_000
    few = experiment(knobs={"num_engines": 1, "kv_capacity_tokens": capacity}, tasks=60)
    plan, excluded = few.plan(1)
    everything = few.source.scripts(60, seed=1)
    too_long = [script for script in everything if script.max_context_tokens >= capacity]
    assert excluded == len(too_long) > 0
    assert plan.scripts == [s for s in everything if s not in too_long]
    assert len(plan.arrivals or ()) == len(plan.scripts)
    record = few.run_one("vllm", 1)
    assert record.num_excluded == excluded
    assert len(record.workflows) == 60 - excluded


def test_nothing_is_left_out_where_everything_fits() -> None:
    plan, excluded = experiment().plan(1)
    assert (len(plan.scripts), excluded) == (20, 0)


def test_a_workload_of_which_nothing_fits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    write_scripts(path, [workflow("long", chat((600_000, 10)))])
    with pytest.raises(ExperimentError, match=r"every session is longer than .* 450640 tokens"):
        _ = experiment(workload=f"file:{path}").saturation


def test_a_file_is_played_as_it_is_and_then_drawn_from(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    bodies = random_scripts(3, 6)
    write_scripts(path, bodies)
    plan, _ = experiment(workload=f"file:{path}", tasks=9).plan(1)
    sessions = [script.sessions for script in plan.scripts]
    assert sessions[:6] == [body.sessions for body in bodies]
    assert all(one in sessions[:6] for one in sessions[6:])
    assert len({script.id for script in plan.scripts}) == 9


# ---- knobs


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("num_engines=3", 3),
        ("host_memory_gib=0", 0.0),
        ("host_memory_gib=366.5", 366.5),
        ("pcie_gbps=22", 22.0),
        ("network_gbps=1e2", 100.0),
        ("kv_dtype=fp8", "fp8"),
        ("kv_capacity_tokens=4096", 4_096),
        ("max_num_seqs=8", 8),
        ("max_num_batched_tokens=512", 512),
        ("mfu=0.5", 0.5),
        ("mbu=0.8", 0.8),
        ("tool_scale=6", 6.0),
        ("tool_cv=1.5", 1.5),
        ("arrivals=bursty:2", "bursty:2"),
        ("burstiness=3", 3.0),
        ("warmup=0", 0.0),
        ("client_timeout_s=30", 30.0),
        ("deadline_factor=1.5", 1.5),
        ("graphs=learned", "learned"),
        ("graphs=oracle", "oracle"),
        ("reserve_full_prompt=true", True),
        ("lose_engine=1@60", (EngineLoss(engine=1, at=60_000_000),)),
        (
            "lose_engine=1@0.5-2;0@3",
            (EngineLoss(engine=1, at=500_000, back=2_000_000), EngineLoss(engine=0, at=3_000_000)),
        ),
    ],
)
def test_knobs(pair: str, value: Any) -> None:
    assert parse_knobs([pair]) == {pair.partition("=")[0]: value}


def test_every_knob_has_a_meaning_and_the_last_word_counts() -> None:
    assert all(text for _, text in KNOBS.values())
    assert parse_knobs(["mfu=0.5", "mbu=0.7", "mfu=0.6"]) == {"mfu": 0.6, "mbu": 0.7}
    assert parse_knobs([]) == {}


@pytest.mark.parametrize(
    "pair",
    [
        "mfu", "=3", "nope=1", "num_engines=0", "num_engines=1.5", "num_engines=", "mfu=0",
        "mfu=nan", "tool_scale=inf", "tool_scale=-1", "host_memory_gib=-1", "warmup=1",
        "warmup=-0.1", "warmup=nan", "graphs=none", "lose_engine=", "lose_engine=0",
        "lose_engine=@5", "lose_engine=0@", "lose_engine=0@5-", "lose_engine=x@5",
        "lose_engine=0@5;", "lose_engine=0@5-5", "lose_engine=0@nan", "lose_engine=0@inf",
        "lose_engine=0@1-inf",
    ],
)  # fmt: skip
def test_a_wrong_knob_is_named(pair: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        parse_knobs([pair])
    assert f"--set {pair}" in str(caught.value)


def test_knobs_reach_what_they_are_for() -> None:
    knobs = parse_knobs(["num_engines=2", "kv_capacity_tokens=100000", "max_num_seqs=9"])
    engine = experiment(knobs=knobs).cluster_spec.engine
    assert (engine.kv_capacity_tokens, engine.max_num_seqs) == (100_000, 9)
    usual, _ = experiment().plan(1)
    slow, _ = experiment(knobs={"num_engines": 1, "tool_scale": 3.0}).plan(1)
    gaps, slow_gaps = (
        [step.gap_us for script in plan.scripts for step in script.sessions[0].steps]
        for plan in (usual, slow)
    )
    assert sum(slow_gaps) == pytest.approx(3 * sum(gaps), rel=1e-3)
    assert usual.declared_steps == {"webarena": 18}
    undeclared, _ = experiment(knobs={"num_engines": 1, "graphs": "learned"}).plan(1)
    assert undeclared.declared_steps == {}
    losses = parse_knobs(["num_engines=2", "lose_engine=1@60", "client_timeout_s=5", "warmup=0.5"])
    plan, _ = experiment(knobs=losses).plan(1)
    assert plan.losses == (EngineLoss(engine=1, at=60_000_000),)
    assert (plan.client_timeout_us, plan.warmup) == (5_000_000, 0.5)
    assert usual.deadline_factor is None
    hurried, _ = experiment(knobs={"num_engines": 1, "deadline_factor": 2.0}).plan(1)
    assert hurried.deadline_factor == 2.0
    bursty, _ = experiment(knobs={"num_engines": 1, "burstiness": 4.0}).plan(1)
    named, _ = experiment(knobs={"num_engines": 1, "arrivals": "bursty:4"}).plan(1)
    assert bursty.arrivals == named.arrivals != usual.arrivals


def test_graphs_that_know_it_all_decide_otherwise() -> None:
    """Ten tasks are too few to learn from, so that without a declaration nothing is scored."""
    scores = {graphs: scores_of(graphs) for graphs in GRAPHS}
    assert {name: len(told) > 0 for name, told in scores.items()} == {
        "declared": True,
        "learned": False,
        "oracle": True,
    }
    assert 0.0 in scores["oracle"]
    assert 0.0 not in scores["declared"]


def scores_of(graphs: str) -> set[float]:
    """What KV of sessions that went to their tool was worth."""
    scores: set[float] = set()

    def observe(event: Event, actions: list[Action]) -> None:
        if isinstance(event, RequestFinished):
            scores.update(action.score for action in actions if isinstance(action, Retain))

    knobs = {"num_engines": 1, "graphs": graphs}
    record = experiment(tasks=10, knobs=knobs).run_one("saga_paper", 1, observe=observe)
    assert {each.outcome for each in record.workflows} == {Outcome.FINISHED}
    return scores


# ---- mistakes


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"load": 0.5, "rate_per_min": 3.0}, "exactly one of --load, --rate, --agents"),
        ({"load": None}, "exactly one"),
        ({"load": 0.0}, "--load 0.0"),
        ({"rate_per_min": float("inf")}, "--rate inf"),
        ({"agents": 0}, "--agents 0"),
        ({"tasks": 0}, "--tasks 0"),
        ({"presets": ()}, "--presets"),
        ({"presets": ("vllm", "vllm")}, "named twice"),
        ({"knobs": {"arrivals": "poisson", "burstiness": 2.0}}, "give one of them"),
        ({"seeds": ()}, "--seeds"),
        ({"presets": ("nope",)}, "'nope'"),
        ({"cluster": "nope"}, "'nope'"),
        ({"knobs": {"num_engines": 2, "lose_engine": (EngineLoss(engine=2, at=1),)}}, "0 to 1"),
        ({"knobs": {"num_engines": 1, "lose_engine": (EngineLoss(engine=0, at=1),)}}, "no engine"),
    ],
)
def test_mistakes_are_told_before_anything_runs(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        experiment(**changes)


def test_the_number_of_processes() -> None:
    with pytest.raises(ExperimentError, match="--processes -1"):
        run(experiment(), processes=-1, quiet=True)


def test_a_mistake_that_only_a_run_finds_comes_back_from_its_process() -> None:
    wrong = experiment(presets=("vllm", "saga"), knobs={"num_engines": 1, "arrivals": "trace"})
    with pytest.raises(ValueError, match="arrivals 'trace'"):
        run(wrong, processes=2, quiet=True)
