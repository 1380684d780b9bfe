"""The demonstration end to end: tiny settings, real processes."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.serving import wait_until

from saga.adapters.agents import Played, PlayedStep
from saga.cli import main
from saga.cli.live_demo import Setting, shortened
from saga.cli.live_results import LiveRun, speedup_of, summarise, table, verdict, write_picture
from saga.cli.processes import HOST, Child, Children, CpuUse, free_ports
from saga.sim.workload import get_workload
from saga.traces import check_script

TINY = ["--live-agents", "3", "--live-workflows", "3", "--live-speed", "60"]


def document(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex((HOST, port)) == 0


# ---- the command


def test_simulated_only(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    few = ["--tasks", "4", "--seeds", "1"]
    assert main(["demo", "--simulated-only", "--out", str(out), *few]) == 0
    assert (out / "tct.png").stat().st_size > 1_000
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<html" in page
    assert "vllm_apc_affinity" in page
    command = document(out / "report.json")["parameters"]["command"]
    assert command.startswith("saga demo --simulated-only")
    assert not (out / "live.json").exists()


def test_live_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--live-only", "--out", str(out), *TINY]) == 0
    said = capsys.readouterr().out
    assert str(out / "live.json") in said
    assert "emulated engines" in said
    ports = {int(port) for port in re.findall(r"http://127\.0\.0\.1:(\d+)/ui", said)}
    assert len(ports) == 1  # one place to watch both
    assert not any(map(listens, ports))
    assert (out / "live.png").stat().st_size > 1_000
    assert not (out / "report.json").exists()
    live = document(out / "live.json")
    assert live["speedups"]["saga"]["num_pairs"] == 3
    scripts = Setting(workflows=3).scripts()
    expected = [sum(step.prompt_tokens for step in s.sessions[0].steps) for s in scripts]
    for preset in ("vllm_apc_affinity", "saga"):
        summary, workflows = live["presets"][preset], live["workflows"][preset]
        assert (summary["num_finished"], summary["errors"]) == (3, [])
        assert 0 < summary["tct_p50_s"] <= summary["tct_p95_s"] < summary["wall_s"]
        assert {"agents", "gateway", "engine-0", "engine-1"} >= summary["cores"].keys()
        got = [workflow["prompt_tokens"] for workflow in workflows]
        assert got == pytest.approx(expected, rel=0.02)
        counted = sum(engine["prompt_tokens"] for engine in live["engines"][preset])
        assert counted == sum(got)


def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    long = ["--live-agents", "3", "--live-workflows", "30", "--live-speed", "1"]
    command = [sys.executable, "-m", "saga.cli", "demo", "--live-only", "--out", str(tmp_path)]
    with subprocess.Popen(
        [*command, *long], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout is not None
        lines = iter(demo.stdout.readline, "")
        found = (re.search(r"127\.0\.0\.1:(\d+)/ui", line) for line in lines)
        port = int(next(match for match in found if match)[1])
        connection = http.client.HTTPConnection(HOST, port, timeout=10)
        connection.request("GET", "/v1/saga/engines")
        engines = json.loads(connection.getresponse().read())["engines"]
        connection.close()
        ports = [port, *(int(engine["url"].rpartition(":")[2]) for engine in engines)]
        assert all(map(listens, ports))
        demo.send_signal(signal.SIGTERM)
        _, told = demo.communicate(timeout=15)
    assert demo.returncode == 130
    assert "saga: interrupted" in told
    assert "Traceback" not in told
    assert not any(map(listens, ports))


def test_a_missing_library_is_told_before_anything_is_run() -> None:
    code = "import sys; sys.modules['openai'] = None; import saga.cli; sys.exit(saga.cli.main())"
    said = subprocess.run([sys.executable, "-c", code, "demo"], capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (2, "")
    assert "saga-serve[demo]" in said.stderr
    assert "--simulated-only" in said.stderr


@pytest.mark.parametrize("option", ["--live-agents", "--live-workflows", "--live-speed"])
def test_a_mistake_is_told_at_once(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", option, "0", "--out", str(tmp_path / "never")]) == 2
    assert option in capsys.readouterr().err
    assert not (tmp_path / "never").exists()


# ---- what is played


@pytest.mark.parametrize("name", ["swe-agent", "tau2", "browser", "claude-code", "mini-swe"])
def test_shortened_workflows_keep_the_laws(name: str) -> None:
    for script in get_workload(name).scripts(20, seed=5):
        made = shortened(script, 6, 50)
        check_script(made)
        (session,) = made.sessions
        before = script.sessions[0].steps
        assert len(session.steps) == min(6, len(before))
        assert [s.new_tokens for s in session.steps] == [s.new_tokens for s in before[:6]]
        assert all(step.output_tokens <= 50 for step in session.steps)
        assert shortened(made, 6, 50) == made


def test_memory_is_short_but_holds_any_workflow() -> None:
    setting = Setting()
    scripts = setting.scripts()
    assert 1.2 < setting.demand(scripts) < 2.5
    assert max(script.max_context_tokens for script in scripts) < setting.kv_tokens


# ---- what is said


def run(preset: str, *tct_s: float | None, cores: float = 0.2, lag_s: float = 0.001) -> LiveRun:
    step = PlayedStep(
        session=0, index=0, prompt_tokens=10, cached_tokens=0, output_tokens=1,
        began_s=0.0, first_token_s=0.5, ended_s=1.0, engine=None,
    )  # fmt: skip
    played = [
        Played(workflow=f"w{n}", steps=[step], tct_s=tct, error=None if tct else "it broke")
        for n, tct in enumerate(tct_s)
    ]
    counts = {"prompt_tokens": 100, "hit_tokens": 60, "regenerated_tokens": 30}
    engine = {**counts, "busy_us": 3, "model_us": 4}
    return LiveRun(
        preset=preset,
        played=played,
        wall_s=9.0,
        engines=[engine, engine],
        cores={"agents": 0.1, "gateway": cores},
        lag_s=[lag_s],
    )


def test_only_workflows_that_finished_under_both_are_compared() -> None:
    speedup = speedup_of(run("a", 8.0, 2.0, 4.0, None), run("b", 4.0, 4.0, None, 1.0))
    assert speedup.geomean == pytest.approx(1.0)
    assert speedup.num_pairs == 2
    assert speedup_of(run("a", None), run("b", 1.0)).geomean is None


def test_figures_of_a_run() -> None:
    summary = summarise(run("a", 2.0, 4.0, None))
    assert (summary.num_workflows, summary.num_finished) == (3, 2)
    assert summary.errors == ("it broke",)
    assert (summary.tct_mean_s, summary.tct_p50_s, summary.ttft_p50_s) == (3.0, 3.0, 0.5)
    assert (summary.hit_rate, summary.regenerated_fraction, summary.engine_busy) == (0.6, 0.3, 0.75)
    assert summary.kept_up


def test_nothing_finished(tmp_path: Path) -> None:
    runs = [run("a", None), run("b", None)]
    assert summarise(runs[0]).tct_mean_s is None
    assert "0 of 1" in table(runs, "live", 1.5).rows[0]
    write_picture(tmp_path / "live.png", runs, "live")
    assert (tmp_path / "live.png").stat().st_size > 1_000


@pytest.mark.parametrize("slow", [{"cores": 0.9}, {"lag_s": 0.05}])
def test_a_machine_that_does_not_keep_up_is_told(slow: dict[str, float]) -> None:
    fine, late = run("a", 1.0), run("b", 1.0, **slow)
    warnings = [line for line in verdict([fine, late]) if "WARNING" in line]
    assert len(warnings) == 1
    assert "keep up with b" in warnings[0]


def test_errors_are_told() -> None:
    assert "a: it broke" in verdict([run("a", None, None), run("b", 1.0)])


# ---- processes


def engine(children: Children, *more: str) -> Child:
    (port,) = free_ports(1)
    return children.start("engine", port, "engine", *more)


def serves(child: Child) -> bool:
    return bool(child.ask("POST", "/v1/saga/stats", {}))


def test_children_end_with_the_block_however_it_is_left(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        Children(tmp_path, dict(os.environ)) as children,
    ):
        child = engine(children)
        child.wait_until(serves)
        assert listens(child.port)
        cores = CpuUse([child]).cores("own")
        assert cores["own"] >= 0
        assert set(cores) <= {"own", "engine"}
        raise KeyboardInterrupt
    assert child.process.poll() is not None
    wait_until(lambda: not listens(child.port))


def test_a_child_that_cannot_start_says_why(tmp_path: Path) -> None:
    with Children(tmp_path, dict(os.environ)) as children:
        child = engine(children, "--hardware", "abacus")
        with pytest.raises(OSError, match=r"engine: ended with 2; .*\n.*'abacus'"):
            child.wait_until(serves)


def test_ports_are_different_and_free() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert not any(map(listens, ports))
