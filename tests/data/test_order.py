from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from wiseft_dist.data.order import SampleOrder, sample_generator, shard_order

SHAPES = [((7,), 1, 1), ((7,), 4, 2), ((5, 3, 9, 1), 4, 1), ((10,) * 12, 8, 3), ((4, 4, 4), 5, 2), ((1,) * 9, 6, 4)]


def lane_of_epoch(order: SampleOrder, epoch: int, lane: int) -> list[tuple[int, int]]:
    return [sample for block in order.blocks(epoch, lane) for sample in block.samples()]


def stream(order: SampleOrder, num_positions: int) -> list[tuple[int, int]]:
    """The samples at the first positions, woven from the lanes."""

    def endless(lane):
        epoch = 0
        while True:
            yield from lane_of_epoch(order, epoch, lane)
            epoch += 1

    lanes = [endless(lane) for lane in range(order.lanes)]
    return [next(lanes[position % order.lanes]) for position in range(num_positions)]


@pytest.mark.parametrize(("counts", "lanes", "block_shards"), SHAPES)
def test_every_epoch_holds_every_sample_exactly_once(counts, lanes, block_shards):
    order = SampleOrder(counts, seed=3, lanes=lanes, block_shards=block_shards)
    everything = Counter((shard, index) for shard, count in enumerate(counts) for index in range(count))
    samples = stream(order, 4 * order.num_samples)
    for epoch in range(4):
        assert Counter(samples[epoch * order.num_samples : (epoch + 1) * order.num_samples]) == everything


@pytest.mark.parametrize(("counts", "lanes", "block_shards"), SHAPES)
def test_the_lanes_of_an_epoch_add_up_and_are_as_long_as_they_say(counts, lanes, block_shards):
    order = SampleOrder(counts, seed=3, lanes=lanes, block_shards=block_shards)
    for epoch in range(5):
        lengths = [order.lane_length(epoch, lane) for lane in range(lanes)]
        assert sum(lengths) == order.num_samples
        assert max(lengths) - min(lengths) <= 1
        assert lengths == [len(lane_of_epoch(order, epoch, lane)) for lane in range(lanes)]


@pytest.mark.parametrize(("counts", "lanes", "block_shards"), SHAPES)
def test_lane_offset_counts_what_the_lane_has_given_in_the_epoch(counts, lanes, block_shards):
    order = SampleOrder(counts, seed=3, lanes=lanes, block_shards=block_shards)
    given: Counter[tuple[int, int]] = Counter()
    for position in range(3 * order.num_samples):
        epoch, lane = position // order.num_samples, position % lanes
        assert order.lane_offset(position, lane) == (epoch, given[epoch, lane])
        given[epoch, lane] += 1


def test_the_order_is_a_function_of_its_settings_alone():
    settings = {"counts": (5, 3, 9), "lanes": 4, "block_shards": 2}
    first, again, other = (SampleOrder(seed=seed, **settings) for seed in (1, 1, 2))
    list(first.blocks(7, 3))  # what was asked before does not matter
    assert stream(first, 40) == stream(again, 40)
    assert stream(first, 40) != stream(other, 40)


def test_epochs_differ():
    order = SampleOrder((20, 20), seed=0, lanes=2, block_shards=2)
    samples = stream(order, 80)
    assert samples[:40] != samples[40:]


def test_a_block_holds_at_most_the_shards_it_may_and_the_samples_are_shuffled_in_it():
    order = SampleOrder((10,) * 12, seed=0, lanes=2, block_shards=3)
    blocks = list(order.blocks(0, 0))
    assert [len(block.stretches) for block in blocks] == [3, 3]
    for block in blocks:
        assert sorted(block.order) == list(range(30))
        assert list(block.order) != list(range(30))


def test_shard_order_is_a_permutation_of_its_own_for_each_epoch_and_seed():
    orders = [tuple(shard_order(50, seed=seed, epoch=epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len(set(orders)) == 3
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_the_largest_seed_is_allowed():
    order = SampleOrder((5, 5), seed=2**32 - 1, lanes=2, block_shards=1)
    assert len(set(islice(stream(order, 10), 10))) == 10


def test_every_position_has_random_numbers_of_its_own_that_can_be_drawn_again():
    draws = [tuple(sample_generator(5, position).random(3)) for position in (0, 1, 2**40)]
    assert len(set(draws)) == 3
    assert np.array_equal(draws[1], sample_generator(5, 1).random(3))
    assert not np.array_equal(draws[1], sample_generator(6, 1).random(3))
