"""What is held against a run's test sets before anything is submitted."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from wiseft_dist.config import DataConfig, DatasetSpec, RunConfig, dump_config, load_config
from wiseft_dist.data.pack import EncodedSample, write_split, write_vocabulary
from wiseft_dist.data.stage import index_all
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.catalog.lists import read_classnames
from wiseft_dist.evaluate.dataset_checks import check_datasets
from wiseft_dist.launch.preview import preview
from wiseft_dist.launch.start import resolve_paths

HEAD = ("cat", "lynx", "dog", "wolf")


def write_set(folder: Path, labels: list[int], classnames: tuple[str, ...] | None) -> None:
    """One shard with a sample for each label, and a class list beside it."""
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "png")
    samples = (EncodedSample(picture.getvalue(), "png", label) for label in labels)
    write_split(samples, folder, samples_per_shard=100)
    if classnames is not None:
        write_vocabulary(folder, classnames=list(classnames), templates=["a {c}"])


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Training and reference shards of four classes; ``pets`` has two of its own."""
    write_set(tmp_path / "train", [0, 1, 2, 3] * 4, HEAD)
    write_set(tmp_path / "photos", [0, 1, 2, 3], HEAD)
    write_set(tmp_path / "pets", [0, 1, 1], ("feline", "canine"))
    (tmp_path / "map.json").write_text(json.dumps({"num_source": 4, "groups": [[0, 1], [2, 3]]}))
    return tmp_path


def config_of(world: Path, *, shift: str = "pets", **datasets: DatasetSpec) -> RunConfig:
    data = DataConfig(
        train=f"{world}/train",
        reference={"photos": f"{world}/photos"},
        shifts={shift: f"{world}/pets"},
        datasets=datasets,
        lanes=2,
    )
    return RunConfig(output=f"{world}/run", model={"architecture": "ViT-B-32"}, data=data)


def warnings_of(config: RunConfig) -> list[str]:
    return check_datasets(config, index_all(config))


def test_a_dataset_with_classes_of_its_own_is_taken_if_a_map_leads_there(world):
    assert warnings_of(config_of(world, pets=DatasetSpec(class_map=f"{world}/map.json"))) == []


def test_a_dataset_with_other_classes_and_no_map_is_refused(world):
    with pytest.raises(UserError, match="pets has 2 classes and the head 4: class 0 is 'feline' there and 'cat' here"):
        warnings_of(config_of(world))


def test_labels_outside_the_map_are_an_error(world):
    write_set(world / "pets", [0, 1, 2], None)
    (world / "pets" / "classnames.txt").unlink()
    with pytest.raises(UserError, match=r"pets: .*tar has label 2, but map leads to 2 classes \(0 to 1\)\. Labels are"):
        warnings_of(config_of(world, pets=DatasetSpec(class_map=f"{world}/map.json")))


def test_labels_outside_the_runs_classes_are_an_error(world):
    write_set(world / "pets", [0, 4], None)
    (world / "pets" / "classnames.txt").unlink()
    with pytest.raises(UserError, match=r"pets: .*tar has label 4, but the class list has 4 names \(0 to 3\)"):
        warnings_of(config_of(world))


def test_another_number_of_samples_is_reported_if_published_and_refused_if_given(world):
    write_set(world / "train", [0, 1] * 5, read_classnames("cifar10", "test"))
    write_set(world / "photos", [0, 1], read_classnames("cifar10", "test"))
    write_set(world / "pets", [0, 9, 1], read_classnames("cifar10", "test"))
    (said,) = warnings_of(config_of(world, shift="CIFAR-10.1"))
    assert said.startswith(f"CIFAR-10.1: {world}/pets holds 3 samples, but CIFAR-10.1 has 2,000: ")
    assert warnings_of(config_of(world, shift="CIFAR-10.1", **{"CIFAR-10.1": DatasetSpec(num_samples=3)})) == []
    assert warnings_of(config_of(world, shift="CIFAR-10.1", **{"CIFAR-10.1": DatasetSpec(catalog="none")})) == []
    given = DatasetSpec(num_samples=2000)
    with pytest.raises(UserError, match=r"holds 3 samples, but its num_samples is 2,000\."):
        warnings_of(config_of(world, shift="CIFAR-10.1", **{"CIFAR-10.1": given}))


