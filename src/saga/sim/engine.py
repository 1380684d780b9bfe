"""One simulated engine: continuous batching with chunked prefill, as vLLM's V1 scheduler does it.

Time inside the engine is in integer picoseconds, so that the sum over many steps is exact. While
only decodes run, nothing can change before the first of them ends, memory runs out or somebody
calls: the engine *jumps* there in closed form. ``max_jump=1`` steps through every iteration instead
and gives the same events at the same times.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isqrt

from saga.core.cache import FOREVER
from saga.sim.counts import Counts
from saga.sim.kv_cache import KVCache, Occupancy
from saga.sim.latency import StepTime
from saga.sim.lineage import Content, Span

PS = 1_000_000
"""Picoseconds in a microsecond."""
GHOST_PRIORITY = 1 << 62
LONGEST_JUMP = 1 << 40


class Moment(StrEnum):
    """What the engine tells its host about a job."""

    STARTED = "started"
    FIRST_TOKEN = "first_token"
    FINISHED = "finished"
    REFUSED = "refused"


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One request, as the engine sees it."""

    id: str
    session: str
    path: Sequence[Span]
    prompt_tokens: int
    output_tokens: int
    reusable_tokens: int = 0
    """Prompt tokens whose KV the session had computed before."""
    priority: int = 0
    ghost: bool = False
    """A prefetch: prefilled only when nothing else waits, and told to nobody."""
    since_ps: int = 0
    number: int = 0
    computed: int = 0
    """Tokens whose KV is in its blocks."""
    covered: int = 0
    """Tokens for which it has blocks."""
    produced: int = 0
    target: int = 0
    """Tokens to compute before the next one can be sampled."""
    hit_tokens: int = 0
    host_tokens: int = 0
    lost_tokens: int = 0
    """Tokens it had computed when it was preempted or its engine was lost."""
    started: bool = False
    cancelled: bool = False
    preempt: bool = False
    loaded_blocks: int | None = None
    """Blocks that are pinned for it by a reload from host memory; None: no reload."""
    gap_us: int | None = None
    """True time to its session's next request, for clairvoyant policies; None: there is none."""

    def replace(self, lost: Job) -> None:
        """This is the same request, whose engine was lost: its prompt was counted there."""
        self.started = lost.started
        self.hit_tokens, self.host_tokens = lost.hit_tokens, lost.host_tokens
        self.lost_tokens = max(lost.lost_tokens, lost.computed)

    def __lt__(self, other: Job) -> bool:
        return (self.priority, self.number) < (other.priority, other.number)


