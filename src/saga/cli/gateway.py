"""``saga serve``, ``engine``, ``config`` and ``key``."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from saga.cli.common import Commands

FLAGS = {
    "host": "server.host",
    "port": "server.port",
    "preset": "preset",
    "engine": "engines.urls",
    "keys": "auth.keys_file",
    "record": "record.file",
}
"""Options of ``saga serve`` and the settings that they set."""


def add(commands: Commands) -> None:
    serve = commands.add_parser("serve", help="the gateway, in front of real engines")
    serve.add_argument("--config", type=Path, metavar="FILE", help="settings, as YAML")
    serve.add_argument("--host", metavar="H", help="default 127.0.0.1")
    serve.add_argument("--port", type=int, metavar="P", help="default 8400")
    serve.add_argument("--engine", action="append", metavar="URL", help="may be given many times")
    serve.add_argument("--preset", metavar="NAME", help="default saga")
    serve.add_argument("--keys", type=Path, metavar="FILE", help="API keys, hashed")
    serve.add_argument("--record", type=Path, metavar="FILE", help="write the trace of the run")
    serve.set_defaults(call=_serve)
    _add_engine(commands)
    config = commands.add_parser("config", help="look at settings")
    actions = config.add_subparsers(required=True, metavar="ACTION")
    check = actions.add_parser("check", help="is a file of settings valid?")
    check.add_argument("file", type=Path)
    check.set_defaults(call=_check)
    schema = actions.add_parser("schema", help="JSON Schema of the file")
    schema.set_defaults(call=_schema)
    key = commands.add_parser("key", help="make an API key and its hash for the file of keys")
    key.set_defaults(call=_key)


def _add_engine(commands: Commands) -> None:
    engine = commands.add_parser("engine", help="an emulated engine: vLLM's surface, no GPU")
    engine.add_argument("--host", default="127.0.0.1", metavar="H")
    engine.add_argument("--port", type=int, required=True, metavar="P")
    engine.add_argument("--model", default="saga-emulated", metavar="NAME")
    engine.add_argument(
        "--hardware", default="16xh100-8b", metavar="C", help="a cluster of `saga clusters`"
    )
    engine.add_argument("--kv-tokens", type=int, metavar="N", help="size of the KV memory")
    engine.add_argument("--speed", type=float, default=1.0, metavar="X", help="times real time")
    engine.add_argument(
        "--kv-events", metavar="E", help="publish KV events there, as in tcp://127.0.0.1:5557"
    )
    engine.set_defaults(call=_engine)


def _serve(arguments: argparse.Namespace) -> int:
    from saga.gateway.server import serve

    flags = {setting: getattr(arguments, option) for option, setting in FLAGS.items()}
    serve(arguments.config, os.environ, flags)
    return 0


def _engine(arguments: argparse.Namespace) -> int:
    from saga.engine.options import EngineOptions
    from saga.engine.server import serve

    serve(
        EngineOptions(
            host=arguments.host,
            port=arguments.port,
            model=arguments.model,
            gpu_model=arguments.hardware,
            kv_tokens=arguments.kv_tokens,
            speed=arguments.speed,
            kv_events=arguments.kv_events,
        )
    )
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from saga.gateway.reload import load

    load(arguments.file, os.environ, {})
    print(f"{arguments.file}: valid")
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from saga.gateway.settings import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0


def _key(arguments: argparse.Namespace) -> int:
    from saga.gateway.keys import generate_key

    key, hashed = generate_key()
    print(f"key (shown once): {key}\nfor the file:     {{tenant: NAME, hash: {hashed!r}}}")
    return 0
