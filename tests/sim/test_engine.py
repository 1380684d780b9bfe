"""Continuous batching by hand. A step of n new tokens lasts 1,000 + 10 n us, whatever the context.

What is expected follows vLLM's V1 scheduler: running requests first, then waiting ones in order
until one does not fit; none is admitted in a step that preempted (vllm/v1/core/sched/scheduler.py).
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.sim.bench import Bench

from saga.policies.belady import Belady
from saga.sim.engine import Job, Moment


def test_a_prompt_is_prefilled_in_chunks_of_the_budget() -> None:
    """Steps of 100, 100 and 50 tokens: 2,000 + 2,000 + 1,500; then two decodes of 1,010."""
    bench = Bench(max_num_batched_tokens=100)
    bench.submit("a", 250, 3)
    bench.run()
    assert bench.told == [
        (0, "a", "started"),
        (5_500, "a", "first_token"),
        (7_520, "a", "finished"),
    ]
    assert bench.engine.counts.busy_ps == 7_520_000_000


def test_one_token_of_output_needs_no_decode() -> None:
    bench = Bench()
    bench.submit("a", 100, 1)
    bench.run()
    assert bench.told[1:] == [(2_000, "a", "first_token"), (2_000, "a", "finished")]


def test_decodes_go_first_and_prefill_takes_what_is_left_of_the_budget() -> None:
    """a's prompt 0-1,400, a decode until 2,410. Then b's 150 tokens beside a's decodes: 99 until
    4,410 and 51 until 5,930. Both decode until 6,950, where b ends; a's last three tokens."""
    bench = Bench(max_num_batched_tokens=100)
    bench.submit("a", 40, 8)
    bench.run(until=2_000)
    bench.submit("b", 150, 2)
    bench.run()
    assert bench.told == [
        (0, "a", "started"),
        (1_400, "a", "first_token"),
        (2_410, "b", "started"),
        (5_930, "b", "first_token"),
        (6_950, "b", "finished"),
        (9_980, "a", "finished"),
    ]


def test_a_decode_takes_its_token_of_the_budget() -> None:
    """Beside a's decode there is room for 99 tokens, [2,410, 4,410); b's hundredth takes another
    step, of two tokens."""
    bench = Bench(max_num_batched_tokens=100)
    bench.submit("a", 40, 8)
    bench.run(until=2_000)
    bench.submit("b", 100, 1)
    bench.run()
    assert bench.times("first_token")["b"] == 5_430


def test_prompts_share_a_step_while_the_budget_lasts() -> None:
    """a's 60 and 40 of b's 60 tokens until 2,000; b's other 20 beside a's decode until 3,210."""
    bench = Bench(max_num_batched_tokens=100)
    bench.submit("a", 60, 3)
    bench.submit("b", 60, 1)
    bench.run()
    assert bench.times("first_token") == {"a": 2_000, "b": 3_210}
    assert bench.times("started") == {"a": 0, "b": 0}


def test_no_more_than_max_num_seqs_run() -> None:
    """a and b: 80 tokens until 1,800, two decodes until 2,820. Only then c."""
    bench = Bench(max_num_seqs=2)
    for name in "abc":
        bench.submit(name, 40, 2)
    bench.run()
    assert bench.times("started") == {"a": 0, "b": 0, "c": 2_820}
    assert bench.times("finished") == {"a": 2_820, "b": 2_820, "c": 5_230}


def test_priority_then_arrival() -> None:
    bench = Bench(max_num_seqs=1)
    bench.submit("first", 40, 1)
    bench.run(until=100)
    for name, priority in [("late", 7), ("urgent", 2), ("also urgent", 2)]:
        bench.submit(name, 40, 1, priority=priority)
    bench.run()
    started = bench.times("started")
    assert sorted(started, key=lambda name: started[name]) == [
        "first",
        "urgent",
        "also urgent",
        "late",
    ]


# ---- arrivals and the ends of steps


@pytest.mark.parametrize(("at", "started"), [(1_399, 1_400), (1_400, 2_410), (1_401, 2_410)])
def test_a_request_joins_the_first_step_that_starts_after_it(at: int, started: int) -> None:
    """a's steps begin at 0, 1,400 and 2,410. At 1,400 the engine went first."""
    bench = Bench()
    bench.submit("a", 40, 9)
    bench.run(until=at)
    bench.submit("b", 40, 1)
    bench.run()
    assert bench.times("started")["b"] == started


