"""What holds for every policy there is, found as the configuration finds them."""

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, FrozenInstanceError, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.sim.factory import plan_of, play, random_arrivals, random_scripts, small_cluster

import saga.policies
from saga.cli import main
from saga.config import (
    QUESTIONS,
    ConfigError,
    PolicyInfo,
    build_policy,
    known_policies,
    load_preset,
)
from saga.core import policy as protocols
from saga.core.actions import Dispatch
from saga.core.cache import CacheView, EvictionPolicy, KVEntry
from saga.core.policy import ChoosingPolicy, ScoringPolicy
from saga.core.scheduler import Scheduler
from saga.testing import FakeCluster, snapshot

POLICIES = list(known_policies().values())
each_policy = pytest.mark.parametrize("info", POLICIES, ids=lambda info: info.name)


def members(kind: str) -> set[str]:
    """What a policy of a kind must have."""
    cls = EvictionPolicy if kind == "eviction" else vars(protocols)[f"{kind.title()}Policy"]
    return {name for name in (*vars(cls), *cls.__annotations__) if not name.startswith("_")}


# ---- what a policy is


def test_there_are_policies_for_every_question() -> None:
    assert {info.kind for info in POLICIES} == set(QUESTIONS)


@each_policy
def test_its_docstring_begins_with_its_question(info: PolicyInfo) -> None:
    first = re.match(r"[^.!?]+[.!?]", info.cls.__doc__ or "")
    assert first is not None
    assert first[0].endswith("?")
    assert first[0][0].isupper()
    assert info.question.startswith(" ".join(first[0].split()))


@each_policy
def test_it_is_a_frozen_dataclass_with_a_default_for_every_field(info: PolicyInfo) -> None:
    assert is_dataclass(info.cls)
    for field in fields(info.cls):
        assert field.default is not MISSING
        with pytest.raises(FrozenInstanceError):
            setattr(info.cls(), field.name, field.default)
    assert hash(info.cls()) == hash(info.cls())


@each_policy
def test_its_parameters_can_be_written_in_a_preset(info: PolicyInfo) -> None:
    written = {"policy": info.name, **info.parameters}
    assert build_policy(info.kind, written, "test") == info.cls()


@each_policy
def test_it_answers_exactly_one_question(info: PolicyInfo) -> None:
    answered = [kind for kind in QUESTIONS if members(kind) <= set(dir(info.cls))]
    assert answered == [info.kind]


def test_the_command_lists_every_policy_with_question_and_parameters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["policies"]) == 0
    listed = capsys.readouterr().out
    unwrapped = " ".join(listed.split())
    for info in POLICIES:
        assert re.search(rf"^{info.kind} +{info.name}\b", listed, re.MULTILINE)
        assert info.question in unwrapped
        for name, value in info.parameters.items():
            assert f"{name}={value}" in unwrapped


# ---- what a policy does


def moments(num_engines: int) -> Iterator[Scheduler]:
    """A scheduler in the midst of work: queues, gaps, new sessions, tenants, an idle engine."""
    bundle = load_preset("saga_paper+stealing=null+max_waiting_per_engine=1").policies
    cluster = FakeCluster(bundle, engines=1, kv_capacity_tokens=20_000, max_num_seqs=2)
    for number in range(8):
        cluster.advance(70_000)
        steps = 8.0 if number % 2 else None
        cluster.ask(
            f"session-{number}", 900 + 700 * number, tenant=f"tenant-{number % 3}", mean_steps=steps
        )
        yield cluster.scheduler
    for number in range(1, num_engines):
        cluster.engine_up(f"engine-{number}", kv_capacity_tokens=20_000, max_num_seqs=2)
        cluster.advance(120_000)
        yield cluster.scheduler
    for tool in (None, "shell", "browser", "shell"):
        running = cluster.engines["engine-0"].running[0]
        cluster.finish(running, 50, tool=tool)
        yield cluster.scheduler
        cluster.advance(450_000)
        cluster.ask(running.partition("#")[0], 9_000)
        yield cluster.scheduler
    cluster.settle()
    cluster.advance(10_000_000)
    yield cluster.scheduler


