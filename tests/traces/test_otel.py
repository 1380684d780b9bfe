import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.traces.reading import only, read_lines

from saga.traces import (
    Problem,
    SessionScript,
    StepScript,
    TraceFile,
    WorkflowScript,
    write_scripts,
)

SECOND = 1_000_000_000


def span(
    name: str, start: float, end: float, parent: str = "", trace: str = "t1", **told: str | int
) -> dict[str, Any]:
    """Times in seconds; of the attributes' names the beginning is left out."""
    attributes = [
        {
            "key": "gen_ai." + key.replace("__", "."),
            "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value},
        }
        for key, value in told.items()
    ]
    return {
        "traceId": trace,
        "spanId": name,
        "parentSpanId": parent,
        "name": name,
        "startTimeUnixNano": str(round(start * SECOND)),
        "endTimeUnixNano": str(round(end * SECOND)),
        "attributes": attributes,
    }


def chat(
    name: str, start: float, end: float, parent: str = "", tokens: int = 100, **told: Any
) -> dict[str, Any]:
    sizes = {"usage__input_tokens": tokens, "usage__output_tokens": 10}
    return span(name, start, end, parent, operation__name="chat", **sizes | told)


def agent(name: str, start: float, end: float, parent: str = "", **told: Any) -> dict[str, Any]:
    return span(name, start, end, parent, operation__name="invoke_agent", **told)


def tool(start: float, end: float, parent: str = "", name: str = "bash") -> dict[str, Any]:
    told = {"operation__name": "execute_tool", "tool__name": name}
    return span(f"tool{start}", start, end, parent, **told)


def export(*spans: dict[str, Any]) -> str:
    return json.dumps({"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": spans}]}]})


def read(folder: Path, *lines: str) -> TraceFile:
    return read_lines(folder / "spans.jsonl", lines)


def workflow(folder: Path, *spans: dict[str, Any]) -> WorkflowScript:
    return only(read(folder, export(*spans)))


def test_calls_and_tools_under_an_agent_are_a_session(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        export(chat("c1", 1, 2, "a"), tool(2.25, 2.75, "a"), chat("c2", 3, 4, "http", 150)),
        export(span("http", 3, 4, "a"), agent("a", 0, 5, agent__name="coder")),
    )
    (script,) = trace.scripts
    assert (trace.kind, script.id, script.agent_type) == ("otel", "t1", "coder")
    (session,) = script.sessions
    assert session.steps == (
        StepScript(
            kept_tokens=0,
            new_tokens=100,
            output_tokens=10,
            tool="bash",
            tool_us=500_000,
            gap_us=1_000_000,
        ),
        StepScript(kept_tokens=110, new_tokens=40, output_tokens=10),
    )
    assert trace.notes == ["1 spans of no GenAI operation, which tell only what they are part of"]
    assert trace.times == {"t1": (((1_000_000, 2_000_000), (3_000_000, 4_000_000)),)}


def test_an_agent_inside_a_tool_is_a_sub_agent(tmp_path: Path) -> None:
    script = workflow(
        tmp_path,
        agent("a", 0, 9, conversation__id="talk", agent__name="planner"),
        chat("c1", 0, 1, "a"),
        tool(1, 6, "a", "task"),
        agent("b", 2, 5, "tool1", conversation__id="talk", agent__name="searcher"),
        chat("c2", 2, 3, "b", conversation__id="talk"),
        chat("c3", 4, 5, "b", 130, conversation__id="talk"),
        chat("c4", 7, 8, "a", 200),
    )
    assert (script.id, script.agent_type) == ("talk", "planner")
    root, child = script.sessions
    assert (child.parent, child.spawn_step, child.delay_us) == (0, 0, 1_000_000)
    assert child.blocking
    assert len(child.steps) == 2
    # The tool was there for the sub-agent and for one second more; the harness took another.
    assert (root.steps[0].tool, root.steps[0].gap_us) == ("task", 2_000_000)


def test_a_conversation_over_several_traces_is_one_session(tmp_path: Path) -> None:
    turns = [
        [
            agent(f"a{n}", n, n + 1, trace=f"t{n}"),
            chat(
                f"c{n}", n, n + 0.5, f"a{n}", 100 + 50 * n, trace=f"t{n}", conversation__id="talk"
            ),
        ]
        for n in range(3)
    ]
    script = workflow(tmp_path, *(one for turn in turns for one in turn))
    assert script.id == "talk"
    assert [step.gap_us for step in script.sessions[0].steps] == [500_000, 500_000, 0]


def test_calls_without_an_agent_belong_to_their_conversation_or_trace(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        export(
            chat("c1", 0, 1, trace="t1"),
            chat("c2", 2, 3, trace="t1"),
            chat("c3", 0, 1, trace="t2", conversation__id="talk"),
            chat("c4", 0, 1, trace="t3", conversation__id="talk"),
        ),
    )
    assert [(script.id, script.num_steps) for script in trace.scripts] == [("t1", 2), ("talk", 2)]


