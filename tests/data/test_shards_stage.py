from __future__ import annotations

import pytest

from wiseft_dist.config import RunConfig
from wiseft_dist.data.pack import write_vocabulary
from wiseft_dist.data.stage import ID_VAL, TRAIN, datasets_to_evaluate, index, index_all, load_manifest
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.run import Run, open_run


@pytest.fixture
def settings(make_shards, tmp_path):
    """A small run: training shards, a reference and one shift."""
    write_vocabulary(tmp_path, classnames=["a", "b", "c"], templates=["a {c}"])
    data = {
        "train": str(make_shards(40, name="train_shards")),
        "reference": {"photo": str(make_shards(9, name="photo"))},
        "shifts": {"sketch": str(make_shards(12, name="sketch"))},
        "id_val_fraction": 0.3,
        "lanes": 4,
    }
    return {"output": str(tmp_path / "run"), "model": {"architecture": "ViT-B-32"}, "data": data}


def config_of(settings, **data):
    return RunConfig.model_validate(settings | {"data": settings["data"] | data})


def test_indexing_writes_a_manifest_for_every_dataset(settings):
    config = config_of(settings)
    run = open_run(config)
    manifests = index(config, run)
    assert {name: manifest.num_samples for name, manifest in manifests.items()} == {TRAIN: 40, "photo": 9, "sketch": 12}
    assert manifests == index_all(config) == {name: load_manifest(run, name) for name in manifests}
    assert load_manifest(run, ID_VAL) == manifests[TRAIN]


def test_datasets_come_largest_first_with_the_held_out_piece_among_them(settings):
    config = config_of(settings)
    run = open_run(config)
    held_out = index(config, run)[TRAIN].num_held_out
    sizes = {"photo": 9, "sketch": 12, ID_VAL: held_out}
    assert datasets_to_evaluate(config, run) == sorted(sizes, key=lambda name: -sizes[name])
    nothing_held_out = config_of(settings, id_val_fraction=0.0)
    other = Run(run.path / "other")
    index(nothing_held_out, other)
    assert datasets_to_evaluate(nothing_held_out, other) == ["sketch", "photo"]


def test_a_shift_added_later_leaves_the_other_manifests_as_they_are(settings, make_shards):
    config = config_of(settings)
    run = open_run(config)
    index(config, run)
    before = load_manifest(run, TRAIN)
    make_shards(50, name="train_shards")  # the data changed under the run
    more = config_of(settings, shifts=settings["data"]["shifts"] | {"cartoon": str(make_shards(7, name="cartoon"))})
    manifests = index(more, run)
    assert manifests["cartoon"].num_samples == 7
    assert manifests[TRAIN] == before


def test_a_dataset_at_another_place_is_indexed_again(settings, make_shards):
    run = open_run(config_of(settings))
    index(config_of(settings), run)
    moved = config_of(settings, reference={"photo": str(make_shards(8, name="other"))})
    assert index(moved, run)["photo"].num_samples == 8


def test_more_lanes_than_samples_are_refused(settings):
    with pytest.raises(UserError, match=r"fewer than data\.lanes=64\. Set data\.lanes lower"):
        index_all(config_of(settings, lanes=64))


def test_a_run_that_was_not_indexed_says_so(tmp_path):
    with pytest.raises(RunError, match=r"not indexed yet\. Start this run with `wiseft run`"):
        load_manifest(Run(tmp_path), "photo")
