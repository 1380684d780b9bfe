"""One simulated engine on the bench: drive it by hand and write down what it tells, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.sim.factory import plain_time, small_cluster, step

from saga.core.cache import EvictionPolicy
from saga.policies.prefix_lru import PrefixLru
from saga.sim.engine import EngineLimits, Job, Moment, SimEngine
from saga.sim.kv_cache import KVCache
from saga.sim.lineage import Lineage

Told = list[tuple[int, str, str]]


class Bench:
    """An engine whose steps last 1,000 us and 10 us for each new token, whatever the context.

    ``told`` lists (time, job, moment). As in the simulator, the engine's own events come before
    what others do at the same time.
    """

    def __init__(
        self,
        blocks: int = 1_000,
        *,
        eviction: EvictionPolicy | None = None,
        host_blocks: int = 0,
        reload_us: Callable[[int], int] = lambda tokens: 0,
        kv_ps: int = 0,
        **limits: Any,
    ) -> None:
        self.now = 0
        self.told: Told = []
        self.shrunk: list[tuple[int, str, int]] = []
        """What evictions have left of a session: (time, session, blocks)."""
        self.sessions: dict[str, Lineage] = {}
        self.busy: dict[str, str] = {}
        """Sessions whose request is under way, and its id."""
        self.cache = KVCache(blocks, eviction or PrefixLru(), host_capacity=host_blocks)
        self.engine = SimEngine(
            "bench",
            cache=self.cache,
            step_time=plain_time(small_cluster(1), step_us=1_000, token_us=10, kv_ps=kv_ps),
            limits=EngineLimits(**limits),
            tell=self._tell,
            reload_us=reload_us,
        )
        self.answers: dict[tuple[str, Moment], Callable[[], object]] = {}
        """What the host does when it is told something."""

    def _tell(self, moment: Moment, job: Job) -> None:
        self.told.append((self.now, job.id, moment.value))
        if moment in (Moment.FINISHED, Moment.REFUSED):
            self.busy.pop(job.session, None)
        self.answers.get((job.id, moment), lambda: None)()

    def job(
        self,
        name: str,
        prompt: int,
        output: int,
        *,
        kept: int = 0,
        session: str = "",
        **fields: Any,
    ) -> Job:
        """The next step of a session, by default of a new one named like the job."""
        session = session or name
        if session not in self.sessions:
            self.sessions[session] = Lineage(len(self.sessions), session, 16)
            self.sessions[session].begin(None, 0)
        path = self.sessions[session].advance(step(kept, prompt - kept, output))
        return Job(
            id=name,
            session=session,
            path=path,
            prompt_tokens=prompt,
            output_tokens=output,
            **fields,
        )

    def submit(self, name: str, prompt: int, output: int, **fields: Any) -> Job:
        job = self.job(name, prompt, output, **fields)
        self.busy[job.session] = name
        self.engine.submit(job, self.now)
        return job

    def collect(self) -> None:
        """Notes which sessions' KV was used up, as the host does after every call."""
        for session, blocks in self.cache.shrunk.items():
            self.shrunk.append((self.now, session, blocks))
        self.cache.shrunk.clear()

    def run(self, until: int | None = None) -> None:
        """Lets time pass: until the engine sleeps, or to the end of the microsecond ``until``."""
        for _ in range(100_000):
            at = self.engine.next_event_us
            if at is None or (until is not None and at > until):
                break
            assert at >= self.now, "an engine wakes in the past"
            self.now = at
            self.engine.wake(at)
            self.engine.check()
            self.collect()
        else:
            raise AssertionError(f"the engine does not come to rest: {self.told[-5:]}")
        if until is not None:
            self.now = until

    def times(self, moment: str) -> dict[str, int]:
        """When each job was told ``moment`` last."""
        return {job: at for at, job, told in self.told if told == moment}
