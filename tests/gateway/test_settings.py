"""Settings: which place wins, what is refused, and that every problem is told with its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from saga.gateway.settings import (
    ServerSettings,
    Settings,
    SettingsError,
    TenantSettings,
    json_schema,
    load_settings,
    redacted,
)

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a settings file."""

    def file(text: str) -> Path:
        path = tmp_path / "saga.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return file


def refused(
    path: Path | None = None,
    environ: dict[str, str] | None = None,
    flags: dict[str, Any] | None = None,
) -> tuple[str, ...]:
    """The problems, the file called ``saga.yaml`` wherever it is."""
    with pytest.raises(SettingsError) as caught:
        load_settings(path, environ or {}, flags or {})
    assert str(caught.value) == "\n".join(caught.value.problems)
    folder = f"{path.parent}/" if path else ""
    return tuple(problem.replace(folder, "", 1) for problem in caught.value.problems)


# ---- where values come from


def test_without_anything_the_defaults() -> None:
    settings = load_settings(None, {}, {})
    assert settings == Settings()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8400)
    assert settings.preset == "saga"
    assert settings.engines.urls == ()


def test_a_file(write: Write) -> None:
    settings = load_settings(
        write(
            "preset: saga+admission.kappa=1.2\n"
            "engines: {urls: ['http://a:8000/', 'https://b/engine']}\n"
            "timeouts: {total_s: null}\n"
            "identity: {mapping: {session: 'body:metadata.thread_id'}}\n"
            "tenants:\n  acme: {weight: 2, tokens_per_min: 1000}\n  no:\n  7: {weight: .5}\n"
        ),
        {},
        {},
    )
    assert settings.engines.urls == ("http://a:8000", "https://b/engine")
    assert settings.timeouts.total_s is None
    assert settings.identity.mapping == {"session": "body:metadata.thread_id"}
    assert settings.tenants == {
        "acme": TenantSettings(weight=2.0, tokens_per_min=1000),
        "no": TenantSettings(),
        "7": TenantSettings(weight=0.5),
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "server:\ntenants:\n", "--- {}\n"])
def test_a_file_that_says_nothing(write: Write, text: str) -> None:
    assert load_settings(write(text), {}, {}) == Settings()


def test_anchors_and_merged_keys(write: Write) -> None:
    path = write("tenants:\n  a: &a {weight: 2, max_concurrent: 3}\n  b: {<<: *a, weight: 4}\n")
    b = load_settings(path, {}, {}).tenants["b"]
    assert b == TenantSettings(weight=4.0, max_concurrent=3)
    path = write("tenants:\n  a: &a {weight: 2}\n  b:\n    <<: *a\n    weight: 0\n")
    assert refused(path) == ("saga.yaml:5: tenants.b.weight: is 0, must be greater than 0",)


def test_the_environment() -> None:
    settings = load_settings(
        None,
        {
            "SAGA_SERVER__PORT": "9000",
            "SAGA_PRESET": "vllm",
            "SAGA_ENGINES__URLS": "http://a:1, http://b:2",
            "SAGA_IDENTITY__EXTRA_HEADERS": "[x-thread, x-run]",
            "SAGA_IDENTITY__TRUST_TENANT_HEADER": "true",
            "SAGA_TIMEOUTS__TOTAL_S": "null",
            "SAGA_TENANTS__Acme__WEIGHT": "2.5",
            "SAGA_TENANTS": "{b: {weight: 3}}",
            "SAGA_QUEUE__MAX_WAIT_S": "",
        },
        {},
    )
    assert settings.server.port == 9000
    assert settings.preset == "vllm"
    assert settings.engines.urls == ("http://a:1", "http://b:2")
    assert settings.identity.extra_headers == ("x-thread", "x-run")
    assert settings.identity.trust_tenant_header
    assert settings.timeouts.total_s is None
    assert {name: tenant.weight for name, tenant in settings.tenants.items()} == {
        "Acme": 2.5,
        "b": 3.0,
    }
    assert settings.queue == Settings().queue


def test_variables_that_kubernetes_makes_for_a_service_called_saga_are_not_settings() -> None:
    environ = {
        "SAGA_PORT": "tcp://10.0.0.1:8400",
        "SAGA_SERVICE_HOST": "10.0.0.1",
        "SAGA_PORT_8400_TCP_ADDR": "10.0.0.1",
        "SAGA_SERVER_PORT": "tcp://10.0.0.2:1",
        "PATH": "/bin",
    }
    assert load_settings(None, environ, {}) == Settings()


