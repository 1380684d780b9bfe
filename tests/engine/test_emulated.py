"""The emulated engine on a clock that is moved by hand."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.factory import BLOCK, Bench, answer, blocks

from saga.core.cache import DEFAULT_REUSE
from saga.engine.emulated import Overloaded
from saga.engine.generation import Generation
from saga.engine.options import EngineOptions
from saga.engine.tokens import Turn, raw_prompt, render
from saga.sim.hardware import get_cluster
from saga.sim.latency import StepTime

SPEC = get_cluster("16xh100-8b").engine
REAL = StepTime.of(SPEC)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def again(generation: Generation, more: str = "") -> bytes:
    """The prompt that repeats a request and its answer, and goes on."""
    return generation.prompt.text + generation.answer.tokens + blocks(more)


# ---- time


@pytest.mark.parametrize("speed", [0.5, 1.0, 7.0, 200.0])
@pytest.mark.parametrize(("prompt", "output"), [(16, 1), (100, 40), (20_000, 300)])
def test_alone_it_takes_what_the_step_time_says(speed: float, prompt: int, output: int) -> None:
    bench = Bench(step_time=REAL, speed=speed)
    generation = bench.ask(b"x" * 4 * prompt, output)
    first = REAL.prefill_ps(0, prompt, SPEC.max_num_batched_tokens) / 1e6
    rest = REAL.decode_ps(output - 1, 1, prompt) / 1e6
    assert generation.first_token_us == pytest.approx(first, abs=1)
    assert generation.finished_us == pytest.approx(first + rest, abs=1)
    assert bench.time.now_us() == pytest.approx((first + rest) / speed, abs=2)


@pytest.mark.parametrize("speed", [0.5, 1.0, 50.0])
def test_tokens_show_up_one_by_one_or_a_millisecond_together(speed: float) -> None:
    """Never before their step has ended, and at most a step and 1 ms of the clock later."""
    bench = Bench(step_time=REAL, speed=speed)
    generation = bench.submit(b"x" * 4_000, 400)
    first = REAL.prefill_ps(0, 1_000, SPEC.max_num_batched_tokens) / 1e6
    seen = []
    while bench.time.step():
        seen.append((bench.time.now_us() * speed, generation.produced))
    slack = 1_000 * speed + REAL.step_ps(1, 1, 1_400, 0) / 1e6 + 2
    for token in range(1, 401):
        due = first + REAL.decode_ps(token - 1, 1, 1_000) / 1e6
        shown = next(at for at, produced in seen if produced >= token)
        assert due - speed <= shown <= due + slack
    if speed < 1:
        assert len({produced for _, produced in seen}) == 401, "each by itself, and none yet"


def test_a_late_wake_up_changes_nothing_but_when_it_is_seen() -> None:
    """Two requests, and a process that is not scheduled for ten seconds."""

    def ends(stall_us: int) -> list[int | None]:
        bench = Bench()
        generations = [bench.submit(blocks("abc"), 50), bench.submit(blocks("xyz"), 80)]
        bench.time.run(until=20_000)
        bench.time.jump(stall_us)
        bench.time.run()
        return [generation.finished_us for generation in generations]

    assert ends(0) == ends(10_000_000)


def test_two_decode_side_by_side() -> None:
    """a's 48 tokens until 1,480 us; b's beside a's decode until 2,970; nine steps of 1,020 us."""
    bench = Bench()
    a, b = bench.submit(blocks("abc"), 11), bench.submit(blocks("xyz"), 10)
    bench.time.run()
    assert (a.first_token_us, b.first_token_us) == (1_480, 2_970)
    assert (a.finished_us, b.finished_us) == (12_150, 12_150)


def test_progress_ends_with_the_answer() -> None:
    async def scenario() -> list[int]:
        bench = Bench()
        generation = bench.submit(blocks("a"), 5)
        seen = []

        async def watch() -> None:
            async for produced in generation.progress():
                seen.append(produced)

        watcher = asyncio.create_task(watch())
        while not watcher.done():
            bench.time.step()
            await asyncio.sleep(0)
        return seen

    seen = asyncio.run(scenario())
    assert seen == sorted(set(seen))
    assert seen[-1] == 5


# ---- what is found in the cache


