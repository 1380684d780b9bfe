"""What is asked of each target, and which figures of it matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.gateway.bodies import AGENT, LONG, SMALL

NEVER_US = 3_600_000_000
EVENT_US = 40_000
"""Between the events of a stream: a model that writes 25 tokens a second."""
EVENTS = 100
"""Of one stream."""


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    figure: str
    """One of ``measure.FIGURES``."""
    digits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    title: str
    columns: tuple[Column, ...]
    connections: int
    size: int
    """Of a body, bytes."""
    rate: float = 0.0
    """Requests a second, evenly; 0: each connection asks again once it is answered."""
    num_events: int = 0
    interval_us: int = 0
    """What the engines do; see ``engine.c``."""
    settle_s: float = 0.0
    """Longer warm-up."""
    direct: bool = True
    """Whether the engine alone says anything."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """Further settings of this gateway."""


_THROUGHPUT = (
    Column("req/s", "requests_per_s"),
    Column("x direct", "x_direct", 3),
    Column("saga is x", "saga_x", 2),
    Column("CPU us/req", "cpu_us_per_request"),
    Column("p50 us", "p50_us"),
    Column("p99 us", "p99_us"),
    Column("RSS MiB", "rss_mib"),
    Column("failed", "failed"),
)
_STREAMS = (
    Column("events/s", "events_per_s"),
    Column("x direct", "x_direct", 3),
    Column("CPU us/event", "cpu_us_per_event", 1),
    Column("CPU share", "cpu_share", 2),
    Column("RSS MiB", "rss_mib"),
    Column("gap p99 us", "gap_p99_us"),
    Column("failed", "failed"),
)

CASES = (
    Case(
        name="small",
        title="Throughput, 300 B bodies, 64 connections",
        columns=_THROUGHPUT,
        connections=64,
        size=SMALL,
    ),
    Case(
        name="agent",
        title="Throughput, 32 KB bodies, 64 connections",
        columns=_THROUGHPUT,
        connections=64,
        size=AGENT,
    ),
    Case(
        name="long",
        title="Throughput, 256 KB bodies, 64 connections",
        columns=_THROUGHPUT,
        connections=64,
        size=LONG,
    ),
    Case(
        name="latency",
        title="Latency at 200 requests/s, 32 KB bodies",
        columns=(
            Column("p50 us", "p50_us"),
            Column("added p50 us", "added_p50_us"),
            Column("p99 us", "p99_us"),
            Column("added p99 us", "added_p99_us"),
            Column("CPU share", "cpu_share", 2),
            Column("failed", "failed"),
        ),
        connections=32,
        size=AGENT,
        rate=200.0,
    ),
    Case(
        name="events",
        title="Cost of an event, 100 streams of 25 events/s",
        columns=_STREAMS,
        connections=100,
        size=SMALL,
        num_events=EVENTS,
        interval_us=EVENT_US,
        settle_s=3.0,
    ),
    Case(
        name="streams",
        title="600 streams of 25 events/s at once",
        columns=_STREAMS,
        connections=600,
        size=SMALL,
        num_events=EVENTS,
        interval_us=EVENT_US,
        settle_s=3.0,
    ),
    Case(
        name="held",
        title="2000 requests of 32 KB without an answer; saga holds all but one per engine",
        columns=(
            Column("RSS MiB idle", "rss_idle_mib"),
            Column("RSS MiB", "rss_mib"),
            Column("CPU share", "cpu_share", 2),
            Column("failed", "failed"),
        ),
        connections=2_000,
        size=AGENT,
        interval_us=NEVER_US,
        settle_s=5.0,
        direct=False,
        environ={"SAGA_ENGINES__MAX_NUM_SEQS": "1"},
    ),
)