def answers(kind: str, policy: Any, scheduler: Scheduler) -> list[Any]:
    """Everything that the policy says of the present moment, as plain values."""
    view, state = scheduler.view, scheduler.state
    requests, sessions = list(state.requests.values()), list(state.sessions.values())
    match kind:
        case "admission":
            verdicts = [policy.admit(request, view) for request in requests]
            return [(verdict.admit, verdict.reason) for verdict in verdicts]
        case "fairness":
            urgencies = [policy.urgency(workflow, view) for workflow in state.workflows.values()]
            shares = [policy.share(tenant, 0.5) for tenant in state.tenants.values()]
            victims = [policy.preempt(head, requests, view) for head in requests]
            leads = [limit(t) - t for limit in (policy.limit, policy.start_limit) for t in TIMES]
            costs = [
                cost
                for request in requests
                for engine in view.engines
                for cost in (
                    policy.forecast_cost(request, request.prompt_tokens, engine),
                    policy.final_cost(request, request.prompt_tokens, 10, engine),
                )
            ]
            return [
                urgencies,
                shares,
                [None if victim is None else victim.id for victim in victims],
                leads,
                costs,
            ]
        case "ordering":
            keys = [policy.key(request, view) for request in requests]
            if isinstance(policy, ScoringPolicy):
                keys += [policy.first_score(request, view) for request in requests]
                keys += [policy.next_score(request, 10, view) for request in requests]
            if isinstance(policy, ChoosingPolicy) and requests:
                names = [request.id for request in requests]
                keys.append(names.index(policy.choose(requests, view).id))
            return keys
        case "routing":
            routes = [policy.route(request, view) for request in requests]
            return [route and (route.engine.id, route.reason, route.move_kv) for route in routes]
        case "eviction":
            return [policy.rank(entry, CACHE) for entry in entries(scheduler)]
        case "retention":
            holds = [policy.hold(session, view) for session in sessions]
            return [hold and (hold.until, hold.score, hold.reason) for hold in holds]
        case "offload":
            return [policy.offload_now(session, view) for session in sessions]
        case "stealing":
            return [(s.request.id, s.target.id, s.reason) for s in policy.steals(view)]
        case _:
            return [policy.at(session, view) for session in sessions]


TIMES = (0.0, 1.0, 9_999.9, 1e12)
CACHE = CacheView(now=10**9, max_idle=10**9, max_tokens=10**6)


def entries(scheduler: Scheduler) -> list[KVEntry]:
    return [
        KVEntry(
            session=session.id,
            tokens=session.resident_tokens,
            last_access=session.acting_since,
            p_reuse=0.5,
            next_use=session.acting_since + 5,
        )
        for session in scheduler.state.sessions.values()
        if session.resident_tokens
    ]


@pytest.mark.parametrize("num_engines", [1, 4])
@each_policy
def test_it_is_pure_and_says_the_same_of_the_same_moment(
    info: PolicyInfo, num_engines: int
) -> None:
    policy, asked = info.cls(), 0
    for one, other in zip(moments(num_engines), moments(num_engines), strict=True):
        looked_at = [one.state, one.queues, one.view.graphs, one.view.return_times, policy]
        before = snapshot(looked_at)
        said = answers(info.kind, policy, one)
        assert snapshot(looked_at) == before
        assert answers(info.kind, policy, one) == said
        assert answers(info.kind, info.cls(), other) == said
        asked += len(said)
    assert asked > 0 or (info.kind == "stealing" and num_engines == 1)


def is_sound(kind: str, answer: Any, scheduler: Scheduler) -> bool:
    """Whether the scheduler could act on the answer."""
    match kind:
        case "admission":
            return isinstance(answer[0], bool) and bool(answer[1])
        case "fairness":
            return True  # see below
        case "ordering" | "eviction":
            return math.isfinite(answer)
        case "routing":
            engines = {engine.id for engine in scheduler.view.engines}
            return answer is None or (answer[0] in engines and bool(answer[1]))
        case "retention":
            return answer is None or (
                isinstance(answer[0], int)
                and answer[0] >= scheduler.state.now
                and 0.0 <= answer[1] <= 1.0
                and bool(answer[2])
            )
        case "offload":
            return isinstance(answer, bool)
        case "stealing":
            request = scheduler.state.requests[answer[0]]
            return request.engine is not None and request.engine.id != answer[1]
        case _:
            return answer is None or isinstance(answer, int)


@pytest.mark.parametrize("num_engines", [1, 4])
@each_policy
def test_its_answers_are_of_use(info: PolicyInfo, num_engines: int) -> None:
    for scheduler in moments(num_engines):
        for answer in answers(info.kind, info.cls(), scheduler):
            assert is_sound(info.kind, answer, scheduler)
        if info.kind == "fairness":
            said = answers(info.kind, info.cls(), scheduler)
            urgencies, shares, victims, leads, costs = said
            assert all(lead >= 0 for lead in leads)
            assert all(cost >= 0 and math.isfinite(cost) for cost in costs)
            assert all(urgency >= 0 and math.isfinite(urgency) for urgency in urgencies)
            assert all(share > 0 and math.isfinite(share) for share in shares)
            assert set(victims) <= {None, *scheduler.state.requests}


