"""The catalog against the published facts: counts, class lists, templates, maps, fits."""

from __future__ import annotations

import json

import numpy as np
import pytest

from wiseft_dist.config import DatasetSpec
from wiseft_dist.data.vocabulary import prompt
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.catalog.entries import (
    catalog,
    describe_dataset,
    entries,
    find_entry,
    read_dataset_file,
)
from wiseft_dist.evaluate.catalog.listing import listing
from wiseft_dist.evaluate.catalog.lists import list_names, read_classnames, read_prompts
from wiseft_dist.evaluate.catalog.published import (
    published_accuracy,
    zero_shot_accuracies,
    zero_shot_tolerance,
)
from wiseft_dist.evaluate.class_map import load_class_map
from wiseft_dist.evaluate.statistics.metrics.corruption import alexnet_errors
from wiseft_dist.evaluate.statistics.robustness import published_fits

ALL = list(catalog())
CORRUPTIONS = [
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "num_samples", "num_classes", "metric", "num_templates"),
    [
        ("imagenet", 50_000, 1000, "top1", 80),
        ("imagenet_v2", 10_000, 1000, "top1", 80),
        ("imagenet_r", 30_000, 200, "top1", 80),
        ("imagenet_a", 7_500, 200, "top1", 80),
        ("imagenet_sketch", 50_889, 1000, "top1", 80),
        ("objectnet", 18_574, 113, "top1", 80),
        ("cifar10", 10_000, 10, "top1", 18),
        ("cifar10.1", 2_000, 10, "top1", 18),
        ("cifar10.1_v4", 2_021, 10, "top1", 18),
        ("cifar10.2", 2_000, 10, "top1", 18),
        ("iwildcam_id_test", 8_154, 182, "macro_f1", 2),
        ("iwildcam_test", 42_791, 182, "macro_f1", 2),
        ("iwildcam_id_val", 7_314, 182, "macro_f1", 2),
        ("iwildcam_val", 14_961, 182, "macro_f1", 2),
        ("fmow_id_test", 11_327, 62, "top1", 16),
        ("fmow_test", 22_108, 62, "worst_group", 16),
        ("imagenet_vid_robust", 22_179, 30, "pm0", 80),
        ("ytbb_robust", None, 24, "pm0", 80),
        ("pacs_photo", 1_670, 7, "top1", 1),
        ("pacs_art_painting", 2_048, 7, "top1", 1),
        ("pacs_cartoon", 2_344, 7, "top1", 1),
        ("pacs_sketch", 3_929, 7, "top1", 1),
        ("domainnet_real", 172_947, 345, "top1", 1),
        ("imagenet_c.gaussian_noise.5", 50_000, 1000, "top1", 80),
    ],
)
def test_an_entry_says_what_was_published(name, num_samples, num_classes, metric, num_templates):
    dataset = describe_dataset(name, None)
    assert dataset.spec.catalog == name
    assert dataset.spec.num_samples == num_samples
    assert dataset.spec.metric == metric
    assert len(dataset.classnames) == num_classes
    assert len(dataset.templates) == num_templates == len(set(dataset.templates))


@pytest.mark.parametrize("name", ALL)
def test_every_entry_can_be_used(name):
    dataset = describe_dataset(name, None)
    spec = dataset.spec
    assert spec.title
    assert all("{c}" in template or "{a c}" in template for template in dataset.templates)
    assert spec.reference is None or (spec.reference in catalog() and spec.reference != name)
    assert spec.robustness_fit is None or (spec.robustness_fit in published_fits() and spec.reference)
    assert spec.reference_classes is None or spec.reference_classes in list_names("class_map")
    if dataset.class_map is not None:
        assert spec.reference_classes == spec.class_map
        assert dataset.class_map.source == "imagenet"
        assert dataset.class_map.num_classes == len(dataset.classnames)


def test_the_domains_and_corruptions_are_all_there():
    domains = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    sizes = {name: spec.num_samples for name, spec in catalog().items()}
    assert sum(sizes[f"domainnet_{domain}"] for domain in domains) == 586_575
    assert sum(sizes[f"domainnet_{domain}_test"] for domain in domains) == 176_743
    assert sum(sizes[f"pacs_{domain}"] for domain in ("photo", "art_painting", "cartoon", "sketch")) == 9_991
    corrupted = [name for name in catalog() if name.startswith("imagenet_c.")]
    assert corrupted == [f"imagenet_c.{kind}.{severity}" for kind in CORRUPTIONS for severity in range(1, 6)]
    assert catalog()["imagenet_c.jpeg_compression.3"].title == "ImageNet-C jpeg compression 3"


