"""Three disjoint streams of episode seeds, all from one seed."""

import pytest

from sb3_refine.seeding import STREAMS, EpisodeSeeds


def test_streams_are_disjoint_and_never_repeat():
    seeds = EpisodeSeeds(0)
    taken = [seed for stream in STREAMS for seed in seeds.take(stream, 5000)]
    assert len(set(taken)) == 15_000
    assert min(taken) >= 0
    assert max(taken) < 2**31


def test_a_stream_does_not_depend_on_the_sizes_of_its_parts():
    seeds = EpisodeSeeds(3)
    assert seeds.take("search", 4) + seeds.take("search", 6, start=4) == seeds.take("search", 10)


@pytest.mark.parametrize("stream", STREAMS)
def test_another_seed_gives_other_episodes(stream):
    assert not set(EpisodeSeeds(0).take(stream, 100)) & set(EpisodeSeeds(1).take(stream, 100))


def test_the_streams_wrap_around_within_range():
    seeds = EpisodeSeeds(0)
    assert 0 <= seeds.take("test", 1, start=2**29 - 1)[0] < 2**31