PLACES: dict[str, st.SearchStrategy[Any]] = {
    "server.port": st.integers(0, 65535),
    "queue.max_wait_s": st.floats(0.001, 1e6),
    "identity.response_headers": st.booleans(),
    "preset": st.sampled_from(["saga", "vllm", "saga_paper"]),
    "engines.kv_capacity_tokens": st.integers(1, 10**9) | st.none(),
    "engines.urls": st.lists(st.sampled_from(["http://a:1", "http://b:2"]), max_size=2).map(tuple),
    "tenants.acme.weight": st.floats(0.001, 1e6),
    "tenants.b.max_concurrent": st.integers(1, 100) | st.none(),
}
VALUES = st.fixed_dictionaries({}, optional=PLACES)


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Dotted names as the tree that they are in a file."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *sections, key = name.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = list(value) if isinstance(value, tuple) else value
    return tree


def variables(values: dict[str, Any]) -> dict[str, str]:
    def name(dotted: str) -> str:
        parts = dotted.split(".")
        tenant = parts[0] == "tenants"
        return "SAGA_" + "__".join(
            p if tenant and i == 1 else p.upper() for i, p in enumerate(parts)
        )

    return {
        name(dotted): value if isinstance(value, str) else json.dumps(value)
        for dotted, value in values.items()
    }


def at(settings: Settings, name: str) -> Any:
    """The value under a dotted name."""
    value: Any = settings
    for part in name.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


@given(VALUES, VALUES, VALUES)
def test_flag_over_environment_over_file_over_default(
    tmp_path_factory: pytest.TempPathFactory,
    file: dict[str, Any],
    environ: dict[str, Any],
    flags: dict[str, Any],
) -> None:
    path = tmp_path_factory.mktemp("settings") / "saga.yaml"
    path.write_text(yaml.safe_dump(nested(file)), encoding="utf-8")
    settings = load_settings(path, variables(environ), flags)
    for name in PLACES:
        given_flag = flags.get(name) is not None  # None is a flag that was not given
        layers = ([flags] if given_flag else []) + [environ, file]
        tenant = name.split(".")[:2] if name.startswith("tenants.") else None
        if tenant and tenant[1] not in settings.tenants:
            assert not any(name in layer for layer in layers)
            continue
        default = at(Settings(tenants={"acme": TenantSettings(), "b": TenantSettings()}), name)
        assert at(settings, name) == next(
            (layer[name] for layer in layers if name in layer), default
        )


# ---- what is refused


def test_all_problems_at_once_each_with_its_place(write: Write) -> None:
    path = write(
        "server:\n  prot: 9\n  port: 99999\n  drain_s: -1\n"
        "tenants:\n  acme: {wieght: 2}\nrecord: 5\n"
    )
    environ = {"SAGA_RETRIES__MAX": "many", "SAGA_QUEUE": "[1"}
    assert refused(path, environ, {"queue.max_wait_s": 0, "quue.max_requests": 1}) == (
        "SAGA_QUEUE:1: not readable as YAML: expected ',' or ']', but got '<stream end>'",
        "saga.yaml:3: server.port: is 99999, must be less than or equal to 65535",
        "saga.yaml:4: server.drain_s: is -1, must be greater than 0",
        "saga.yaml:2: server.prot: unknown key 'prot'; did you mean 'port'? allowed: host, port, "
        "max_body_mib, max_header_kib, keepalive_s, body_timeout_s, drain_s",
        "flag queue.max_wait_s: queue.max_wait_s: is 0, must be greater than 0",
        "SAGA_RETRIES__MAX: retries.max: must be a valid integer, unable to parse string as an "
        "integer",
        "saga.yaml:6: tenants.acme.wieght: unknown key 'wieght'; did you mean 'weight'? allowed: "
        "weight, max_concurrent, requests_per_min, tokens_per_min",
        "saga.yaml:7: record: must be a mapping of keys to values",
        "flag quue.max_requests: quue: unknown key 'quue'; did you mean 'queue'? allowed: server, "
        "preset, engines, queue, timeouts, retries, sessions, identity, auth, tenants, record",
    )