def test_imagenet_is_in_the_order_of_its_wordnet_ids_and_two_names_repeat():
    wnids = read_classnames("imagenet_wnids", "test")
    names = read_classnames("imagenet", "test")
    assert len(wnids) == len(set(wnids)) == len(names) == 1000
    assert list(wnids) == sorted(wnids)
    assert (wnids[0], names[0], wnids[999], names[999]) == ("n01440764", "tench", "n15075141", "toilet paper")
    assert [at for at, name in enumerate(names) if name == "missile"] == [657, 744]
    assert [at for at, name in enumerate(names) if name == "sunglasses"] == [836, 837]
    assert len(set(names)) == 998


@pytest.mark.parametrize("which", ["r", "a"])
def test_the_subsets_of_imagenet_are_named_as_in_imagenet(which):
    class_map = load_class_map(f"imagenet_to_imagenet_{which}", "test")
    sources = [group[0] for group in class_map.groups]
    assert all(len(group) == 1 for group in class_map.groups)
    assert sources == sorted(set(sources))
    imagenet = read_classnames("imagenet", "test")
    assert read_classnames(f"imagenet_{which}", "test") == tuple(imagenet[at] for at in sources)


def test_r_and_a_share_86_classes():
    sources = [set(load_class_map(f"imagenet_to_imagenet_{which}", "test").groups) for which in "ra"]
    assert len(sources[0] & sources[1]) == 86


@pytest.mark.parametrize(
    ("name", "num_sources", "num_reachable", "num_merged"),
    [
        ("imagenet_to_objectnet", 125, 113, 9),
        ("imagenet_to_vid_robust", 288, 30, 17),
        ("imagenet_to_ytbb_robust", 231, 19, 13),
    ],
)
def test_merging_maps_have_the_published_sizes(name, num_sources, num_reachable, num_merged):
    groups = load_class_map(name, "test").groups
    sources = [source for group in groups for source in group]
    assert len(sources) == len(set(sources)) == num_sources
    assert sum(map(bool, groups)) == num_reachable
    assert sum(len(group) > 1 for group in groups) == num_merged


@pytest.mark.parametrize(
    ("dataset", "classname", "sources"),
    [
        ("objectnet", "alarm clock", {"analog clock", "digital clock"}),
        ("objectnet", "bath towel", {"bath towel"}),
        ("objectnet", "wine bottle", {"wine bottle"}),
        ("imagenet_vid_robust", "zebra", {"zebra"}),
        ("imagenet_vid_robust", "motorcycle", {"moped"}),
        ("ytbb_robust", "potted plant", {"daisy", "yellow lady's slipper"}),
        ("ytbb_robust", "umbrella", {"umbrella"}),
        ("ytbb_robust", "none", set()),
    ],
)
def test_a_merged_class_comes_from_the_classes_that_people_would_name(dataset, classname, sources):
    known = describe_dataset(dataset, None)
    imagenet = read_classnames("imagenet", "test")
    group = known.class_map.groups[known.classnames.index(classname)]
    assert {imagenet[at] for at in group} == sources


def test_objectnet_is_in_the_order_of_its_folders():
    names = read_classnames("objectnet", "test")
    renamed = {
        "bath towel": "full_sized_towel",
        "dishrag or hand towel": "hand_towel_or_rag",
        "drying rack for plates": "drying_rack_for_dishes",
    }
    folders = [renamed.get(name, name.replace(" / ", "_").replace(" ", "_")) for name in names]
    plain = ["".join(letter for letter in folder if letter not in "()'") for folder in folders]
    assert plain == sorted(plain)


def test_ytbb_has_five_classes_that_nothing_leads_to():
    known = describe_dataset("ytbb_robust", None)
    empty = [name for name, group in zip(known.classnames, known.class_map.groups, strict=True) if not group]
    assert empty == ["cow", "giraffe", "skateboard", "toilet", "none"]


def test_columns_are_those_of_the_wilds_vectors_and_of_the_frames():
    fmow, iwildcam = catalog()["fmow_test"], catalog()["iwildcam_test"]
    assert (fmow.group, fmow.metadata["region"]) == ("region", "npy:0")
    assert fmow.group_names == ("Asia", "Europe", "Africa", "Americas", "Oceania", "Other")
    assert fmow.excluded_groups == ("Other",)
    # The paper's tables: accuracy on the ID sets (beside which regions are shown), the worst region on the OOD sets.
    metrics = {name: catalog()[name].metric for name in ("fmow_id_test", "fmow_id_val", "fmow_test", "fmow_val")}
    assert list(metrics.values()) == ["top1", "top1", "worst_group", "worst_group"]
    assert catalog()["fmow_id_test"].group == "region"
    assert (iwildcam.cluster, iwildcam.metadata["location"]) == ("location", "npy:0")
    frames = catalog()["ytbb_robust"]
    assert (frames.labels, frames.cluster, frames.anchor, frames.offset, frames.neighbours) == (
        "json:labels", "video", "anchor", "offset", 10,
    )  # fmt: skip
    assert entries()["imagenet_vid_robust"].num_anchors == 1109
    assert entries()["ytbb_robust"].num_anchors == 2030
    assert read_classnames("iwildcam", "test")[0] == "empty"
    assert catalog()["objectnet"].crop_border == 2