def test_steps_that_end_between_microseconds() -> None:
    """Reading 40 tokens of context takes 0.4 us, so that a's decode ends at 2,410.4 us. Who comes
    at 2,411 comes after the step that began at 2,410.4; that one ends at 3,420.81."""
    bench = Bench(kv_ps=10_000)
    bench.submit("a", 40, 9)
    bench.run(until=2_411)
    bench.submit("b", 40, 1)
    bench.run()
    assert bench.times("started")["b"] == 3_421


def test_an_idle_engine_starts_at_once() -> None:
    bench = Bench()
    bench.submit("a", 40, 1)
    bench.run()
    assert bench.engine.next_event_us is None
    bench.now = 5_000
    bench.submit("b", 40, 1)
    bench.run()
    assert bench.times("started")["b"] == 5_000


def test_requests_submitted_in_answer_to_an_end_come_after_that_step() -> None:
    """b is submitted when a ends, at 1,400: the engine has nothing else and starts it there. c is
    submitted when b's first token comes, at 2,800; the step that begins there is b's alone."""
    bench = Bench()
    bench.answers["a", Moment.FINISHED] = lambda: bench.submit("b", 40, 3)
    bench.answers["b", Moment.FIRST_TOKEN] = lambda: bench.submit("c", 40, 1)
    bench.submit("a", 40, 1)
    bench.run()
    assert bench.times("started") == {"a": 0, "b": 1_400, "c": 3_810}


# ---- memory


def test_preemption_by_recompute_of_the_newest() -> None:
    """5 blocks; a and b have two each and want a third at 1,640: b, the newest, steps back. a
    decodes alone until 1,640 + 19 x 1,010 = 20,830; its fourth block was the tail of b's KV. So b
    recomputes 17 of its 33 tokens (1,170 us) and then decodes its last 18."""
    bench = Bench(5)
    bench.submit("a", 32, 20)
    bench.submit("b", 32, 20)
    bench.run()
    assert bench.told == [
        (0, "a", "started"),
        (0, "b", "started"),
        (1_640, "a", "first_token"),
        (1_640, "b", "first_token"),
        (20_830, "a", "finished"),
        (20_830, "b", "started"),
        (40_180, "b", "finished"),
    ]
    counts = bench.engine.counts
    assert (counts.num_preemptions, counts.tokens.preempted) == (1, 16)
    assert (counts.tokens.prompt, counts.tokens.new, counts.tokens.output) == (64, 64, 40)


def test_a_clairvoyant_policy_knows_that_the_preempted_will_be_back() -> None:
    """9 blocks: 4 each of a and b, and one of KV that is wanted again in an hour. Both need a fifth
    block: b steps back, and a takes the one wanted later, not one of b's four."""
    bench = Bench(9, eviction=Belady())
    bench.submit("idle", 48, 1, gap_us=3_600_000_000)
    bench.run()
    bench.submit("a", 64, 15)
    bench.submit("b", 64, 15)
    bench.run()
    assert bench.engine.counts.num_preemptions == 1
    assert bench.engine.counts.tokens.preempted == 0, "all 64 tokens of b's were still there"


def test_of_three_the_newest_gives_way() -> None:
    """6 blocks. For their third block c steps back, and for the fourth, 16 tokens later, b."""
    bench = Bench(6)
    for name in "abc":
        bench.submit(name, 32, 40)
    bench.run()
    started = [name for _, name, moment in bench.told if moment == "started"]
    assert started == ["a", "b", "c", "b", "c"]
    assert bench.engine.counts.num_preemptions == 2


def test_nobody_is_admitted_in_a_step_that_preempted() -> None:
    """20 blocks. D, of low priority, has 10 and decodes; P prefills its 180 tokens: 99 until 5,500,
    which makes 17 blocks. The other 81 need 5 more: D steps back. W, which waits since 3,600, would
    fit now, but starts one step later, at 5,500 + 1,810."""
    bench = Bench(20, max_num_batched_tokens=100)
    bench.submit("D", 150, 30, priority=5)
    bench.run(until=3_000)
    bench.submit("P", 180, 5, priority=0)
    bench.run(until=3_600)
    bench.submit("W", 64, 5, priority=1)
    bench.run(until=7_310)
    assert bench.times("started") == {"D": 0, "P": 3_500, "W": 7_310}
    assert bench.engine.counts.num_preemptions == 1
    bench.run()
    assert set(bench.times("finished")) == {"D", "P", "W"}


