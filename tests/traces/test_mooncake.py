import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.shared_data import shared_data

from saga.traces import Problem, TraceFile, check_script, read_scripts, trace_stats

__all__ = ["shared_data"]

SYSTEM = [0]
ONE = [*SYSTEM, 11, 12]
OTHER = [*SYSTEM, 21, 22]


def request(at_ms: float, prompt: int, blocks: list[int], output: int = 100) -> dict[str, Any]:
    return {"ts_ms": at_ms, "in": prompt, "out": output, "hash_ids": blocks}


def read(folder: Path, *requests: dict[str, Any]) -> TraceFile:
    path = folder / "mooncake.jsonl"
    path.write_text("\n".join(map(json.dumps, requests)))
    trace = read_scripts(path)
    for script in trace.scripts:
        check_script(script)
    return trace


def sizes(trace: TraceFile) -> list[list[tuple[int, int]]]:
    """Kept and new tokens of every step of every workflow."""
    return [
        [(step.kept_tokens, step.new_tokens) for step in script.sessions[0].steps]
        for script in trace.scripts
    ]


def test_a_request_that_extends_a_conversation_is_its_next_step(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        request(0, 1300, ONE),
        request(50, 1200, OTHER),
        request(2500, 1500, [0, 11, 13]),  # its third block now holds the output too
    )
    first, second = trace.scripts
    assert sizes(trace) == [[(512, 788), (1400, 100)], [(512, 688)]]
    assert [step.gap_us for step in first.sessions[0].steps] == [2_500_000, 0]
    assert [first.submitted_us, second.submitted_us] == [0, 50_000]
    assert trace.notes == ["1 gaps known only with an LLM call inside them (upper bounds)"]


def test_a_conversation_goes_on_once_from_each_of_its_ends(tmp_path: Path) -> None:
    """The second branch begins anew, and its prefix is what both began with."""
    trace = read(
        tmp_path,
        request(0, 1100, ONE),
        request(1, 1600, [0, 11, 13, 14]),
        request(2, 1600, [0, 11, 15, 16]),
    )
    assert sizes(trace) == [[(1024, 76), (1200, 400)], [(1024, 576)]]
    one, other = (script.sessions[0] for script in trace.scripts)
    assert one.prefix == other.prefix == "mooncake/mooncake.jsonl/11"


def test_a_common_system_prompt_makes_no_conversation(tmp_path: Path) -> None:
    """The last full block of the second request is the first one's: nothing leads back to it."""
    trace = read(
        tmp_path,
        request(0, 1300, ONE),
        request(1, 600, [0, 5]),
        request(2, 1300, OTHER),
    )
    assert sizes(trace) == [[(512, 788)], [(512, 88)], [(512, 788)]]


def test_a_prompt_without_room_for_the_output_is_no_next_step(tmp_path: Path) -> None:
    trace = read(tmp_path, request(0, 1100, ONE), request(1, 1199, [0, 11, 13]))
    assert len(trace.scripts) == 2


def test_the_same_prompt_again_computes_its_last_token(tmp_path: Path) -> None:
    trace = read(tmp_path, request(0, 1024, ONE[:2]), request(1, 1024, ONE[:2]))
    assert sizes(trace) == [[(1023, 1)], [(1023, 1)]]


def test_the_published_field_names_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "published.jsonl"
    line = {"timestamp": 27, "input_length": 600, "output_length": 52, "hash_ids": [46, 47]}
    path.write_text(json.dumps(line))
    (script,) = read_scripts(path, strict=True).scripts
    assert script.max_context_tokens == 652


def test_broken_requests_are_problems(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        request(5, 1300, ONE),
        request(4, 1300, ONE),
        request(6, 1300, ONE[:1]),
        request(7, 1300, [*ONE, 4]),
        {"ts_ms": 8, "in": 3, "out": 3, "hash_ids": ["x"]},
    )
    assert len(trace.scripts) == 1
    assert trace.problems == [
        Problem(2, "time is 4.0 ms, before the previous 5.0 ms"),
        Problem(3, "1 hash_ids, 1300 tokens have 2 full blocks"),
        Problem(4, "4 hash_ids, 1300 tokens have 2 full blocks"),
        Problem(5, "hash_ids[0] is 'x': Expected `int`, got `str`"),
    ]


@st.composite
def chats(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Requests of some conversations with a common first block, each in a block tree of its own."""
    prompts: dict[int, int] = {}
    requests = []
    for at in range(draw(st.integers(1, 8))):
        chat = draw(st.integers(0, 2))
        prompts[chat] = prompts.get(chat, 600) + draw(st.integers(512, 2000))
        full, partial = divmod(prompts[chat], 512)
        blocks = [0, *(1000 * chat + i for i in range(1, full))]
        blocks += [9000 + at] if partial else []
        requests.append(request(1000 * at, prompts[chat], blocks, output=draw(st.integers(0, 500))))
    return requests


@given(chats())
def test_conversations_are_found_again(
    tmp_path_factory: pytest.TempPathFactory, requests: list[dict[str, Any]]
) -> None:
    trace = read(tmp_path_factory.mktemp("trace"), *requests)
    chats_seen = {one["hash_ids"][1] // 1000 for one in requests}
    assert len(trace.scripts) == len(chats_seen)
    played = [step for one in trace.scripts for step in one.sessions[0].steps]
    assert sorted(step.prompt_tokens for step in played) == sorted(one["in"] for one in requests)


@pytest.mark.parametrize(("name", "hit"), [("conversation", 0.352), ("synthetic", 0.338)])
def test_reuse_in_real_traces_is_near_that_of_an_infinite_block_cache(
    shared_data: Path, name: str, hit: float
) -> None:
    """``hit`` counts the prompts' blocks seen before, in the part of the trace that is here.
    Sessions may lose some by the inference and gain the outputs, which that count cannot see."""
    trace = read_scripts(shared_data / f"mooncake_{name}.jsonl.gz", strict=True)
    assert trace_stats(trace)["ideal_reuse"] == pytest.approx(hit, abs=0.03)