def test_templates_with_an_article_take_the_right_one():
    templates = read_prompts("fmow_16", "test")
    assert prompt(templates[2], "airport_hangar") == "satellite photo of an airport hangar."
    assert prompt(templates[3], "zoo") == "aerial photo of a zoo."
    assert prompt(templates[0], "airport_hangar") == "satellite photo of a airport_hangar."


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("ImageNet-V2", "imagenet_v2"),
        ("imagenetv2", "imagenet_v2"),
        ("imagenet1k", "imagenet"),
        ("IMAGENET-C.Fog.2", "imagenet_c.fog.2"),
        ("cifar10_1", "cifar10.1"),
        ("iwildcam-id-test", "iwildcam_id_test"),
        ("photo", None),
        ("sketch", None),
    ],
)
def test_names_are_found_in_any_spelling(spelling, name):
    entry = find_entry(spelling)
    assert (entry and entry.name) == name


def test_no_spelling_means_two_entries():
    spelled = [
        "".join(letter for letter in name if letter not in "-_.").casefold()
        for entry in entries().values()
        for name in (entry.name, *entry.aliases)
    ]
    assert len(spelled) == len(set(spelled))


def test_what_is_given_goes_before_the_catalog():
    spec = describe_dataset("objectnet", DatasetSpec(crop_border=0, class_map=None)).spec
    assert (spec.crop_border, spec.class_map, spec.num_samples) == (0, None, 18_574)
    mine = describe_dataset("mine", DatasetSpec(catalog="fmow_test", title="Mine")).spec
    assert (mine.catalog, mine.title, mine.metric) == ("fmow_test", "Mine", "worst_group")
    assert describe_dataset("imagenet", DatasetSpec(catalog="none")).spec == DatasetSpec(catalog=None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"catalog": "objectnett"},
            r"mine.catalog: objectnett is not in the catalog. Did you mean objectnet\?",
        ),
        ({"classnames": "imagenett"}, r"mine.classnames: imagenett is neither a file nor .* Did you mean imagenet\?"),
        ({"metric": "worst_group"}, r"mine.metric: worst_group needs data.datasets.mine.group"),
        ({"metric": "pm0"}, r"mine.metric: pm0 needs data.datasets.mine.anchor"),
        ({"cluster": "video"}, r"mine.cluster: there is no column 'video'"),
        (
            {"group": "g", "metadata": {"g": "npy:0"}, "excluded_groups": ["Other"]},
            r"mine.excluded_groups: 'Other' is not among",
        ),
        (
            {"classnames": "cifar10", "class_map": "imagenet_to_objectnet"},
            r"mine.class_map: imagenet_to_objectnet leads to 113 classes, but cifar10 has 10",
        ),
    ],
)
def test_a_description_that_cannot_be_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        describe_dataset("mine", DatasetSpec(**given))


def test_a_dataset_in_a_few_lines_of_yaml(tmp_path):
    (tmp_path / "own.txt").write_text("day\nnight\n")
    (tmp_path / "streets.yaml").write_text(
        "shards: shards/{0..3}.tar\n"
        "title: Streets at night\n"
        "num_samples: 400\n"
        "classnames: own.txt\n"
        "templates: photo_1\n"
        "metric: worst_group\n"
        "metadata: {city: npy:0}\n"
        "group: city\n"
        "group_names: [Paris, Rome]\n"
    )
    name, shards, spec = read_dataset_file(tmp_path / "streets.yaml")
    assert (name, shards) == ("streets", f"{tmp_path}/shards/{{0..3}}.tar")
    dataset = describe_dataset(name, spec)
    assert dataset.classnames == ("day", "night")
    assert dataset.templates == ("a photo of a {c}.",)
    assert dataset.spec.num_samples == 400


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("title: x\n", r"mine.yaml: shards is missing"),
        ("shards: a\nname: a/b\n", r"mine.yaml: name is 'a/b'"),
        ("shards: a\nmetrc: top1\n", r"mine.yaml: metrc is not a setting"),
        ("shards: a\nname: ..\n", r"mine.yaml: name is '..'"),
        ("shards: a\nname: ''\n", r"mine.yaml: name is ''"),
        ('shards: a\nname: "a\\tb"\n', r"mine.yaml: name is 'a.tb'"),
        (f"shards: a\nname: {'a' * 300}\n", r"mine.yaml: name is 'aaa"),
        (
            "shards: https://host/${oc.env:MY_SECRET}/0.tar\n",
            r"mine.yaml: holds \$\{...\}, which a dataset file cannot",
        ),
        ("shards: a\nmetadata: {x: ['${oc.env:MY_SECRET}']}\n", r"mine.yaml: holds \$\{...\}"),
        ("a: " + "[" * 5000, r"mine.yaml: not readable as YAML"),
        ("shards: a\nmetadata: {x: csv:1}\n", r"x stands at 'csv:1': write npy:INDEX or json:KEY"),
    ],
)
def test_a_dataset_file_that_cannot_be_used_is_refused(tmp_path, monkeypatch, content, said):
    monkeypatch.setenv("MY_SECRET", "hunter2")
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UserError, match=said) as error:
        read_dataset_file(tmp_path / "mine.yaml")
    assert "hunter2" not in str(error.value)