def test_the_first_chunk_is_enough_to_start_unless_the_prompt_is_reserved() -> None:
    """a holds 7 of 20 blocks until 2,000 + 29 x 1,010. b's prompt needs 16, its first chunk 7."""
    started = {}
    for reserve in (False, True):
        bench = Bench(20, max_num_batched_tokens=100, reserve_full_prompt=reserve)
        bench.submit("a", 100, 30)
        bench.run(until=500)
        bench.submit("b", 250, 2)
        bench.run()
        started[reserve] = next(at for at, name, _ in bench.told if name == "b")
        assert set(bench.times("finished")) == {"a", "b"}
        assert (bench.engine.counts.num_preemptions > 0) is not reserve
    assert started == {False: 2_000, True: 31_290}


def test_waiting_requests_do_not_overtake_one_that_does_not_fit() -> None:
    bench = Bench(10)
    bench.submit("a", 100, 5)
    bench.run(until=500)
    bench.submit("long", 80, 1)
    bench.submit("short", 16, 1)
    bench.run()
    started = bench.times("started")
    assert started["long"] == started["short"] == bench.times("finished")["a"]


def test_a_request_that_can_never_fit_is_refused() -> None:
    bench = Bench(10)
    bench.submit("long", 150, 11)
    bench.submit("a", 150, 10)
    bench.run()
    assert bench.told[0] == (0, "long", "refused")
    assert "a" in bench.times("finished")
    assert bench.engine.num_jobs == 0


def test_where_a_prompts_tokens_come_from() -> None:
    """First 100 + 30 tokens: 129 computed, 8 whole blocks. The next prompt of 150 hits them; of the
    one after that (kept 152, reusable 144) only two blocks are left."""
    bench = Bench(20)
    bench.submit("s1", 100, 30, session="s")
    bench.run()
    bench.submit("s2", 150, 2, session="s", kept=130, reusable_tokens=128)
    bench.run()
    tokens = bench.engine.counts.tokens
    assert (tokens.prompt, tokens.hit, tokens.regenerated, tokens.new) == (250, 128, 0, 122)
    bench.cache.evict(7, bench.now)
    job = bench.submit("s3", 160, 2, session="s", kept=152, reusable_tokens=144)
    bench.run()
    tokens = bench.engine.counts.tokens
    assert (tokens.prompt, tokens.hit, tokens.regenerated, tokens.new) == (410, 160, 112, 138)
    assert job.hit_tokens == 32
    # regenerated: positions 32 to 144 in one step of 112 tokens
    assert bench.engine.counts.regenerated_ps == 2_120_000_000


# ---- taking back


def test_cancelled_while_waiting() -> None:
    bench = Bench(max_num_seqs=1)
    bench.submit("a", 40, 5)
    bench.submit("b", 40, 5)
    bench.submit("c", 40, 1)
    bench.run(until=3_000)
    bench.engine.cancel("b", bench.now)
    bench.run()
    assert "b" not in {name for _, name, _ in bench.told}
    assert bench.times("started")["c"] == bench.times("finished")["a"] == 5_440
    assert bench.engine.num_jobs == 0


def test_cancelled_amid_prefill_it_leaves_at_the_end_of_the_step() -> None:
    """b waits for memory; a is cancelled in its second chunk, [2,000, 4,000)."""
    bench = Bench(20, max_num_batched_tokens=100, reserve_full_prompt=True)
    bench.submit("a", 250, 5)
    bench.submit("b", 100, 1)
    bench.run(until=2_500)
    bench.engine.cancel("a", bench.now)
    assert bench.cache.active == 13
    bench.run()
    assert bench.told == [
        (0, "a", "started"),
        (4_000, "b", "started"),
        (6_000, "b", "first_token"),
        (6_000, "b", "finished"),
    ]
    assert bench.cache.active == 0
    assert bench.cache.hit(bench.sessions["a"].path, 99) == 12, "what it computed stays as idle KV"


