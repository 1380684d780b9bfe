"""Bodies: what is read, what is refused, and that editing one changes nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.body import (
    MAX_COMMAS,
    MAX_OBJECT,
    BodyError,
    decode,
    members,
    scalar,
    splice,
    without,
)

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    scalars | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(st.text(max_size=8), values, max_size=6)
layouts: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}]
)


def test_reads_what_routing_needs_and_leaves_the_rest_undecoded() -> None:
    fields = decode(
        b'{"model": "m", "stream": true, "max_tokens": 7, "messages": [{"role": "user"}, 2]}'
    )
    assert (fields.model, fields.stream, fields.output_limit) == ("m", True, 7)
    assert [bytes(item) for item in fields.messages] == [b'{"role": "user"}', b"2"]
    assert not fields.saga and not fields.input


@pytest.mark.parametrize("messages", [b"null", b"7", b'"hello"', b'{"role": "user"}', b"[]"])
def test_messages_that_are_no_list_are_the_engines_to_judge(messages: bytes) -> None:
    body = b'{"messages": %s, "model": "m"}' % messages
    fields = decode(body)
    assert (fields.messages, fields.model, bytes(fields.body)) == ([], "m", body)


def test_nothing_but_the_model_is_needed_nor_even_that() -> None:
    fields = decode(b" {} ")
    assert (fields.model, fields.stream, fields.output_limit) == (None, None, None)
    assert decode(b'{"model": null, "stream": null}').model is None


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"", None, "not valid JSON"),
        (b"{", None, "not valid JSON"),
        (b'{"a": 1} x', None, "not valid JSON"),
        (b'{"a": 1,}', None, "not valid JSON"),
        (b"\xef\xbb\xbf{}", None, "not valid JSON"),
        (b'{"model": "\xff"}', None, "not valid JSON: UnicodeDecodeError"),
        (b'{"a":' * 100_000, None, "not valid JSON: RecursionError"),
        (b"[]", None, "must be a JSON object"),
        (b'"text"', None, "must be a JSON object"),
        (b"null", None, "must be a JSON object"),
        (b'{"stream": "yes"}', "stream", "stream: Expected `bool | null`, got `str`"),
        (b'{"stream": 1}', "stream", "stream"),
        (b'{"model": 7}', "model", "model: Expected `str | null`, got `int`"),
        (b'{"model": ["m"]}', "model", "model"),
    ],
)
def test_what_cannot_be_routed_is_refused_in_words(
    body: bytes, param: str | None, words: str
) -> None:
    with pytest.raises(BodyError) as caught:
        decode(body)
    assert caught.value.param == param
    assert words in caught.value.message


@pytest.mark.parametrize("field", ["metadata", "session_id", "saga", "vllm_xargs", "messages"])
@pytest.mark.parametrize("value", [b"7", b"null", b"[]", b'"x"', b"true", b'{"a": [1]}'])
def test_wrong_types_of_what_only_identity_or_engines_read_are_no_errors(
    field: str, value: bytes
) -> None:
    assert decode(b'{"model": "m", "%s": %s}' % (field.encode(), value)).model == "m"


def test_errors_never_quote_the_body() -> None:
    for body in (b'{"model": "secret\xff"}', b'{"stream": "secret"}', b'{"secret'):
        with pytest.raises(BodyError) as caught:
            decode(body)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (rb'{"model": "cut \ud83d"}', "cut �"),
        (rb'{"model": "cut \ude00 off"}', "cut � off"),
        (rb'{"model": "\ud83d\ude00 \uD83D"}', "\N{GRINNING FACE} �"),
        (rb'{"model": "\\ud83d"}', r"\ud83d"),
        (rb'{"model": "\\\ud83d"}', "\\�"),
        (rb'{"model": "m", "messages": ["\ud83d"]}', "m"),
    ],
)
def test_characters_cut_in_half_are_no_reason_to_refuse(body: bytes, model: str) -> None:
    assert decode(body).model == model


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6, "max_tokens": 5}, 6),
        ({"max_output_tokens": 7}, 7),
        ({"max_tokens": 0}, None),
        ({"max_tokens": -1}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": "5"}, None),
        ({"max_tokens": None}, None),
    ],
)
def test_output_limit(fields: dict[str, Any], limit: int | None) -> None:
    assert decode(json.dumps(fields).encode()).output_limit == limit


def test_members_of_objects_also_written_as_text() -> None:
    plain = decode(b'{"metadata": {"a": {"b": 1}}}').metadata
    quoted = decode(b'{"metadata": "{\\"a\\": {\\"b\\": 1}}"}').metadata
    for part in (plain, quoted):
        assert scalar(members(members(part)["a"])["b"]) == 1
    for body in (b'{"metadata": 7}', b'{"metadata": [1]}', b'{"metadata": "text"}', b"{}"):
        assert members(decode(body).metadata) == {}


def test_what_is_too_large_to_be_taken_apart_counts_as_absent() -> None:
    large = decode(b'{"metadata": {"a": "%s"}}' % (b"x" * MAX_OBJECT))
    assert members(large.metadata) == {}
    many = b'{"model": "m", "messages": [%s]}' % b",".join([b"1"] * (MAX_COMMAS + 2))
    assert decode(many).messages == []
    assert decode(many).model == "m"
    with pytest.raises(BodyError, match="too many parts"):
        without(many, "saga")


@given(body=objects, additions=objects, layout=layouts, blank=st.sampled_from(["", " ", "\n\t"]))
def test_splice_adds_fields_and_keeps_every_byte(
    body: dict[str, Any], additions: dict[str, Any], layout: dict[str, Any], blank: str
) -> None:
    additions = {name: value for name, value in additions.items() if name not in body}
    text = blank + json.dumps(body, **layout)
    came = text.encode("utf-8", "surrogatepass")
    spliced = splice(came, additions)
    assert json.loads(spliced) == {**additions, **body}
    assert spliced.startswith(came[: came.index(b"{") + 1])
    assert spliced.endswith(came[came.index(b"{") + 1 :])


@pytest.mark.parametrize("body", [b"", b"[]", b"7", b"x{}"])
def test_splice_needs_an_object(body: bytes) -> None:
    with pytest.raises(BodyError):
        splice(body, {"a": 1})


@given(body=objects, layout=layouts)
def test_without_takes_out_one_field_and_keeps_the_bytes_of_the_others(
    body: dict[str, Any], layout: dict[str, Any]
) -> None:
    text = json.dumps({**body, "saga": {"x": 1}}, **layout).encode()
    stripped = without(text, "saga")
    assert json.loads(stripped) == {k: v for k, v in body.items() if k != "saga"}
    assert without(stripped, "saga") == stripped


def test_without_keeps_numbers_and_blanks_as_they_were_written() -> None:
    assert without(b'{"a": 1.50e3, "saga": {}, "b": {"c" :2}}', "saga") == (
        b'{"a":1.50e3,"b":{"c" :2}}'
    )
    assert without(b'{ "a": 1 }', "saga") == b'{ "a": 1 }'


def test_without_takes_out_every_one_of_that_name() -> None:
    assert without(b'{"saga": 1, "a": 2, "saga": 3}', "saga") == b'{"a":2}'
