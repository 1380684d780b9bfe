import pytest

from saga.sim.chance import Stream, generator


def test_streams_and_indices_are_independent() -> None:
    draws = {
        generator(seed, stream, index).random()
        for seed in (0, 1)
        for stream in Stream
        for index in (0, 1)
    }
    assert len(draws) == 2 * len(Stream) * 2


def test_the_same_stream_gives_the_same_draws() -> None:
    one, same = (generator(7, Stream.BODIES, 3).random(4).tolist() for _ in range(2))
    assert one == same


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed is -1, allowed is 0 or more"):
        generator(-1, Stream.ARRIVALS)
