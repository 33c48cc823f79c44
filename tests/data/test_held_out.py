from __future__ import annotations

import numpy as np
import pytest

from wiseft_dist.data.held_out import held_out_counts, held_out_positions, splitmix64


def test_splitmix64_gives_the_numbers_of_its_authors():
    # java.util.SplittableRandom's and Vigna's splitmix64.c: first output for the seeds 0 and 1234567
    hashes = splitmix64(np.array([0, 1234567], dtype=np.uint64))
    assert hashes.tolist() == [0xE220A8397B1DCDAF, 6457827717110365317]


@pytest.mark.parametrize("fraction", [0.001, 0.02, 0.3, 0.999])
def test_the_held_out_part_is_the_fraction_that_was_asked_for(fraction):
    sizes = np.random.default_rng(0).integers(0, 50, 20_000)
    counts = held_out_counts(sizes, fraction)
    assert counts.dtype == np.int64
    assert (np.abs(counts - sizes * fraction) < 1).all()
    assert ((counts >= 0) & (counts <= sizes)).all()
    assert abs(counts.sum() / sizes.sum() - fraction) < 0.0005


def test_nothing_is_held_out_at_fraction_zero():
    assert held_out_counts(np.full(1000, 1000), 0.0).sum() == 0
    assert held_out_positions(3, 1000, 0).tolist() == []


def test_positions_are_distinct_and_rise():
    positions = held_out_positions(7, 1000, 300)
    assert positions.dtype == np.int64
    assert (np.diff(positions) > 0).all()
    assert positions[0] >= 0
    assert positions[-1] < 1000
    assert held_out_positions(7, 5, 5).tolist() == [0, 1, 2, 3, 4]


def test_a_larger_count_holds_out_the_same_and_more():
    for shard in range(20):
        assert set(held_out_positions(shard, 100, 10)) < set(held_out_positions(shard, 100, 40))


def test_every_position_is_held_out_equally_often():
    chosen = np.concatenate([held_out_positions(shard, 50, 10) for shard in range(5000)])
    times = np.bincount(chosen, minlength=50)
    assert (np.abs(times - 1000) < 150).all()  # five standard deviations
