from __future__ import annotations

import shutil

import pytest

import wiseft_dist
from wiseft_dist.data.stage import index
from wiseft_dist.evaluate.cells import CellStore
from wiseft_dist.run import committing


def folders(config, run):
    store = CellStore(config, run)
    return {(name, alpha): store.folder(name, alpha) for name in ("photo", "sketch", "id_val") for alpha in (0.0, 0.5)}


def test_every_cell_has_a_folder_of_its_own_that_stays_the_same(finished):
    first, second = folders(finished.config, finished.run), folders(finished.config, finished.run)
    assert first == second
    assert len(set(first.values())) == len(first)


def recommit(folder):
    """Change one file of a committed folder."""
    with committing(folder, final=True) as aside:
        (aside / "weights").write_bytes(b"other")


@pytest.mark.parametrize("change", ["theta_0", "theta_1", "precision", "code"])
def test_a_cell_of_other_weights_or_arithmetic_is_another_cell(copied, monkeypatch, change):
    config = copied.load_config()
    before = folders(config, copied)
    match change:
        case "theta_0":
            recommit(copied.zero_shot)
        case "theta_1":
            recommit(copied.finished_checkpoint())
        case "precision":
            config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"precision": "bf16"})})
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
    assert {key for key in before if before[key] != after[key]} == {("sketch", 0.0), ("sketch", 0.5)}


def test_how_fast_it_is_computed_does_not_make_another_cell(finished):
    config = finished.config
    faster = config.evaluate.model_copy(update={"batch_size": 7, "workers": 3, "cache_images": 1})
    assert folders(config.model_copy(update={"evaluate": faster}), finished.run) == folders(config, finished.run)


@pytest.mark.parametrize("damage", ["no record", "a lost file", "a cut file"])
def test_a_half_written_cell_does_not_count(copied, damage):
    store = CellStore(copied.load_config(), copied)
    folder = store.folder("photo", 0.5)
    assert store.missing("photo", (0.0, 0.5, 1.0)) == []
    match damage:
        case "no record":
            (folder / "COMMITTED.json").unlink()
        case "a lost file":
            (folder / "predictions.parquet").unlink()
        case "a cut file":
            (folder / "predictions.parquet").write_bytes((folder / "predictions.parquet").read_bytes()[:-1])
    assert store.missing("photo", (0.0, 0.5, 1.0)) == [0.5]
    assert store.read("photo", 0.5) is None
