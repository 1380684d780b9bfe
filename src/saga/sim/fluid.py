"""How many workflows an engine can take: the fluid fixed point behind ``--load``.

Mean values only, and all KV kept: what no scheduler can exceed by much without a host-memory tier,
and the same for every preset. The formula, with a worked number: docs/load.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from saga.sim.latency import (
    PS_PER_S,
    Played,
    StepTime,
    alone_ps,
    end_us,
    hit_tokens,
    timeline,
)
from saga.traces.script import WorkflowScript

BISECTIONS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class FluidPoint:
    """One engine in equilibrium."""

    rate_per_s: float
    """Workflows per second and engine."""
    batch: float
    """Mean number of requests in the batch; below 1 the engine idles part of the time."""
    live: float
    """Mean number of workflows under way."""
    tct_s: float
    """Mean TCT, declared prefixes cached."""
    kv_tokens: float
    """Mean KV that the live workflows need."""
    delay_ps: float
    """What the others in the batch add to each output token, against a request alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Means per workflow of a workload on one kind of engine, all KV kept and prefixes cached.

    Fields ending in ``_per_delay_ps`` say by how much a figure grows with each picosecond that the
    batch adds to every output token.
    """

    workload: str
    step_time: StepTime
    num_steps: float
    gap_us: float
    """Return times, all sessions together."""
    output_tokens: float
    new_tokens: float
    """Prompt tokens that are not in the cache."""
    context_tokens: float
    """Mean context of a decode, shared prefixes included."""
    prefill_ps: float
    """What its prefills add to the steps of a running batch."""
    llm_ps: float
    """Engine time alone, sub-agents' included."""
    tct_ps: float
    """TCT alone; sub-agents run beside their parent."""
    tct_per_delay_ps: float
    held_ps: float
    """Private KV held over its life, token-picoseconds."""
    held_per_delay_ps: float
    prefixes: tuple[tuple[int, float], ...]
    """Each declared prefix: tokens, and the share of workflows that use it."""
    largest_tokens: int
    """Longest context of any session."""

    @classmethod
    def of(
        cls, scripts: Sequence[WorkflowScript], step_time: StepTime, *, workload: str = "workload"
    ) -> Self:
        """Measure the workflows; each counts the same. Raises ValueError if there are none."""
        if not scripts:
            raise ValueError(f"workload {workload!r}: has no workflows")
        shares = [_Share.of(script, step_time) for script in scripts]

        def mean(value: Callable[[_Share], float]) -> float:
            return sum(map(value, shares)) / len(shares)

        output_tokens = mean(lambda share: share.output_tokens)
        if not output_tokens:
            raise ValueError(f"workload {workload!r}: its workflows have no output tokens")
        return cls(
            workload=workload,
            step_time=step_time,
            num_steps=mean(lambda share: share.num_steps),
            gap_us=mean(lambda share: share.gap_us),
            output_tokens=output_tokens,
            new_tokens=mean(lambda share: share.new_tokens),
            context_tokens=mean(lambda share: share.read_tokens) / output_tokens,
            prefill_ps=mean(lambda share: share.prefill_ps),
            llm_ps=mean(lambda share: share.llm_ps),
            tct_ps=mean(lambda share: share.tct_ps),
            tct_per_delay_ps=mean(lambda share: share.tct_per_delay_ps),
            held_ps=mean(lambda share: share.held_ps),
            held_per_delay_ps=mean(lambda share: share.held_per_delay_ps),
            prefixes=_prefix_shares(scripts),
            largest_tokens=max(script.max_context_tokens for script in scripts),
        )

    @property
    def live_tokens(self) -> float:
        """Private KV of one live workflow, mean over its life alone."""
        return self.held_ps / self.tct_ps

    def point(self, batch: float) -> FluidPoint:
        """The engine with ``batch`` requests in its batch on average."""
        delay = self._delay_ps(max(1.0, batch))
        rate = batch / (self.llm_ps + self.output_tokens * delay)
        tct = self.tct_ps + self.tct_per_delay_ps * delay
        live = rate * tct
        private = rate * (self.held_ps + self.held_per_delay_ps * delay)
        shared = sum(tokens * min(1.0, share * live) for tokens, share in self.prefixes)
        return FluidPoint(
            rate_per_s=rate * PS_PER_S,
            batch=batch,
            live=live,
            tct_s=tct / PS_PER_S,
            kv_tokens=private + shared,
            delay_ps=delay,
        )

    def _delay_ps(self, batch: float) -> float:
        """The others' prefills, KV reads and share of the larger step, for each output token."""
        others = batch - 1.0
        prefills = others * self.prefill_ps / self.output_tokens
        reads = others * self.step_time.kv_ps * self.context_tokens
        return (
            _decode_base_ps(self.step_time, batch) - self.step_time.base_ps(1, 1) + prefills + reads
        )


def saturation(mix: Mix) -> FluidPoint:
    """The highest rate whose KV fits into GPU memory and whose batch into ``max_num_seqs``.

    Raises ValueError if not even one of the workflows fits.
    """
    engine = mix.step_time.engine
    capacity = engine.kv_capacity_tokens
    story = (
        f"{engine.model.name} on {engine.tp} x {engine.gpu.name} holds {capacity:,} tokens of KV"
    )
    if mix.largest_tokens > capacity:
        need = f"a session of {mix.largest_tokens:,} tokens"
        raise ValueError(f"workload {mix.workload!r}: {need} does not fit; {story}")
    one = mix.live_tokens + sum(tokens * min(1.0, share) for tokens, share in mix.prefixes)
    if one > capacity:
        need = f"one workflow of {one:,.0f} tokens on average"
        raise ValueError(f"workload {mix.workload!r}: {need} does not fit; {story}")
    most = float(engine.max_num_seqs)
    return mix.point(_largest(most, lambda batch: mix.point(batch).kv_tokens <= capacity))