@dataclass(slots=True)
class _Iteration:
    """The steps under way: ``jump`` equal ones but for the growing contexts."""

    start_ps: int
    first_ps: int
    """Duration of the first step; each further one lasts ``slope_ps`` more."""
    slope_ps: int
    jump: int
    chunks: list[tuple[Job, int]]
    """Prefill chunks; then ``jump`` is 1."""
    done: int = 0
    """Steps already accounted for."""

    def end_of(self, steps: int) -> int:
        """When the first ``steps`` steps are over."""
        return self.start_ps + steps * self.first_ps + self.slope_ps * (steps * (steps - 1) // 2)

    def steps_by(self, at_ps: int) -> int:
        """Steps that are over at ``at_ps``, at most ``jump``."""
        elapsed = at_ps - self.start_ps
        if elapsed < self.first_ps:
            return 0
        if self.slope_ps:
            b = 2 * self.first_ps - self.slope_ps
            steps = (isqrt(b * b + 8 * self.slope_ps * elapsed) - b) // (2 * self.slope_ps)
        else:
            steps = elapsed // self.first_ps
        return min(self.jump, steps)


@dataclass(slots=True, kw_only=True)
class EngineLimits:
    """What the engine's scheduler is configured with."""

    block_size: int = 16
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    reserve_full_prompt: bool = False
    """Whether a request starts only when its whole prompt fits, rather than its first chunk."""
    max_jump: int = LONGEST_JUMP


class SimEngine:
    """Drive it with ``submit``, ``cancel`` and the like, then ``wake`` it at ``next_event_us``.

    ``tell(moment, job)`` is called from ``wake`` only.
    """

    retains: bool = True
    prefetches: bool = True
    adopts: bool = True

    def __init__(
        self,
        name: str,
        *,
        cache: KVCache,
        step_time: StepTime,
        limits: EngineLimits,
        tell: Callable[[Moment, Job], None],
        reload_us: Callable[[int], int] = lambda tokens: 0,
        up_since: int = 0,
    ) -> None:
        self.name = name
        self.up_since = up_since
        self.cache = cache
        self.counts = cache.counts
        self._step_time = step_time
        self._limits = limits
        self._tell = tell
        self._reload_us = reload_us
        self._waiting: list[Job] = []
        self._prefilling: list[Job] = []
        self._decoding: list[Job] = []
        self._loading: list[tuple[int, Job]] = []
        """Reloads from host memory under way, by when they end (us)."""
        self._link_free_us = 0
        self._iteration: _Iteration | None = None
        self._jobs: dict[str, Job] = {}
        self._numbers = 0
        self._moments: list[tuple[Moment, Job]] = []
        self.next_event_us: int | None = None

    # ---- from the host

    def submit(self, job: Job, now: int) -> None:
        """A request arrives at the engine. It joins the first step that starts after ``now``.

        One that can never fit is refused at the next ``wake``.
        """
        self._numbers += 1
        job.number = self._numbers
        job.since_ps = now * PS
        job.target = job.prompt_tokens
        if self._blocks(job.prompt_tokens + job.output_tokens) > self.cache.capacity:
            if not job.ghost:
                self._moments.append((Moment.REFUSED, job))
        else:
            self._jobs[job.id] = job
            insort(self._waiting, job)
        self._interrupt(now)

    def cancel(self, job_id: str, now: int) -> None:
        """The request is not wanted any more; it leaves at the end of the step under way."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            job.cancelled = True
            self._interrupt(now)

    def preempt(self, job_id: str, now: int) -> None:
        """The running request goes back behind all that wait, at the end of the step."""
        job = self._jobs.get(job_id)
        if job is not None and (job in self._decoding or job in self._prefilling):
            job.preempt = True
            self._interrupt(now)

    def retain(self, session: str, until: int, score: float, now: int) -> None:
        self._catch_up(now)
        self.cache.retain(session, until, score, now)
        self._end_jump(now)

    def release(self, session: str, now: int) -> None:
        self._catch_up(now)
        self.cache.release(session, now)
        self._end_jump(now)

    def drop(self, session: str, now: int) -> None:
        self._catch_up(now)
        self.cache.drop(session, now)
        self._end_jump(now)

    def offload(self, session: str, path: Sequence[Span], tokens: int, now: int) -> None:
        """Copies a session's idle KV to host memory and frees it here."""
        self._catch_up(now)
        self.cache.store(path, tokens // self._limits.block_size)
        self.cache.drop(session, now)
        self._end_jump(now)

    def resident(self, path: Sequence[Span], tokens: int, now: int) -> int:
        """How many of the path's first ``tokens`` have their KV here, in whole blocks."""
        self._catch_up(now)
        size = self._limits.block_size
        return self.cache.hit(path, tokens // size) * size

    def adopt(self, path: Sequence[Span], tokens: int, now: int) -> None:
        """KV that was copied from another engine arrives, for the request that follows it, unless
        there is no room for all of it."""
        self._catch_up(now)
        blocks = tokens // self._limits.block_size
        missing = blocks - self.cache.hit(path, blocks)
        if missing > 0 and missing <= self.cache.available - self.cache.idle_in(path, blocks):
            self.cache.pin(path, 0, now)
            self.cache.grow(path, blocks, now)
            self.cache.unpin(path, blocks, now, next_use=now)
            self._end_jump(now)

    def prefetch(self, job: Job, now: int) -> None:
        """Prepares a session's KV: from host memory where it is, else by a ghost prefill."""
        job.ghost = True
        job.priority = GHOST_PRIORITY
        self.submit(job, now)

    def reset_counts(self, now: int) -> None:
        """Counts and occupancy start at zero: the measured window begins."""
        self._catch_up(now)
        self.cache.reset_occupancy(now)
        self.counts = self.cache.counts = Counts()

    def settle(self, now: int) -> Occupancy:
        """The occupancy of the window up to ``now``; all steps that are over are counted."""
        self._catch_up(now)
        return self.cache.settle(now)

    def liveness_changed(self, contents: Iterable[Content], now: int) -> None:
        """Who may still ask for these contents is now another."""
        self.cache.liveness_changed(contents, now)

    def used_up(self) -> tuple[str, int] | None:
        """A session whose idle KV was evicted since this was last asked, and the blocks left."""
        return self.cache.shrunk.popitem() if self.cache.shrunk else None

    @property
    def capacity_tokens(self) -> int:
        return self.cache.capacity * self._limits.block_size

    @property
    def num_jobs(self) -> int:
        return len(self._jobs)

    @property
    def batch(self) -> dict[str, int]:
        """Tokens that each request computes in the step under way, by its id."""
        if self._iteration is None:
            return {}
        chunks = {job.id: size for job, size in self._iteration.chunks}
        return {job.id: 1 for job in self._decoding} | chunks

    # ---- time

    def wake(self, now: int) -> None:
        """Finishes what is over at ``now`` and starts what can start."""
        iteration, start_ps = self._iteration, now * PS
        if iteration is not None:
            start_ps = iteration.end_of(iteration.jump)
            if start_ps > now * PS:
                return
            self.next_event_us = None
            self._finish(iteration, now)
            self._iteration = None
        self._flush()
        self._collect_loads(start_ps, now)
        self._clean_up(now)
        self._plan(start_ps, now, newcomers=iteration is None)
        self._flush()

    def _flush(self) -> None:
        """Tells what happened. What the host does in return may call back into the engine."""
        moments, self._moments = self._moments, []
        for moment, job in moments:
            self._tell(moment, job)

    def _interrupt(self, now: int) -> None:
        """Ends the jump with the step under way, or starts the engine if it idles."""
        iteration = self._iteration
        if iteration is None:
            self.next_event_us = now
            return
        self._catch_up(now)
        if iteration.done < iteration.jump:
            iteration.jump = iteration.done + 1
            self.next_event_us = ceil_us(iteration.end_of(iteration.jump))

    def _end_jump(self, now: int) -> None:
        """Idle KV was changed from outside: a jump had counted on its victim, and on there being
        no room for those that wait."""
        if self._iteration is not None:
            self._interrupt(now)

    def _catch_up(self, now: int) -> None:
        """Accounts for the steps of the jump that are over, and for the blocks of the next."""
        iteration = self._iteration
        if iteration is None or iteration.jump == 1:
            return
        steps = iteration.steps_by(now * PS)
        steps = min(steps, iteration.jump - 1)
        if steps > iteration.done:
            self._account(iteration, steps)
            for job in self._decoding:
                self._grow(job, job.computed + 1, now)

    # ---- one step or one jump

    def _plan(self, start_ps: int, now: int, *, newcomers: bool) -> None:
        """Composes the next batch. Running requests first, then waiting ones, as vLLM does.

        ``newcomers``: the engine was idle, so what arrived at this very moment takes part.
        """
        before_ps = start_ps + newcomers
        self._set_ghosts_back(before_ps, now)
        num_running = len(self._decoding) + len(self._prefilling)
        self._make_room_for_decodes(now)
        budget = self._limits.max_num_batched_tokens - len(self._decoding)
        chunks: list[tuple[Job, int]] = []
        for job in list(self._prefilling):
            size = min(job.target - job.computed, budget)
            if size > 0 and job in self._prefilling and self._room_for_chunk(job, size, now):
                chunks.append((job, size))
                budget -= size
        running = [(job, size) for job, size in chunks if job in self._prefilling]
        preempted = len(self._decoding) + len(self._prefilling) < num_running
        if not preempted:
            self._admit(running, budget, before_ps, now)
        again = preempted or self._newcomers_wait(before_ps)
        if running or self._decoding:
            self._begin(start_ps, running, single=bool(running) or (again and bool(self._waiting)))
        else:
            self._rest(before_ps, now)

    def _newcomers_wait(self, before_ps: int) -> bool:
        """Whether somebody waits who came too late for this step."""
        return bool(self._waiting) and self._waiting[0].since_ps >= before_ps

    def _begin(self, start_ps: int, chunks: list[tuple[Job, int]], *, single: bool) -> None:
        """``single``: the batch may change after one step."""
        decodes = self._decoding
        context = sum(job.computed for job in decodes)
        pairs = sum(size * job.computed + size * size // 2 for job, size in chunks)
        tokens = len(decodes) + sum(size for _, size in chunks)
        first = self._step_time.step_ps(tokens, len(decodes) + len(chunks), context, pairs)
        jump = 1 if single else self._longest_jump()
        self._iteration = _Iteration(
            start_ps, first, self._step_time.kv_ps * len(decodes), jump, chunks
        )
        end = self._iteration.end_of(jump)
        self.next_event_us = ceil_us(end)
        if self._loading and jump > 1:
            self._end_jump_at(self._loading[0][0])

    def _end_jump_at(self, at: int) -> None:
        """Shortens the jump to the first step that is over at ``at`` or later."""
        iteration = self._iteration
        assert iteration is not None
        steps = iteration.steps_by(at * PS)
        if steps == 0 or iteration.end_of(steps) < at * PS:
            steps += 1
        if steps < iteration.jump:
            iteration.jump = steps
            self.next_event_us = ceil_us(iteration.end_of(steps))

    def _longest_jump(self) -> int:
        """Steps until a decode ends or a further victim would have to be chosen."""
        jump = min(job.output_tokens - job.produced for job in self._decoding)
        jump = min(jump, self._limits.max_jump)
        spare = self.cache.without_choice
        if jump > 1 and self._growth(jump) > spare:
            low, high = 1, jump
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if self._growth(middle) <= spare else (low, middle)
            jump = low
        return jump

    def _growth(self, steps: int) -> int:
        """Blocks that the decodes need for ``steps`` steps beyond those of the first."""
        size = self._limits.block_size
        return sum(
            (job.computed + steps - 1) // size - job.computed // size for job in self._decoding
        )

    def _finish(self, iteration: _Iteration, now: int) -> None:
        """The steps are over: tokens come out, and who is complete leaves."""
        self._account(iteration, iteration.jump)
        for job in self._decoding:
            self._grow(job, job.computed, now)
        ended = [job for job in self._decoding if job.produced >= job.output_tokens]
        for job, size in iteration.chunks:
            job.computed += size
            if job.computed == job.target:
                self._prefilling.remove(job)
                self._decoding.append(job)
                if job.produced == 0:
                    self._moments.append((Moment.FIRST_TOKEN, job))
                job.produced += 1
                if job.produced >= job.output_tokens:
                    ended.append(job)
        for job in ended:
            self._decoding.remove(job)
            self._leave(job, now)

    def _account(self, iteration: _Iteration, steps: int) -> None:
        """The first ``steps`` steps are over: what they took, and what the decodes have got."""
        more = steps - iteration.done
        self.counts.busy_ps += iteration.end_of(steps) - iteration.end_of(iteration.done)
        iteration.done = steps
        for job in self._decoding:
            job.computed += more
            job.produced += more

    def _leave(self, job: Job, now: int) -> None:
        full = job.computed // self._limits.block_size
        self.cache.store(job.path, full)
        next_use = FOREVER if job.gap_us is None else now + job.gap_us
        self.cache.unpin(job.path, full, now, next_use)
        self._jobs.pop(job.id, None)
        if job.cancelled:
            return
        if job.ghost:
            self.counts.tokens.prefetched += job.prompt_tokens - job.hit_tokens - job.host_tokens
        else:
            self.counts.tokens.output += job.output_tokens
        self._moments.append((Moment.FINISHED, job))

    # ---- memory

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._limits.block_size)

    def _grow(self, job: Job, tokens: int, now: int) -> None:
        """Blocks for the first ``tokens`` of the job."""
        if tokens > job.covered:
            blocks = self._blocks(tokens)
            job.covered = blocks * self._limits.block_size
            self.cache.grow(job.path, blocks, now)

    def _make_room_for_decodes(self, now: int) -> None:
        """Blocks for one token each; preempts the newest while there are not enough."""
        while True:
            short = [job for job in self._decoding if job.computed >= job.covered]
            if len(short) <= self.cache.available:
                break
            self._preempt(self._newest(), now)
        for job in short:
            self._grow(job, job.computed + 1, now)

    def _room_for_chunk(self, job: Job, size: int, now: int) -> bool:
        """Blocks for a chunk of a running prefill, preempting newer requests if need be."""
        end = job.computed + size
        need = self._blocks(end) - self._blocks(job.computed)
        while need > self.cache.available:
            newest = self._newest()
            self._preempt(newest, now)
            if newest is job:
                return False
        self._grow(job, end, now)
        return True

    def _newest(self) -> Job:
        """The running request of lowest priority, the last admitted of them: vLLM's victim."""
        return max([*self._decoding, *self._prefilling])

    def _set_ghosts_back(self, before_ps: int, now: int) -> None:
        """Prefetches under way make room as soon as a request waits; their KV stays as idle KV."""
        if self._waiting and not self._waiting[0].ghost and self._waiting[0].since_ps < before_ps:
            for job in [job for job in self._prefilling if job.ghost]:
                self._preempt(job, now)

    def _preempt(self, job: Job, now: int) -> None:
        """Takes a running request's blocks; it starts over, from what the cache then still has."""
        self.counts.num_preemptions += not job.ghost
        (self._decoding if job in self._decoding else self._prefilling).remove(job)
        self.cache.unpin(job.path, job.computed // self._limits.block_size, now, next_use=now)
        job.lost_tokens = max(job.lost_tokens, job.computed)
        job.computed = job.covered = 0
        job.target = job.prompt_tokens + job.produced
        job.loaded_blocks = None
        insort(self._waiting, job)

    # ---- admission into the batch

    def _admit(self, chunks: list[tuple[Job, int]], budget: int, before_ps: int, now: int) -> None:
        """Starts waiting requests that came before ``before_ps``, until one does not fit."""
        while self._waiting and budget > 0:
            job = self._waiting[0]
            running = len(self._decoding) + len(self._prefilling) + len(self._loading)
            if running >= self._limits.max_num_seqs or job.since_ps >= before_ps:
                return
            if job.ghost and self._prefilling:
                return  # ghosts sort last: nothing else waits, but something is being prefilled
            if job.loaded_blocks is None and self._in_host_memory(job):
                if self._start_load(job, budget, now):
                    continue
                if self._decoding or self._prefilling or self._loading:
                    return  # room will come; computing it again now would cost more
            size = self._start(job, budget, now)
            if not size:
                return
            chunks.append((job, size))
            budget -= size

    def _start(self, job: Job, budget: int, now: int) -> int:
        """Admits the first waiting request if its blocks can be had; the size of its chunk or 0."""
        size = self._limits.block_size
        hit = self.cache.hit(job.path, (job.target - 1) // size)
        if not self._has_room(job, hit, hit, budget):
            return 0
        chunk = min(job.target - hit * size, budget)
        self._waiting.pop(0)
        if job.loaded_blocks is None:
            self.cache.pin(job.path, hit, now, returned=not job.ghost)
        job.loaded_blocks = None
        job.computed = job.covered = hit * size
        self._grow(job, job.computed + chunk, now)
        self._prefilling.append(job)
        if not job.started:
            count_start(self.counts, job, self._step_time, self._limits.max_num_batched_tokens)
        elif not job.ghost:
            self.counts.tokens.preempted += max(0, job.lost_tokens - job.computed)
        self._moments.append((Moment.STARTED, job))
        return chunk

    def _has_room(self, job: Job, begin: int, hit: int, budget: int) -> bool:
        """Whether blocks can be had up to the end of its first chunk, from block ``begin`` on.

        The first ``hit`` blocks are resident, and the job's already if it was loaded.
        """
        first = min(job.target, begin * self._limits.block_size + budget)
        end = job.target if self._limits.reserve_full_prompt else first
        idle = self.cache.idle_in(job.path, hit) if job.loaded_blocks is None else 0
        return self._blocks(end) - hit + idle <= self.cache.available

    # ---- reloads from host memory

    def _in_host_memory(self, job: Job) -> bool:
        """Whether host memory has more of the prompt than the GPU."""
        limit = (job.target - 1) // self._limits.block_size
        return self.cache.host_hit(job.path, limit) > self.cache.hit(job.path, limit)

    def _start_load(self, job: Job, budget: int, now: int) -> bool:
        """Reserves blocks for what host memory has and starts the copy, if there is room for it and
        for the first chunk behind it."""
        size = self._limits.block_size
        limit = (job.target - 1) // size
        have = self.cache.hit(job.path, limit)
        reach = self.cache.host_hit(job.path, limit)
        if not self._has_room(job, reach, have, budget):
            return False
        self._waiting.pop(0)
        self.cache.pin(job.path, have, now, returned=not job.ghost)
        self.cache.grow(job.path, reach, now)
        job.loaded_blocks = reach
        if not job.started:
            job.host_tokens = (reach - have) * size
        begin = max(now, self._link_free_us)
        self._link_free_us = begin + self._reload_us((reach - have) * size)
        self._loading.append((self._link_free_us, job))
        return True

    def _collect_loads(self, start_ps: int, now: int) -> None:
        """Reloads that are over put their requests at the head of the queue."""
        while self._loading and self._loading[0][0] * PS <= start_ps:
            _, job = self._loading.pop(0)
            insort(self._waiting, job)

    def _clean_up(self, now: int) -> None:
        """Cancelled and preempted requests leave the batch between two steps."""
        for job in [job for job in self._waiting if job.cancelled]:
            self._waiting.remove(job)
            if job.loaded_blocks is not None:
                self.cache.unpin(job.path, job.loaded_blocks, now)
        for jobs in (self._decoding, self._prefilling):
            for job in [job for job in jobs if job.cancelled or job.preempt]:
                if job.cancelled:
                    jobs.remove(job)
                    self._leave(job, now)
                else:
                    job.preempt = False
                    self._preempt(job, now)
                    self._send_to_back(job)

    def _send_to_back(self, job: Job) -> None:
        self._waiting.remove(job)
        self._numbers += 1
        job.number = self._numbers
        insort(self._waiting, job)

    def _rest(self, before_ps: int, now: int) -> None:
        """Nothing runs: go on with newcomers, or sleep until a reload ends or somebody calls."""
        if self._newcomers_wait(before_ps):
            self.next_event_us = now
        elif self._loading:
            self.next_event_us = max(now, self._loading[0][0])
        else:
            self.next_event_us = now if self._waiting and self._give_back(now) else None

    def _give_back(self, now: int) -> bool:
        """Requests that were reloaded keep each other from starting: the last one lets go."""
        for job in reversed(self._waiting):
            if job.loaded_blocks is not None:
                self.cache.unpin(job.path, job.loaded_blocks, now, next_use=now)
                job.loaded_blocks = None
                return True
        return False

    def check(self) -> None:
        """Laws 4 and 5 of the cache, and that every job is in exactly one place."""
        self.cache.check()
        places = len(self._waiting) + len(self._prefilling) + len(self._decoding)
        listed = {id(job) for job in (*self._waiting, *self._prefilling, *self._decoding)}
        assert len(listed) == places, f"law 1: a job is in two places on {self.name}"


def count_start(counts: Counts, job: Job, step_time: StepTime, chunk: int) -> None:
    """A job starts for the first time, behind the ``computed`` tokens that were found.

    Where its prompt came from: hit + host hit + regenerated + new = prompt.
    """
    job.started = True
    job.hit_tokens = job.computed - job.host_tokens
    if job.ghost:
        return
    regenerated = max(0, job.reusable_tokens - job.computed)
    tokens = counts.tokens
    tokens.prompt += job.prompt_tokens
    tokens.hit += job.hit_tokens
    tokens.host_hit += job.host_tokens
    tokens.regenerated += regenerated
    tokens.new += job.prompt_tokens - job.computed - regenerated
    if regenerated:
        counts.regenerated_ps += step_time.prefill_ps(
            job.computed, job.computed + regenerated, chunk
        )


def ceil_us(ps: int) -> int:
    """Picoseconds to microseconds, rounded up."""
    return -(-ps // PS)
