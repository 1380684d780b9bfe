"""An engine of the simulator that is scheduled by vLLM itself, in virtual time.

Batches, prefix hits, evictions and preemptions are vLLM's; how long a step takes is what the
step-time model says of it. Only the tokens that a model would sample are made up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from saga import wire
from saga.engine.vllm.simulated.names import BlockNames
from saga.engine.vllm.simulated.offline import make_scheduler
from saga.sim.counts import Counts
from saga.sim.engine import PS, Job, Moment, ceil_us, count_start
from saga.sim.engine_model import EngineSetup
from saga.sim.kv_cache import Occupancy
from saga.sim.lineage import Content, Span

GROUP = [0]
"""The group of blocks of the only kind of layer."""


@dataclass(slots=True)
class _Step:
    """The step under way."""

    start_ps: int
    end_ps: int
    output: Any
    batch: list[tuple[Job, int]]


class _Watch:
    """Is told by vLLM's block pool what happens to each block."""

    def __init__(self, evicted: Callable[[bytes], None]) -> None:
        self._evicted = evicted

    def on_block_allocated(self, block: Any) -> None: ...

    def on_block_accessed(self, block: Any) -> None: ...

    def on_block_evicted(self, block: Any) -> None:
        """Also called of blocks that hold nothing."""
        if block.block_hash is not None:
            self._evicted(block.block_hash)


