"""Microseconds per event of ``Scheduler.handle``, under overload and flat in the number queued.

A closed loop of sessions on make-believe engines (fixed step time, no KV model), so that nearly all
time is the scheduler's own. Load is demand over what the engines can serve.
"""

from __future__ import annotations

import heapq
import random
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter_ns

from saga.config import load_preset
from saga.core import actions as act
from saga.core import events as ev
from saga.core.scheduler import Scheduler

STEP_US = 8_000_000
BATCH = 24
STEPS = 30


@dataclass(slots=True)
class Session:
    name: str
    step: int = 0
    context: int = 2_000


@dataclass
class Load:
    """Plays ``num_sessions`` sessions, one workflow after another, for ``num_events`` events."""

    preset: str
    num_engines: int
    num_sessions: int
    load: float
    num_events: int
    num_tenants: int = 10
    seed: int = 1
    now: int = 0
    samples: list[int] = field(default_factory=list)
    heap: list[tuple[int, int, Callable[[], None]]] = field(default_factory=list)
    sequence: int = 0
    workflows: int = 0
    sessions: dict[str, Session] = field(default_factory=dict)
    most_queued: int = 0

    def run(self) -> dict[str, float]:
        self.rng = random.Random(self.seed)
        self.scheduler = Scheduler(load_preset(self.preset).policies)
        capacity = self.num_engines * BATCH / STEP_US
        self.gap_us = max(1, int(self.num_sessions / (self.load * capacity) - STEP_US))
        for number in range(self.num_engines):
            self.tell(
                ev.EngineUp(
                    at=0,
                    engine=f"e{number}",
                    kv_capacity_tokens=100 * self.num_sessions * 20_000 // self.num_engines,
                    max_num_seqs=BATCH,
                )
            )
        for _ in range(self.num_sessions):
            self.at(self.rng.randrange(self.gap_us + STEP_US), self.begin)
        while len(self.samples) < self.num_events:
            self.now, _, call = heapq.heappop(self.heap)
            call()
        warm = sorted(self.samples[len(self.samples) // 2 :])
        return {
            "p50_us": warm[len(warm) // 2] / 1e3,
            "p99_us": warm[len(warm) * 99 // 100] / 1e3,
            "mean_us": sum(warm) / len(warm) / 1e3,
            "queued": float(sum(len(queue) for queue in self.scheduler.queues.values())),
            "live": float(len(self.scheduler.state.sessions)),
            "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }

    def at(self, at: int, call: Callable[[], None]) -> None:
        self.sequence += 1
        heapq.heappush(self.heap, (at, self.sequence, call))

    def tell(self, event: ev.Event) -> None:
        began = perf_counter_ns()
        actions = self.scheduler.handle(event)
        self.samples.append(perf_counter_ns() - began)
        for action in actions:
            if isinstance(action, act.Dispatch):
                request = action.request
                self.at(self.now + 50_000, lambda request=request: self.start(request))
            elif isinstance(action, act.WakeAt):
                self.at(action.at, lambda: self.tell(ev.Tick(at=self.now)))

    def begin(self) -> None:
        self.workflows += 1
        name = f"w{self.workflows}"
        tenant = f"t{self.workflows % self.num_tenants}"
        self.tell(ev.WorkflowSubmitted(at=self.now, workflow=name, tenant=tenant))
        session = self.sessions[name] = Session(name)
        self.tell(ev.SessionOpened(at=self.now, session=name, workflow=name))
        self.request(session)

    def request(self, session: Session) -> None:
        session.step += 1
        session.context += 600
        self.tell(
            ev.RequestArrived(
                at=self.now,
                request=f"{session.name}/{session.step}",
                session=session.name,
                prompt_tokens=session.context,
            )
        )

    def start(self, request: str) -> None:
        self.tell(ev.RequestStarted(at=self.now, request=request, cached_tokens=1_000))
        self.at(self.now + STEP_US, lambda: self.finish(request))

    def finish(self, request: str) -> None:
        session = self.sessions[request.split("/")[0]]
        tool = self.rng.choice(("bash", "edit", "test"))
        self.tell(ev.RequestFinished(at=self.now, request=request, output_tokens=200, tool=tool))
        if session.step < STEPS:
            self.at(self.now + self.gap_us, lambda: self.request(session))
        else:
            del self.sessions[session.name]
            self.tell(ev.WorkflowDone(at=self.now, workflow=session.name))
            self.begin()


CASES = (
    ("saga_paper", 64, 5_000, 0.5, 10),
    ("saga_paper", 64, 5_000, 1.5, 10),
    ("saga_paper", 64, 20_000, 1.5, 10),
    ("saga", 64, 5_000, 1.5, 10),
    ("saga", 64, 5_000, 1.5, 1_000),
    ("vllm_apc_affinity", 64, 5_000, 1.5, 10),
)


def main(num_events: int = 120_000) -> list[dict[str, object]]:
    """One row per case; prints as it goes."""
    rows: list[dict[str, object]] = []
    print(
        "preset              engines sessions load tenants  queued   p50 us  p99 us  mean us  "
        "RSS MiB"
    )
    for preset, engines, sessions, load, tenants in CASES:
        figures = Load(preset, engines, sessions, load, num_events, tenants).run()
        rows.append(
            {
                "preset": preset,
                "engines": engines,
                "sessions": sessions,
                "load": load,
                "tenants": tenants,
                **figures,
            }
        )
        print(
            f"{preset:20}{engines:7}{sessions:9}{load:5}{tenants:8}{figures['queued']:8.0f}"
            f"{figures['p50_us']:9.1f}{figures['p99_us']:8.1f}{figures['mean_us']:9.1f}"
            f"{figures['rss_mib']:9.0f}",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main()
