"""How long an engine's steps take, and what a workflow takes when all its KV is kept.

One formula (docs/physics.md) in integer picoseconds: sums over steps are exact, so a jump over many
decode steps ends at the very time that stepping through them one by one would.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from saga.sim.hardware import WEIGHT_BYTES, EngineSpec
from saga.sim.lineage import reusable_tokens
from saga.traces.script import WorkflowScript

PS_PER_S = 1e12
PS_PER_US = 1_000_000
FLOPS_PER_PARAM = 2
"""A multiplication and an addition for each parameter and token."""
LAYER_US = 32.0
"""Launch overhead of each layer in each step."""
STEP_US = 126.0
"""Overhead of each step outside the layers."""
SEQUENCE_US = 4.4
"""Overhead of each sequence in each step."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Duration of one step of continuous batching on an engine.

    A step computes ``num_tokens`` new tokens of ``num_seqs`` sequences: one token for each decode,
    up to a chunk of the prompt for each prefill.
    """

    engine: EngineSpec
    kv_ps: int
    """Reading one token of context in one decode."""
    attn_ps: int
    """Prefill attention, for each pair of a new token and a token before it."""
    layers_read_ps: float
    """Reading the weights of all layers once."""
    layers_token_ps: float
    """Computing one token in all layers."""
    head_read_ps: float
    head_token_ps: float
    allreduce_least_ps: float
    """All-reduces of one step, however small. 0 on one GPU."""
    allreduce_token_ps: float
    _by_tokens: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    _by_seqs: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, engine: EngineSpec) -> Self:
        """The step time of an engine: of its model on its GPUs, at its shares of peak."""
        model, gpu = engine.model, engine.gpu
        flops, bandwidth = engine.tp * gpu.flops, engine.tp * gpu.hbm_bytes_per_s
        read_ps = WEIGHT_BYTES / (bandwidth * engine.mbu) * PS_PER_S
        compute_ps = FLOPS_PER_PARAM / (flops * engine.mfu) * PS_PER_S
        pair_flops = 4 * model.num_layers * model.num_heads * model.head_dim
        allreduces = 2 * model.num_layers if engine.tp > 1 else 0
        activation_bytes = WEIGHT_BYTES * model.hidden_size
        return cls(
            engine=engine,
            kv_ps=round(engine.kv_bytes_per_token / (bandwidth * engine.mbu_kv) * PS_PER_S),
            attn_ps=round(pair_flops / (flops * engine.mfu_attention) * PS_PER_S),
            layers_read_ps=model.layer_params * read_ps,
            layers_token_ps=model.layer_params * compute_ps,
            head_read_ps=model.head_params * read_ps,
            head_token_ps=model.head_params * compute_ps,
            allreduce_least_ps=allreduces * gpu.allreduce_us * PS_PER_US,
            allreduce_token_ps=allreduces
            * activation_bytes
            / (gpu.allreduce_gbps * 1e9)
            * PS_PER_S,
        )

    def layers_ps(self, num_tokens: int) -> float:
        """Matrix products of all layers: reading and computing overlap, but not perfectly (p=2)."""
        return math.hypot(self.layers_read_ps, num_tokens * self.layers_token_ps)

    def base_ps(self, num_tokens: int, num_seqs: int) -> int:
        """All of a step but what grows with context: layers, all-reduces, LM head, overheads."""
        try:
            return self._by_tokens[num_tokens] + self._by_seqs[num_seqs]
        except KeyError:
            return self._remember(num_tokens, num_seqs)

    def step_ps(
        self, num_tokens: int, num_seqs: int, decode_context: int, prefill_pairs: int
    ) -> int:
        """A whole step.

        ``decode_context``: tokens in context before the step, summed over its decodes;
        ``prefill_pairs``: c * p + c * c // 2 summed over its prefills, c new tokens after p.
        """
        base = self.base_ps(num_tokens, num_seqs)
        return base + self.kv_ps * decode_context + self.attn_ps * prefill_pairs

    def decode_ps(self, num_steps: int, num_seqs: int, context: int) -> int:
        """``num_steps`` steps in which the same ``num_seqs`` sequences decode, and nothing else.

        ``context``: tokens in their contexts before the first of these steps, summed.
        """
        read = num_steps * context + num_seqs * (num_steps * (num_steps - 1) // 2)
        return num_steps * self.base_ps(num_seqs, num_seqs) + self.kv_ps * read

    def prefill_ps(self, start: int, stop: int, chunk: int) -> int:
        """Prefill of positions [start, stop) of one sequence alone, ``chunk`` tokens a step."""
        total = 0
        for position in range(start, stop, chunk):
            size = min(chunk, stop - position)
            total += self.step_ps(size, 1, 0, size * position + size * size // 2)
        return total

    def alone_us(self, workflow: WorkflowScript, share: float = 1.0) -> int:
        """TCT of the workflow alone on one idle engine that begins empty and keeps all its KV.

        Tools included. Sub-agents run beside their parent, each step as if at batch 1. On a
        ``share`` of the engine, 0 to 1, LLM calls take 1 / share times as long; tools do not.
        """
        llm_ps = alone_ps(workflow, self)
        if share < 1.0:
            llm_ps = [[round(duration / share) for duration in steps] for steps in llm_ps]
        return end_us(timeline(workflow, llm_ps))

    def _remember(self, num_tokens: int, num_seqs: int) -> int:
        if num_tokens < 1 or num_seqs < 1:
            raise ValueError(
                f"num_tokens={num_tokens}, num_seqs={num_seqs}: a step has at least one of each"
            )
        allreduce = max(self.allreduce_least_ps, num_tokens * self.allreduce_token_ps)
        overhead = (LAYER_US * self.engine.model.num_layers + STEP_US) * PS_PER_US
        self._by_tokens[num_tokens] = round(self.layers_ps(num_tokens) + allreduce + overhead)
        head = math.hypot(self.head_read_ps, num_seqs * self.head_token_ps)
        self._by_seqs[num_seqs] = round(head + num_seqs * SEQUENCE_US * PS_PER_US)
        return self._by_tokens[num_tokens] + self._by_seqs[num_seqs]


@dataclass(frozen=True, slots=True)
class Played:
    """When one step of a workflow ran, picoseconds from the workflow's submission."""

    session: int
    step: int
    start_ps: int
    end_ps: int
    next_ps: int
    """Start of the session's next step; ``end_ps`` for the last one."""


