import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.traces import Problem, TraceError, check_script, read_scripts

TASK = {"task": "a", "steps": [{"prompt_tokens": 9, "output_tokens": 2}]}
RUN = """\
{"format":"saga.trace.v1"}
{"event":"WorkflowSubmitted","at":5,"workflow":"w","index":0,"tenant":"t","agent_type":"a"}
{"event":"SessionOpened","at":5,"workflow":"w","index":1,"session":"s","parent":null}
{"event":"RequestArrived","at":5,"workflow":"w","index":2,"session":"s","request":"r",\
"prompt_tokens":3}
{"event":"RequestFinished","at":9,"workflow":"w","index":3,"request":"r","output_tokens":4,\
"tool":null}
{"event":"WorkflowDone","at":9,"workflow":"w","index":4}"""
ONE_OF_EACH = {
    "agent": json.dumps(TASK),
    "weka": json.dumps({**TASK, "hash_scope": "local"}),
    "mooncake": '{"ts_ms": 0, "in": 600, "out": 2, "hash_ids": [1, 2]}',
    "azure": '{"t": 0.5, "in": 3, "out": 4}',
    "saga": '{"format": "saga.scripts.v1"}\n{"id": "a", "sessions": [{"steps": '
    '[{"kept_tokens": 0, "new_tokens": 3, "output_tokens": 4}]}]}',
    "run": RUN,
    "dynamo": '{"schema": "dynamo.agent.trace.v1", "event_type": "request_end", '
    '"event_time_unix_ms": 5, "request": {"request_id": "r", "input_tokens": 3, '
    '"output_tokens": 4}}',
    "agentic-mooncake": '{"request_id": "r", "input_length": 3, "output_length": 4, '
    '"hash_ids": [1]}',
    "aiperf-dag": '{"session_id": "s", "turns": [{"messages": [{"role": "user", '
    '"content": "abcdefgh"}], "max_tokens": 4}]}',
    "mini-swe-agent": '{"info": {}, "messages": [{"role": "user", "content": "go"}, '
    '{"role": "assistant", "content": "done"}]}',
    "otel": '{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "t", "spanId": "s", '
    '"startTimeUnixNano": "1", "endTimeUnixNano": "2", "attributes": [{"key": '
    '"gen_ai.operation.name", "value": {"stringValue": "chat"}}, {"key": '
    '"gen_ai.usage.input_tokens", "value": {"intValue": "3"}}, {"key": '
    '"gen_ai.usage.output_tokens", "value": {"intValue": "4"}}]}]}]}]}',
}


def write(folder: Path, *lines: str | bytes, name: str = "trace.jsonl") -> Path:
    path = folder / name
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return path


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_the_format_is_seen_from_the_content(tmp_path: Path, kind: str) -> None:
    trace = read_scripts(write(tmp_path, ONE_OF_EACH[kind], name="trace.dat"), strict=True)
    assert trace.kind == kind
    assert len(trace.scripts) == 1
    check_script(trace.scripts[0])


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_gzip_a_byte_order_mark_and_windows_line_ends_change_nothing(
    tmp_path: Path, kind: str
) -> None:
    plain = read_scripts(write(tmp_path, ONE_OF_EACH[kind], name="trace.jsonl"))
    text = b"\xef\xbb\xbf\r\n" + ONE_OF_EACH[kind].replace("\n", "\r\n").encode() + b"\r\n\r\n"
    packed = read_scripts(write(tmp_path, gzip.compress(text), name="trace.gz"))
    assert [one.sessions for one in packed.scripts] == [one.sessions for one in plain.scripts]


def test_a_broken_line_does_not_lose_the_others(tmp_path: Path) -> None:
    lines = [
        "{not json",
        *(json.dumps({**TASK, "task": str(i)}) for i in range(3)),
        '{"task": "x"}',
    ]
    path = write(tmp_path, *lines)
    trace = read_scripts(path)
    assert [script.id for script in trace.scripts] == ["0", "1", "2"]
    assert [problem.line for problem in trace.problems] == [1, 5]
    assert trace.problems[1] == Problem(5, "Object missing required field `steps`")


