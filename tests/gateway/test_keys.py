"""Keys: whose they are, what files may hold, and that no key is ever repeated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.gateway.keys import KeyRing, KeysError, checked_hash, credentials, generate_key, hash_key

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of keys."""

    def file(text: str) -> Path:
        path = tmp_path / "keys.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return file


def refused(path: Path, admin_hash: str | None = None) -> str:
    with pytest.raises(KeysError) as caught:
        KeyRing.load(path, admin_hash)
    assert caught.value.path == path
    return str(caught.value).replace(f"{path.parent}/", "")


def test_a_generated_key() -> None:
    key, digest = generate_key()
    assert key.startswith("saga-")
    assert len(key) == 5 + 43
    assert digest == f"sha256:{hashlib.sha256(key.encode()).hexdigest()}" == hash_key(key)
    assert checked_hash(digest) == digest
    assert generate_key() != (key, digest)


def test_whose_key_it_is(write: Write) -> None:
    (acme, acme_hash), (spare, spare_hash) = generate_key(), generate_key()
    (admin, admin_hash), (root, root_hash) = generate_key(), generate_key()
    ring = KeyRing.load(
        write(
            f"keys:\n- {{tenant: acme, hash: '{acme_hash}', name: laptop}}\n"
            f"- {{tenant: acme, hash: '{spare_hash}'}}\n"
            f"admin:\n- {{hash: '{admin_hash}', name: ops}}\n"
        ),
        root_hash,
    )
    assert [ring.tenant_of(key) for key in (acme, spare)] == ["acme", "acme"]
    assert not ring.is_admin(acme)
    assert all(ring.is_admin(key) and ring.tenant_of(key) is None for key in (admin, root))
    for stranger in ("", acme_hash, acme[:-1], acme + "x", generate_key()[0]):
        assert ring.tenant_of(stranger) is None
        assert not ring.is_admin(stranger)
    assert acme_hash not in repr(ring)


def test_a_ring_without_keys_lets_nobody_in(write: Write) -> None:
    ring = KeyRing.load(write(""))
    assert ring.tenant_of("") is None
    assert not ring.is_admin("")


@given(st.text(alphabet=st.characters()))
def test_any_text_may_be_tried(text: str) -> None:
    assert KeyRing({}, frozenset()).tenant_of(text) is None


# ---- what a file may not hold

DIGEST = f"sha256:{'0' * 64}"
MALFORMED = "must be 'sha256:' and 64 lower-case hexadecimal digits, the hash of a generated key"


@pytest.mark.parametrize("field", ["hash", "key"])
@pytest.mark.parametrize("entry", ["keys:\n- {{tenant: a, {}}}", "keys: []\nadmin: [{{{}}}]"])
def test_a_key_in_plain_text_is_refused_with_the_hash_to_put_there(
    write: Write, field: str, entry: str
) -> None:
    key, digest = generate_key()
    text = refused(write(entry.format(f"{field}: {key}")))
    assert text.startswith("keys.yaml:2: ")
    assert "put its hash there instead: " in text
    assert text.endswith(digest)
    assert key not in text


@pytest.mark.parametrize("word", ["hunter2", "sk-hunter2", f"sha256:{'A' * 64}", "md5:00"])
def test_other_words_are_refused_without_repeating_or_hashing_them(write: Write, word: str) -> None:
    text = refused(write(f"keys:\n- tenant: a\n  hash: '{word}'\n"))
    assert text == f"keys.yaml:3: keys.0.hash: {MALFORMED}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "keys: [{tenant: 'a b', hash: '" + DIGEST + "'}]",
            "keys.yaml:1: keys.0.tenant: must match pattern '^[A-Za-z0-9._-]{1,64}$'",
        ),
        ("keys:\n- {hash: '" + DIGEST + "'}", "keys.yaml:2: keys.0.tenant: Field required"),
        (
            "kyes: []",
            "keys.yaml:1: kyes: unknown key 'kyes'; did you mean 'keys'? allowed: keys, admin",
        ),
        (
            "keys:\n- {tennant: a, tenant: b, hash: '" + DIGEST + "'}",
            "keys.yaml:2: keys.0.tennant: unknown key 'tennant'; did you mean 'tenant'? allowed: "
            "hash, name, tenant",
        ),
        ("keys: [7]", "keys.yaml:1: keys.0: must be a mapping of keys to values"),
        ("- 1", "keys.yaml:1: must be a mapping of keys to values"),
        (
            "keys: [{tenant: a, hash: &h '" + DIGEST + "'}, {tenant: b, hash: *h}]",
            f"keys.yaml:1: hash {DIGEST} is given twice; a key stands for one tenant",
        ),
        (
            "keys: [{tenant: a, hash: '" + DIGEST + "'}]\nadmin: [{hash: '" + DIGEST + "'}]",
            f"keys.yaml:1: hash {DIGEST} is given twice; a key stands for one tenant",
        ),
    ],
)
def test_a_file_that_is_refused(write: Write, text: str, problem: str) -> None:
    assert refused(write(text)) == problem


def test_all_problems_of_a_file_are_told(write: Write) -> None:
    text = refused(write("keys:\n- {tenant: a, hash: b}\n- {tenant: a, hash: c}\nadmin: 7\n"))
    assert [line.split(": ")[:2] for line in text.splitlines()] == [
        ["keys.yaml:2", "keys.0.hash"],
        ["keys.yaml:3", "keys.1.hash"],
        ["keys.yaml:4", "admin"],
    ]


def test_an_admin_key_of_the_settings_may_not_be_a_tenants(write: Write) -> None:
    path = write(f"keys: [{{tenant: a, hash: '{DIGEST}'}}]")
    assert refused(path, DIGEST) == (
        f"keys.yaml: hash {DIGEST} is an admin's and a tenant's; make two keys"
    )


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    problem = "keys.yaml: cannot be read: No such file or directory"
    assert refused(tmp_path / "keys.yaml") == problem


# ---- credentials of a request


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({}, None),
        ({"authorization": "Bearer k"}, "k"),
        ({"authorization": "bearer   k "}, "k"),
        ({"x-api-key": " k "}, "k"),
        ({"x-api-key": ""}, None),
        ({"authorization": "Bearer"}, None),
        ({"authorization": "k"}, None),
        ({"authorization": "Bearer k", "x-api-key": "other"}, "k"),
        ({"authorization": "Basic dTpw", "x-api-key": "k"}, None),
        ({"authorization": "Bearer ", "x-api-key": "k"}, None),
        ({"authorization": "", "x-api-key": "k"}, None),
    ],
)
def test_a_request_has_one_credential(headers: dict[str, str], key: str | None) -> None:
    assert credentials(headers) == key