def hit_tokens(workflow: WorkflowScript, block_size: int, *, warm: bool = False) -> list[list[int]]:
    """Prompt tokens that hit the cache when all KV is kept, by session and step.

    ``warm``: declared prefixes are there from the beginning, not from their first use on.
    """
    prefixes: set[str] = set()
    hits = []
    for session in workflow.sessions:
        held = 0
        if session.parent is not None:
            step = workflow.sessions[session.parent].steps[session.spawn_step]
            held = min(session.forked_tokens, step.prompt_tokens + step.output_tokens - 1)
        if session.prefix is not None:
            if warm or session.prefix in prefixes:
                held = max(held, session.prefix_tokens)
            prefixes.add(session.prefix)
        first = session.steps[0]
        hit = min(first.kept_tokens, held, first.prompt_tokens - 1) // block_size * block_size
        later = range(1, len(session.steps))
        hits.append([hit, *(reusable_tokens(session, index, block_size) for index in later)])
    return hits


def alone_ps(
    workflow: WorkflowScript, step_time: StepTime, *, warm: bool = False
) -> list[list[int]]:
    """Duration of each LLM call at batch 1 with all KV kept, by session and step."""
    engine = step_time.engine
    hits = hit_tokens(workflow, engine.block_size, warm=warm)
    return [
        [
            step_time.prefill_ps(hit, step.prompt_tokens, engine.max_num_batched_tokens)
            + step_time.decode_ps(step.output_tokens - 1, 1, step.prompt_tokens)
            for step, hit in zip(session.steps, session_hits, strict=True)
        ]
        for session, session_hits in zip(workflow.sessions, hits, strict=True)
    ]


def timeline(workflow: WorkflowScript, llm_ps: Sequence[Sequence[int]]) -> list[Played]:
    """Play a workflow whose LLM calls last ``llm_ps`` (by session and step).

    A session starts ``delay_us`` after the step that spawned it. The next step of its parent waits
    until blocking sub-agents have ended, and then for the gap.
    """
    spawned: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for index, session in enumerate(workflow.sessions):
        if session.parent is not None:
            spawned[session.parent, session.spawn_step].append(index)
    played: list[Played] = []

    def play(index: int, start: int) -> int:
        session = workflow.sessions[index]
        end = start
        for number, step in enumerate(session.steps):
            end = start + llm_ps[index][number]
            ready = end
            for child in spawned.get((index, number), ()):
                script = workflow.sessions[child]
                child_end = play(child, end + script.delay_us * PS_PER_US)
                if script.blocking:
                    ready = max(ready, child_end)
            last = number == len(session.steps) - 1
            following = end if last else ready + step.gap_us * PS_PER_US
            played.append(Played(index, number, start, end, following))
            start = following
        return end

    play(0, 0)
    return played


def end_us(played: Sequence[Played]) -> int:
    """TCT of a played workflow, microseconds, rounded down."""
    return max(step.end_ps for step in played) // PS_PER_US