def test_strict_raises_the_first_problem_with_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(TASK), "", '{"task": 5}')
    with pytest.raises(TraceError) as raised:
        read_scripts(path, strict=True)
    assert str(raised.value) == f"{path}:3: task is 5: Expected `str`, got `int`"


def test_the_second_task_of_a_name_is_a_problem(tmp_path: Path) -> None:
    trace = read_scripts(write(tmp_path, json.dumps(TASK), json.dumps(TASK)))
    assert len(trace.scripts) == 1
    assert trace.problems == [Problem(2, "task 'a' was in line 1 already")]


def test_of_a_name_that_comes_again_the_first_times_count(tmp_path: Path) -> None:
    later = RUN.replace('"at":5', '"at":50').replace('"at":9', '"at":90')
    trace = read_scripts(write(tmp_path, RUN, later))
    assert len(trace.scripts) == len(trace.problems) == 1
    assert trace.times == {"w": (((5, 9),),)}


@pytest.mark.parametrize("content", [b"", b"\n\n", gzip.compress(b"")])
def test_an_empty_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content)
    with pytest.raises(TraceError, match=f"^{path}: no known trace format"):
        read_scripts(path)


def test_no_usable_workflow_is_an_error_with_the_first_reason(tmp_path: Path) -> None:
    path = write(tmp_path, '{"task": "a", "steps": []}')
    with pytest.raises(TraceError) as raised:
        read_scripts(path)
    reason = "line 1: steps: Expected `array` of length >= 1"
    assert str(raised.value) == f"{path}: no usable workflow: {reason}"


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nothing\.jsonl: No such file"):
        read_scripts(tmp_path / "nothing.jsonl")
    with pytest.raises(TraceError, match="Is a directory"):
        read_scripts(tmp_path)


