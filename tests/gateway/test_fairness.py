"""How tenants fare over time: by hand, as laws over any coming and going, and who sees what."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.keyring import keyed
from tests.gateway.live import Live, ask, chat, gateway
from tests.serving import wait_until

from saga.core import actions as act
from saga.core import events as ev
from saga.gateway.fairness import (
    EVERY_US,
    MAX_TENANTS,
    NUM_RECENT,
    OTHERS,
    SPANS,
    WINDOW,
    FairnessView,
    Span,
)
from saga.report.sampler import MOST_SAMPLES
from saga.testing import FakeCluster, snapshot

COLUMNS = (
    "share", "entitlement", "lead_us", "longest_wait_us", "num_waiting", "committed_tokens",
)  # fmt: skip


class Watched(FakeCluster):
    """A cluster of one engine whose tenants a view samples; a workflow is named after its tenant,
    as in the gateway."""

    def __init__(
        self, preset: str = "saga", *, max_tenants: int = MAX_TENANTS, check: bool = True
    ) -> None:
        super().__init__(preset, engines=0, check=check)
        self.served: Counter[str] = Counter()
        self.view = FairnessView(self.scheduler, served=self._count, max_tenants=max_tenants)
        self.engine_up("e0", kv_capacity_tokens=10**9, max_num_seqs=1)

    def _count(self, tenant: str, us: int) -> None:
        self.served[tenant] += us

    def _handle(self, event: ev.Event) -> list[act.Action]:
        actions = super()._handle(event)
        self.view.note(event)
        return actions

    def asks(self, tenant: str, name: str = "w") -> str:
        return self.ask(f"{tenant}/{name}", tenant=tenant)

    def done(self, tenant: str, name: str = "w") -> None:
        self.tell(ev.WorkflowDone(at=self.now, workflow=f"{tenant}/{name}"))

    def run(self, tenant: str, output_tokens: int) -> None:
        """A workflow of one step, over at once."""
        self.finish(self.asks(tenant), output_tokens)
        self.done(tenant)

    def sample(self) -> None:
        """The next one that is due."""
        self.advance(EVERY_US)
        self.view.take(self.now)

    def told(self, owner: str | None = None, span: Span = "hour") -> dict[str, Any]:
        return self.view.told(owner, span)


def test_a_sample_is_what_an_operator_asks_for() -> None:
    """blue holds the only seat; red waits from 3 s on. Both have the same weight."""
    cluster = Watched()
    cluster.view.take(0)
    running = cluster.asks("blue")
    cluster.advance(3_000_000)
    cluster.asks("red")
    cluster.advance(EVERY_US - 3_000_000)
    cluster.view.take(cluster.now)
    cluster.finish(running, 1_000)
    cluster.sample()
    told = cluster.told()
    assert told["at_us"] == [0, EVERY_US, 2 * EVERY_US]
    blue, red = told["tenants"]["blue"], told["tenants"]["red"]
    assert red["longest_wait_us"] == [0, 7_000_000, 0]
    assert red["num_waiting"] == [0, 1, 0]
    assert blue["num_waiting"] == [0, 0, 0]
    assert blue["entitlement"] == red["entitlement"] == [0, 0.5, 0.5]
    assert blue["share"] == [None, None, 1] and red["share"] == [None, None, 0]
    assert blue["lead_us"][1] > 0 == blue["lead_us"][0]
    assert blue["committed_tokens"][1] >= 1_000
    assert told["others"] is None
    assert 0 <= told["deviation"] <= 1


def test_shares_are_of_the_window_before_a_sample() -> None:
    cluster = Watched()
    cluster.view.take(0)
    cluster.run("red", 3_000)
    cluster.sample()
    for _ in range(WINDOW):
        cluster.run("blue", 500)
        cluster.sample()
    red, blue = (cluster.told()["tenants"][name]["share"] for name in ("red", "blue"))
    assert red[0] is blue[0] is None
    assert red[1:3] == [1.0, pytest.approx(red[2])] and 0.5 < red[2] < 1
    assert red[WINDOW + 1] == 0 and blue[WINDOW + 1] == 1
    assert red[1:] == sorted(red[1:], reverse=True)
    for _ in range(WINDOW):
        cluster.sample()
    assert cluster.told()["tenants"]["blue"]["share"][-1] is None, "nobody was given anything"


def test_samples_are_taken_when_somebody_comes_by_and_it_is_time() -> None:
    view, taken = FairnessView(Watched().scheduler), []
    for now in range(0, 100_000_000, 1_300_000):
        view.take(now)
        taken += [now] if now % EVERY_US < 1_300_000 else []
    assert len(taken) == 10
    view.take(500_000_000)
    for span in SPANS:
        assert view.told(None, span)["at_us"] == [*taken, 500_000_000]


def test_a_newcomer_had_nothing_before() -> None:
    cluster = Watched()
    cluster.view.take(0)
    cluster.sample()
    cluster.run("late", 700)
    cluster.sample()
    late = cluster.told()["tenants"]["late"]
    assert {len(late[column]) for column in COLUMNS} == {3}
    assert late["share"] == [None, None, 1.0]


def test_what_came_and_went_between_two_samples_counts() -> None:
    cluster = Watched()
    cluster.view.take(0)
    cluster.run("short", 100)
    cluster.run("short", 100)
    cluster.run("twice", 400)
    cluster.sample()
    shares = {name: one["share"][-1] for name, one in cluster.told()["tenants"].items()}
    total = sum(cluster.served.values())
    assert shares == {name: round(us / total, 4) for name, us in cluster.served.items()}
    assert set(shares) == {"short", "twice"}


def test_the_hour_forgets_and_the_run_thins_out() -> None:
    cluster = Watched(check=False)
    cluster.view.take(0)
    cluster.run("early", 1_000)
    for _ in range(2 * MOST_SAMPLES):
        cluster.run("steady", 100)
        cluster.sample()
    hour, run = cluster.told(span="hour"), cluster.told(span="run")
    assert len(hour["at_us"]) == NUM_RECENT
    assert hour["at_us"][-1] == cluster.now
    assert hour["at_us"][0] == cluster.now - (NUM_RECENT - 1) * EVERY_US
    assert set(hour["tenants"]) == {"steady"}, "the other had nothing within it"
    assert run["at_us"][0] == 0 and MOST_SAMPLES / 2 <= len(run["at_us"]) < MOST_SAMPLES
    assert set(run["tenants"]) == {"early", "steady"}
    assert run["tenants"]["early"]["share"][-1] == 0


def test_tenants_beyond_a_number_are_told_together() -> None:
    """One of three is gone: the next to come takes its place, and further ones share a row."""
    cluster = Watched(max_tenants=3)
    cluster.view.take(0)
    cluster.run("gone", 5_000)
    cluster.asks("a")
    cluster.asks("b")
    cluster.sample()
    assert set(cluster.told()["tenants"]) == {"gone", "a", "b"}
    assert cluster.told()["others"] is None
    for late in ("late", "later", "latest"):
        cluster.asks(late)
    cluster.advance(1_000_000)
    cluster.sample()
    told = cluster.told()
    assert set(told["tenants"]) == {"a", "b", "late"}
    others = told["others"]
    assert others["num_waiting"] == [0, 0, 2]
    assert others["longest_wait_us"] == [0, 0, EVERY_US + 1_000_000]
    assert others["entitlement"] == [0, 0, 0.4]
    assert others["share"][1] == 1, "what the one that is gone was given"
    assert cluster.told("later") == {**told, "tenants": {}, "others": None, "deviation": None}


def test_who_is_gone_for_longest_makes_room() -> None:
    cluster = Watched(max_tenants=2)
    cluster.view.take(0)
    for tenant in ("a", "b", "a", "c"):
        cluster.run(tenant, 100)
        cluster.sample()
    assert set(cluster.told()["tenants"]) == {"a", "c"}
    for tenant in ("b", "b"):
        cluster.run(tenant, 100)
        cluster.sample()
    assert set(cluster.told()["tenants"]) == {"b", "c"}
    shares = cluster.told()["tenants"]["b"]["share"]
    assert shares[:5] == [None, 0, 0, 0, 0], "what it had before counts with the others"


Step = tuple[int, int, bool]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 900), st.booleans())), st.integers(1, 12)
)
def test_law_nothing_that_was_given_is_lost(steps: list[Step], most: int) -> None:
    """Whoever comes and goes: the parts add up to what requests took, in both spans."""
    cluster = Watched(max_tenants=most, check=False)
    cluster.view.take(0)
    ended = Counter[str]()
    for number, (tenant, output_tokens, samples) in enumerate(steps):
        name = f"t{tenant}"
        request = cluster.ask(f"{name}/{number}", tenant=name)
        cluster.settle()
        assert request not in cluster.scheduler.state.requests
        service = cluster.scheduler.state.workflows[f"{name}/{number}"].service_us
        ended[name] += round(service)
        if output_tokens % 2:
            cluster.done(name, str(number))
        if samples:
            cluster.sample()
    cluster.sample()
    assert cluster.served == ended
    latest = cluster.view.latest
    assert len(latest) <= most + 1
    assert sum(reading.service_us for reading in latest.values()) == sum(ended.values())
    for span in SPANS:
        told = cluster.told(span=span)
        rows = [*told["tenants"].values(), *filter(None, [told["others"]])]
        for row in rows:
            assert {len(row[column]) for column in COLUMNS} == {len(told["at_us"])}
        for index in range(len(told["at_us"])):
            shares = [row["share"][index] for row in rows]
            assert not shares or None in shares or sum(shares) == pytest.approx(1, abs=0.01)
            entitled = sum(row["entitlement"][index] for row in rows)
            assert entitled == pytest.approx(1, abs=0.01) or entitled == 0


def test_nothing_grows_for_ever() -> None:
    cluster = Watched(max_tenants=8, check=False)

    def work(count: int) -> int:
        for _ in range(count):
            cluster.run(f"t{cluster.now}", 10)
            cluster.sample()
        return len(snapshot(cluster.view._meter)) + len(snapshot(cluster.view._workflows))

    full = work(20)
    assert work(50) == full
    for span in SPANS:
        assert len(cluster.told(span=span)["tenants"]) <= 8
    assert set(cluster.view.latest) == {*cluster.told()["tenants"], OTHERS}


def test_without_fair_queues_there_is_no_deviation() -> None:
    assert Watched("vllm").told()["deviation"] is None


# ---- over HTTP


def step(live: Live, **headers: str) -> None:
    assert ask(f"{live.url}/v1/chat/completions", chat("x"), headers=headers)[0] == 200


def sample(live: Live) -> None:
    """As if its time had come, long after the last one."""
    live.told(lambda one: one.fairness.take(one.host.now + 10**9))


def fairness(live: Live, query: str = "", **headers: str) -> tuple[int, Any]:
    status, told, _ = ask(f"{live.url}/v1/saga/fairness{query}", headers=headers)
    return status, told


def test_a_tenant_sees_its_own_row_and_an_administrator_all(tmp_path: Path) -> None:
    with keyed(tmp_path, "blue", "red") as one:
        for headers in one.tenants.values():
            step(one.live, **headers)
        sample(one.live)
        assert fairness(one.live)[0] == 401
        blue = fairness(one.live, **one.tenants["blue"])
        everything = fairness(one.live, **one.admin)
        metrics = ask(f"{one.live.url}/metrics")[1].decode()
    assert blue[0] == everything[0] == 200
    assert set(blue[1]["tenants"]) == {"blue"}
    assert blue[1]["deviation"] is blue[1]["others"] is None
    assert set(everything[1]["tenants"]) == {"blue", "red"}
    assert everything[1]["tenants"]["blue"] == blue[1]["tenants"]["blue"]
    assert "red" not in str(blue)
    assert everything[1]["deviation"] == 0
    for tenant in ("blue", "red", "other"):
        assert f'saga_tenant_requests_waiting{{tenant="{tenant}"}} 0.0' in metrics
        assert f'saga_tenant_longest_wait_seconds{{tenant="{tenant}"}} 0.0' in metrics
    assert 'saga_tenant_entitlement_ratio{tenant="blue"} 0.5' in metrics
    served = [line for line in metrics.splitlines() if line.startswith("saga_tenant_service_sec")]
    assert len(served) == 2 and all(float(line.split()[-1]) > 0 for line in served)


def test_a_gateway_samples_by_itself_and_a_span_is_one_of_two() -> None:
    with gateway(engines=1, engine_options={"speed": 500.0}) as live:
        step(live)
        wait_until(lambda: fairness(live)[1]["at_us"] != [])
        for query, span in (("", "hour"), ("?span=hour", "hour"), ("?span=run", "run")):
            status, told = fairness(live, query)
            assert (status, told["span"]) == (200, span)
            assert set(told["tenants"]) == {"default"}
        status, told = fairness(live, "?span=week")
        assert status == 400
        assert told["error"]["param"] == "span" and "hour and run" in told["error"]["message"]
        status, _, _ = ask(f"{live.url}/v1/saga/fairness", {}, method="POST")
        assert status == 404


def test_a_tenant_that_is_called_like_the_others_is_one_of_its_own() -> None:
    """A trusted proxy may name any tenant, and each series has one value in a page of metrics."""
    with gateway(engines=1, settings={"identity.trust_tenant_header": True}) as live:
        step(live, **{"x-saga-tenant": "other"})
        sample(live)
        lines = ask(f"{live.url}/metrics")[1].decode().splitlines()
    found = [line for line in lines if line.startswith('saga_tenant_entitlement_ratio{tenant="o')]
    assert found == ['saga_tenant_entitlement_ratio{tenant="other"} 1.0']