def operating_point(load: float, mix: Mix) -> FluidPoint:
    """The engine at ``load`` times the saturation rate, 0 < load <= 1.

    Raises ValueError for another load: above saturation there is no equilibrium.
    """
    if not 0.0 < load <= 1.0:
        raise ValueError(f"load={load!r}: must be above 0 and at most 1 for an equilibrium")
    top = saturation(mix)
    rate = load * top.rate_per_s
    return mix.point(_largest(top.batch, lambda batch: mix.point(batch).rate_per_s <= rate))


def expected_us(script: WorkflowScript, point: FluidPoint, step_time: StepTime) -> int:
    """TCT of a workflow with all its KV kept, among the others of the point.

    As ``StepTime.alone_us``, with the point's delay added to each output token; so never less.
    """
    delay = round(point.delay_ps)
    llm_ps = alone_ps(script, step_time)
    return end_us(timeline(script, _delayed(script, llm_ps, delay)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Share:
    """What one workflow adds to the means of a mix."""

    num_steps: int
    gap_us: int
    output_tokens: int
    new_tokens: int
    read_tokens: float
    prefill_ps: int
    llm_ps: int
    tct_ps: int
    tct_per_delay_ps: float
    held_ps: float
    held_per_delay_ps: float

    @classmethod
    def of(cls, script: WorkflowScript, step_time: StepTime) -> Self:
        llm_ps = alone_ps(script, step_time, warm=True)
        steps = [step for session in script.sessions for step in session.steps]
        hits = hit_tokens(script, step_time.engine.block_size, warm=True)
        new = [
            step.prompt_tokens - hit
            for step, hit in zip(steps, (hit for row in hits for hit in row), strict=True)
        ]
        decodes = sum(
            step_time.decode_ps(step.output_tokens - 1, 1, step.prompt_tokens) for step in steps
        )
        llm = sum(map(sum, llm_ps))
        chunk = step_time.engine.max_num_batched_tokens
        num_chunks = sum(-(-tokens // chunk) for tokens in new)
        alone = timeline(script, llm_ps)
        # Linear workflows are linear in the delay; trees of sub-agents are taken as if they were,
        # between the pace alone and half that pace.
        delay = step_time.base_ps(1, 1)
        slow = timeline(script, _delayed(script, llm_ps, delay))
        tct, held = _tct_ps(alone), _held_ps(script, alone)
        return cls(
            num_steps=len(steps),
            gap_us=sum(step.gap_us for step in steps),
            output_tokens=sum(step.output_tokens for step in steps),
            new_tokens=sum(new),
            read_tokens=sum(
                step.output_tokens * (step.prompt_tokens + (step.output_tokens - 1) / 2)
                for step in steps
            ),
            prefill_ps=llm - decodes - num_chunks * step_time.base_ps(1, 1),
            llm_ps=llm,
            tct_ps=tct,
            tct_per_delay_ps=(_tct_ps(slow) - tct) / delay,
            held_ps=held,
            held_per_delay_ps=(_held_ps(script, slow) - held) / delay,
        )


def _delayed(
    script: WorkflowScript, llm_ps: Sequence[Sequence[int]], delay_ps: int
) -> list[list[int]]:
    """The calls' durations when each output token takes ``delay_ps`` longer."""
    return [
        [
            duration + step.output_tokens * delay_ps
            for step, duration in zip(session.steps, row, strict=True)
        ]
        for session, row in zip(script.sessions, llm_ps, strict=True)
    ]


def _tct_ps(played: Sequence[Played]) -> int:
    return max(step.end_ps for step in played)


def _held_ps(script: WorkflowScript, played: Sequence[Played]) -> float:
    """Token-picoseconds of private KV: during each call, then until the session's next one."""
    held = 0.0
    for part in played:
        session = script.sessions[part.session]
        step = session.steps[part.step]
        shared = max(session.prefix_tokens, session.forked_tokens)
        private = max(0, step.prompt_tokens - shared)
        held += (private + step.output_tokens / 2) * (part.end_ps - part.start_ps)
        held += (private + step.output_tokens) * (part.next_ps - part.end_ps)
    return held


def _prefix_shares(scripts: Sequence[WorkflowScript]) -> tuple[tuple[int, float], ...]:
    tokens: dict[str, int] = {}
    users: defaultdict[str, int] = defaultdict(int)
    for script in scripts:
        own = {s.prefix: s.prefix_tokens for s in script.sessions if s.prefix is not None}
        tokens |= own
        for prefix in own:
            users[prefix] += 1
    return tuple((tokens[prefix], count / len(scripts)) for prefix, count in users.items())


def _decode_base_ps(step_time: StepTime, batch: float) -> float:
    """``base_ps`` of a step of decodes only, linear between whole batches."""
    whole = int(batch)
    below = step_time.base_ps(whole, whole)
    return below + (batch - whole) * (step_time.base_ps(whole + 1, whole + 1) - below)


def _largest(most: float, fits: Callable[[float], bool]) -> float:
    """The largest value up to ``most`` that fits, where all below one that fits do as well."""
    low, high = 0.0, most
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
