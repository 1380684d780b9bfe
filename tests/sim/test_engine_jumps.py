"""Jumping over equal steps and stepping through them tell the same, whatever a host does."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.sim.bench import Bench

from saga.core.cache import FOREVER
from saga.policies.lru import Lru
from saga.policies.prefix_lru import PrefixLru
from saga.policies.wa_lru import WaLru

DEEDS = ["submit", "submit", "return", "cancel", "preempt", "retain", "release", "drop", "adopt"]


def _do(bench: Bench, deed: str, number: int, size: int) -> None:
    """One thing a host might do, the same on every bench that is in the same state."""
    now, engine, known = bench.now, bench.engine, list(bench.sessions)
    if deed in ("submit", "prefetch") or not known:
        name = f"j{len(known)}"
        if deed == "prefetch":
            engine.prefetch(bench.job(name, size, 1), now)
        else:
            bench.submit(name, size, 1 + (size * 7) % 60, priority=size % 2)
        return
    session = known[number % len(known)]
    running, path = bench.busy.get(session), bench.sessions[session].path
    if deed == "return" and running is None:
        engine.cancel(session, now)  # a prefetch that came to nothing
        kept = bench.sessions[session].context_tokens
        prompt = kept + size % 90 + 1
        bench.submit(f"{session}+{now}", prompt, 1 + size % 40, session=session, kept=kept)
    elif deed == "cancel" and running is not None:
        engine.cancel(running, now)
        bench.busy[session] = "for ever: its workflow has ended"
    elif deed == "preempt" and running is not None:
        engine.preempt(running, now)
    elif deed == "retain":
        engine.retain(session, now + 40 * size if size % 3 else FOREVER, 0.5, now)
    elif deed == "release":
        engine.release(session, now)
    elif deed == "drop":
        engine.drop(session, now)
    elif deed == "adopt" and running is None:
        engine.adopt(path, size, now)
    bench.collect()


@settings(max_examples=150)
@example(
    # A policy that evicts whole sessions, and one that is released amid a jump.
    eviction=Lru(),
    host=0,
    reserve=False,
    deeds=[
        (0, "submit", 0, 112),
        (0, "submit", 0, 131),
        (0, "submit", 0, 354),
        (0, "release", 0, 1),
    ],
)
@given(
    eviction=st.sampled_from([PrefixLru(), Lru(), WaLru()]),
    host=st.sampled_from([0, 0, 40]),
    reserve=st.booleans(),
    deeds=st.lists(
        st.tuples(
            st.integers(0, 12_000),
            st.sampled_from([*DEEDS, "prefetch"]),
            st.integers(0, 30),
            st.integers(1, 400),
        ),
        min_size=1,
        max_size=40,
    ),
)
def test_jumping_and_stepping_tell_the_same(
    eviction: PrefixLru | Lru | WaLru,
    host: int,
    reserve: bool,
    deeds: list[tuple[int, str, int, int]],
) -> None:
    benches = [
        Bench(
            40,
            eviction=eviction,
            host_blocks=host,
            reload_us=lambda tokens: 10 * tokens,
            kv_ps=30_000,
            max_num_batched_tokens=128,
            max_num_seqs=6,
            reserve_full_prompt=reserve,
            max_jump=max_jump,
        )
        for max_jump in (1 << 40, 1)
    ]
    for bench in benches:
        for wait, deed, number, size in deeds:
            bench.run(until=bench.now + wait)
            _do(bench, deed, number, size)
        bench.run()
    jumping, stepping = benches
    assert jumping.told == stepping.told
    assert jumping.shrunk == stepping.shrunk
    assert jumping.engine.counts == stepping.engine.counts
    assert jumping.cache.resident == stepping.cache.resident
    assert jumping.cache.active == 0
    assert jumping.engine.num_jobs == 0