def test_agents_beside_each_other_are_one_workflow(tmp_path: Path) -> None:
    crew = {"operation__name": "invoke_workflow", "workflow__name": "crew"}
    script = workflow(
        tmp_path,
        span("w", 0, 9, **crew),
        agent("a", 0, 2, "w"),
        chat("c1", 0, 1, "a"),
        agent("b", 2, 5, "w"),
        chat("c2", 3, 4, "b"),
    )
    assert (script.agent_type, len(script.sessions)) == ("crew", 2)
    assert script.sessions[1].delay_us == 2_000_000


def test_older_names_of_token_counts_are_known(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"usage__prompt_tokens": 70, "usage__completion_tokens": 5}
    script = workflow(tmp_path, span("c", 0, 1, operation__name="text_completion", **sizes))
    assert script.max_context_tokens == 75


def test_what_was_cached_is_kept_at_least(tmp_path: Path) -> None:
    told: dict[str, Any] = {"usage__cache_read.input_tokens": 48}
    script = workflow(tmp_path, chat("c1", 0, 1), chat("c2", 2, 3, tokens=80, **told))
    assert script.sessions[0].steps[1].kept_tokens == 48


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (chat("x", 5, 4), "endTimeUnixNano is 4000000000, before the start 5000000000"),
        (
            chat("x", 5, 6, tokens=0),
            "attribute gen_ai.usage.input_tokens is 0: Expected `int` >= 1",
        ),
        (
            span("x", 5, 6, operation__name="chat"),
            "attribute gen_ai.usage.input_tokens is missing: Expected `int` >= 1",
        ),
        (
            span("x", 5, 6, operation__name="execute_tool"),
            "attribute gen_ai.tool.name is missing",
        ),
        ({"traceId": "t1"}, "Object missing required field `spanId`"),
        (
            chat("x", 5, 6) | {"startTimeUnixNano": "soon"},
            "startTimeUnixNano is 'soon': Expected `int`, got `str`",
        ),
    ],
)
def test_a_bad_span_is_named_and_the_others_are_kept(
    tmp_path: Path, bad: dict[str, Any], reason: str
) -> None:
    trace = read(tmp_path, export(chat("c", 0, 1)), export(chat("d", 2, 3), bad))
    where = "resourceSpans[0].scopeSpans[0].spans[1]: "
    assert trace.problems == [Problem(2, where + reason)]
    assert trace.scripts[0].num_steps == 2


def test_other_signals_in_the_file_are_problems(tmp_path: Path) -> None:
    trace = read(tmp_path, export(chat("c", 0, 1)), '{"resourceLogs": []}')
    assert trace.problems == [Problem(2, "Object missing required field `resourceSpans`")]


def test_spans_in_a_circle_do_no_harm(tmp_path: Path) -> None:
    script = workflow(tmp_path, agent("a", 0, 1, "b"), agent("b", 0, 1, "a"), chat("c", 0, 1, "a"))
    assert script.num_steps == 1


def test_spans_are_written_as_the_conventions_say(tmp_path: Path) -> None:
    step = StepScript(kept_tokens=0, new_tokens=30, output_tokens=3, tool="bash")
    script = WorkflowScript(id="w", sessions=(SessionScript(steps=(step,)),), agent_type="coder")
    path = tmp_path / "s.jsonl"
    write_scripts(path, [script], to="otel", times={"w": (((5, 9),),)})
    (resource,) = json.loads(path.read_text())["resourceSpans"]
    above, call, used = resource["scopeSpans"][0]["spans"]
    assert [one["name"] for one in (above, call, used)] == [
        "invoke_agent coder",
        "chat",
        "execute_tool bash",
    ]
    assert len(above["traceId"]) == 32
    assert int(above["traceId"], 16)
    assert call["parentSpanId"] == used["parentSpanId"] == above["spanId"]
    assert "parentSpanId" not in above
    assert (call["startTimeUnixNano"], call["endTimeUnixNano"]) == ("5000", "9000")
    told = {one["key"]: one["value"] for one in call["attributes"]}
    assert told == {
        "gen_ai.operation.name": {"stringValue": "chat"},
        "gen_ai.provider.name": {"stringValue": "saga"},
        "gen_ai.conversation.id": {"stringValue": "w"},
        "gen_ai.usage.input_tokens": {"intValue": "30"},
        "gen_ai.usage.output_tokens": {"intValue": "3"},
    }


names = st.sampled_from(["a", "b", "c", ""])
spans = st.builds(
    lambda kind, name, parent, start, length, talk: kind(
        name or "d", start, start + length, parent, **({"conversation__id": talk} if talk else {})
    ),
    st.sampled_from([chat, agent]),
    names,
    names,
    st.integers(0, 20),
    st.integers(0, 9),
    st.sampled_from(["", "x", "y"]),
)


@given(st.lists(spans | st.builds(tool, st.integers(0, 9), st.integers(9, 20), names), max_size=9))
def test_any_spans_give_scripts_that_keep_the_laws(
    tmp_path_factory: pytest.TempPathFactory, told: list[dict[str, Any]]
) -> None:
    """Every call is played, or its session is a problem."""
    good = chat("good", 0, 1, trace="t9")
    trace = read(tmp_path_factory.mktemp("trace"), export(*told, good))
    calls = sum(one["name"] != "tool" and "input_tokens" in json.dumps(one) for one in told) + 1
    assert sum(script.num_steps for script in trace.scripts) == calls or trace.problems
