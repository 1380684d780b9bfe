"""The command, end to end on tiny settings."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.sim.factory import chat, random_scripts, workflow

import saga
from saga.cli import main
from saga.sim.hardware import CLUSTERS
from saga.sim.workload import list_workloads
from saga.traces.script import WorkflowScript
from saga.traces.writer import write_scripts

SMALL = ["--cluster", "paper-16xa100", "--set", "num_engines=2"]
QUICK = [*SMALL, "--tasks", "8", "--processes", "1", "--quiet"]
TWO = ["--presets", "vllm_apc_affinity,saga"]
TIMING = ("wall_s", "events_per_s")


@dataclass(frozen=True)
class Said:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


Saga = Callable[..., Said]


@pytest.fixture
def run_saga(capsys: pytest.CaptureFixture[str]) -> Saga:
    """Runs the command in this process. argparse leaves by SystemExit, as it may."""

    def call(*arguments: str | Path) -> Said:
        try:
            code: Any = main([str(argument) for argument in arguments])
        except SystemExit as left:
            code = left.code
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return call


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A trace file with the project's own format."""
    path = tmp_path / "trace.jsonl"
    write_scripts(path, [replace(s, submitted_us=None) for s in random_scripts(3, 6)])
    return path


def document(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


# ---- compare

PER_PRESET = {
    "tct_mean_s", "tct_geomean_s", "tct_p50_s", "tct_p99_s", "ttft_p99_s", "regenerated_fraction",
    "hit_rate", "kv_useful", "kv_used", "throughput_tasks_per_min", "slo_attainment",
    "slo_by_class", "fairness_jain", "longest_wait_s", "num_finished", "num_rejected",
    "num_timed_out",
}  # fmt: skip


def test_compare_writes_what_scripts_read(run_saga: Saga, tmp_path: Path) -> None:
    file = tmp_path / "made" / "for it" / "report.json"
    said = run_saga("compare", *TWO, *QUICK, "--seeds", "2", "--json", file)
    assert (said.code, said.out) == (0, "")
    report = document(file)
    assert list(report["presets"]) == ["vllm_apc_affinity", "saga"]
    for summary in report["presets"].values():
        assert set(summary) >= PER_PRESET
        assert summary["num_finished"] == 2 * 7  # the first of eight is warm-up
        assert summary["num_rejected"] == summary["num_timed_out"] == 0
        assert 0 < summary["tct_p50_s"] <= summary["tct_p99_s"]
        assert 0 <= summary["kv_useful"] <= summary["kv_used"] <= 1
        assert summary["slo_by_class"].keys() == {"default"}
    assert list(report["comparisons"]) == ["vllm_apc_affinity vs saga"]
    comparison = report["comparisons"]["vllm_apc_affinity vs saga"]
    low, high = comparison["ci95"]
    assert low <= comparison["speedup_geomean"] <= high
    assert 0 < comparison["wilcoxon_p"] <= 1
    assert report["seeds"] == [1, 2]
    assert report["events_per_s"] > 0
    assert report["version"] == saga.__version__
    assert report["parameters"]["command"].startswith("saga compare --presets vllm_apc_affinity,")


def test_the_same_numbers_again_and_in_two_processes(run_saga: Saga, tmp_path: Path) -> None:
    file, reports = tmp_path / "report.json", []
    for processes in ("1", "2"):
        small = [*QUICK, "--tasks", "4", "--seeds", "2"]
        arguments = [*small, "--json", str(file), "--processes", processes]
        assert run_saga("compare", *TWO, *arguments).code == 0
        report = document(file)
        assert report["parameters"].pop("command").endswith(f"--processes {processes}")
        reports.append({key: value for key, value in report.items() if key not in TIMING})
    assert reports[0] == reports[1]


def test_another_seed_gives_other_numbers(run_saga: Saga, tmp_path: Path) -> None:
    results = []
    for seed in ("1", "2"):
        file = tmp_path / f"{seed}.json"
        run_saga("simulate", "--preset", "vllm", "--seed", seed, *QUICK, "--json", file)
        results.append(document(file)["presets"]["vllm"]["tct_mean_s"])
    assert results[0] != results[1]


def test_three_presets_are_compared_with_the_first(run_saga: Saga, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    presets = "vllm,saga+fairness=null,saga_paper"
    assert (
        run_saga("compare", "--presets", presets, *QUICK, "--seeds", "1", "--json", file).code == 0
    )
    names = list(document(file)["comparisons"])
    assert names == ["vllm vs saga+fairness=null", "vllm vs saga_paper"]


def test_tables_and_progress_unless_quiet(run_saga: Saga) -> None:
    said = run_saga("compare", *TWO, *SMALL, "--tasks", "8", "--seeds", "1", "--processes", "1")
    assert said.code == 0
    assert "swe-bench on paper-16xa100 (2 engines): saturation" in said.out
    assert "vllm_apc_affinity" in said.out
    assert "16/16" in said.err


def test_the_laws_can_be_checked(run_saga: Saga) -> None:
    arguments = [*QUICK, "--tasks", "2", "--check"]
    assert run_saga("simulate", "--preset", "saga", *arguments).code == 0


# ---- other ways to load and to fail


def metrics(run_saga: Saga, folder: Path, *arguments: str) -> dict[str, Any]:
    """One preset's metrics over eight tasks, none of them warm-up."""
    file = folder / "metrics.json"
    said = run_saga("simulate", *QUICK, "--set", "warmup=0", "--json", file, *arguments)
    assert said.code == 0, said.err
    (summary,) = document(file)["presets"].values()
    assert isinstance(summary, dict)
    return summary


def test_a_rate_and_a_closed_loop(run_saga: Saga, tmp_path: Path) -> None:
    assert metrics(run_saga, tmp_path, "--rate", "5")["num_finished"] == 8
    assert document(tmp_path / "metrics.json")["parameters"]["arrival rate"] == "5 tasks/min"
    assert metrics(run_saga, tmp_path, "--agents", "3")["num_finished"] == 8
    assert document(tmp_path / "metrics.json")["parameters"]["agents"] == "3"


def test_an_engine_lost_in_mid_run_loses_no_task(run_saga: Saga, tmp_path: Path) -> None:
    usual = metrics(run_saga, tmp_path, "--rate", "10")
    loss = ["--set", "lose_engine=0@60-120"]
    lossy = metrics(run_saga, tmp_path, "--rate", "10", *loss)
    assert lossy["num_finished"] == usual["num_finished"] == 8
    assert lossy["tct_mean_s"] > usual["tct_mean_s"]
    assert metrics(run_saga, tmp_path, "--set", "lose_engine=1@60")["num_finished"] == 8


def test_clients_give_up(run_saga: Saga, tmp_path: Path) -> None:
    hasty = metrics(run_saga, tmp_path, "--set", "client_timeout_s=8")
    patient = metrics(run_saga, tmp_path, "--set", "client_timeout_s=100000")
    assert hasty["num_timed_out"] > 0
    assert hasty["num_timed_out"] + hasty["num_finished"] == 8
    assert (patient["num_timed_out"], patient["num_finished"]) == (0, 8)


def test_a_trace_file_is_a_workload(run_saga: Saga, tmp_path: Path, trace: Path) -> None:
    summary = metrics(run_saga, tmp_path, "--workload", f"file:{trace}", "--rate", "60")
    assert summary["num_finished"] == 8


def test_tasks_longer_than_the_memory_are_left_out_and_counted(
    run_saga: Saga, tmp_path: Path
) -> None:
    summary = metrics(run_saga, tmp_path, "--set", "kv_capacity_tokens=24000", "--tasks", "30")
    assert summary["num_excluded"] > 0
    assert summary["num_excluded"] + summary["num_finished"] == 30
    told = document(tmp_path / "metrics.json")["parameters"]["left out"]
    assert told == f"{summary['num_excluded']} tasks longer than an engine's KV"


def test_the_saturation_does_not_depend_on_the_preset(run_saga: Saga) -> None:
    told = []
    for preset in ("vllm", "saga"):
        one = ["--preset", preset, "--tasks", "2", "--processes", "1"]
        said = run_saga("simulate", *SMALL, *one)
        told.append(re.findall(r"saturation [\d.]+ tasks/min at\s+[\d.]+ live", said.out))
    assert len(told[0]) == 1
    assert told[0] == told[1]


# ---- the other commands


def test_lists(run_saga: Saga) -> None:
    workloads, clusters = run_saga("workloads"), run_saga("clusters")
    assert workloads.code == clusters.code == 0
    assert all(re.search(rf"^{name} ", workloads.out, re.MULTILINE) for name in list_workloads())
    assert "file:PATH" in workloads.out
    assert all(re.search(rf"^{name} ", clusters.out, re.MULTILINE) for name in CLUSTERS)
    assert "450,640 KV tokens per engine" in " ".join(clusters.out.split())
    policies = run_saga("policies")
    assert policies.code == 0
    assert "saga_paper_no_afs" in policies.out


def test_trace_stats(run_saga: Saga, trace: Path) -> None:
    said = run_saga("trace", "stats", trace)
    assert said.code == 0
    assert said.err == ""
    assert isinstance(json.loads(said.out), dict)


def test_oracle(run_saga: Saga, tmp_path: Path) -> None:
    file = tmp_path / "ratios.json"
    arguments = [*SMALL, "--set", "tool_scale=20", "--tasks", "20", "--seeds", "1"]
    said = run_saga("oracle", "--presets", "oracle,vllm_apc_affinity", *arguments, "--json", file)
    assert said.code == 0
    assert re.search(r"^oracle +1\.00 +1\.00 +1\.00 +1\.00$", said.out, re.MULTILINE)
    ratios = document(file)
    assert list(ratios) == ["oracle", "vllm_apc_affinity"]
    assert list(ratios["oracle"]) == ["0.3", "0.5", "0.7", "0.9"]
    assert all(ratio == 1.0 for ratio in ratios["oracle"].values())
    assert all(ratio > 1.0 for ratio in ratios["vllm_apc_affinity"].values())


def test_version_and_help(run_saga: Saga) -> None:
    assert run_saga("--version").out == f"saga {saga.__version__}\n"
    said = run_saga("compare", "--help")
    assert said.code == 0
    assert "lose_engine" in said.out


# ---- mistakes


def is_one_line(text: str) -> bool:
    return text.endswith("\n") and text.count("\n") == 1


COMPARE = ["compare", *TWO]
MISTAKES = [
    (["compare", "--presets", "vllm,sago"], ["preset 'sago'", "did you mean 'saga'"]),
    (["compare", "--presets", ","], ["--presets", "at least one"]),
    (["compare", "--presets", "saga,saga"], ["--presets saga,saga", "twice"]),
    (["compare", "--presets", "saga+admission.kappa=x"], ["kappa", "'x'"]),
    (["compare", "--presets", "nowhere.yaml"], ["nowhere.yaml"]),
    ([*COMPARE, "--workload", "swebench"], ["workload", "'swebench'", "swe-bench"]),
    ([*COMPARE, "--cluster", "128xb200"], ["cluster '128xb200'", "paper-64xa100"]),
    ([*COMPARE, "--load", "-0.5"], ["--load -0.5", "above 0"]),
    ([*COMPARE, "--load", "0"], ["--load 0", "above 0"]),
    ([*COMPARE, "--load", "nan"], ["--load nan", "above 0"]),
    ([*COMPARE, "--load", "inf"], ["--load inf", "finite"]),
    ([*COMPARE, "--rate", "0"], ["--rate 0", "above 0"]),
    ([*COMPARE, "--agents", "-3"], ["--agents -3", "above 0"]),
    ([*COMPARE, "--tasks", "0"], ["--tasks 0", "above 0"]),
    ([*COMPARE, "--seeds", "0"], ["--seeds 0", "at least 1"]),
    ([*COMPARE, "--processes", "0"], ["--processes 0", "at least 1"]),
    (["simulate", "--seed", "-1"], ["seed", "-1", "0 or more"]),
    (["oracle", "--presets", "saga", "--seeds", "0"], ["--seeds 0", "at least 1"]),
    (["oracle", "--presets", "saga", "--load", "-1"], ["--load -1", "above 0"]),
    ([*COMPARE, "--set", "num_engine=2"], ["num_engine=2", "num_engines"]),
    ([*COMPARE, "--set", "num_engines"], ["--set num_engines", "KEY=VALUE"]),
    ([*COMPARE, "--set", "num_engines=0"], ["--set num_engines=0", "at least 1"]),
    ([*COMPARE, "--set", "num_engines=two"], ["--set num_engines=two"]),
    ([*COMPARE, "--set", "tool_scale=-1"], ["--set tool_scale=-1", "above 0"]),
    ([*COMPARE, "--set", "warmup=1"], ["--set warmup=1", "below 1"]),
    ([*COMPARE, "--set", "kv_dtype=int4"], ["kv_dtype", "'int4'", "fp16, fp8"]),
    ([*COMPARE, "--set", "mfu=2"], ["mfu", "2.0", "at most 1"]),
    ([*COMPARE, "--set", "arrivals=weekly"], ["arrivals", "'weekly'", "poisson"]),
    ([*COMPARE, "--set", "arrivals=trace"], ["arrivals", "'trace'"]),
    ([*COMPARE, "--set", "lose_engine=0"], ["--set lose_engine=0", "ENGINE@SECONDS"]),
    ([*COMPARE, "--set", "lose_engine=2@60"], ["lose_engine", "engine 2", "0 to 1"]),
    ([*COMPARE, "--set", "lose_engine=-1@60"], ["lose_engine", "engine -1", "below 0"]),
    ([*COMPARE, "--set", "lose_engine=0@inf"], ["--set lose_engine=0@inf", "finite"]),
    ([*COMPARE, "--set", "lose_engine=0@60-30"], ["--set lose_engine=0@60-30", "back"]),
    ([*COMPARE, "--set", "lose_engine=0@60;0@70"], ["engine 0", "lost"]),
    ([*COMPARE, "--set", "lose_engine=0@60;1@70"], ["lose_engine", "no engine is left"]),
    ([*COMPARE, "--set", "kv_capacity_tokens=2000"], ["swe-bench", "2000 tokens"]),
    ([*COMPARE, "--workload", "file:no/such.jsonl"], ["no/such.jsonl", "No such file"]),
    (["trace", "stats", "no/such.jsonl"], ["no/such.jsonl", "No such file"]),
]


@pytest.mark.parametrize(("arguments", "told"), MISTAKES, ids=lambda one: " ".join(one[-2:]))
def test_a_mistake_is_told_in_one_line(
    run_saga: Saga, arguments: list[str], told: list[str]
) -> None:
    setting = [*QUICK[:4], *([] if arguments[0] == "oracle" else QUICK[4:])]
    given = [*arguments[:1], *([] if arguments[0] == "trace" else setting), *arguments[1:]]
    said = run_saga(*given)
    assert said.code == 2
    assert said.err.startswith("saga: ")
    assert is_one_line(said.err)
    assert [part for part in told if part not in said.err] == []
    assert said.out == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([*COMPARE, "--load", "1", "--rate", "2"], ["--rate", "not allowed with", "--load"]),
        ([*COMPARE, "--tasks", "many"], ["--tasks", "'many'"]),
        (["compare"], ["--presets"]),
        (["compere"], ["'compere'", "compare"]),
        ([], ["COMMAND"]),
    ],
    ids=str,
)
def test_a_mistake_of_the_command_line_is_told_after_the_usage(
    run_saga: Saga, arguments: list[str], told: list[str]
) -> None:
    said = run_saga(*arguments)
    assert said.code == 2
    last = said.err.splitlines()[-1]
    assert ": error: " in last
    assert [part for part in told if part not in last] == []


