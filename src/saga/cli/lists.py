"""``saga policies``, ``workloads`` and ``clusters``."""

from __future__ import annotations

import argparse

from saga.cli.common import Commands, console_for
from saga.config import known_policies, load_preset, preset_names
from saga.sim.hardware import CLUSTERS
from saga.sim.workload import list_workloads


def add(commands: Commands) -> None:
    for name, call, text in (
        ("policies", _policies, "policies with their parameters, and presets"),
        ("workloads", _workloads, "built-in workloads"),
        ("clusters", _clusters, "built-in clusters"),
    ):
        commands.add_parser(name, help=f"list {text}").set_defaults(call=call)


def _policies(arguments: argparse.Namespace) -> int:
    console = console_for()
    for info in sorted(known_policies().values(), key=lambda info: (info.kind, info.name)):
        parameters = ", ".join(f"{key}={value}" for key, value in info.parameters.items())
        console.print(f"[bold]{info.kind:10}[/] {info.name}  [dim]{parameters}[/]", highlight=False)
        console.print(f"           {info.question}", highlight=False, markup=False, soft_wrap=True)
    console.print("\n[bold]presets[/]")
    for name in preset_names():
        console.print(
            f"  {name:24} {load_preset(name).description}", highlight=False, soft_wrap=True
        )
    return 0


def _workloads(arguments: argparse.Namespace) -> int:
    console = console_for()
    for name, description in list_workloads().items():
        console.print(f"[bold]{name:16}[/] {description}", highlight=False)
    console.print("[bold]file:PATH       [/] any trace that `saga trace stats PATH` can read")
    return 0


def _clusters(arguments: argparse.Namespace) -> int:
    console = console_for()
    for cluster in CLUSTERS.values():
        tokens = cluster.engine.kv_capacity_tokens
        console.print(
            f"[bold]{cluster.name:16}[/] {cluster.description}; {tokens:,} KV tokens per engine",
            highlight=False,
        )
    return 0
