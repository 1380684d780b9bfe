import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.sim.workload import TenantSpec, get_workload, list_workloads
from saga.traces import (
    SessionScript,
    StepScript,
    TraceError,
    WorkflowScript,
    check_script,
    write_scripts,
)

NAMES = list(list_workloads())

names = st.sampled_from(NAMES)


@given(names, st.integers(0, 2**64), st.integers(0, 3), st.integers(0, 3))
def test_a_workflow_depends_on_its_seed_and_index_alone(
    name: str, seed: int, num: int, more: int
) -> None:
    scripts = get_workload(name).scripts(num, seed)
    assert [script.id for script in scripts] == [f"w{index:06d}" for index in range(num)]
    assert get_workload(name).scripts(num + more, seed)[:num] == scripts
    for script in scripts:
        check_script(script)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_workload_tells_of_itself_holds(name: str) -> None:
    workload = get_workload(name)
    assert workload.name == name
    assert workload.description == list_workloads()[name]
    scripts = workload.scripts(60, 1)
    tenants = {tenant.name: tenant.tenant_class for tenant in workload.tenants}
    assert {script.tenant: script.tenant_class for script in scripts}.items() <= tenants.items()
    assert workload.declared_mean_steps is not None
    assert {script.agent_type for script in scripts} == workload.declared_mean_steps.keys()
    assert workload.scripts(2, 1) != workload.scripts(2, 2)
    assert pickle.loads(pickle.dumps(workload)).scripts(2, 1) == scripts[:2]


@pytest.mark.parametrize("name", set(NAMES) - {"burstgpt-mix"})
def test_declared_steps_are_those_that_are_drawn(name: str) -> None:
    workload = get_workload(name)
    counts: dict[str, list[int]] = {}
    for script in workload.scripts(250, 3):
        counts.setdefault(script.agent_type, []).append(script.num_steps)
    for agent_type, declared in (workload.declared_mean_steps or {}).items():
        error = 4 * np.std(counts[agent_type]) / np.sqrt(len(counts[agent_type]))
        assert np.mean(counts[agent_type]) == pytest.approx(declared, abs=error)


def test_tenants_of_the_mix_arrive_by_their_rates() -> None:
    workload = get_workload("burstgpt-mix")
    assert Counter(tenant.tenant_class for tenant in workload.tenants) == {
        "heavy": 3,
        "medium": 4,
        "light": 3,
    }
    assert {tenant.tenant_class: tenant.weight for tenant in workload.tenants} == {
        "heavy": 3,
        "medium": 2,
        "light": 1,
    }
    scripts = workload.scripts(1500, 5)
    seen = Counter(script.tenant for script in scripts)
    total = sum(tenant.share for tenant in workload.tenants)
    for tenant in workload.tenants:
        assert seen[tenant.name] / 1500 == pytest.approx(tenant.share / total, abs=0.03)
    assert all(script.agent_type == f"burstgpt-{script.tenant_class}" for script in scripts)


def test_other_tenants_get_the_same_bodies() -> None:
    tenants = [TenantSpec("a", share=3.0), TenantSpec("b", tenant_class="gold", share=1.0)]
    own, given_ = get_workload("mini-swe"), get_workload("mini-swe", tenants=tenants)
    assert given_.tenants == tuple(tenants)
    scripts = given_.scripts(100, 1)
    assert [one.sessions for one in scripts] == [one.sessions for one in own.scripts(100, 1)]
    classes = Counter((script.tenant, script.tenant_class) for script in scripts)
    assert classes[("a", "default")] / 100 == pytest.approx(0.75, abs=0.13)
    assert classes[("b", "gold")] == 100 - classes[("a", "default")]


@given(names, st.floats(0, 3))
def test_tool_scale_multiplies_gaps_and_nothing_else(name: str, factor: float) -> None:
    (plain,) = get_workload(name).scripts(1, 4)
    (scaled,) = get_workload(name, tool_scale=factor).scripts(1, 4)
    for one, other in zip(plain.sessions, scaled.sessions, strict=True):
        for before, after in zip(one.steps, other.steps, strict=True):
            assert after.gap_us == round(before.gap_us * factor)
            assert after.tool_us == round(before.tool_us * factor)
            assert after.prompt_tokens == before.prompt_tokens
    check_script(scaled)