# ---- mistakes in trace files


def with_lines(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def simulate_file(path: Path, *arguments: str) -> list[str]:
    rate = ["--rate", "60", *QUICK]
    return ["simulate", "--preset", "vllm", "--workload", f"file:{path}", *rate, *arguments]


@pytest.mark.parametrize("text", ["", "\n\n", "hello\n", "{}\n", "\x00\x01"])
def test_a_file_that_holds_no_trace(run_saga: Saga, tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(text, encoding="utf-8")
    for arguments in (simulate_file(path), ["trace", "stats", str(path)]):
        said = run_saga(*arguments)
        assert said.code == 2
        assert is_one_line(said.err)
        assert str(path) in said.err


def test_a_broken_line_is_told_and_the_rest_is_used(run_saga: Saga, trace: Path) -> None:
    header, *lines = trace.read_text(encoding="utf-8").splitlines()
    with_lines(trace, header, lines[0], '{"id": "broken', *lines[1:])
    for arguments in (simulate_file(trace), ["trace", "stats", str(trace)]):
        said = run_saga(*arguments)
        assert said.code == 0
        assert is_one_line(said.err)
        assert f"{trace}:3:" in said.err
        strict = run_saga(*arguments, "--strict")
        assert (strict.code, strict.out) == (2, "")
        assert is_one_line(strict.err)
        assert f"{trace}:3:" in strict.err


def test_an_id_used_twice_is_told(run_saga: Saga, trace: Path) -> None:
    header, *lines = trace.read_text(encoding="utf-8").splitlines()
    with_lines(trace, header, *lines, lines[1])
    said = run_saga("trace", "stats", trace)
    assert said.code == 0
    assert "'w0001'" in said.err
    assert "line 3" in said.err
    assert json.loads(said.out) is not None
    strict = run_saga("trace", "stats", trace, "--strict")
    assert strict.code == 2
    assert "'w0001'" in strict.err
    assert run_saga(*simulate_file(trace)).code == 0


def one_long(tokens: int) -> WorkflowScript:
    return workflow("long", chat((tokens, 10)))


def test_a_trace_of_sessions_longer_than_the_memory(run_saga: Saga, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    write_scripts(path, [one_long(2_000_000)])
    said = run_saga(*simulate_file(path))
    assert said.code == 2
    assert is_one_line(said.err)
    assert "every session is longer than an engine's KV capacity of 450640 tokens" in said.err
