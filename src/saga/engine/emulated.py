"""The emulated engine: the simulator's model of an engine, run against a clock.

Model time is the clock's times ``speed``. A wake-up of the loop that comes late runs the model at
the times at which it was due, so lateness shifts when something is seen and not what happens.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from saga import wire
from saga.clock import Clock
from saga.core.cache import DEFAULT_REUSE
from saga.engine.contents import ContentTree, Use
from saga.engine.generation import Generation, Hints
from saga.engine.options import EngineOptions
from saga.engine.publisher import KvEvent, Publisher
from saga.engine.tokens import TOKEN_BYTES, Answer, Prompt
from saga.sim.engine import EngineLimits, Job, Moment, SimEngine
from saga.sim.kv_cache import KVCache
from saga.sim.latency import StepTime
from saga.sim.lineage import ENDLESS, Content, Span

MAX_SESSIONS = 65_536
"""Sessions whose place in the cache is known, the least recently used out."""
REMEMBERED = 4
"""Prompts are remembered up to this many times the cache's capacity, resident or not."""
_US = 1_000_000


class Timer(Protocol):
    """A call that was asked for and can be called off."""

    def cancel(self) -> None: ...


CallLater = Callable[[float, Callable[[], None]], Timer]
"""Like ``loop.call_later``: seconds, and what to call then."""


def loop_timer(delay: float, call: Callable[[], None]) -> Timer:
    """A timer of the running event loop."""
    return asyncio.get_running_loop().call_later(delay, call)


class Overloaded(Exception):
    """Too many requests wait."""


@dataclass(slots=True)
class _Session:
    """Where a session's KV is, as of its last request, and what was said about it."""

    path: tuple[Span, ...]
    tokens: int
    until_us: int = 0
    score: float = DEFAULT_REUSE
    left: int = 0
    """Resident tokens, as was last published after a request of it had ended."""


