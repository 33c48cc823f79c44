from __future__ import annotations

from collections import Counter
from itertools import count, islice

import numpy as np
import pytest

from wiseft_dist.data.order import SampleOrder, sample_generator, shard_order

SHAPES = [((7,), 1, 1), ((7,), 4, 2), ((5, 3, 9, 1), 4, 3), ((10,) * 12, 8, 6), ((4, 0, 4, 4), 5, 2), ((1,) * 9, 6, 4)]


def lane_of_epoch(order: SampleOrder, epoch: int, lane: int) -> list[tuple[int, int]]:
    read = [(s.shard, index) for s in order.stretches(epoch, lane) for index in range(s.start, s.stop)]
    given: list[tuple[int, int]] = []
    for block in count():
        places = order.block(epoch, lane, block)
        if not len(places):
            return given
        given += [read[block * order.block_samples + place] for place in places]
    raise AssertionError


def stream(order: SampleOrder, num_positions: int) -> list[tuple[int, int]]:
    """The samples at the first positions, woven from the lanes."""

    def endless(lane):
        epoch = 0
        while True:
            yield from lane_of_epoch(order, epoch, lane)
            epoch += 1

    lanes = [endless(lane) for lane in range(order.lanes)]
    return [next(lanes[position % order.lanes]) for position in range(num_positions)]


@pytest.mark.parametrize(("counts", "lanes", "block_samples"), SHAPES)
def test_every_epoch_holds_every_sample_exactly_once(counts, lanes, block_samples):
    order = SampleOrder(counts, seed=3, lanes=lanes, block_samples=block_samples)
    everything = Counter((shard, index) for shard, count in enumerate(counts) for index in range(count))
    samples = stream(order, 4 * order.num_samples)
    for epoch in range(4):
        assert Counter(samples[epoch * order.num_samples : (epoch + 1) * order.num_samples]) == everything


@pytest.mark.parametrize(("counts", "lanes", "block_samples"), SHAPES)
def test_the_lanes_of_an_epoch_add_up_and_are_as_long_as_they_say(counts, lanes, block_samples):
    order = SampleOrder(counts, seed=3, lanes=lanes, block_samples=block_samples)
    for epoch in range(5):
        lengths = [order.lane_length(epoch, lane) for lane in range(lanes)]
        assert sum(lengths) == order.num_samples
        assert max(lengths) - min(lengths) <= 1
        assert lengths == [len(lane_of_epoch(order, epoch, lane)) for lane in range(lanes)]


@pytest.mark.parametrize(("counts", "lanes", "block_samples"), SHAPES)
def test_lane_offset_counts_what_the_lane_has_given_in_the_epoch(counts, lanes, block_samples):
    order = SampleOrder(counts, seed=3, lanes=lanes, block_samples=block_samples)
    given: Counter[tuple[int, int]] = Counter()
    for position in range(3 * order.num_samples):
        epoch, lane = position // order.num_samples, position % lanes
        assert order.lane_offset(position, lane) == (epoch, given[epoch, lane])
        given[epoch, lane] += 1


def test_the_order_is_a_function_of_its_settings_alone():
    settings = {"counts": (5, 3, 9), "lanes": 4, "block_samples": 2}
    first, again, other = (SampleOrder(seed=seed, **settings) for seed in (1, 1, 2))
    list(first.stretches(7, 3))  # what was asked before does not matter
    assert stream(first, 40) == stream(again, 40)
    assert stream(first, 40) != stream(other, 40)


def test_epochs_differ():
    order = SampleOrder((20, 20), seed=0, lanes=2, block_samples=2)
    samples = stream(order, 80)
    assert samples[:40] != samples[40:]


def test_blocks_are_permutations_of_their_own_and_the_last_holds_the_rest():
    order = SampleOrder((10,) * 12, seed=0, lanes=2, block_samples=25)
    blocks = [order.block(0, 0, index).tolist() for index in range(4)]
    assert [sorted(block) for block in blocks] == [list(range(25)), list(range(25)), list(range(10)), []]
    assert blocks[0] != blocks[1]
    assert blocks[0] != sorted(blocks[0])


@pytest.mark.parametrize(("counts", "lanes", "block_samples"), SHAPES)
def test_a_lane_can_be_entered_at_any_of_its_samples(counts, lanes, block_samples):
    order = SampleOrder(counts, seed=3, lanes=lanes, block_samples=block_samples)
    for lane in range(lanes):
        whole = [(s.shard, i) for s in order.stretches(1, lane) for i in range(s.start, s.stop)]
        for start in range(len(whole) + 1):
            rest = [(s.shard, i) for s in order.stretches(1, lane, start) for i in range(s.start, s.stop)]
            assert rest == whole[start:]


def test_a_hundred_thousand_shards_are_no_burden():
    order = SampleOrder((1000,) * 100_000, seed=0, lanes=1024, block_samples=512)
    stretches = [list(order.stretches(epoch, 1023)) for epoch in (0, 1)]
    assert [sum(map(len, lane)) for lane in stretches] == [order.lane_length(epoch, 1023) for epoch in (0, 1)]


def test_shard_order_is_a_permutation_of_its_own_for_each_epoch_and_seed():
    orders = [tuple(shard_order(50, seed=seed, epoch=epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len(set(orders)) == 3
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_the_largest_seed_is_allowed():
    order = SampleOrder((5, 5), seed=2**32 - 1, lanes=2, block_samples=1)
    assert len(set(islice(stream(order, 10), 10))) == 10


def test_every_position_has_random_numbers_of_its_own_that_can_be_drawn_again():
    draws = [tuple(sample_generator(5, position).random(3)) for position in (0, 1, 2**40)]
    assert len(set(draws)) == 3
    assert np.array_equal(draws[1], sample_generator(5, 1).random(3))
    assert not np.array_equal(draws[1], sample_generator(6, 1).random(3))
