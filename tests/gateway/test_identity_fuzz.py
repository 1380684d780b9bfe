"""Whatever clients send: nothing but ``BodyError``, fit ids, and no tenant in another's answers."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.asking import numbered, packed

from saga.gateway.body import BodyError, Fields, decode, splice, without
from saga.gateway.identity import KINDS, Identifier, Identity
from saga.gateway.locations import MAX_ID, MAX_PRIORITY, MIN_PRIORITY
from saga.gateway.sources import FAMILIES

ids = st.sampled_from(["s", "t", "u", "s:t", "chain-0001", "", " ", "a\nb", "ü", "x" * 300])
names = sorted(
    {
        location.partition(":")[2].partition(".")[0]
        for family in FAMILIES
        for part in (family.session, family.workflow, family.parent, family.agent, family.final)
        for location in part
        if location.startswith("header:")
    }
    | {
        "baggage",
        "traceparent",
        "user-agent",
        "x-some-session-id",
        "x-stainless-retry-count",
        "x-codex-turn-metadata",
        "x-claude-code-prev-tool-durations",
        "x-claude-code-request-class",
        "x-saga-deadline-ms",
        "x-saga-priority",
    }
)
contexts = st.dictionaries(
    st.sampled_from(
        ["session_id", "workflow_id", "parent_id", "final", "deadline_ms", "priority", "id"]
    ),
    ids | st.booleans() | st.integers() | st.floats(),
    max_size=4,
)
header_values = (
    ids
    | contexts.map(packed)
    | contexts.map(json.dumps)
    | st.text(max_size=20)
    | st.sampled_from(
        [
            "session.id=b%FF;x,gen_ai.conversation.id=g",
            f"00-{'a' * 32}-{'b' * 16}-01",
            "codex_cli_rs/1",
            "opencode/1",
            "Bash=742;Read=9;=;%",
            "auxiliary",
            "9" * 400,
            "2.5",
        ]
    )
)
headers = st.dictionaries(st.sampled_from(names), header_values, max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | ids,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.sampled_from(["id", "session_id"]), inner)
    ),
    max_leaves=8,
)
messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant", "tool"]),
            "content": st.sampled_from(["a", "b"]),
        }
    ),
    max_size=4,
)
fields = st.dictionaries(
    st.sampled_from(Fields.__struct_fields__), json_values | contexts | ids, max_size=5
)
bodies = st.builds(lambda more, said: {**more, "messages": said}, fields, messages) | fields
apis = st.sampled_from(["chat", "responses", "messages"])


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_body_or_a_body_error(body: bytes) -> None:
    try:
        decoded = decode(body)
    except BodyError as error:
        assert error.message
        return
    assert isinstance(json.loads(bytes(decoded.body).decode("utf-8", "replace")), dict)
    assert decode(splice(body, {"saga": 1})).saga
    assert not decode(without(body, "saga")).saga


@given(headers, bodies, apis, st.integers(0, 10**15))
def test_any_request_has_a_fit_identity(
    sent: dict[str, str], body: dict[str, Any], api: str, now_us: int
) -> None:
    try:
        decoded = decode(json.dumps(body).encode())
    except BodyError:
        decoded = Fields()
    identity = Identifier(extra_headers=["x-run"], mapping={"workflow": "body:a.b"}).identify(
        "t", sent, decoded, api=api, now_us=now_us
    )
    for name in (identity.workflow, identity.session, identity.parent):
        assert name is None or (0 < len(name) <= MAX_ID and name.isprintable())
    assert identity.parent != identity.session
    assert identity.kind in KINDS
    assert all(duration_us >= 0 for _, duration_us in identity.tools)
    assert identity.deadline_us is None or identity.deadline_us >= 0
    assert identity.priority is None or MIN_PRIORITY <= identity.priority <= MAX_PRIORITY


requests = st.lists(
    st.tuples(
        st.booleans(),
        headers,
        bodies,
        apis,
        st.sampled_from([None, "resp_1", "resp_2"]),
        st.booleans(),
    ),
    max_size=12,
)


def tell(
    identifier: Identifier, tenant: str, sent: list[Any], step: int
) -> tuple[Identity, Identity] | None:
    """One request of a tenant, the answer to it, and perhaps the end of its session."""
    request_headers, body, api, answered, forgotten = sent
    try:
        decoded = decode(json.dumps(body).encode())
    except BodyError:
        return None
    first = identifier.identify(tenant, request_headers, decoded, api=api, now_us=step)
    if answered is not None:
        identifier.answered(tenant, first.session, answered)
    second = identifier.identify(tenant, request_headers, decoded, api=api, now_us=step)
    if forgotten:
        identifier.forget(tenant, first.session)
    return first, second


class Renamer:
    """Gives generated ids the numbers in which one tenant saw them first."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def __call__(self, identity: Identity) -> Identity:
        return identity._replace(
            workflow=self._rename(identity.workflow),
            session=self._rename(identity.session),
            parent=None if identity.parent is None else self._rename(identity.parent),
        )

    def _rename(self, name: str) -> str:
        if not name.startswith("generated-"):
            return name
        return self._seen.setdefault(name, f"first seen as {len(self._seen)}")


@given(requests)
def test_what_one_tenant_does_never_changes_anothers_answers(sent: list[Any]) -> None:
    shared = Identifier(new_id=numbered("generated-"))
    alone = Identifier(new_id=numbered("generated-"))
    in_company, in_peace = Renamer(), Renamer()
    for step, (other, *request) in enumerate(sent):
        if other:
            tell(shared, "b", request, step)
            continue
        beside = tell(shared, "a", request, step)
        by_itself = tell(alone, "a", request, step)
        assert (beside is None) == (by_itself is None)
        if beside is not None and by_itself is not None:
            assert [in_company(told) for told in beside] == [in_peace(told) for told in by_itself]