class EmulatedEngine:
    """One engine on a clock. All calls are from one thread, that of ``call_later``.

    Tokens appear when the model's step that samples them ends. Steps that are less than
    ``chunk_us`` apart on the clock are taken together, about ``chunk_us`` at a time.

    ``publisher`` is told what becomes of sessions' KV. A session that was forked off another loses
    what it shares with it unheard.
    """

    def __init__(
        self,
        options: EngineOptions,
        *,
        clock: Clock,
        call_later: CallLater = loop_timer,
        step_time: StepTime | None = None,
        publisher: Publisher | None = None,
    ) -> None:
        spec = options.spec
        step_time = step_time or StepTime.of(spec)
        self.options = options
        self.block_size = spec.block_size
        self.num_blocks = spec.num_blocks
        self.max_tokens = spec.kv_capacity_tokens
        self.generated_tokens = 0
        self.ended = {"stop": 0, "length": 0, "tool": 0, "abort": 0}
        self._clock = clock
        self._call_later = call_later
        self._publisher = publisher
        self._unpublished: list[tuple[str, str]] = []
        """Kind and session."""
        self._timer: Timer | None = None
        self._cache = KVCache(spec.num_blocks, options.eviction)
        limits = EngineLimits(
            block_size=spec.block_size,
            max_num_batched_tokens=spec.max_num_batched_tokens,
            max_num_seqs=spec.max_num_seqs,
            max_jump=max(1, int(options.chunk_us * options.speed * _US / step_time.base_ps(1, 1))),
        )
        self._sim = SimEngine(
            options.model, cache=self._cache, step_time=step_time, limits=limits, tell=self._tell
        )
        block_bytes = spec.block_size * TOKEN_BYTES
        self._tree = ContentTree(
            block_bytes=block_bytes,
            max_bytes=REMEMBERED * spec.num_blocks * block_bytes,
            resident=self._has_blocks,
        )
        self._live: dict[str, Generation] = {}
        self._by_name: dict[str, Generation] = {}
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._numbers = 0
        self._now = 0

    # ---- requests

    def submit(
        self, prompt: Prompt, answer: Answer, *, name: str, hints: Hints, priority: int = 0
    ) -> Generation:
        """A request begins. Raises Overloaded; prompt and answer must fit in ``max_tokens``."""
        now = self._advance()
        most = self.options.max_waiting
        if len(self._live) >= most and len(self._live) - self.num_running >= most:
            raise Overloaded(f"{most} requests wait already")
        use = self._tree.begin(
            prompt.text + answer.tokens,
            prompt_blocks=prompt.num_tokens // self.block_size,
            session=hints.session,
            shared_blocks=prompt.shared_tokens // self.block_size,
            salt=prompt.salt,
        )
        job = self._job(name, prompt, answer, use, hints.session or "", priority)
        generation = Generation(
            name=name,
            prompt=prompt,
            answer=answer,
            hints=hints,
            job=job,
            use=use,
            submitted_us=now,
        )
        self._live[job.id] = self._by_name[name] = generation
        if hints.session is not None:
            self._remember(hints.session, use, prompt.num_tokens + answer.num_tokens)
        self._sim.submit(job, now)
        self._after()
        return generation

    def cancel(self, generation: Generation) -> None:
        """The request is not wanted any more; does nothing when it has ended."""
        now = self._advance()
        if self._live.get(generation.job.id) is generation:
            self._sim.cancel(generation.job.id, now)
            self._end(generation, "abort")
        self._after()

    def preempt(self, name: str) -> bool:
        """The request goes back behind all that wait. False if it does not run; raises KeyError."""
        generation = self._by_name[name]
        now = self._advance()
        if not generation.running:
            return False
        self._sim.preempt(generation.job.id, now)
        self._after()
        return True

    def prioritise(self, name: str, priority: int) -> bool:
        """Lower goes first. A waiting request goes to the end of its new class; for a running one
        it decides who is preempted. False, and nothing changes, for one that waits because it was
        preempted. Raises KeyError.
        """
        generation = self._by_name[name]
        now = self._advance()
        job = generation.job
        if generation.running:
            job.priority = priority
            return True
        if job.started:
            return False
        self._sim.cancel(job.id, now)
        del self._live[job.id]
        generation.job = self._job(
            name, generation.prompt, generation.answer, generation.use, job.session, priority
        )
        self._live[generation.job.id] = generation
        self._sim.submit(generation.job, now)
        self._after()
        return True

    # ---- sessions

    def retain(self, session: str, ttl_s: float, score: float | None = None) -> int:
        """Its KV should stay for ``ttl_s`` on the clock. Its tokens here; raises KeyError."""
        state = self._sessions[session]
        now = self._advance()
        state.score = state.score if score is None else score
        state.until_us = now + self._model_us(ttl_s)
        return self._apply(session, state, now)

    def extend(self, session: str, ttl_s: float) -> int:
        """Like ``retain`` with the score it has, but never ends earlier. Raises KeyError."""
        state = self._sessions[session]
        now = self._advance()
        state.until_us = max(state.until_us, now + self._model_us(ttl_s))
        return self._apply(session, state, now)

    def release(self, session: str) -> int:
        """Its KV goes before all other. Its tokens here; raises KeyError."""
        state = self._sessions[session]
        now = self._advance()
        state.until_us = 0
        self._sim.release(session, now)
        self._note(wire.KV_RELEASED, session)
        self._after()
        return self._sim.resident(state.path, state.tokens, now)

    def resident(self, session: str) -> int:
        """How many tokens of its last request have their KV here. Raises KeyError."""
        state = self._sessions[session]
        return self._sim.resident(state.path, state.tokens, self._advance())

    # ---- what it tells about itself

    @property
    def num_running(self) -> int:
        return sum(generation.running for generation in self._live.values())

    def stats(self) -> dict[str, Any]:
        """What there is and what was counted since the start; tokens and blocks."""
        now = self._advance()
        self._sim.settle(now)
        self._after()
        counts, cache = self._sim.counts, self._cache
        num_running = self.num_running
        return {
            "num_requests_running": num_running,
            "num_requests_waiting": len(self._live) - num_running,
            "num_blocks": self.num_blocks,
            "used_blocks": cache.active,
            "resident_blocks": cache.resident,
            "prompt_tokens": counts.tokens.prompt,
            "hit_tokens": counts.tokens.hit,
            "regenerated_tokens": counts.tokens.regenerated,
            "generated_tokens": self.generated_tokens,
            "num_preemptions": counts.num_preemptions,
            "evicted_blocks": counts.evicted_blocks,
            "model_us": now,
            "busy_us": counts.busy_ps // _US,
            wire.EVENTS_ENDPOINT: self._publisher.endpoint if self._publisher is not None else None,
        }

    def check(self) -> None:
        """The laws of the model's engine and cache."""
        self._sim.check()

    # ---- time

    def _model_us(self, seconds: float) -> int:
        return int(seconds * 1e6 * self.options.speed)

    def _advance(self) -> int:
        """Runs the model up to now; returns the model's time."""
        now = max(self._now, int(self._clock.now_us() * self.options.speed))
        woken = False
        while (due := self._sim.next_event_us) is not None and due <= now:
            self._now = max(self._now, due)
            self._sim.wake(self._now)
            woken = True
        self._now = now
        if woken:
            self.generated_tokens += sum(g.notice() for g in self._live.values())
        return now

    def _wake(self) -> None:
        self._advance()
        self._after()

    def _after(self) -> None:
        """Plans the next wake-up, and publishes what has changed."""
        if self._publisher is not None and (events := self._kv_events()):
            self._publisher.publish(events)
        self._cache.shrunk.clear()  # meant for a scheduler; grows otherwise
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._sim.next_event_us
        if due is not None:
            delay_us = -(-due // self.options.speed) - self._clock.now_us()
            self._timer = self._call_later(max(0.0, delay_us / 1e6), self._wake)

    def _tell(self, moment: Moment, job: Job) -> None:
        generation = self._live.get(job.id)
        if generation is None:
            return
        match moment:
            case Moment.STARTED:
                generation.cached_tokens = job.hit_tokens
            case Moment.FIRST_TOKEN:
                generation.first_token_us = self._now
            case Moment.FINISHED:
                generation.finished_us = self._now
                generation.done = True
                self.generated_tokens += generation.notice()
                self._end(generation, generation.answer.finish)
                if generation.hints.session is not None:
                    self._note(wire.KV_STORED, generation.hints.session)
                self._apply_hints(generation.hints)
            case Moment.REFUSED:
                raise AssertionError(f"{job.prompt_tokens} + {job.output_tokens} tokens do not fit")

    # ---- inside

    def _job(
        self, name: str, prompt: Prompt, answer: Answer, use: Use, session: str, priority: int
    ) -> Job:
        self._numbers += 1
        size = self.block_size
        return Job(
            id=f"{name}/{self._numbers}",
            session=session,
            path=use.path,
            prompt_tokens=prompt.num_tokens,
            output_tokens=answer.num_tokens,
            reusable_tokens=min(use.computed_blocks, (prompt.num_tokens - 1) // size) * size,
            priority=priority,
        )

    def _end(self, generation: Generation, reason: str) -> None:
        del self._live[generation.job.id]
        if self._by_name.get(generation.name) is generation:
            del self._by_name[generation.name]
        self.ended[reason] += 1
        job, size = generation.job, self.block_size
        # The KV of an answer's last token is never computed; that of a token that came out when the
        # request was cancelled is computed by the step under way.
        known = job.prompt_tokens + min(job.produced, job.output_tokens - 1)
        self._tree.end(generation.use, known // size, max(job.computed, job.lost_tokens) // size)

    def _apply_hints(self, hints: Hints) -> None:
        state = self._sessions.get(hints.session) if hints.session is not None else None
        if hints.session is None or state is None:
            return
        if hints.final or hints.ttl_s == 0:
            self._sim.release(hints.session, self._now)
            self._note(wire.KV_RELEASED, hints.session)
        elif hints.ttl_s is not None:
            state.until_us = self._now + self._model_us(hints.ttl_s)
            state.score = DEFAULT_REUSE if hints.score is None else hints.score
            self._sim.retain(hints.session, state.until_us, state.score, self._now)
            self._note(wire.KV_RETAINED, hints.session)

    def _apply(self, session: str, state: _Session, now: int) -> int:
        self._sim.retain(session, state.until_us, state.score, now)
        self._note(wire.KV_RETAINED, session)
        self._after()
        return self._sim.resident(state.path, state.tokens, now)

    def _remember(self, session: str, use: Use, tokens: int) -> None:
        self._sessions[session] = _Session(use.path, tokens)
        self._sessions.move_to_end(session)
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)

    def _note(self, kind: str, session: str) -> None:
        if self._publisher is not None:
            self._unpublished.append((kind, session))

    def _kv_events(self) -> list[KvEvent]:
        """What was noted, and whose KV has shrunk since."""
        victim, now = self._cache.index.current, self._now
        shrunk = {*self._cache.shrunk, victim.session if victim is not None else None}
        noted, self._unpublished = self._unpublished, []
        noted += [(wire.KV_EVICTED, session) for session in sorted(filter(None, shrunk))]
        events: list[KvEvent] = []
        for kind, session in noted:
            state = self._sessions.get(session)
            if state is None:
                continue
            left = self._sim.resident(state.path, state.tokens, now)
            if kind != wire.KV_EVICTED or left < state.left:
                events.append((kind, session, left))
                state.left = left if kind == wire.KV_STORED else min(left, state.left)
        return events

    def _has_blocks(self, content: Content) -> bool:
        return self._cache.hit((Span(content, ENDLESS),), ENDLESS) > content.start
