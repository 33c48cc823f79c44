"""Who scores what: every sample once, shared evenly, the same whoever asks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wiseft_dist.config import RunConfig
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.cells import parts as parts_module
from wiseft_dist.evaluate.cells.parts import Part, assign, cut, images_by_dataset, job_names, parts_of_job


def pieces(parts):
    """Start and stop of every part by dataset, in their order."""
    found = {}
    for part in parts:
        found.setdefault(part.dataset, []).append((part.start, part.stop))
    return {name: sorted(spans) for name, spans in found.items()}


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.dictionaries(st.sampled_from("abcde"), st.integers(1, 3000), min_size=1),
    part_samples=st.integers(20, 700),
    num_readers=st.integers(1, 9),
)
def test_every_position_is_dealt_to_one_reader_and_nobody_has_more_than_a_share_and_a_part(
    sizes, part_samples, num_readers
):
    parts = cut(sizes, part_samples, num_readers=num_readers)
    readers = assign(parts, num_readers)
    assert len(readers) == num_readers
    for name, spans in pieces(part for reader in readers for part in reader).items():
        assert [0, *(stop for _, stop in spans)] == [*(start for start, _ in spans), sizes[name]]
    assert pieces(parts).keys() == sizes.keys()
    loads = [sum(part.num_samples for part in reader) for reader in readers]
    longest = max(part.num_samples for part in parts)
    # Graham's bound: when the last part was dealt, nobody had less than its reader had before.
    assert max(loads) <= sum(sizes.values()) / num_readers + longest * (1 - 1 / num_readers) + 1e-9
    assert readers == assign(cut(dict(sizes), part_samples, num_readers=num_readers), num_readers)
    assert all(reader == [part for part in parts if part in reader] for reader in readers)


def test_datasets_are_cut_at_fixed_multiples():
    assert cut({"a": 9, "b": 4}, 4) == [Part("a", 0, 4), Part("a", 4, 8), Part("a", 8, 9), Part("b", 0, 4)]


@pytest.mark.parametrize(
    ("num_readers", "length"),
    [
        (1, 8192),  # one reader has all the work however it is cut
        (2, 4096),  # 50,000 / (4 x 2) = 6,250
        (6, 2048),
        (1000, 256),  # no smaller
    ],
)
def test_parts_get_smaller_where_there_are_too_few_to_keep_every_reader_busy(num_readers, length):
    parts = cut({"imagenet": 50_000}, 8192, num_readers=num_readers)
    assert {part.num_samples for part in parts[:-1]} == {length}
    assert [part.start for part in parts] == list(range(0, 50_000, length))


@pytest.mark.parametrize(
    ("part_samples", "lengths"),
    [
        (1000, {1000, 500}),  # 250 would be less than 256
        (3000, {3000, 1500, 750, 375}),
        (5000, {5000, 2500, 1250, 625}),  # 625 is odd, and 125 would be too small
        (1536, {1536, 768, 384}),
        (2187, {2187, 729}),  # 3^7
        (1009, {1009}),  # prime
        (1, {1}),
    ],
)
def test_the_parts_of_every_cut_nest_in_those_of_the_coarser_ones(part_samples, lengths):
    cuts = [cut({"a": 20_000}, part_samples, num_readers=count) for count in (1, 2, 3, 5, 8, 16, 1000)]
    assert {parts[0].num_samples for parts in cuts} == lengths
    for coarse in cuts:
        starts = {part.start for part in coarse}
        assert all(starts <= {part.start for part in fine} for fine in cuts if len(fine) >= len(coarse))


def test_the_longest_parts_are_dealt_first_and_ties_go_to_the_first_reader():
    a, b, c, d = Part("a", 0, 3), Part("b", 0, 5), Part("c", 0, 2), Part("d", 0, 2)
    assert assign([a, b, c, d], 2) == [[b, d], [a, c]]  # 5 | 3; c to the lighter: 5 | 5; d to the first of equal ones
    assert assign([a], 3) == [[a], [], []]


@pytest.fixture
def config():
    tree = {
        "output": "o",
        "model": {"architecture": "A"},
        "data": {"train": "t", "reference": {"photo": "p"}},
        "evaluate": {"job_images": 700, "part_samples": 8192},
        "launch": {"evaluate": {"tasks_per_node": 2, "max_parallel": 4}},
    }
    return RunConfig.model_validate(tree)


def test_there_is_a_job_for_so_many_images_but_not_more_than_may_run_at_once(config):
    assert job_names(config, {"photo": 492, "sketch": 1135}) == ["1-of-3", "2-of-3", "3-of-3"]
    assert job_names(config, {"photo": 10}) == ["1-of-1"]
    assert job_names(config, {"photo": 50_000})[-1] == "4-of-4"


def test_the_jobs_of_a_run_have_every_image_and_finish_together(config):
    sizes = {"sketch": 1135, "cartoon": 719, "art_painting": 612, "photo": 492}
    jobs = [parts_of_job(config, sizes, name) for name in job_names(config, sizes)]
    assert images_by_dataset([part for job in jobs for part in job]) == sizes
    loads = [sum(images_by_dataset(job).values()) for job in jobs]
    assert sum(loads) == 2958
    assert max(loads) < 1.25 * 2958 / 4


def test_the_parts_of_all_jobs_are_dealt_once(config, monkeypatch):
    dealt = []
    monkeypatch.setattr(parts_module, "assign", lambda *arguments: dealt.append(arguments) or assign(*arguments))
    sizes = {"sketch": 1137, "photo": 493}
    for name in job_names(config, sizes):
        parts_of_job(config, sizes, name).clear()  # whoever asks may do with them what they like
    assert sum(map(len, (parts_of_job(config, sizes, name) for name in job_names(config, sizes)))) > 0
    assert len(dealt) == 1


@pytest.mark.parametrize("name", ["0-of-2", "3-of-2", "2", "one", "1-of-2-"])
def test_a_job_that_does_not_exist_is_refused(config, name):
    with pytest.raises(UserError, match="is not a job of the evaluation"):
        parts_of_job(config, {"photo": 3}, name)