def test_the_place_is_that_of_the_value_that_counts(write: Write) -> None:
    path = write("server: {port: 70000, drain_s: -1}\ntenants: {a: {weight: 0}}")
    environ = {"SAGA_SERVER__PORT": "80000", "SAGA_TENANTS": "{b: {weight: 0}}"}
    assert [problem.split(": ")[:2] for problem in refused(path, environ)] == [
        ["SAGA_SERVER__PORT", "server.port"],
        ["saga.yaml:1", "server.drain_s"],
        ["saga.yaml:2", "tenants.a.weight"],
        ["SAGA_TENANTS", "tenants.b.weight"],
    ]
    (problem,) = refused(path, {"SAGA_SERVER": "7"}, {"tenants.a.weight": 1})
    assert problem == "SAGA_SERVER: server: must be a mapping of keys to values"


URL = "must be http(s)://HOST[:PORT][/PATH]; a key goes into engines.api_key"
SOURCE = "must match pattern '^(header:[A-Za-z0-9_-]+|body:[A-Za-z0-9_.-]+)$'"
TENANT = "must match pattern '^[A-Za-z0-9._-]{1,64}$'"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("server: {port: -1}", "server.port: is -1, must be greater than or equal to 0"),
        ("server: {port: true}", "server.port: must be a number"),
        ("server: {host: ''}", "server.host: must have at least 1 character"),
        ("server: {host: [a]}", "server.host: must be a valid string"),
        (
            "queue: {max_requests: 0}",
            "queue.max_requests: is 0, must be greater than or equal to 1",
        ),
        ("queue: {max_wait_s: .inf}", "queue.max_wait_s: is inf, must be a finite number"),
        ("queue: {max_wait_s: .nan}", "queue.max_wait_s: is nan, must be greater than 0"),
        ("tenants: {a: {weight: .inf}}", "tenants.a.weight: is inf, must be a finite number"),
        ("tenants: {a: {weight: 0}}", "tenants.a.weight: is 0, must be greater than 0"),
        ("tenants: {'a b': {}}", f"tenants.a b: {TENANT}"),
        (f"tenants: {{{'a' * 65}: {{}}}}", f"tenants.{'a' * 65}: {TENANT}"),
        ("retries: {max: -1}", "retries.max: is -1, must be greater than or equal to 0"),
        (
            "retries: {budget_fraction: 2}",
            "retries.budget_fraction: is 2, must be less than or equal to 1",
        ),
        ("engines: {urls: ['a:8000']}", f"engines.urls.0: {URL}"),
        ("engines: {urls: ['http://u:pw@a']}", f"engines.urls.0: {URL}"),
        ("engines: {urls: ['http://:pw@a']}", f"engines.urls.0: {URL}"),
        ("engines: {urls: ['http://a:99999']}", f"engines.urls.0: {URL}"),
        ("engines: {urls: ['http://a/?q=1']}", f"engines.urls.0: {URL}"),
        ("engines: {urls: ['http://[::1']}", f"engines.urls.0: {URL}"),
        (
            "engines: {dns: engines}",
            "engines.dns: must match pattern '^(dns://)?[A-Za-z0-9._-]+:[0-9]{1,5}$'",
        ),
        (
            "engines: {api_key: 'env:NOT_THERE'}",
            "engines.api_key: environment variable NOT_THERE is not set",
        ),
        (
            "identity: {mapping: {sesion: 'header:x'}}",
            "identity.mapping.sesion: must be 'workflow', 'session' or 'parent'",
        ),
        ("identity: {mapping: {session: 'cookie:x'}}", f"identity.mapping.session: {SOURCE}"),
        ("preset: 7", "preset: is 7, must be a valid string"),
    ],
)
def test_a_value_that_is_refused(write: Write, line: str, problem: str) -> None:
    assert refused(write(line)) == (f"saga.yaml:1: {problem}",)


def test_a_preset_that_is_not_known(write: Write) -> None:
    (problem,) = refused(write("\npreset: sgaa\n"))
    assert problem.startswith(
        "saga.yaml:2: preset: preset 'sgaa' is not known; did you mean 'saga'? allowed: "
    )


def test_a_preset_whose_policy_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_policy.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    preset = "saga+routing=broken_policy:Mine"
    assert refused(None, {"SAGA_PRESET": preset}) == (
        f"SAGA_PRESET: preset: preset {preset}: RuntimeError: no licence",
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "a: [1\n",
            "saga.yaml:2: not readable as YAML: expected ',' or ']', but got '<stream end>'",
        ),
        (
            "server:\n  port: 1\n  port: 2\n",
            "saga.yaml:3: not readable as YAML: key 'port' is given twice",
        ),
        ("- 1\n", "saga.yaml:1: must be a mapping of keys to values"),
        ("server: 2024-13-45\n", "saga.yaml: not readable as YAML"),
        ("[" * 5_000, "saga.yaml: not readable as YAML"),
        ("preset: \x1f", "saga.yaml: not readable as YAML"),
        (
            "a: !!python/object:os.system x\n",
            "saga.yaml:1: not readable as YAML: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object:os.system'",
        ),
    ],
)
def test_a_file_that_cannot_be_read_as_settings(write: Write, text: str, problem: str) -> None:
    assert refused(write(text)) == (problem,)