class VllmEngine:
    """An ``EngineModel``. KV that is dead counts as waiting: vLLM does not know the difference.

    KV is kept for nobody, and none can be moved here: the request that follows computes it again.
    """

    retains: bool = False
    prefetches: bool = False
    adopts: bool = False

    def __init__(self, setup: EngineSetup, kind: type[Scheduler] = Scheduler) -> None:
        limits = setup.limits
        self.name = setup.name
        self.up_since = setup.up_since
        self.counts = Counts()
        self.next_event_us: int | None = None
        self._limits = limits
        self._step_time = setup.step_time
        self._tell = setup.tell
        self._num_blocks = setup.spec.num_blocks
        self._scheduler = make_scheduler(
            kind,
            num_blocks=self._num_blocks,
            block_size=limits.block_size,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            reserve_full_prompt=limits.reserve_full_prompt,
        )
        self._pool = self._scheduler.kv_cache_manager.block_pool
        self._pool.metrics_collector = _Watch(self._evicted)
        self._names = BlockNames()
        self._arrived: list[Job] = []
        """Not yet told to vLLM."""
        self._jobs: dict[str, Job] = {}
        self._running: set[str] = set()
        self._cancelled: list[str] = []
        self._to_preempt: list[str] = []
        self._step: _Step | None = None
        self._moments: list[tuple[Moment, Job]] = []
        self._used_up: dict[str, int] = {}
        self._numbers = 0
        self._occupancy = Occupancy()
        self._now = setup.up_since

    @property
    def capacity_tokens(self) -> int:
        return self._num_blocks * self._limits.block_size

    @property
    def num_jobs(self) -> int:
        return len(self._jobs)

    @property
    def batch(self) -> dict[str, int]:
        return {} if self._step is None else {job.id: size for job, size in self._step.batch}

    # ---- requests

    def submit(self, job: Job, now: int) -> None:
        self._numbers += 1
        job.number = self._numbers
        job.since_ps = now * PS
        job.target = job.prompt_tokens
        if job.prompt_tokens + job.output_tokens > self.capacity_tokens:
            self._moments.append((Moment.REFUSED, job))
        else:
            self._jobs[job.id] = job
            self._arrived.append(job)
        self._interrupt(now)

    def cancel(self, job_id: str, now: int) -> None:
        job = self._jobs.pop(job_id, None)
        if job is not None:
            job.cancelled = True
            self._cancelled.append(job_id)
            self._interrupt(now)

    def preempt(self, job_id: str, now: int) -> None:
        if job_id in self._running:
            self._to_preempt.append(job_id)
            self._interrupt(now)

    def prefetch(self, job: Job, now: int) -> None:
        raise NotImplementedError("vLLM does not prefetch")

    # ---- idle KV

    def resident(self, path: Sequence[Span], tokens: int, now: int) -> int:
        blocks = 0
        for name in self._names.of(path, 0, tokens // self._limits.block_size):
            if self._pool.get_cached_block(name, GROUP) is None:
                break
            blocks += 1
        return blocks * self._limits.block_size

    def retain(self, session: str, until: int, score: float, now: int) -> None:
        pass

    def release(self, session: str, now: int) -> None:
        pass

    def drop(self, session: str, now: int) -> None:
        """It stays until it is the least recently used."""

    def offload(self, session: str, path: Sequence[Span], tokens: int, now: int) -> None:
        raise NotImplementedError("vLLM has no host memory under a policy")

    def adopt(self, path: Sequence[Span], tokens: int, now: int) -> None:
        raise NotImplementedError("KV cannot be moved to vLLM")

    def liveness_changed(self, contents: Iterable[Content], now: int) -> None:
        self._names.forget(content for content in contents if not content.live_end)

    def used_up(self) -> tuple[str, int] | None:
        return self._used_up.popitem() if self._used_up else None

    def _evicted(self, name: bytes) -> None:
        self.counts.evicted_blocks += 1
        content, block = self._names.find(name)
        if block == content.start and content.session is not None:  # its last one: tails go first
            self.counts.num_evictions += 1
            shared_only = content.parent is None or content.parent.session is None
            self._used_up[content.session] = 0 if shared_only else content.start

    # ---- the record

    def reset_counts(self, now: int) -> None:
        self._advance(now)
        self.counts, self._occupancy = Counts(), Occupancy()

    def settle(self, now: int) -> Occupancy:
        self._advance(now)
        return self._occupancy

    def _advance(self, now: int) -> None:
        used = self._num_blocks - self._pool.get_num_free_blocks()
        cached = len(self._pool.cached_block_hash_to_block)
        self._occupancy.active += used * (now - self._now)
        self._occupancy.waiting += max(0, cached - used) * (now - self._now)
        self._now = now

    def check(self) -> None:
        """Laws 4 and 5 are vLLM's to keep; that it has the requests that it should have is ours."""
        here = len(self._scheduler.requests) + len(self._arrived)
        assert here == len(self._jobs) + len(self._cancelled), f"law 1: lost on {self.name}"

    # ---- time

    def wake(self, now: int) -> None:
        step, start_ps = self._step, now * PS
        if step is not None:
            start_ps = step.end_ps
            if start_ps > now * PS:
                return
            self.next_event_us = None
            self._advance(now)
            self._finish(step)
            self._step = None
        self._flush()
        self._advance(now)
        self._clean_up()
        self._plan(start_ps, now, newcomers=step is None)
        self._flush()

    def _flush(self) -> None:
        """Tells what happened. What the host does in return may call back into the engine."""
        moments, self._moments = self._moments, []
        for moment, job in moments:
            self._tell(moment, job)

    def _interrupt(self, now: int) -> None:
        if self._step is None:
            self.next_event_us = now

    def _clean_up(self) -> None:
        """Between two steps: who was cancelled leaves, who is to give way waits again."""
        if self._cancelled:
            self._arrived = [job for job in self._arrived if not job.cancelled]
            self._scheduler.finish_requests(self._cancelled, RequestStatus.FINISHED_ABORTED)
            self._running.difference_update(self._cancelled)
            self._cancelled = []
        for name in self._to_preempt:
            if name in self._running:
                self._send_back(self._scheduler.requests[name])
        self._to_preempt = []

    def _send_back(self, request: Request) -> None:
        """Behind all of its priority that wait. vLLM tells of it with the next step."""
        self._scheduler.running.remove(request)
        self._scheduler._preempt_request(request, 0.0)
        self._scheduler.waiting.remove_request(request)
        self._numbers += 1
        request.arrival_time = self._numbers
        self._scheduler.waiting.add_request(request)

    # ---- one step

    def _plan(self, start_ps: int, now: int, *, newcomers: bool) -> None:
        """``newcomers``: the engine was idle, so what arrived at this very moment takes part."""
        before_ps = start_ps + newcomers
        late = [job for job in self._arrived if job.since_ps >= before_ps]
        for job in self._arrived:
            if job.since_ps < before_ps:
                self._scheduler.add_request(self._request(job))
        self._arrived = late
        if self._scheduler.get_num_unfinished_requests():
            output = self._scheduler.schedule()
            for name in output.preempted_req_ids or ():
                self._preempted(name)
            if output.num_scheduled_tokens:
                self._begin(start_ps, output)
                return
        self.next_event_us = now if late else None

    def _request(self, job: Job) -> Request:
        return Request(
            request_id=job.id,
            prompt_token_ids=[0] * job.prompt_tokens,  # their blocks have names of their own
            sampling_params=SamplingParams(
                max_tokens=job.output_tokens,
                ignore_eos=True,
                extra_args={wire.HINT_SESSION: job.session},  # stock vLLM does not look
            ),
            pooling_params=None,
            arrival_time=job.number,
            priority=job.priority,
            block_hasher=self._names.hasher(job.path, self._limits.block_size),
        )

    def _begin(self, start_ps: int, output: Any) -> None:
        """What the step computes, and how long that takes."""
        context = pairs = 0
        batch: list[tuple[Job, int]] = []
        for name, size in output.num_scheduled_tokens.items():
            before = self._scheduler.requests[name].num_computed_tokens - size
            job = self._jobs[name]
            if name not in self._running:
                self._start(job, before)
            if before < job.target:
                pairs += size * before + size * size // 2
            else:
                context += before
            batch.append((job, size))
        tokens = sum(size for _, size in batch)
        end_ps = start_ps + self._step_time.step_ps(tokens, len(batch), context, pairs)
        self._step = _Step(start_ps, end_ps, output, batch)
        self.next_event_us = ceil_us(end_ps)

    def _start(self, job: Job, computed: int) -> None:
        """vLLM admitted it, ``computed`` of its tokens being in the cache."""
        self._running.add(job.id)
        job.computed = computed
        if not job.started:
            count_start(self.counts, job, self._step_time, self._limits.max_num_batched_tokens)
        else:
            self.counts.tokens.preempted += max(0, job.lost_tokens - computed)
        self._moments.append((Moment.STARTED, job))

    def _preempted(self, name: str) -> None:
        self.counts.num_preemptions += 1
        self._running.discard(name)
        job = self._jobs[name]
        job.lost_tokens = max(job.lost_tokens, job.computed)
        job.computed = 0
        job.target = job.prompt_tokens + job.produced

    def _finish(self, step: _Step) -> None:
        """The step is over: tokens come out, and who is complete leaves."""
        requests = [self._scheduler.requests[job.id] for job, _ in step.batch]
        sampled = [[] if request.is_prefill_chunk else [0] for request in requests]
        names = [job.id for job, _ in step.batch]
        self._scheduler.update_from_output(
            step.output,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: number for number, name in enumerate(names)},
                sampled_token_ids=sampled,
                logprobs=None,
                prompt_logprobs_dict={},
                pooler_output=[],
            ),
        )
        self.counts.busy_ps += step.end_ps - step.start_ps
        ended = []
        for (job, size), token in zip(step.batch, sampled, strict=True):
            job.computed += size
            if token and not job.produced:
                self._moments.append((Moment.FIRST_TOKEN, job))
            job.produced += len(token)
            if job.produced == job.output_tokens:
                ended.append(job)
        for job in ended:
            self._leave(job)

    def _leave(self, job: Job) -> None:
        self._running.discard(job.id)
        if job.cancelled:
            self._cancelled.remove(job.id)
            return
        del self._jobs[job.id]
        self.counts.tokens.output += job.output_tokens
        self._moments.append((Moment.FINISHED, job))
