"""Presets: what they say, and what is said about the ones that are wrong."""

from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from saga.config import (
    DEFAULTS,
    QUESTIONS,
    ConfigError,
    build_policy,
    known_policies,
    load_preset,
    preset_names,
)
from saga.core.policy import Policies
from saga.policies.affinity_threshold import AffinityThreshold
from saga.policies.fcfs import Fcfs
from saga.policies.host_lru import HostLru
from saga.policies.least_loaded import LeastLoaded
from saga.policies.next_step_prefetch import NextStepPrefetch
from saga.policies.prefix_lru import PrefixLru
from saga.policies.tool_ttl import ToolTtl
from saga.policies.wa_lru import WaLru
from saga.policies.working_set import WorkingSet


def written(name: str) -> dict[str, Any]:
    """The lines of a preset as its file has them."""
    text = (resources.files("saga") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    lines: dict[str, Any] = yaml.safe_load(text)
    return lines


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """Writes a preset file and gives its name."""

    def write(text: str, name: str = "mine.yaml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


# ---- the presets that come with SAGA


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_says_what_it_is(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name
    assert len(preset.description) > 20
    known = {info.cls for info in known_policies().values()}
    chosen = {question: getattr(preset.policies, question) for question in QUESTIONS}
    assert {type(policy) for policy in chosen.values() if policy is not None} <= known
    assert None not in (chosen["routing"], chosen["ordering"], chosen["eviction"])


def test_the_bundle_has_a_place_for_every_question() -> None:
    assert set(QUESTIONS) < {field.name for field in fields(Policies)}


def test_the_papers_defaults() -> None:
    """Paper: sections 4 to 6 and table 9."""
    policies = load_preset("saga_paper").policies
    assert policies.eviction == WaLru(alpha=0.3, beta=0.5, gamma=0.2)
    assert policies.retention == ToolTtl(
        percentile=0.95, max_ttl_s=300.0, pressure_low=0.7, pressure_high=0.9
    )
    assert policies.routing == AffinityThreshold(theta=0.8)
    assert policies.admission is None
    assert policies.epoch_us == 100_000
    afs, stealing = known_policies()["agent_fair_share_paper"], known_policies()["random_stealing"]
    assert afs.parameters["slo_factor"] == 1.5
    assert afs.parameters["preempt_after_ms"] == 500.0
    assert policies.fairness == afs.cls()
    assert stealing.parameters["idle_ms"] == 100.0
    assert stealing.parameters["max_ratio"] == 2.0
    assert policies.stealing == stealing.cls()


ABLATIONS = {
    "saga_paper_no_affinity": "routing",
    "saga_paper_no_wa_lru": "eviction",
    "saga_paper_no_ttl": "retention",
    "saga_paper_no_stealing": "stealing",
    "saga_paper_no_prefetch": "prefetch",
    "saga_paper_no_afs": "fairness",
}
"""The rows of the paper's table 4."""


def test_every_row_of_the_ablation_is_there() -> None:
    assert {name for name in preset_names() if name.startswith("saga_paper_")} == set(ABLATIONS)


@pytest.mark.parametrize(("name", "question"), ABLATIONS.items())
def test_an_ablation_is_the_paper_with_one_line_null(name: str, question: str) -> None:
    lines = written(name)
    del lines["description"]
    assert lines == {"extends": "saga_paper", question: None}
    full, less = load_preset("saga_paper").policies, load_preset(name).policies
    changed = [f.name for f in fields(full) if getattr(full, f.name) != getattr(less, f.name)]
    assert changed == [question]


# ---- what lines mean


def test_null_and_absence_mean_the_default(file: Any) -> None:
    everything = "".join(f"{question}: null\n" for question in QUESTIONS)
    for text in ("description: nothing\n", everything):
        policies = load_preset(file(text)).policies
        assert policies.routing == LeastLoaded()
        assert policies.ordering == Fcfs()
        assert policies.eviction == PrefixLru()
        assert policies.offload == HostLru()
        for question in ("admission", "fairness", "retention", "stealing", "prefetch"):
            assert DEFAULTS[question] is None
            assert getattr(policies, question) is None


def test_a_name_a_mapping_and_a_setting(file: Any) -> None:
    name = file(
        "eviction: wa_lru\n"
        "prefetch: {policy: next_step_prefetch, lead_s: 2}\n"
        "max_waiting_per_engine: 3\n"
        "epoch_us: 50000\n"
    )
    policies = load_preset(name).policies
    assert policies.eviction == WaLru()
    assert policies.prefetch == NextStepPrefetch(lead_s=2.0)
    assert isinstance(policies.prefetch.lead_s, float)
    assert (policies.max_waiting_per_engine, policies.epoch_us) == (3, 50_000)


def test_extends_takes_what_is_not_said_again(file: Any) -> None:
    base = file("extends: saga\nadmission: {policy: working_set, kappa: 0.7}\n", "base.yaml")
    mine = load_preset(file(f"extends: {base}\nretention: null\n")).policies
    theirs = load_preset("saga").policies
    assert mine.admission == WorkingSet(kappa=0.7)
    assert mine.retention is None
    assert mine.routing == theirs.routing
    assert mine.max_waiting_per_engine == theirs.max_waiting_per_engine


def test_a_line_is_replaced_as_a_whole(file: Any) -> None:
    policies = load_preset(file("extends: saga\nrouting: affinity_threshold\n")).policies
    assert policies.routing == AffinityThreshold()


@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_a_file_of_ones_own(file: Any, suffix: str) -> None:
    name = file("description: Mine\nordering: depth_first\n", f"mine.{suffix}")
    preset = load_preset(name)
    assert (preset.name, preset.description) == (name, "Mine")


# ---- NAME+KEY=VALUE


def test_changes_apply_to_one_parameter_and_leave_the_others() -> None:
    policies = load_preset("saga+admission.kappa=1.2+routing.theta=0.5").policies
    assert policies.admission == WorkingSet(kappa=1.2)
    assert policies.routing == AffinityThreshold(
        theta=0.5,
        load="committed",
        placement="committed",
        move_kv=True,
        margin=0.2,
        cold_margin=0.4,
    )


def test_changes_replace_a_policy_or_take_it_away() -> None:
    policies = load_preset("saga+fairness=null+eviction=lru+max_waiting_per_engine=7").policies
    assert policies.fairness is None
    assert policies.eviction == known_policies()["lru"].cls()
    assert policies.max_waiting_per_engine == 7
    assert load_preset("saga+max_waiting_per_engine=null").policies.max_waiting_per_engine is None


def test_a_parameter_of_a_line_that_was_not_there_is_the_defaults() -> None:
    assert load_preset("vllm_apc_affinity+offload.store=false").policies.offload == HostLru(
        store=False
    )
    assert load_preset("saga_paper_no_affinity+routing.load=committed").policies.routing == (
        LeastLoaded(load="committed")
    )


def test_changes_apply_in_their_order() -> None:
    one = load_preset("saga+admission.kappa=2+admission=working_set").policies
    other = load_preset("saga+admission=working_set+admission.kappa=2").policies
    assert one.admission == WorkingSet()
    assert other.admission == WorkingSet(kappa=2.0)


def test_a_preset_keeps_its_whole_name() -> None:
    assert load_preset("saga+fairness=null").name == "saga+fairness=null"


# ---- mistakes


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sago", ["preset 'sago'", "did you mean 'saga'", "vllm_apc_affinity"]),
        ("", ["preset ''", "saga_paper"]),
        ("saga+admision.kappa=2", ["admision.kappa=2", "did you mean 'admission'"]),
        ("saga+kappa=2", ["kappa=2", "QUESTION.PARAMETER=VALUE", "admission"]),
        ("saga+fairness", ["'fairness'", "QUESTION=POLICY"]),
        ("saga+", ["''", "QUESTION=POLICY"]),
        ("saga+description=x", ["description=x", "admission"]),
        ("saga+eviction=wa_lro", ["eviction 'wa_lro'", "did you mean 'wa_lru'", "prefix_lru"]),
        ("saga+eviction=fcfs", ["eviction 'fcfs'", "allowed", "belady"]),
        ("saga+admission.kapa=2", ["working_set", "'kapa'", "did you mean 'kappa'"]),
        ("saga+admission.kappa=much", ["working_set", "kappa", "'much'", "number"]),
        ("saga+admission.kappa=null", ["working_set", "kappa", "None", "number"]),
        ("saga+routing.load=weight", ["routing", "load", "'weight'", "'committed'"]),
        ("saga+routing.move_kv=perhaps", ["routing", "move_kv", "'perhaps'", "boolean"]),
        ("saga+eviction=3", ["eviction is 3", "a name, or a mapping with policy"]),
        ("saga+fairness=[afs]", ["fairness is ['afs']", "a name"]),
        ("vllm+admission.kappa=2", ["admission is {'kappa': 2}", "mapping with policy"]),
        ("saga+epoch_us=0", ["epoch_us", "at least 1"]),
        ("saga+epoch_us=soon", ["epoch_us", "'soon'", "integer"]),
        ("saga+max_waiting_per_engine=-1", ["max_waiting_per_engine", "at least 1"]),
        ("saga+max_waiting_per_engine=0", ["max_waiting_per_engine", "at least 1"]),
        ("saga+max_waiting_per_engine.x=1", ["max_waiting_per_engine.x=1"]),
        ("saga+eviction={", ["saga+eviction={"]),
        ("missing/dir/mine.yaml", ["missing/dir/mine.yaml", "No such file"]),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(name: str, told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_preset(name)
    assert [part for part in told if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ["is not a mapping"]),
        ("- saga\n", ["is not a mapping"]),
        ("evictoin: lru\n", ["'evictoin'", "did you mean 'eviction'", "max_waiting_per_engine"]),
        ("eviction: {policy: wa_lru, delta: 1}\n", ["wa_lru", "'delta'", "alpha, beta, gamma"]),
        ("eviction: {alpha: 1}\n", ["eviction", "mapping with policy"]),
        ("extends: sago\n", ["'sago'", "did you mean 'saga'"]),
        ("eviction: {policy: wa_lru\n", []),
        ("eviction: \x00\n", []),
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file(file: Any, text: str, told: list[str]) -> None:
    name = file(text)
    with pytest.raises(ConfigError) as caught:
        load_preset(name)
    told = told if "sago" in text else [*told, name]
    assert [part for part in told if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"description: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load_preset(str(path))


def test_a_circle_is_told_whole(file: Any, tmp_path: Path) -> None:
    one, two = str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")
    file(f"extends: {two}\n", "one.yaml")
    file(f"extends: {one}\n", "two.yaml")
    with pytest.raises(ConfigError, match="extends itself") as caught:
        load_preset(one)
    assert f"{one} -> {two} -> {one}" in str(caught.value)


def test_a_choice_that_is_no_choice_is_refused_where_it_stands() -> None:
    with pytest.raises(ConfigError, match="here: ordering is 7"):
        build_policy("ordering", 7, "here")
