from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from wiseft_dist.commits import committing
from wiseft_dist.config import RunConfig
from wiseft_dist.data.pack import write_vocabulary
from wiseft_dist.data.stage import ID_VAL, TRAIN, datasets_to_evaluate, index, index_all, load_manifest
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.launch.start import start
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


def damage_unseen(folder: Path) -> None:
    """Damage every shard in a way that shows only to who reads it: sizes and times stay."""
    for shard in folder.glob("*.tar"):
        status = shard.stat()
        shard.write_bytes(b"x" * status.st_size)
        os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_shift_added_later_is_read_and_nothing_else(settings, make_shards):
    config = config_of(settings)
    run = open_run(config)
    before = index(config, run)
    for url in (settings["data"]["train"], settings["data"]["reference"]["photo"]):
        damage_unseen(Path(url))
    more = config_of(settings, shifts=settings["data"]["shifts"] | {"cartoon": str(make_shards(7, name="cartoon"))})
    manifests = index(more, run)
    assert manifests["cartoon"].num_samples == 7
    assert {name: manifests[name] for name in before} == before
    assert index_all(more, run) == manifests
    with pytest.raises(UserError, match="not a readable tar file"):
        index_all(more)


def test_shards_that_change_before_training_are_counted_again(settings, make_shards):
    config = config_of(settings)
    run = open_run(config)
    index(config, run)
    make_shards(50, name="train_shards")
    make_shards(14, name="sketch")
    manifests = index(config, run)
    assert (manifests[TRAIN].num_samples, manifests["sketch"].num_samples) == (50, 14)
    assert load_manifest(run, TRAIN) == manifests[TRAIN]


def test_unchanged_manifests_are_not_written_again(settings):
    config = config_of(settings)
    run = open_run(config)
    index(config, run)
    times = {file: file.stat().st_mtime_ns for file in run.manifests.iterdir()}
    assert len(times) == 3
    index(config, run)
    assert {file: file.stat().st_mtime_ns for file in run.manifests.iterdir()} == times


def test_manifests_that_are_at_hand_are_written_without_a_look_at_the_shards(settings):
    config = config_of(settings)
    run = open_run(config)
    manifests = index_all(config, run)
    shutil.rmtree(settings["data"]["train"])
    assert index(config, run, manifests) == manifests == {name: load_manifest(run, name) for name in manifests}


@pytest.fixture
def trained(settings):
    """A run with a committed checkpoint."""
    run = open_run(config_of(settings))
    index(config_of(settings), run)
    with committing(run.checkpoints / "step_8", final=False) as folder:
        (folder / "state").write_text("state")
    return run


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda train: (train / "7.tar").unlink(), r"7\.tar is gone \(7 shards, there were 8\)"),
        (lambda train: shutil.copy(train / "0.tar", train / "8.tar"), r"8\.tar was added \(9 shards, there were 8\)"),
        (lambda train: shutil.copy(train.parent / "sketch" / "2.tar", train / "3.tar"), r"3\.tar holds 2 .* held 5"),
        (lambda train: shutil.copy(train / "1.tar", train / "3.tar"), r"3\.tar holds other samples than before"),
    ],
)
def test_other_training_samples_are_refused_once_a_run_was_trained(settings, trained, change, said):
    change(Path(settings["data"]["train"]))
    before = load_manifest(trained, TRAIN)
    with pytest.raises(UserError, match=rf"data\.train: .*{said}.*\(up to step_8\)\. Put it back"):
        index(config_of(settings), trained)
    assert load_manifest(trained, TRAIN) == before


def test_another_held_out_fraction_is_refused_once_a_run_was_trained(settings, trained):
    with pytest.raises(UserError, match=r"the held-out fraction of .* is 0\.2 and was 0\.3"):
        index(config_of(settings, id_val_fraction=0.2), trained)


def test_the_same_samples_in_newer_files_or_at_another_place_are_taken(settings, trained, tmp_path):
    train = Path(settings["data"]["train"])
    later = (train / "2.tar").stat().st_mtime_ns + 10**9
    os.utime(train / "2.tar", ns=(later, later))
    before = load_manifest(trained, TRAIN)
    after = index(config_of(settings), trained)[TRAIN]
    assert after != before
    assert after.content_digest == before.content_digest
    shutil.copytree(train, tmp_path / "moved")
    moved = index(config_of(settings, train=str(tmp_path / "moved")), trained)[TRAIN]
    assert moved.content_digest == before.content_digest
    assert load_manifest(trained, TRAIN) == moved


def test_test_sets_may_change_after_training(settings, trained, make_shards):
    make_shards(14, name="sketch")
    assert index(config_of(settings), trained)["sketch"].num_samples == 14


def test_a_key_twice_in_a_test_set_is_refused_and_in_the_training_set_is_not(settings):
    train, photo = Path(settings["data"]["train"]), Path(settings["data"]["reference"]["photo"])
    shutil.copy(train / "0.tar", train / "8.tar")
    assert index_all(config_of(settings))[TRAIN].num_samples == 45
    shutil.copy(photo / "0.tar", photo / "2.tar")
    with pytest.raises(UserError, match=r"photo/2\.tar: sample 's0000000' is also in .*photo/0\.tar"):
        index_all(config_of(settings))


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"train": "s3://key:secret@bucket/train"}},
        {"data": {"shifts": {"sketch": "https://host/sketch?X-Amz-Signature=secret"}}},
        {"data": {"classnames": "https://user:secret@host/classnames.txt"}},
        {"model": {"architecture": "ViT-B-32", "pretrained": "https://host/model.bin?token=secret"}},
        {"merge": {"method": "uniform_soup", "models": ["/a", "https://user:secret@host/model.pt"]}},
        {"merge": {"method": "fisher", "fisher": ["s3://key:secret@bucket/zero_shot", "/b"]}},
    ],
)
def test_urls_with_credentials_are_refused_before_anything_is_written(settings, changes):
    data = settings["data"] | changes.get("data", {})
    config = RunConfig.model_validate(settings | changes | {"data": data})
    with pytest.raises(UserError, match="credentials") as caught:
        start(config)
    assert "secret" not in str(caught.value)
    assert not Path(config.output).exists()


def test_a_manifest_file_can_stand_for_the_training_shards(settings, tmp_path):
    expected = index_all(config_of(settings))
    expected[TRAIN].save(tmp_path / "train.json")
    assert index_all(config_of(settings, train=str(tmp_path / "train.json"))) == expected


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
