"""Runs a case: all targets up, measured in turns, so that a noisy moment is nobody's alone."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gateway import bodies
from benchmarks.gateway.cases import Case
from benchmarks.gateway.processes import Load, Machine, Server, free_port
from benchmarks.gateway.targets import DIRECT, SAGA, Target

NUM_ENGINES = 2
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One target in one case."""

    target: str
    rounds: list[Figures] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def median(self, figure: str) -> float | None:
        values = [figures[figure] for figures in self.rounds if figure in figures]
        return statistics.median(values) if values else None

    def quartiles(self, figure: str) -> tuple[float, float] | None:
        """The first and the third, of enough rounds to have some."""
        values = [figures[figure] for figures in self.rounds if figure in figures]
        if len(values) < 8:
            return None
        first, _, third = statistics.quantiles(values, n=4)
        return first, third


@dataclass(frozen=True, slots=True)
class Runner:
    machine: Machine
    folder: Path
    targets: list[Target]
    num_rounds: int
    seconds: float
    """Of one target in one round."""

    def run(self, case: Case) -> list[Row]:
        targets = [target for target in self.targets if target != DIRECT or case.direct]
        rows = {target: Row(target.name) for target in targets}
        with ExitStack() as stack:
            engines = [
                stack.enter_context(self.machine.engine(case.num_events, case.interval_us))
                for _ in range(NUM_ENGINES)
            ]
            servers: dict[Target, Server | None] = {}
            for target in targets:
                try:
                    servers[target] = self._start(stack, target, case, engines)
                except RuntimeError as error:
                    rows[target].problems.append(str(error))
            idle = {it: server.rss_mib() for it, server in servers.items() if server is not None}
            for _ in range(self.num_rounds):
                told: dict[Target, Figures] = {}
                for target, server in servers.items():
                    port = engines[0] if server is None else server.port
                    try:
                        load = self._play(case, target, port, server)
                    except RuntimeError as error:
                        rows[target].problems.append(str(error))
                        continue
                    told[target] = _figures(load, idle.get(target, 0.0))
                _compare(told)
                for target, figures in told.items():
                    rows[target].rounds.append(figures)
        return list(rows.values())

    def _start(
        self, stack: ExitStack, target: Target, case: Case, engines: list[int]
    ) -> Server | None:
        if target.command is None:
            return None
        port = free_port()
        command = target.command(port, [f"http://127.0.0.1:{engine}" for engine in engines])
        return stack.enter_context(self.machine.gateway(command, port, case.environ))

    def _play(self, case: Case, target: Target, port: int, server: Server | None) -> Load:
        path = self.folder / f"{case.name}-{'named' if target.named else 'unnamed'}"
        if not path.exists():
            stream = case.num_events > 0
            number = case.connections
            played = bodies.requests(number, case.size, stream=stream, named=target.named)
            bodies.write(path, played)
        return self.machine.play(
            port,
            path,
            case.connections,
            self.seconds,
            rate=case.rate,
            settle_s=case.settle_s,
            watched=server,
        )


def _figures(load: Load, rss_idle_mib: float) -> Figures:
    figures = {
        "requests_per_s": load.ok / load.seconds,
        "events_per_s": load.events / load.seconds,
        "failed": float(load.failed),
        "p50_us": float(load.p50_us),
        "p99_us": float(load.p99_us),
        "gap_p99_us": float(load.gap_p99_us),
    }
    if rss_idle_mib:
        figures["cpu_share"] = load.cpu_s / load.seconds
        figures["rss_idle_mib"] = rss_idle_mib
        figures["rss_mib"] = load.rss_mib
        if load.ok:
            figures["cpu_us_per_request"] = load.cpu_s / load.ok * 1e6
        if load.events:
            figures["cpu_us_per_event"] = load.cpu_s / load.events * 1e6
    return figures


def _compare(told: dict[Target, Figures]) -> None:
    """Adds what only figures of the same round can say."""
    for figures in told.values():
        pace = "events_per_s" if figures["events_per_s"] else "requests_per_s"
        if not figures[pace]:
            continue
        if DIRECT in told and told[DIRECT][pace]:
            figures["x_direct"] = figures[pace] / told[DIRECT][pace]
            figures["added_p50_us"] = figures["p50_us"] - told[DIRECT]["p50_us"]
            figures["added_p99_us"] = figures["p99_us"] - told[DIRECT]["p99_us"]
        if SAGA in told:
            figures["saga_x"] = told[SAGA][pace] / figures[pace]
