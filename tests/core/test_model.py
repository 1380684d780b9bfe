"""Legal moves are exactly those of the tables, and the tables say what the states mean."""

from collections.abc import Mapping
from enum import StrEnum
from itertools import product
from typing import TypeVar

import pytest

from saga.core.errors import LifecycleError
from saga.core.model import (
    REQUEST_MOVES,
    SESSION_MOVES,
    ClusterState,
    Engine,
    Request,
    RequestState,
    Session,
    SessionState,
    Tenant,
    Workflow,
)

S = TypeVar("S", bound=StrEnum)


def a_session() -> Session:
    tenant = Tenant(id="tenant")
    workflow = Workflow(id="workflow", tenant=tenant, agent_type="agent", submitted=0, ranked_at=0)
    return Session(id="session", workflow=workflow)


def a_request() -> Request:
    return Request(
        id="request", session=a_session(), arrived=0, prompt_tokens=1, expected_output_tokens=1
    )


@pytest.mark.parametrize(("before", "after"), list(product(RequestState, RequestState)))
def test_moves_of_a_request(before: RequestState, after: RequestState) -> None:
    request = a_request()
    request.state = before
    if after in REQUEST_MOVES[before]:
        request.move(after)
        assert request.state is after
    else:
        with pytest.raises(LifecycleError, match=f"'request': {before} -> {after}"):
            request.move(after)
        assert request.state is before


@pytest.mark.parametrize(("before", "after"), list(product(SessionState, SessionState)))
def test_moves_of_a_session(before: SessionState, after: SessionState) -> None:
    session = a_session()
    session.state = before
    if after in SESSION_MOVES[before] or after is before:
        session.move(after)
        assert session.state is after
    else:
        with pytest.raises(LifecycleError, match=f"'session': {before} -> {after}"):
            session.move(after)
        assert session.state is before


def reachable(moves: Mapping[S, frozenset[S]], start: S) -> set[S]:
    found, todo = {start}, [start]
    while todo:
        new = moves[todo.pop()] - found
        found |= new
        todo += new
    return found


def test_every_request_can_end_and_ends_once() -> None:
    """Law 1 counts final states once, so nothing may leave them."""
    final = {state for state, moves in REQUEST_MOVES.items() if not moves}
    assert final == {
        RequestState.FINISHED,
        RequestState.REJECTED,
        RequestState.CANCELLED,
        RequestState.FAILED,
    }
    for state in set(RequestState) - final:
        assert final & reachable(REQUEST_MOVES, state)
    assert reachable(REQUEST_MOVES, RequestState.QUEUED) == set(RequestState)


def test_a_request_is_finished_only_after_it_ran_and_rejected_only_before() -> None:
    sources = {
        target: {state for state, moves in REQUEST_MOVES.items() if target in moves}
        for target in RequestState
    }
    assert sources[RequestState.FINISHED] == {RequestState.RUNNING}
    assert sources[RequestState.REJECTED] == {RequestState.QUEUED}
    assert sources[RequestState.RUNNING] == {RequestState.DISPATCHED}


def test_a_session_goes_round_until_it_is_done() -> None:
    live = set(SessionState) - {SessionState.DONE}
    assert SESSION_MOVES[SessionState.DONE] == frozenset()
    for state in live:
        assert reachable(SESSION_MOVES, state) == set(SessionState)


def an_engine(name: str = "engine") -> Engine:
    return Engine(
        id=name,
        kv_capacity_tokens=1_000,
        max_num_seqs=8,
        prefill_us_per_token=250.0,
        decode_us_per_token=2_500.0,
    )


def test_memory_pressure_is_a_share() -> None:
    engine = an_engine()
    assert engine.memory_pressure == 0.0
    engine.resident_tokens = 250
    assert engine.memory_pressure == 0.25
    engine.resident_tokens = 1_700  # retained KV may have been evicted without our being told
    assert engine.memory_pressure == 1.0


def test_gpu_time_of_a_request() -> None:
    assert an_engine().cost_us(100, 10) == 100 * 250 + 10 * 2_500


def test_open_engines_are_those_that_do_not_drain() -> None:
    engines = [an_engine(name) for name in "abc"]
    engines[1].draining = True
    state = ClusterState(engines={engine.id: engine for engine in engines})
    assert state.open_engines == [engines[0], engines[2]]