def test_cancelled_amid_decode() -> None:
    bench = Bench()
    bench.submit("a", 40, 500)
    bench.run(until=10_000)
    bench.engine.cancel("a", bench.now)
    bench.run()
    assert [moment for _, _, moment in bench.told] == ["started", "first_token"]
    assert bench.now == 10_490, "the end of the ninth decode, 1,400 + 9 x 1,010"
    assert bench.cache.active == 0
    assert bench.engine.counts.tokens.output == 0


def test_cancelled_just_as_it_ends() -> None:
    bench = Bench()
    bench.submit("a", 40, 3)
    bench.run(until=3_419)
    bench.engine.cancel("a", bench.now)
    bench.run()
    assert "finished" not in {moment for _, _, moment in bench.told}
    assert bench.engine.num_jobs == 0


def test_cancelling_what_is_not_there_does_nothing() -> None:
    bench = Bench()
    bench.submit("a", 40, 3)
    bench.engine.cancel("b", bench.now)
    bench.run()
    bench.engine.cancel("a", bench.now)
    bench.run()
    assert bench.times("finished") == {"a": 3_420}


def test_preempt_sends_to_the_back() -> None:
    """At 2,500 a is asked to give way; its step ends at 3,420. b and c go first, though later."""
    bench = Bench(max_num_seqs=1)
    bench.submit("a", 40, 10)
    for name in "bc":
        bench.submit(name, 40, 1)
    bench.run(until=2_500)
    bench.engine.preempt("a", bench.now)
    bench.run()
    assert bench.told[2:] == [
        (3_420, "b", "started"),
        (4_820, "b", "first_token"),
        (4_820, "b", "finished"),
        (4_820, "c", "started"),
        (6_220, "c", "first_token"),
        (6_220, "c", "finished"),
        (6_220, "a", "started"),
        (6_220 + 1_110 + 6 * 1_010, "a", "finished"),  # 11 of its 43 tokens, then 6 decodes
    ]
    assert bench.engine.counts.tokens.preempted == 10, "42 were computed, 32 are in whole blocks"


def test_preempting_what_does_not_run_does_nothing() -> None:
    bench = Bench(max_num_seqs=1)
    for name in "abc":
        bench.submit(name, 40, 1)
    bench.run(until=500)
    bench.engine.preempt("b", bench.now)
    bench.engine.preempt("nobody", bench.now)
    bench.run()
    started = bench.times("started")
    assert started["b"] < started["c"]
    assert bench.engine.counts.num_preemptions == 0


# ---- host memory


def bench_with_host(blocks: int = 100, **limits: Any) -> Bench:
    """Sessions a and b have run once, 70 tokens each; their 4 whole blocks are in host memory
    alone. A token is reloaded in 10 us. It is 10,000 us."""
    bench = Bench(blocks, host_blocks=100, reload_us=lambda tokens: 10 * tokens, **limits)
    for name in "ab":
        bench.submit(f"{name}1", 70, 1, session=name)
    bench.run()
    bench.cache.evict(bench.cache.resident, bench.now)
    bench.told.clear()
    bench.engine.reset_counts(bench.now)
    bench.now = 10_000
    return bench


def test_reloads_go_over_the_link_one_after_another() -> None:
    """64 tokens each: a's are there at 10,640, b's at 11,280. a's other 16 tokens take 1,160."""
    bench = bench_with_host()
    jobs = [bench.submit(f"{name}2", 80, 1, session=name, kept=71) for name in "ab"]
    bench.run()
    assert bench.times("started") == {"a2": 10_640, "b2": 11_800}
    assert bench.times("finished") == {"a2": 11_800, "b2": 12_960}
    tokens = bench.engine.counts.tokens
    assert (tokens.prompt, tokens.host_hit, tokens.hit, tokens.new) == (160, 128, 0, 32)
    assert [(job.host_tokens, job.hit_tokens) for job in jobs] == [(64, 0), (64, 0)]


def test_others_run_while_a_reload_is_under_way() -> None:
    """c starts beside a's reload; its decodes end at 11,400, 12,410 and so on, and a starts with
    the first step after 10,640."""
    bench = bench_with_host()
    bench.submit("a2", 80, 1, session="a", kept=71)
    bench.submit("c", 40, 9)
    bench.run()
    assert bench.times("started") == {"c": 10_000, "a2": 11_400}