@pytest.mark.parametrize("num_engines", [1, 3])
@each_policy
def test_a_cluster_runs_with_it_and_the_laws_hold(info: PolicyInfo, num_engines: int) -> None:
    scripts = random_scripts(5, 6)
    played = play(
        f"saga+{info.kind}={info.name}",
        plan_of(scripts, random_arrivals(5, 6, 2.0)),
        small_cluster(num_engines, 6_000),
        check=True,
    )
    assert all(workflow.tct_us is not None for workflow in played.record.workflows)


# ---- policies from elsewhere

SOURCE = '''
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LongestPrompt:
    """Which request? The one with the longest prompt."""

    sign: float = -1.0

    def key(self, request, cluster):
        return self.sign * request.prompt_tokens
'''


@pytest.fixture
def fresh_names() -> Iterator[None]:
    """What is loaded in a test is forgotten after it."""
    loaded = set(sys.modules)
    yield
    for name in set(sys.modules) - loaded:
        del sys.modules[name]
    known_policies.cache_clear()


def dispatches(preset: str) -> list[str]:
    """Two requests wait for the only seat; in which order do they get it?"""
    cluster = FakeCluster(f"{preset}+max_waiting_per_engine=1", max_num_seqs=1)
    cluster.ask("first", 100)
    cluster.ask("short", 100)
    cluster.ask("long", 5_000)
    cluster.settle()
    sent = [action.request for action in cluster.actions if isinstance(action, Dispatch)]
    return [request.partition("#")[0] for request in sent]


@pytest.mark.usefixtures("fresh_names")
def test_a_policy_of_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "elsewhere_orders"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "by_size.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    name = "elsewhere_orders.by_size:LongestPrompt"
    assert dispatches("vllm") == ["first", "short", "long"]
    assert dispatches(f"vllm+ordering={name}") == ["first", "long", "short"]
    assert dispatches(f"vllm+ordering={name}+ordering.sign=1") == dispatches("vllm")
    with pytest.raises(ConfigError, match=r"no parameter 'sing'.*did you mean 'sign'\?"):
        load_preset(f"vllm+ordering={name}+ordering.sing=1")
    with pytest.raises(ConfigError, match="routing 'elsewhere_orders"):
        load_preset(f"vllm+routing={name}")


@pytest.mark.usefixtures("fresh_names")
def test_a_new_file_is_a_new_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "longest_prompt.py").write_text(SOURCE)
    monkeypatch.setattr(saga.policies, "__path__", [*saga.policies.__path__, str(tmp_path)])
    known_policies.cache_clear()
    assert known_policies()["longest_prompt"].question == (
        "Which request? The one with the longest prompt."
    )
    assert dispatches("vllm+ordering=longest_prompt") == ["first", "long", "short"]
    assert main(["policies"]) == 0
    assert re.search(r"ordering +longest_prompt +sign=-1.0", capsys.readouterr().out)


@pytest.mark.usefixtures("fresh_names")
@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("class Other:\n    def key(self, request, cluster): ...", "no class named like its file"),
        ("class Longest_Prompt:\n    pass", "no class named like its file"),
        (
            SOURCE.replace("def key", "def lock"),
            "LongestPrompt.* answers none of the questions admission",
        ),
        (SOURCE + "\n    def rank(self, entry, cache):\n        return 0", "ordering.*eviction"),
    ],
)
def test_a_file_that_is_no_policy_is_named(
    source: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "longest_prompt.py").write_text(source)
    monkeypatch.setattr(saga.policies, "__path__", [*saga.policies.__path__, str(tmp_path)])
    known_policies.cache_clear()
    with pytest.raises(ConfigError, match=complaint):
        known_policies()


@pytest.mark.parametrize(
    "name",
    [
        "no_such_module:Order",
        "saga.policies.fcfs:NoSuchClass",
        "json:dumps",
        "math:pi",
        "collections:OrderedDict",
        ":Order",
        ".relative:Order",
        "tests.policies.test_contract:NotADataclass",
    ],
)
def test_what_cannot_be_loaded_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(name)):
        load_preset(f"vllm+ordering={name}")


class NotADataclass:
    """Which request? Whichever."""

    def key(self, request: object, cluster: object) -> float:
        return 0.0
