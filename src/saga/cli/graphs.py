"""``saga graph ...``."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from saga import wire
from saga.cli.common import Commands, prepared, warn
from saga.cli.doctor import api_key
from saga.report.graphs import dot, mermaid
from saga.report.learned import printable, table

DIAGRAMS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {".mmd": mermaid, ".dot": dot}
MAX_ANSWER_BYTES = 16 << 20


def add(commands: Commands) -> None:
    graph = commands.add_parser("graph", help="agent execution graphs")
    actions = graph.add_subparsers(required=True, metavar="ACTION")
    show = actions.add_parser(
        "show", help="what agents of a trace, or of a running gateway, were seen to do"
    )
    show.add_argument("source", metavar="FILE|URL", help="a trace, or as in http://saga:8080")
    show.add_argument("--agent-type", metavar="NAME", help="only this one")
    show.add_argument("--api-key", metavar="KEY", help="or env:NAME, to take it from a variable")
    show.add_argument("--png", type=Path, metavar="FILE", help="draw the graph (of the first type)")
    show.add_argument("--diagram", type=Path, metavar="FILE", help="FILE.mmd: Mermaid, .dot: DOT")
    show.add_argument("--json", type=Path, metavar="FILE", help="write it as saga.graph.v1")
    show.set_defaults(call=_show)


def _show(arguments: argparse.Namespace) -> int:
    remote = arguments.source.startswith(("http://", "https://"))
    graphs = _of_gateway(arguments) if remote else _of_trace(Path(arguments.source))
    if arguments.agent_type is not None:
        graphs = {name: one for name, one in graphs.items() if name == arguments.agent_type}
    if not graphs:
        wanted = f" of {arguments.agent_type!r}" if arguments.agent_type else ""
        raise ValueError(f"{arguments.source}: nothing was learned{wanted}")
    for name, document in graphs.items():
        mean = document["mean_steps"]
        steps = "" if mean is None else f", {mean:.1f} steps each"
        print(f"{printable(name)}: {document['sessions']:,} sessions ended{steps}")
        print(table(document), end="\n\n")
    name, document = next(iter(graphs.items()))
    if arguments.json is not None:
        prepared(arguments.json).write_text(json.dumps(document, indent=2) + "\n")
    if arguments.diagram is not None:
        prepared(arguments.diagram).write_text(_diagram(arguments.diagram, document))
    if arguments.png is not None:
        from saga.report.graph_figure import draw

        prepared(arguments.png).write_bytes(draw(document, title=name))
    return 0


def _diagram(path: Path, document: Mapping[str, Any]) -> str:
    if path.suffix not in DIAGRAMS:
        raise ValueError(f"{path}: a diagram ends in {' or '.join(DIAGRAMS)}")
    return DIAGRAMS[path.suffix](document)


def _of_trace(path: Path) -> dict[str, dict[str, Any]]:
    from saga.sim.learning import learned_graphs
    from saga.traces import read_scripts

    trace = read_scripts(path)
    warn(trace.problems, path)
    return learned_graphs(trace.scripts)


def _of_gateway(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    from saga.gateway.discovery import engine_url
    from saga.gateway.upstream import UpstreamError

    url, key = engine_url(arguments.source), api_key(arguments.api_key, os.environ)
    try:
        return asyncio.run(_ask(url, key))
    except UpstreamError as error:
        raise ValueError(f"{url}: {error}") from error


async def _ask(url: str, key: str | None) -> dict[str, dict[str, Any]]:
    from saga.gateway.upstream import Timeouts, Upstream

    async with Upstream() as upstream:

        async def get(path: str) -> Any:
            status, body = await upstream.fetch(
                url,
                "GET",
                f"{wire.CONTROL}/{path}",
                api_key=key,
                timeouts=Timeouts(connect_s=5, first_byte_s=10, chunk_s=10, total_s=30),
                limit=MAX_ANSWER_BYTES,
            )
            if status != 200:
                raise ValueError(f"{url}: {path} was answered with {status}: is it a gateway?")
            return msgspec.json.decode(body)

        names = (await get("graphs"))["learned"]
        return {name: (await get(f"graphs/{quote(name, safe='')}"))["learned"] for name in names}