def test_a_file_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    path = tmp_path / "saga.yaml"
    assert refused(path) == ("saga.yaml: cannot be read: No such file or directory",)
    path.write_bytes(b"preset: \xff")
    assert refused(path) == ("saga.yaml: cannot be read: not UTF-8",)


@given(st.text(alphabet=st.sampled_from("servport: \n{}[],-&*a!<0.'\"#|")) | st.text())
def test_any_text_gives_settings_or_problems(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("settings") / "saga.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        load_settings(path, {"SAGA_TENANTS": text.replace("\0", "")}, {})
    except SettingsError as error:
        assert error.problems


# ---- without keys, loopback only


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert load_settings(None, {}, {"server.host": host}).server.host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gateway", "localhost.example"])
def test_another_host_without_keys_is_refused_and_how_to_go_on_is_said(
    write: Write, host: str
) -> None:
    path = write(f"preset: saga\nserver:\n  host: '{host}'\n")
    assert refused(path) == (
        f"saga.yaml:3: server.host: other machines can reach {host} and there are no API keys: "
        "set auth.keys_file, or server.host to 127.0.0.1, or auth.allow_no_keys if something in "
        "front checks keys",
    )
    for name, value in {"auth.keys_file": "k.yaml", "auth.allow_no_keys": True}.items():
        assert load_settings(path, {}, {name: value}).server.host == host
    assert load_settings(path, {}, {"server.host": "127.0.0.1"}).server.host == "127.0.0.1"


def test_an_admin_key_alone_does_not_open_the_door(write: Write) -> None:
    path = write(f"server: {{host: 0.0.0.0}}\nauth: {{admin_key_hash: 'sha256:{'0' * 64}'}}\n")
    assert len(refused(path)) == 1


# ---- secrets


def test_a_key_from_the_environment() -> None:
    environ = {"SAGA_ENGINES__API_KEY": "env:ENGINE_KEY", "ENGINE_KEY": "very-secret"}
    key = load_settings(None, environ, {}).engines.api_key
    assert key is not None
    assert key.get_secret_value() == "very-secret"


def test_what_is_shown_hides_secrets() -> None:
    digest = f"sha256:{'ab' * 32}"
    settings = load_settings(
        None, {}, {"engines.api_key": "very-secret", "auth.admin_key_hash": digest}
    )
    shown = redacted(settings)
    assert shown["engines"]["api_key"] == "**********"
    assert shown["auth"]["admin_key_hash"] == "**********"
    assert shown["server"]["port"] == 8400
    text = json.dumps(shown) + repr(settings)
    assert "very-secret" not in text
    assert digest not in text


@pytest.mark.parametrize(
    "line",
    [
        "engines: {api_kye: very-secret}",
        "engines: very-secret",
        "engines: {api_key: [very-secret]}",
        "engines: {urls: ['very-secret']}",
        "engines: {max_num_seqs: very-secret}",
        "auth: {admin_key_hash: very-secret}",
        "auth: {keys_file: [very-secret]}",
        "engines: {api_key: 'very-secret}",
        "engines: {api_key: very-secret, x: ]",
        "engines: {api_key: !!int very-secret}",
    ],
)
def test_problems_do_not_repeat_what_may_be_a_secret(write: Write, line: str) -> None:
    assert "very-secret" not in "\n".join(refused(write(line)))


# ---- the models themselves


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    """A model and those within it."""
    kinds = [field.annotation for field in model.model_fields.values()]
    kinds = [part for kind in kinds for part in (kind, *get_args(kind))]
    inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [model, *(deep for kind in inner for deep in sections(kind))]


def test_the_schema_describes_every_value_and_allows_no_other() -> None:
    schema = json_schema()
    for name, model in {**schema["$defs"], "Settings": schema}.items():
        assert model["additionalProperties"] is False, name
        for key, value in model["properties"].items():
            assert "$ref" in value or value.get("description"), f"{name}.{key}"
    assert len(sections(Settings)) == len(schema["$defs"]) + 1


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().server.port = 1
    assert ServerSettings().port == 8400