def workflow(name: str, tokens: int, submitted_us: int | None, tenant: str = "t") -> WorkflowScript:
    step = StepScript(kept_tokens=0, new_tokens=tokens, output_tokens=1)
    return WorkflowScript(
        id=name,
        sessions=(SessionScript(steps=(step,), prefix="p", prefix_tokens=5),),
        tenant=tenant,
        tenant_class=f"class of {tenant}",
        submitted_us=submitted_us,
    )


def trace_file(folder: Path, *scripts: WorkflowScript) -> str:
    write_scripts(folder / "trace.jsonl", scripts)
    return f"file:{folder / 'trace.jsonl'}"


def test_a_file_is_played_in_order_of_arrival_and_then_again_in_any(tmp_path: Path) -> None:
    spec = trace_file(tmp_path, *(workflow(f"x{i}", 100 + i, 900 - 10 * i) for i in range(9)))
    workload = get_workload(spec)
    assert workload.source_us == tuple(range(820, 901, 10))
    assert workload.declared_mean_steps is None
    scripts = workload.scripts(500, 1)
    sizes = [script.max_context_tokens - 1 for script in scripts]
    assert sizes[:9] == [*range(108, 99, -1)]
    assert [script.submitted_us for script in scripts[:9]] == list(workload.source_us)
    assert set(sizes[9:]) == set(range(100, 109))
    assert {script.submitted_us for script in scripts[9:]} == {None}
    assert {script.sessions[0].prefix for script in scripts} == {"p"}
    assert scripts == workload.scripts(500, 1)
    assert scripts[:9] == workload.scripts(9, 2)
    assert scripts[9:] != workload.scripts(500, 2)[9:]


def test_a_file_without_all_arrival_times_keeps_its_order(tmp_path: Path) -> None:
    workload = get_workload(trace_file(tmp_path, workflow("b", 7, None), workflow("a", 8, 3)))
    assert workload.source_us is None
    assert [one.sessions[0].steps[0].new_tokens for one in workload.scripts(2, 0)] == [7, 8]


def test_a_file_keeps_its_tenants_unless_others_are_given(tmp_path: Path) -> None:
    spec = trace_file(tmp_path, *(workflow(str(i), 5, None, "ab"[i % 3 == 0]) for i in range(6)))
    workload = get_workload(spec)
    assert workload.tenants == (
        TenantSpec("b", tenant_class="class of b", share=2),
        TenantSpec("a", tenant_class="class of a", share=4),
    )
    assert [one.tenant for one in workload.scripts(4, 0)] == ["b", "a", "a", "b"]
    other = get_workload(spec, tenants=[TenantSpec("c", tenant_class="x")])
    assert {(one.tenant, one.tenant_class) for one in other.scripts(8, 0)} == {("c", "x")}


def test_unknown_names_and_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"workload is 'swe', allowed are swe-bench, .*file:PATH"):
        get_workload("swe")
    with pytest.raises(TraceError, match=r"none\.jsonl: No such file"):
        get_workload(f"file:{tmp_path}/none.jsonl")
    with pytest.raises(ValueError, match=r"tool_cv applies to swe-bench, .*, not to 'browser'"):
        get_workload("browser", tool_cv=1.0)
    with pytest.raises(ValueError, match="tool_cv is 0, allowed is above 0"):
        get_workload("swe-bench", tool_cv=0)
    with pytest.raises(ValueError, match="tool_scale is -1, allowed is 0 to"):
        get_workload("swe-bench", tool_scale=-1)
    with pytest.raises(ValueError, match="'swe-bench' has no tenant"):
        get_workload("swe-bench", tenants=[])
    with pytest.raises(ValueError, match="share of tenant 'a' is 0, allowed is above 0"):
        get_workload("swe-bench", tenants=[TenantSpec("a", share=0)])
    with pytest.raises(ValueError, match="class of tenant 'a' is 'default', allowed are heavy, "):
        get_workload("burstgpt-mix", tenants=[TenantSpec("a")])