def test_of_a_cut_off_gzip_file_the_whole_lines_remain(tmp_path: Path) -> None:
    tasks = [
        json.dumps({**TASK, "task": f"{i:x}", "noise": i * 2654435761 % 2**32}) for i in range(9000)
    ]
    packed = gzip.compress("\n".join(tasks).encode())
    trace = read_scripts(write(tmp_path, packed[: len(packed) // 2]))
    assert 3000 < len(trace.scripts) < 6000
    assert [script.id for script in trace.scripts] == [f"{i:x}" for i in range(len(trace.scripts))]
    (problem,) = trace.problems
    assert problem.line == len(trace.scripts) + 1
    assert problem.reason.startswith("the gzip data is damaged from here on: ")


@pytest.mark.parametrize("kind", ["agent", "dynamo", "otel", "mini-swe-agent"])
def test_one_document_over_many_lines_is_one_record(tmp_path: Path, kind: str) -> None:
    pretty = json.dumps(json.loads(ONE_OF_EACH[kind]), indent=2)
    trace = read_scripts(write(tmp_path, pretty), strict=True)
    plain = read_scripts(write(tmp_path, ONE_OF_EACH[kind]), strict=True)
    assert trace.scripts == plain.scripts


def test_lines_after_what_looks_like_a_document_are_read(tmp_path: Path) -> None:
    trace = read_scripts(write(tmp_path, '{"task": {', json.dumps(TASK)))
    assert len(trace.scripts) == 1
    assert [problem.line for problem in trace.problems] == [1]


def test_what_is_read_is_not_held(tmp_path: Path) -> None:
    """Of a file of 20 MB little is needed at any time."""
    request = json.loads(ONE_OF_EACH["dynamo"])
    hashes = [*range(10**18, 10**18 + 5000)]
    replay = {"trace_block_size": 1, "input_length": 5000, "input_sequence_hashes": hashes}
    path = tmp_path / "trace.jsonl"
    with path.open("w") as file:
        for number in range(200):
            request["request"] |= {"request_id": f"r{number}", "replay": replay}
            file.write(json.dumps(request | {"agent_context": {"session_id": "s"}}) + "\n")
    tracemalloc.start()
    try:
        trace = read_scripts(path, strict=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert trace.scripts[0].num_steps == 200
    assert path.stat().st_size > 20e6
    assert peak < 2e6


@given(st.integers(2, 200), st.binary(min_size=1, max_size=3))
def test_damaged_gzip_never_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes
) -> None:
    packed = gzip.compress("\n".join(ONE_OF_EACH.values()).encode())
    damaged = packed[:at] + junk + packed[at + len(junk) :]
    read_or_refuse(tmp_path_factory.mktemp("trace"), damaged)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
agent_fields = st.sampled_from(
    [
        "task",
        "steps",
        "prompt_tokens",
        "output_tokens",
        "kept_tokens",
        "start",
        "subagents",
        "hash_ids",
        "hash_scope",
        "ts_ms",
        "timestamp",
        "in",
        "out",
        "t",
        "format",
        "sessions",
        "id",
    ]
)

other_fields = st.sampled_from(
    [
        "hash_ids",
        "ts_ms",
        "timestamp",
        "in",
        "out",
        "t",
        "format",
        "sessions",
        "id",
        "hash_scope",
        "schema",
        "event",
        "event_type",
        "request",
        "request_id",
        "input_length",
        "output_length",
        "wait_for",
        "session_id",
        "turns",
        "messages",
        "info",
        "resourceSpans",
    ]
)


@given(
    st.lists(
        st.binary(max_size=8)
        | st.dictionaries(agent_fields | other_fields, json_values).map(
            lambda it: json.dumps(it).encode()
        )
        | st.sampled_from([text.encode() for text in ONE_OF_EACH.values()]),
        max_size=5,
    )
)
def test_whatever_the_file_holds_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    read_or_refuse(tmp_path_factory.mktemp("trace"), b"\n".join(lines))


def read_or_refuse(folder: Path, content: bytes) -> None:
    """Either scripts that keep the laws, or a TraceError that names the file."""
    path = write(folder, content)
    try:
        trace = read_scripts(path)
    except TraceError as error:
        assert str(path) in str(error)
    else:
        assert trace.scripts
        for script in trace.scripts:
            check_script(script)


@pytest.mark.parametrize(
    "number", ["-1", "1e999", "NaN", "Infinity", '"9"', "null", "9.5", "99999999999999999999"]
)
def test_numbers_that_are_no_sizes_are_problems(tmp_path: Path, number: str) -> None:
    bad = f'{{"task": "b", "steps": [{{"prompt_tokens": {number}, "output_tokens": 2}}]}}'
    trace = read_scripts(write(tmp_path, json.dumps(TASK), bad))
    assert [problem.line for problem in trace.problems] == [2]


def test_a_problem_shows_the_field_the_value_and_what_is_allowed(tmp_path: Path) -> None:
    steps = [{"prompt_tokens": 9, "output_tokens": 1}, {"prompt_tokens": -4, "output_tokens": 1}]
    bad = json.dumps({"task": "b", "steps": steps})
    trace = read_scripts(write(tmp_path, json.dumps(TASK), bad))
    assert trace.problems == [
        Problem(2, "steps[1].prompt_tokens is -4: Expected `int` >= 1"),
    ]


def test_arrivals_count_from_the_first_one(tmp_path: Path) -> None:
    times = [1_760_000_007.5, 1_760_000_000.25, None]
    lines = [json.dumps({**TASK, "task": str(t), "t0_epoch": t}) for t in times]
    trace = read_scripts(write(tmp_path, *lines))
    assert [script.submitted_us for script in trace.scripts] == [7_250_000, 0, None]