def test_a_reload_ends_a_jump() -> None:
    """c decodes alone, for ever; the reload that begins with its step at 13,420 ends at 14,060,
    within that step; a joins the next one."""
    bench = bench_with_host()
    bench.submit("c", 40, 500)
    bench.run(until=13_000)
    bench.submit("a2", 80, 1, session="a", kept=71)
    bench.run(until=20_000)
    assert bench.times("started")["a2"] == 14_430


def test_what_is_resident_is_not_reloaded() -> None:
    bench = bench_with_host()
    bench.submit("a2", 80, 30, session="a", kept=71)
    bench.run()
    bench.cache.evict(3, bench.now)  # of 6 whole blocks
    job = bench.submit("a3", 120, 1, session="a", kept=110, reusable_tokens=96)
    bench.run()
    assert (job.hit_tokens, job.host_tokens) == (48, 48)
    assert bench.engine.counts.tokens.regenerated == 0


def test_cancelled_amid_its_reload() -> None:
    bench = bench_with_host()
    bench.submit("a2", 80, 1, session="a", kept=71)
    bench.run(until=10_300)
    assert bench.cache.active == 4
    bench.engine.cancel("a2", bench.now)
    bench.run()
    assert bench.told == []
    assert bench.cache.active == 0


def test_reloads_that_keep_each_other_from_going_on_let_go() -> None:
    """9 blocks: both reloads fit, a's prompt too, but not its second token. a steps back behind
    nobody, b waits behind a and holds four blocks; b lets go of them."""
    bench = bench_with_host(9)
    for name in "ab":
        bench.submit(f"{name}2", 80, 20, session=name, kept=71)
    bench.run()
    assert set(bench.times("finished")) == {"a2", "b2"}
    assert bench.cache.active == 0


def test_a_reload_waits_for_the_first_chunk_behind_it_too() -> None:
    """5 blocks of 9 are in use: a's four reloaded blocks would fit, its first chunk would not."""
    bench = bench_with_host(9)
    bench.submit("c", 70, 6)
    bench.run(until=10_100)
    bench.submit("a2", 80, 1, session="a", kept=71)
    bench.run()
    finished = bench.times("finished")["c"]
    assert bench.times("started")["a2"] == finished + 640
    assert bench.engine.counts.tokens.host_hit == 64


def test_a_second_reload_after_a_preemption_leaves_the_first_counts_alone() -> None:
    """6 blocks: a is reloaded, runs and gives way to c, which needs all; a is reloaded again."""
    bench = bench_with_host(6, max_num_seqs=1)
    job = bench.submit("a2", 80, 9, session="a", kept=71, reusable_tokens=64)
    bench.submit("c", 90, 2)
    bench.run(until=12_000)
    bench.engine.preempt("a2", bench.now)
    bench.run()
    assert set(bench.times("finished")) == {"a2", "c"}
    assert (job.host_tokens, job.hit_tokens) == (64, 0)
    assert bench.engine.counts.tokens.host_hit == 64
    assert bench.engine.counts.tokens.prompt == 170


# ---- prefetch, moves, offload


def test_a_prefetch_prepares_the_prompt_and_is_told_nobody_of() -> None:
    bench = Bench()
    bench.engine.prefetch(bench.job("ghost", 100, 1, session="s"), bench.now)
    bench.run()
    tokens = bench.engine.counts.tokens
    assert (tokens.prefetched, tokens.prompt, tokens.output) == (100, 0, 0)
    job = bench.submit("s1", 120, 1, session="s", kept=101)
    bench.run()
    assert job.hit_tokens == 96


def test_the_last_token_is_computed_even_if_all_is_resident() -> None:
    """The second time 7 whole blocks of 112 tokens are resident; 6 of them are hit."""
    bench = Bench()
    path = bench.job("first", 112, 1, session="s").path
    for name in ("first", "second"):
        ghost = Job(id=name, session="s", path=path, prompt_tokens=112, output_tokens=1)
        bench.engine.prefetch(ghost, bench.now)
        bench.run()
    assert ghost.hit_tokens == 96
    assert bench.engine.counts.tokens.prefetched == 112 + 16