def test_hits_over_a_conversation_are_what_block_arithmetic_says() -> None:
    """Each prompt repeats all before it. The last token of an answer is never computed."""
    bench = Bench()
    generation = bench.ask(blocks("abc"), 40, session="s")
    assert generation.cached_tokens == 0
    for turn in range(4):
        before = generation.prompt.num_tokens + generation.answer.num_tokens
        generation = bench.ask(again(generation, LETTERS[turn]), 30 + turn, session="s")
        assert generation.cached_tokens == (before - 1) // 16 * 16


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    bench = Bench()
    bench.ask(blocks("abcd"))
    assert bench.ask(blocks("abcd")).cached_tokens == 48
    assert bench.ask(blocks("abcd") + b"more").cached_tokens == 64


TURNS = st.lists(
    st.tuples(
        st.integers(0, 6),  # which of the earlier ones it continues; 0: none
        st.integers(0, 12 * BLOCK),  # how much of that it keeps
        st.text("ab", max_size=4),  # what it adds
        st.integers(1, 60),  # length of the answer
        st.sampled_from([None, "s", "t"]),
    ),
    min_size=1,
    max_size=14,
)
Turns = list[tuple[int, int, str, int, str | None]]


def prompts(turns: Turns) -> list[tuple[bytes, int, str | None]]:
    """Prompts that repeat parts of each other and of each other's answers."""
    texts: list[bytes] = [b""]
    found = []
    for number, kept, more, output, session in turns:
        text = texts[number % len(texts)][: kept // 4 * 4] + blocks(more) or b"none"
        found.append((text, output, session))
        texts.append(text + answer(raw_prompt(text), output).tokens)
    return found


@given(TURNS)
def test_hits_are_the_common_prefix_in_blocks(turns: Turns) -> None:
    """Against a naive model that lists every prefix that was ever computed."""
    bench = Bench()
    computed = {b""}
    for text, output, session in prompts(turns):
        generation = bench.ask(text, output, session=session)
        size = len(text) // 4
        limit = (size - 1) // 16
        hits = [k for k in range(limit + 1) if text[: k * BLOCK] in computed]
        assert generation.cached_tokens == max(hits) * 16
        whole = text + generation.answer.tokens
        computed |= {whole[: k * BLOCK] for k in range((size + output - 1) // 16 + 1)}


@settings(max_examples=30)
@given(TURNS, st.data())
def test_laws_hold_under_pressure_with_cancellations_and_preemptions(
    turns: Turns, data: st.DataObject
) -> None:
    """On 40 blocks, with requests side by side: all end, the cache's laws hold, and nothing is
    found that nobody else asked for or was answered."""
    bench = Bench(kv_tokens=40 * 16)
    live: list[Generation] = []
    asked: list[Generation] = []
    for number, (text, output, session) in enumerate(prompts(turns)):
        if len(text) // 4 + output > 40 * 16:
            continue
        live.append(bench.submit(text, output, name=str(number), session=session))
        asked.append(live[-1])
        bench.time.run(until=bench.time.now_us() + data.draw(st.integers(0, 30_000)))
        what = data.draw(st.sampled_from(["nothing", "cancel", "preempt", "priority"]))
        chosen = data.draw(st.sampled_from(live))
        if what == "cancel" and not chosen.done:
            bench.engine.cancel(chosen)
            live.remove(chosen)
        elif what == "preempt" and not chosen.done:
            bench.engine.preempt(chosen.name)
        elif what == "priority" and not chosen.done:
            bench.engine.prioritise(chosen.name, data.draw(st.integers(-2, 2)))
        bench.engine.check()
    bench.time.run()
    bench.engine.check()
    assert all(g.done and g.produced == g.answer.num_tokens for g in live)
    for generation in asked:
        found = generation.prompt.text[: generation.cached_tokens * 4]
        others = (other for other in asked if other is not generation)
        assert any(again(other).startswith(found) for other in others) or not found
    stats = bench.engine.stats()
    assert (stats["num_requests_running"], stats["used_blocks"]) == (0, 0)


def test_regenerated_tokens_are_counted_while_the_engine_remembers() -> None:
    """30 blocks: the conversation of 10 is pushed out by others, and computed again."""
    bench = Bench(kv_tokens=30 * 16)
    generation = bench.ask(blocks(LETTERS[:9]), 17, session="s")
    for letters in ("mnopqrstuvwxyz", "zyxwvutsrqponm"):
        bench.ask(blocks(letters), 16)
    resumed = bench.ask(again(generation, "A"), 16, session="s")
    assert resumed.cached_tokens < 160
    regenerated = bench.engine.stats()["regenerated_tokens"]
    assert regenerated == 160 - resumed.cached_tokens


# ---- memory pressure and what schedulers say about it


def resumed_tokens(bench: Bench, first: Generation) -> int:
    """Others need 32 of the 40 blocks; what is then left for the session of ``first``?"""
    for letters in ("mnopqrstuvwxyzmn", "zyxwvutsrqponmzy"):
        bench.ask(blocks(letters), 16, session=letters)
    return bench.ask(again(first, "A"), 16, session="s").cached_tokens


def test_without_hints_the_idle_session_is_evicted() -> None:
    bench = Bench(kv_tokens=40 * 16)
    first = bench.ask(blocks(LETTERS[:9]), 17, session="s")
    assert resumed_tokens(bench, first) < 160


def test_a_hint_of_the_request_protects_what_it_leaves_until_its_time_is_over() -> None:
    bench = Bench(kv_tokens=40 * 16)
    first = bench.ask(blocks(LETTERS[:9]), 17, session="s", ttl_s=30.0, score=0.9)
    assert resumed_tokens(bench, first) == 160

    bench = Bench(kv_tokens=40 * 16)
    first = bench.ask(blocks(LETTERS[:9]), 17, session="s", ttl_s=0.01, score=0.9)
    bench.time.jump(20_000)
    assert resumed_tokens(bench, first) < 160


def test_times_to_live_are_on_the_clock_whatever_the_speed() -> None:
    for wait_us, kept in ((400_000, True), (600_000, False)):
        bench = Bench(kv_tokens=40 * 16, speed=1_000.0)
        first = bench.ask(blocks(LETTERS[:9]), 17, session="s", ttl_s=0.5)
        bench.time.jump(wait_us)
        assert (resumed_tokens(bench, first) == 160) is kept


def test_retain_extend_and_release_by_control() -> None:
    bench = Bench(kv_tokens=40 * 16)
    first = bench.ask(blocks(LETTERS[:9]), 17, session="s")
    assert bench.engine.retain("s", 0.01, 0.5) == 160
    assert bench.engine.extend("s", 30.0) == 160
    bench.time.jump(1_000_000)
    assert resumed_tokens(bench, first) == 160

    bench = Bench(kv_tokens=40 * 16)
    first = bench.ask(blocks(LETTERS[:9]), 17, session="s", ttl_s=30.0)
    assert bench.engine.release("s") == 160, "released KV stays until its room is needed"
    assert resumed_tokens(bench, first) < 160


def test_extend_never_ends_earlier() -> None:
    bench = Bench(kv_tokens=40 * 16)
    first = bench.ask(blocks(LETTERS[:9]), 17, session="s", ttl_s=60.0)
    bench.engine.extend("s", 0.001)
    bench.time.jump(1_000_000)
    assert resumed_tokens(bench, first) == 160


@pytest.mark.parametrize("hint", [{"final": True}, {"ttl_s": 0.0}, {"final": True, "ttl_s": 9.0}])
def test_the_kv_of_a_session_that_is_over_goes_before_older_kv(hint: dict[str, float]) -> None:
    bench = Bench(kv_tokens=30 * 16)
    bench.ask(blocks(LETTERS[:9]), 17, session="old")
    bench.ask(blocks(LETTERS[9:18]), 17, session="over", **hint)
    bench.ask(blocks("zyxwvutsr"), 17, session="new")
    bench.ask(blocks("stuvw"), 16, session="more")
    assert bench.engine.resident("old") == 160
    assert bench.engine.resident("over") < 160


def test_a_system_prompt_outlives_the_session_that_came_first() -> None:
    """60 blocks: 14 older ones, 21 of the system prompt, 11 of the session that is over; another
    one needs 36. The session's 11 go, and some of the older ones."""
    bench = Bench(kv_tokens=60 * 16)
    system = Turn("system", (blocks(LETTERS[:21]),))
    bench.ask(blocks("zyxwvutsrqponm"), 1, session="old")
    over = render([system, Turn("user", (blocks(LETTERS[:10]),))])
    bench.ask(over, 1, session="over", final=True)
    bench.ask(blocks(LETTERS + LETTERS[:10]), 1, session="large")
    assert bench.engine.resident("over") == over.shared_tokens // 16 * 16 == 21 * 16
    assert bench.ask(render([system, Turn("user", (b"?",))]), session="s").cached_tokens == 21 * 16


def test_nothing_is_known_of_a_session_that_was_never_here() -> None:
    bench = Bench()
    for call in (bench.engine.release, bench.engine.resident):
        with pytest.raises(KeyError):
            call("s")
    with pytest.raises(KeyError):
        bench.engine.retain("s", 1.0, DEFAULT_REUSE)


# ---- requests


def test_a_cancelled_request_leaves_and_what_it_computed_can_be_found() -> None:
    bench = Bench()
    generation = bench.submit(blocks("abc"), 1_000)
    bench.time.run(until=100_000)
    bench.engine.cancel(generation)
    bench.time.run()
    stats = bench.engine.stats()
    assert (stats["num_requests_running"], stats["used_blocks"]) == (0, 0)
    assert bench.engine.ended["abort"] == 1
    assert not generation.done
    assert bench.time.now_us() < 110_000, "it ended with the step under way"
    computed = 48 + generation.produced - 1
    assert bench.ask(again(generation), 16).cached_tokens == computed // 16 * 16


def test_a_block_completed_after_its_request_was_cancelled_is_not_taken_for_another() -> None:
    """63 tokens are computed when the client leaves, and a 64th with the step under way."""
    bench = Bench()
    generation = bench.submit(blocks("abc"), 1_000, session="s")
    while generation.produced < 16:
        bench.time.step()
    bench.engine.cancel(generation)
    bench.time.run()
    assert bench.engine.stats()["resident_blocks"] == 4
    assert bench.ask(blocks("abcZZZ"), 16, session="s").cached_tokens == 48


def test_urgent_requests_wait_less() -> None:
    """One after the other for want of memory: the last of the queue goes first."""
    bench = Bench(kv_tokens=20 * 16)
    bench.submit(blocks(LETTERS[:9]), 100)
    late = bench.submit(blocks(LETTERS[9:18]), 100, name="late")
    urgent = bench.submit(blocks("zyxwvutsr"), 100, name="urgent")
    assert bench.engine.prioritise("urgent", -1)
    bench.time.run()
    assert late.first_token_us is not None and urgent.first_token_us is not None
    assert urgent.first_token_us < late.first_token_us


def test_a_preempted_request_waits_and_then_ends_as_long_as_it_was_to_be() -> None:
    bench = Bench(kv_tokens=10 * 16)
    generation = bench.submit(blocks("abc"), 100, name="r")
    waiting = bench.submit(blocks("uvwxyzabd"), 16, name="w")
    bench.time.run(until=50_000)
    assert not bench.engine.preempt("w"), "it does not run"
    assert bench.engine.preempt("r")
    bench.time.run()
    assert bench.engine.stats()["num_preemptions"] == 1
    assert (generation.done, generation.produced) == (True, 100)
    assert waiting.finished_us is not None and generation.finished_us is not None
    assert waiting.finished_us < generation.finished_us


def test_the_queue_is_bounded() -> None:
    bench = Bench(kv_tokens=10 * 16, max_waiting=2)
    for letter in "ab":
        bench.submit(blocks(letter) * 9, 16)
    bench.time.run(until=1_500)
    bench.submit(blocks("c") * 9, 16)
    with pytest.raises(Overloaded):
        bench.submit(blocks("d") * 9, 16)


def test_the_same_requests_give_the_same_run() -> None:
    def run() -> list[tuple[int | None, int | None, int, str]]:
        bench = Bench(kv_tokens=60 * 16, step_time=REAL)
        generations = [
            bench.submit(blocks(LETTERS[start : start + 9]), 50 + start, session=str(start % 3))
            for start in range(10)
        ]
        bench.time.run()
        return [
            (g.first_token_us, g.finished_us, g.cached_tokens, g.answer.text) for g in generations
        ]

    assert run() == run()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("speed", 0.0),
        ("speed", float("nan")),
        ("port", 70_000),
        ("max_waiting", 0),
        ("kv_tokens", 3),
    ],
)
def test_options_that_make_no_sense_are_named(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=option.removesuffix("_tokens")):
        EngineOptions(**{option: value})  # type: ignore[arg-type]  # any of them


def test_an_api_key_is_not_shown() -> None:
    assert "secret" not in repr(EngineOptions(api_key="secret"))