def test_the_map_of_the_reference_axis_is_beside_the_dataset_file(tmp_path):
    (tmp_path / "map.json").write_text('{"num_source": 3, "groups": [[0], [2]]}')
    (tmp_path / "mine.yaml").write_text("shards: a\nreference_classes: map.json\n")
    name, _, spec = read_dataset_file(tmp_path / "mine.yaml")
    assert spec.reference_classes == f"{tmp_path}/map.json"
    assert describe_dataset(name, spec).spec.reference_classes == f"{tmp_path}/map.json"


@pytest.mark.parametrize(
    ("shift", "reference", "predicted"),
    [("imagenet_v2", 0.6323, 0.5014), ("imagenet_sketch", 0.6323, 0.1435)],
)
def test_the_fits_give_the_published_predictions_for_clip_b32(shift, reference, predicted):
    (piece,) = published_fits()[shift].pieces
    logit = piece.slope * np.log(reference / (1 - reference)) + piece.intercept
    assert 1 / (1 + np.exp(-logit)) == pytest.approx(predicted, abs=0.002)


def test_the_fits_are_those_that_were_computed():
    fits = published_fits()
    rows = {name: [(p.slope, p.intercept, p.r2, p.num_models) for p in fit.pieces] for name, fit in fits.items()}
    assert rows == {
        "imagenet_v2": [(0.9232, -0.4977, 0.996, 85)],
        "imagenet_sketch": [(1.0709, -2.3701, 0.869, 85)],
        "imagenet_r": [(0.6368, -2.1077, 0.889, 80)],
        "objectnet": [(0.9809, -1.9283, 0.953, 85)],
        "imagenet_vid_robust": [(0.5336, -1.4617, 0.949, 85)],
        "ytbb_robust": [(0.3388, -1.1119, 0.830, 84)],
        "imagenet_a": [(0.6894, -5.1400, 0.41, 33), (2.9560, -10.2774, 0.905, 51)],
    }
    low, high = fits["imagenet_a"].pieces
    assert (low.low, low.high, high.low, high.high) == (0.0, 0.9186, 0.9186, 1.0)
    assert {name for name, fit in fits.items() if fit.fitted_low == 0.75} == {"imagenet_r", "imagenet_a"}


def test_alexnets_errors_are_in_the_order_of_the_corruptions():
    assert list(alexnet_errors()) == CORRUPTIONS
    assert list(alexnet_errors().values()) == [
        0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816, 0.826572, 0.819324, 0.564592,
        0.853204, 0.646056, 0.717840, 0.606500,
    ]  # fmt: skip


def test_the_zero_shot_table_has_ten_models_on_seven_datasets():
    assert len(zero_shot_accuracies()) == 70
    assert zero_shot_tolerance() == 0.3
    assert published_accuracy("ViT-B/32", "openai", "imagenet") == 63.32
    assert published_accuracy("ViT-L-14-336-quickgelu", "openai", "imagenet_a") == 77.48
    assert published_accuracy("ViT-bigG-14", "laion2b_s39b_b160k", "cifar10") == 98.24
    assert published_accuracy("ViT-B-32", "openai", "cifar10.1") is None


def test_the_list_fits_a_terminal_and_names_every_kind_of_dataset():
    text = listing()
    assert max(map(len, text.splitlines())) <= 100
    assert "imagenet_c.CORRUPTION.1-5" in text
    assert "imagenet_c.fog.1" not in text
    missing = [name for name in ALL if not name.startswith("imagenet_c.") and name not in text]
    assert missing == []


def test_the_list_as_json_has_every_field_of_every_entry():
    found = json.loads(listing(as_json=True))
    assert list(found) == ALL
    assert found["ytbb_robust"]["num_anchors"] == 2030
    assert found["objectnet"]["num_classes"] == 113
    assert set(DatasetSpec.model_fields) - {"catalog"} <= set(found["imagenet"])