def test_a_class_list_beside_the_shards_that_is_not_the_catalogs_is_refused(world):
    said = r"objectnet: its class list .* has 2 names, objectnet of the catalog has 113, and class 0 is 'feline' there"
    with pytest.raises(UserError, match=said):
        warnings_of(config_of(world, shift="objectnet"))
    spec = DatasetSpec(catalog="none", class_map=f"{world}/map.json")
    assert warnings_of(config_of(world, shift="objectnet", objectnet=spec)) == []


def test_a_head_of_other_classes_than_the_map_takes_is_refused(world):
    for name in ("pets.txt", "pets/classnames.txt"):
        (world / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"has 113 classes and the head 4.*objectnet takes the 1000 classes"):
        warnings_of(config_of(world, shift="objectnet"))


def test_a_preview_tells_what_may_be_wrong(world, capsys):
    spec = DatasetSpec(catalog="cifar10", classnames=None, class_map=f"{world}/map.json")
    preview(config_of(world, pets=spec))
    said = f"wiseft: pets: {world}/pets holds 3 samples, but CIFAR-10 has 10,000: its numbers cannot be compared"
    assert said in capsys.readouterr().err


def test_a_written_configuration_says_no_more_of_a_dataset_than_was_given(world, tmp_path):
    config = config_of(world, shift="fmow_test", fmow_test=DatasetSpec(title="Mine", class_map=None))
    (tmp_path / "again.yaml").write_text(dump_config(config))
    again = load_config(tmp_path / "again.yaml")
    assert again == config
    assert again.data.datasets["fmow_test"].model_fields_set == {"title", "class_map"}


def test_files_of_a_dataset_become_absolute_and_names_of_lists_stay(world, monkeypatch):
    monkeypatch.chdir(world)
    spec = DatasetSpec(classnames="cifar10", templates="prompts.txt", class_map="map.json")
    resolved = resolve_paths(config_of(world, pets=spec)).data.datasets["pets"]
    assert (resolved.classnames, resolved.templates, resolved.class_map) == (
        "cifar10", f"{world}/prompts.txt", f"{world}/map.json",
    )  # fmt: skip
    assert resolved.model_fields_set == spec.model_fields_set


def test_a_class_list_beside_the_shards_with_two_names_swapped_is_refused(world):
    pacs = list(read_classnames("pacs", "test"))
    pacs[2], pacs[5] = pacs[5], pacs[2]
    write_set(world / "pets", [0, 1], tuple(pacs))
    with pytest.raises(UserError, match=f"pacs_photo: its class list .* class 2 is '{pacs[2]}' there and '{pacs[5]}'"):
        warnings_of(config_of(world, shift="pacs_photo"))


def test_the_map_of_the_reference_axis_is_looked_for_before_anything_runs(world, monkeypatch):
    monkeypatch.chdir(world)
    spec = DatasetSpec(class_map="map.json", reference_classes="map.json")
    resolved = resolve_paths(config_of(world, pets=spec)).data.datasets["pets"]
    assert resolved.reference_classes == f"{world}/map.json"
    assert warnings_of(config_of(world, pets=spec)) == []
    with pytest.raises(UserError, match=r"data.datasets.pets.reference_classes: none.json is neither a file"):
        warnings_of(config_of(world, pets=spec.model_copy(update={"reference_classes": "none.json"})))


def test_a_title_cannot_control_the_terminal(world):
    spec = DatasetSpec(catalog="cifar10", title="\x1b[2Jmine", classnames=None, class_map=f"{world}/map.json")
    (said,) = warnings_of(config_of(world, pets=spec))
    assert "but \\x1b[2Jmine has 10,000" in said
