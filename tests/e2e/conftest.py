"""Two vLLM servers for all of these tests; without vLLM there are no such tests (``make e2e``)."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.model import make_model
from tests.e2e.processes import Server, Vllm, gateway, revive, two_vllms

collect_ignore_glob = [] if find_spec("vllm") else ["*"]

Gateway = Callable[..., AbstractContextManager[Server]]


def quiet_import(name: str) -> Any:
    """A module that imports vLLM: what vLLM's libraries warn about is no failure of these tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(name)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Vllm]]:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no server outlives the tests
    folder = tmp_path_factory.mktemp("vllm")
    with two_vllms(make_model(folder / "model"), folder) as both:
        yield both


@pytest.fixture
def engines(servers: list[Vllm]) -> list[Vllm]:
    """Both of them, up, whatever the test before did to them."""
    revive(servers)
    return servers


@pytest.fixture
def serve(engines: list[Vllm], tmp_path: Path) -> Gateway:
    """Starts ``saga serve`` in front of both, or of the engines that it is given."""
    return partial(gateway, log=tmp_path / "gateway.log", engines=engines)
