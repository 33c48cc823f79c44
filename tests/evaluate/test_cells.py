"""What is committed is found again whole, exactly once, and only where nothing that decides the numbers has changed."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from tiny_run import picture

import wiseft_dist
from wiseft_dist.commits import committing
from wiseft_dist.config import DatasetSpec
from wiseft_dist.data.receipt import BadSample
from wiseft_dist.data.stage import index
from wiseft_dist.errors import RunError
from wiseft_dist.evaluate.catalog.lists import read_class_map, read_classnames
from wiseft_dist.evaluate.cells.parts import Part
from wiseft_dist.evaluate.cells.store import CellStore, Content, members_of, report_digest
from wiseft_dist.evaluate.predictions import FeatureMoments, Member, Predictions

MEMBERS = (Member(0.0), Member(0.5), Member(1.0))
SIZE = 10
FLOATS = ("confidences", "margins", "log_probs", "briers", "divergences")


@pytest.fixture
def store(tmp_path):
    return CellStore(tmp_path, {"models": "some"}, lambda name: Content(SIZE, {"data": name}))


def moments(count):
    return FeatureMoments(count, *(np.full(shape, float(count)) for shape in ((2,), (2,), (2, 2), (2, 2), (2, 2))))


def predictions(start, stop, num_members=3, *, bad=(), shuffle=False, **changes):
    """Of a part: every number can be told from its position and member."""
    positions = np.asarray([p for p in range(start, stop) if p not in bad], dtype=np.int64)
    if shuffle:
        positions = positions[::-1]
    grid = 100 * np.arange(num_members)[:, None] + positions
    floats = {name: (grid + i / 10).astype(np.float32) for i, name in enumerate(FLOATS)}
    fields = {
        "keys": tuple(f"s{position}" for position in positions),
        "positions": positions,
        "labels": np.stack([positions % 3, np.full_like(positions, -1)], axis=1),
        "classes": (grid % 3).astype(np.int32),
        "top5": (grid[..., None] + np.arange(5)).astype(np.int32),
        **floats,
        "metadata": {"region": positions * 7},
        "bad": tuple(BadSample(position, "0.tar", f"s{position}", "is torn") for position in bad),
        "features": moments(len(positions)),
    }
    return Predictions(**fields | changes)


def write(store, start, stop, members=MEMBERS, **options):
    part = Part("photo", start, stop)
    store.write("photo", part, members, predictions(start, stop, len(members), **options))


def same(found, expected):
    for name in ("keys", "bad"):
        assert getattr(found, name) == getattr(expected, name)
    for name in ("positions", "labels", "classes", "top5", *FLOATS):
        left, right = getattr(found, name), getattr(expected, name)
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right, err_msg=name)
    assert found.metadata.keys() == expected.metadata.keys()
    for name, values in expected.metadata.items():
        np.testing.assert_array_equal(found.metadata[name], values)


def test_what_is_written_in_parts_is_read_as_one_in_the_order_of_positions(store):
    write(store, 4, 8, bad=(5,), shuffle=True)
    write(store, 8, 10)
    write(store, 0, 4)
    found = store.read("photo", MEMBERS)
    same(found, predictions(0, 10, bad=(5,)))
    assert found.features.num_samples == 9
    np.testing.assert_array_equal(found.features.xy, np.full((2, 2), 9.0))
    other = store.read("photo", (MEMBERS[2], MEMBERS[0]))
    np.testing.assert_array_equal(other.classes, found.classes[[2, 0]])


def test_only_what_is_asked_for_is_read(store):
    write(store, 0, 10)
    found = store.read("photo", MEMBERS, columns=["classes"])
    assert found.classes.shape == (3, 10)
    assert found.margins.shape == (3, 0) and found.top5.shape == (3, 0, 5)
    assert found.features is None
    assert found.num_correct.tolist() == [10, 0, 0]  # 100 and 200 more: another class for every sample


def test_a_cell_is_missing_until_its_parts_cover_the_dataset(store):
    assert store.missing("photo", MEMBERS) == list(MEMBERS)
    write(store, 0, 4)
    write(store, 4, 9, MEMBERS[:2])
    write(store, 9, 10)
    assert store.missing("photo", MEMBERS) == [MEMBERS[2]]
    assert store.missing("photo", MEMBERS, Part("photo", 0, 4)) == []
    assert store.missing("photo", MEMBERS, Part("photo", 2, 5)) == [MEMBERS[2]]
    with pytest.raises(RunError, match=r"alpha_1\.00-\w+ is not complete: evaluate photo first"):
        store.read("photo", MEMBERS)


@pytest.mark.parametrize("cuts", [[(0, 6), (4, 10)], [(0, 10), (2, 5)], [(0, 3), (0, 7), (3, 4), (5, 8), (8, 10)]])
def test_parts_of_another_cut_may_overlap(store, cuts):
    for start, stop in cuts:
        write(store, start, stop, bad=tuple({1, 5} & set(range(start, stop))))
    assert store.missing("photo", MEMBERS) == []
    found = store.read("photo", MEMBERS)
    same(found, predictions(0, 10, bad=(1, 5)))
    assert [entry.position for entry in store.skipped("photo", MEMBERS[0])] == [1, 5]


def test_sums_over_features_are_left_out_where_a_part_counts_in_part_only(store):
    write(store, 0, 6)
    write(store, 4, 10)
    assert store.read("photo", MEMBERS).features is None


def test_a_dataset_of_which_a_part_has_no_usable_sample_is_read(store):
    write(store, 0, 3, bad=(0, 1, 2))
    write(store, 3, 10)
    same(store.read("photo", MEMBERS), predictions(0, 10, bad=(0, 1, 2)))


def test_a_part_without_a_usable_sample_may_know_of_fewer_labels_than_the_others(store):
    """It has seen none: the others have three each, and this one room for one."""
    nothing = np.empty((0, 1), dtype=np.int64)
    write(store, 0, 4)
    write(store, 4, 6, bad=(4, 5), labels=nothing, features=None)
    write(store, 6, 10)
    same(store.read("photo", MEMBERS), predictions(0, 10, bad=(4, 5)))


def test_what_a_killed_writer_left_is_removed_once_it_is_old(store):
    write(store, 0, 4)
    folder = store.folder("photo", MEMBERS[0])
    old, new = (folder / f".part-{name}.parquet.1234abcd" for name in ("00000000-00000004", "00000004-00000010"))
    for path in (old, new):
        path.write_bytes(b"half a file")
    os.utime(old, (time.time() - 7200,) * 2)
    write(store, 4, 10)
    assert not old.exists()
    assert new.exists()  # of a writer that may still be at work
    same(store.read("photo", MEMBERS), predictions(0, 10))


def test_sums_over_features_take_a_third_of_their_bytes_and_give_the_same_alignment(store):
    rng = np.random.default_rng(0)
    common = rng.normal(size=64) * 3
    sums = []
    for start, stop in ((0, 4), (4, 10)):
        x = rng.normal(size=(300, 64)) + common
        y = x @ np.diag(np.linspace(0.1, 2, 64)) + rng.normal(size=(300, 64))
        sums.append(FeatureMoments(300, x.sum(0), y.sum(0), x.T @ x, y.T @ y, x.T @ y))
        write(store, start, stop, features=sums[-1])
    whole, found = sums[0] + sums[1], store.read("photo", MEMBERS).features
    assert found.num_samples == 600
    assert 0.1 < whole.linear_cka() < 0.95
    assert found.linear_cka() == pytest.approx(whole.linear_cka(), abs=1e-7)
    for name in ("x", "y", "xx", "yy", "xy"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-6, atol=1e-4)
    sizes = [file.stat().st_size for member in MEMBERS[1:] for file in files(store, member)]
    assert max(sizes[2:]) - max(sizes[:2]) < 0.36 * (3 * 64**2 + 2 * 64) * 8 + 2500  # names and footer


def files(store, member=MEMBERS[1]):
    return sorted(store.folder("photo", member).glob("part-*.parquet"))


@pytest.mark.parametrize("damage", ["lost", "cut", "empty", "renamed", "another cell's", "half written"])
def test_a_file_that_is_not_whole_or_not_its_own_does_not_count(store, damage):
    write(store, 0, 4)
    write(store, 4, 10)
    [_, file] = files(store)
    assert file.name == "part-00000004-00000010.parquet"
    match damage:
        case "lost":
            file.unlink()
        case "cut":
            file.write_bytes(file.read_bytes()[:-1])
        case "empty":
            file.write_bytes(b"")
        case "renamed":
            file.rename(file.with_name("part-00000004-00000011.parquet"))
        case "another cell's":
            shutil.copy(store.folder("photo", MEMBERS[0]) / file.name, file)
        case "half written":
            file.rename(file.with_name(f".{file.name}.1234abcd"))
    assert store.missing("photo", MEMBERS) == [MEMBERS[1]]
    write(store, 4, 10, [MEMBERS[1]])
    assert store.missing("photo", MEMBERS) == []


def test_a_damaged_page_is_noticed_when_it_is_read(store):
    write(store, 0, 10)
    [file] = files(store)
    content = bytearray(file.read_bytes())
    place = pyarrow.parquet.read_metadata(file).row_group(0).column(6).data_page_offset
    content[place + 60] ^= 1  # behind the page's header: in its compressed values
    file.write_bytes(content)
    assert store.missing("photo", MEMBERS) == []
    with pytest.raises(RunError, match=r"part-00000000-00000010\.parquet is damaged .* delete it and evaluate again"):
        store.read("photo", MEMBERS)


@pytest.mark.parametrize("positions", [[0, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3, 4], [0, 1, 2, 9]])
def test_predictions_of_other_positions_than_the_parts_are_refused(store, positions):
    made = predictions(0, len(positions), positions=np.asarray(positions))
    with pytest.raises(RunError, match=r"photo: [345] samples came for the positions 0 to 3"):
        store.write("photo", Part("photo", 0, 4), MEMBERS, made)
    assert files(store) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": tuple("abcdefghij")}, r"alpha_0\.50-\w+ is of other samples than the cells beside it \(key\)"),
        ({"labels": np.zeros((10, 2), dtype=np.int64)}, r"is of other samples than the cells beside it \(label\)"),
        ({"bad": (3,)}, r"is of other samples than the cells beside it \(key, position, label\)"),
    ],
)
def test_cells_of_other_samples_are_not_read_together(store, change, message):
    write(store, 0, 10, MEMBERS[:1])
    write(store, 0, 10, MEMBERS[1:2], **change)
    with pytest.raises(RunError, match=message):
        store.read("photo", MEMBERS[:2])


def test_two_samples_with_one_key_are_refused(store):
    write(store, 0, 10, keys=("a",) * 10)
    with pytest.raises(RunError, match="photo: 10 samples have 1 different keys"):
        store.read("photo", MEMBERS)


def folders(config, run):
    store = CellStore.of_run(config, run)
    members = (Member(0.0), Member(0.5), Member(0.5, "output"))
    return {(name, member): store.folder(name, member) for name in ("photo", "sketch", "id_val") for member in members}


def test_every_cell_has_a_folder_of_its_own_that_stays_the_same(finished):
    first, second = folders(finished.config, finished.run), folders(finished.config, finished.run)
    assert first == second
    assert len(set(first.values())) == len(first)
    assert first["photo", Member(0.5, "output")].name.startswith("alpha_0.50-output-")


def recommit(folder):
    """Change one file of a committed folder."""
    with committing(folder, final=True) as aside:
        (aside / "weights").write_bytes(b"other")


def evaluating(config, **changes):
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update=changes)})


@pytest.mark.parametrize("change", ["theta_0", "theta_1", "precision", "compile", "preprocess", "method", "code"])
def test_a_cell_of_other_weights_or_arithmetic_is_another_cell(copied, monkeypatch, change):
    config = copied.load_config()
    before = folders(config, copied)
    match change:
        case "theta_0":
            recommit(copied.zero_shot)
        case "theta_1":
            recommit(copied.finished_checkpoint())
        case "precision":
            config = evaluating(config, precision="bf16")
        case "compile":
            config = evaluating(config, compile=True)
        case "preprocess":
            config = evaluating(config, preprocess="exact")
        case "method":
            config = config.model_copy(update={"merge": config.merge.model_copy(update={"method": "slerp"})})
        case "code":
            monkeypatch.setattr(wiseft_dist, "__version__", "another")
    assert not set(before.values()) & set(folders(config, copied).values())


def test_another_test_set_of_the_same_size_and_keys_is_another_cell(copied, world, tmp_path):
    config = copied.load_config()
    before = folders(config, copied)
    shutil.copytree(world.data / "sketch", tmp_path / "sketch")
    data = config.data.model_copy(update={"shifts": config.data.shifts | {"sketch": str(tmp_path / "sketch")}})
    shutil.copy(world.data / "classnames.txt", tmp_path)
    config = config.model_copy(update={"data": data})
    index(config, copied)
    after = folders(config, copied)
    assert {name for name, member in before if before[name, member] != after[name, member]} == {"sketch"}


def write_labelled(path, labels):
    """A shard whose right classes stand in its .json, all of one length."""
    with tarfile.open(path, "w") as tar:
        for number, label in enumerate(labels):
            content = {"png": picture(number, 0), "cls": b"0", "json": json.dumps({"labels": [label]}).encode()}
            for suffix, data in content.items():
                member = tarfile.TarInfo(f"s{number}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_other_labels_in_the_same_place_are_another_cell_and_the_same_file_is_the_same(copied, tmp_path):
    config = copied.load_config()
    shutil.copy(Path(config.data.reference["photo"]).parent / "classnames.txt", tmp_path)
    (tmp_path / "sketch").mkdir()
    shard = tmp_path / "sketch" / "0.tar"
    write_labelled(shard, [0, 1, 2])
    spec = DatasetSpec(labels="json:labels")
    changes = {"shifts": {"sketch": str(shard.parent)}, "datasets": {"sketch": spec}}
    config = config.model_copy(update={"data": config.data.model_copy(update=changes)})
    cells, digests = [], []
    for labels in (None, None, [2, 1, 0]):
        if labels:
            num_bytes = shard.stat().st_size
            write_labelled(shard, labels)
            assert shard.stat().st_size == num_bytes
        manifest = index(config, copied)["sketch"]
        assert [each.version for each in manifest.shards] == [str(shard.stat().st_mtime_ns)]
        digests.append(manifest.content_digest)
        cells.append(CellStore.of_run(config, copied).folder("sketch", Member(0.5)))
    assert cells[0] == cells[1] != cells[2]
    assert len(set(digests)) == 1  # which is of names, sizes and .cls labels, and does not tell


def test_a_report_is_of_the_files_that_the_datasets_name(finished, tmp_path):
    """Their names stay, and what is in them changes."""
    models = tmp_path / "models.csv"
    axis = tmp_path / "axis.json"
    names = tmp_path / "names.txt"
    spec = DatasetSpec(robustness_fit=f"file://{models}", reference_classes=str(axis), classnames=str(names))
    data = finished.config.data.model_copy(update={"datasets": {"sketch": spec}})
    config = finished.config.model_copy(update={"data": data})
    first = {models: "a", axis: '{"num_source": 3, "groups": [[0], [1], [2]]}', names: "red\ngreen\nblue\n"}
    second = {models: "b", axis: '{"num_source": 3, "groups": [[0], [2], [1]]}', names: "red\ngreen\ncyan\n"}

    def current(contents):
        for path, content in contents.items():
            path.write_text(content)
        read_classnames.cache_clear()  # as another process would read them
        read_class_map.cache_clear()
        return report_digest(config, CellStore(tmp_path, {}, lambda name: Content(3, {})), ["photo", "sketch"])

    found = [current(first), *(current(first | {path: second[path]}) for path in second), current(first)]
    assert found[0] == found[-1]
    assert len(set(found)) == 4


@pytest.mark.parametrize("spec", [{"crop_border": 2}, {"metadata": {"video": "json:video"}}, {"labels": "json:labels"}])
def test_a_dataset_that_is_read_otherwise_makes_other_cells(finished, spec):
    config = finished.config
    data = config.data.model_copy(update={"datasets": {"photo": DatasetSpec.model_validate(spec)}})
    before, after = folders(config, finished.run), folders(config.model_copy(update={"data": data}), finished.run)
    assert {name for name, member in before if before[name, member] != after[name, member]} == {"photo"}


def test_how_fast_it_is_computed_and_by_how_many_does_not_make_another_cell(finished):
    faster = {
        "batch_size": 7,
        "workers": 3,
        "cache_images": 1,
        "part_samples": 3,
        "job_images": 5,
        "output_space": True,
    }
    changed = evaluating(finished.config, **faster)
    assert folders(changed, finished.run) == folders(finished.config, finished.run)


def test_the_ends_are_the_same_in_both_spaces_and_are_scored_once(finished):
    members = members_of(evaluating(finished.config, output_space=True))
    assert members == [Member(0.0), Member(0.5), Member(1.0), Member(0.5, "output")]
