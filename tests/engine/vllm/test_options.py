"""How the plugin is set up."""

from __future__ import annotations

import pytest

from saga.config import ConfigError
from saga.engine.vllm.options import VARIABLES, PluginOptions, read_options


def test_defaults() -> None:
    assert read_options({}, {}) == PluginOptions()
    assert read_options({"SAGA_EVENTS_ENDPOINT": ""}, None) == PluginOptions()
    assert read_options({}, {"ascend": {"preset": "theirs"}}) == PluginOptions()


def test_the_command_line_goes_before_the_environment() -> None:
    environment = {
        "SAGA_ENGINE_PRESET": "vllm",
        "SAGA_ENGINE_TENANT_SHARE": "0.25",
        "SAGA_EVENTS_ENDPOINT": "tcp://*:5610",
    }
    assert read_options(environment, {"saga": {"preset": "saga_paper"}}) == PluginOptions(
        preset="saga_paper", tenant_share=0.25, events_endpoint="tcp://*:5610"
    )


def test_every_option_has_a_variable() -> None:
    assert list(VARIABLES) == list(PluginOptions.__slots__)


@pytest.mark.parametrize(
    ("additional", "named"),
    [
        ({"saga": {"tenant_share": 0}}, "saga.tenant_share"),
        ({"saga": {"tenant_share": 1.5}}, "saga.tenant_share"),
        ({"saga": {"tenant_share": "half"}}, "saga.tenant_share"),
        ({"saga": {"preset": 7}}, "saga.preset"),
        ({"saga": {"prest": "saga"}}, "saga.prest"),
        ({"saga": "saga"}, "saga"),
    ],
)
def test_what_is_wrong_is_named(additional: object, named: str) -> None:
    with pytest.raises(ConfigError, match=f"engine plugin: {named} = "):
        read_options({}, additional)