def test_a_prefetch_waits_until_nothing_else_is_to_be_prefilled() -> None:
    """Three chunks of a's, and only then the ghost, beside a's decodes."""
    bench = Bench(max_num_batched_tokens=100)
    bench.engine.prefetch(bench.job("ghost", 99, 1), bench.now)
    bench.submit("a", 250, 9)
    bench.run()
    assert bench.times("started") == {"a": 0, "ghost": 5_500}


def test_a_prefetch_under_way_yields_to_a_request() -> None:
    """The ghost's second chunk ends at 4,000; then comes a, and the ghost goes on behind it."""
    bench = Bench(max_num_batched_tokens=100)
    bench.engine.prefetch(bench.job("ghost", 1_000, 1), bench.now)
    bench.run(until=2_500)
    bench.submit("a", 150, 2)
    bench.run()
    assert bench.times("started")["a"] == 4_000
    assert bench.times("first_token")["a"] == 7_500
    assert bench.engine.counts.num_preemptions == 0, "of requests"
    assert bench.engine.counts.tokens.preempted == 0
    assert bench.engine.counts.tokens.prefetched == 1_000


def test_a_prefetch_gives_its_memory_to_a_request() -> None:
    bench = Bench(20, max_num_batched_tokens=100)
    bench.engine.prefetch(bench.job("ghost", 300, 1), bench.now)
    bench.run(until=3_000)
    bench.submit("a", 250, 2)
    bench.run()
    assert bench.times("started")["a"] == 4_000
    assert bench.times("first_token")["a"] == 9_500


def test_a_prefetch_too_long_for_the_engine_is_forgotten() -> None:
    bench = Bench(10)
    bench.engine.prefetch(bench.job("ghost", 500, 1), bench.now)
    bench.run()
    assert bench.told == []
    assert bench.engine.num_jobs == 0


def test_kv_that_arrives_is_hit() -> None:
    bench = Bench(20)
    job = bench.job("s2", 120, 1, session="s", kept=0)
    bench.engine.adopt(job.path, 100, bench.now)
    assert bench.cache.resident == 6
    bench.engine.submit(job, bench.now)
    bench.run()
    assert job.hit_tokens == 96


def test_kv_that_arrives_displaces_nothing_in_use() -> None:
    bench = Bench(20)
    bench.submit("a", 200, 50)
    bench.run(until=5_000)
    arriving = bench.job("s2", 300, 1, session="s")
    bench.engine.adopt(arriving.path, 200, bench.now)
    assert bench.cache.hit(arriving.path, 99) == 0, "no room for all of it"
    bench.engine.adopt(arriving.path, 96, bench.now)
    assert bench.cache.hit(arriving.path, 99) == 6
    bench.run()
    assert "a" in bench.times("finished")


def test_offload_copies_and_frees() -> None:
    bench = Bench(20, host_blocks=100)
    bench.submit("a1", 100, 1, session="a")
    bench.run()
    path = bench.sessions["a"].path
    bench.engine.offload("a", path, 100, bench.now)
    assert (bench.cache.hit(path, 99), bench.cache.host_hit(path, 99)) == (0, 6)


def test_what_is_resident_is_looked_up_as_of_now_even_amid_a_jump() -> None:
    """b's decodes eat a's tail, one block in 16 steps, and nobody wakes the engine meanwhile."""
    for max_jump in (1, 1 << 40):
        bench = Bench(20, max_jump=max_jump)
        bench.submit("a1", 160, 1, session="a")
        bench.run()
        bench.submit("b", 160, 100)
        bench.run(until=60_000)
        # 2,600 + 2,600 us of prefill; 54 decodes are over and the next is under way: 215 tokens
        assert bench.engine.resident(bench.sessions["a"].path, 160, bench.now) == 6 * 16


def test_counts_of_a_window_contain_no_time_before_it() -> None:
    """a decodes from 1,400 on, in one jump, past the window's start amid the ninth decode."""
    bench = Bench()
    bench.submit("a", 40, 100)
    bench.run(until=10_000)
    bench.engine.reset_counts(bench.now)
    bench.run()
    assert bench.engine.counts.busy_ps == (1_400 + 99 * 1_010 - 9_480) * 1_000_000
