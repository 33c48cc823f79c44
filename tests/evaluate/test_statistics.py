from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from predictions_from_logits import predictions_from_logits

from wiseft_dist.config.dataset import DatasetSpec
from wiseft_dist.data.receipt import BadSample
from wiseft_dist.errors import RunError
from wiseft_dist.evaluate.class_map import load_class_map
from wiseft_dist.evaluate.predictions import Member, Predictions
from wiseft_dist.evaluate.statistics.metrics.corruption import alexnet_errors
from wiseft_dist.evaluate.statistics.statistics import statistics

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
MEMBERS = [Member(alpha) for alpha in ALPHAS]


@dataclass
class Made:
    """A source whose predictions are there already."""

    name: str
    role: str
    predictions: Predictions
    spec: DatasetSpec = field(default_factory=DatasetSpec)
    class_map: str | None = None

    def load(self):
        return self.predictions


def made(name, role="shift", *, seed=0, num_samples=300, num_classes=6, members=MEMBERS, spec=None, **columns):
    """Two models that err differently, and between them mixtures of their logits."""
    rng = np.random.default_rng((seed, len(name)))
    labels = rng.integers(num_classes, size=num_samples)
    ends = rng.normal(size=(2, num_samples, num_classes)) + 1.2 * (np.arange(num_classes) == labels[:, None])
    logits = [(1 - member.alpha) * ends[0] + member.alpha * ends[1] for member in members]
    return Made(name, role, predictions_from_logits(logits, labels, **columns), spec or DatasetSpec())


@pytest.fixture(scope="module")
def found():
    sources = [
        made("id_val", "id_val", seed=1),
        made("photo", "reference", seed=2),
        made("sketch", seed=3, spec=DatasetSpec(title="PACS sketch")),
        made("art", seed=4, bad=(BadSample(300, "0.tar", "s300", "does not decode"),)),
    ]
    return statistics(sources, MEMBERS, num_resamples=200)


def test_every_dataset_and_alpha_has_its_numbers(found):
    assert (found.reference, found.shifts, found.alphas) == ("photo", ("sketch", "art"), ALPHAS)
    sketch = found.datasets["sketch"]
    assert (sketch.title, sketch.role, sketch.metric) == ("PACS sketch", "shift", "top1")
    assert [entry.alpha for entry in sketch.alphas] == list(ALPHAS)
    source = made("sketch", seed=3).predictions
    for index, entry in enumerate(sketch.alphas):
        assert entry.num_correct == source.correct[index].sum()
        assert entry.value == entry.top1 == entry.num_correct / 300
        assert entry.interval == entry.top1_interval
        assert entry.interval.method == "clopper_pearson"
        assert entry.interval.low < entry.value < entry.interval.high
        assert entry.top5 > entry.top1
        assert entry.nll == pytest.approx(-source.log_probs[index].mean(), rel=1e-5)
        assert sum(bin_.num_samples for bin_ in entry.reliability) == 300
    assert sketch.num_samples == sketch.num_units == 300


def test_skipped_samples_are_counted_and_enter_no_number(found):
    assert (found.datasets["art"].num_samples, found.datasets["art"].num_skipped) == (300, 1)


def test_the_shift_average_weighs_shifts_alike_and_has_an_interval_of_its_own(found):
    sketch, art = found.datasets["sketch"], found.datasets["art"]
    for entry in found.shift_average:
        assert entry.value == pytest.approx((sketch.at(entry.alpha).value + art.at(entry.alpha).value) / 2)
        assert entry.interval.low < entry.value < entry.interval.high
    # Two independent sets of n samples are as good as one of 2n: the interval is narrower than a shift's by sqrt 2.
    width = found.shift_average[0].interval.high - found.shift_average[0].interval.low
    of_one = sketch.alphas[0].interval.high - sketch.alphas[0].interval.low
    assert width == pytest.approx(of_one / np.sqrt(2), rel=0.2)


def test_alpha_is_chosen_without_the_shifts_and_oracles_say_what_they_saw(found):
    by_name = {choice.name: choice for choice in found.choices}
    assert list(by_name) == ["fixed", "id_val", "oracle"]
    assert found.chosen == by_name["id_val"].alpha
    assert found.oracles["sketch"].uses_shifts
    assert not found.oracles["photo"].uses_shifts
    assert "id_val" not in found.oracles
    best = found.oracles["sketch"].alpha
    assert found.datasets["sketch"].at(best).value == max(found.datasets["sketch"].values.values())


def test_every_alpha_is_compared_with_both_ends(found):
    comparison = found.datasets["photo"].compared(0.5, "finetuned")
    values = found.datasets["photo"].values
    assert comparison.difference == pytest.approx(100 * (values[0.5] - values[1.0]))
    assert comparison.interval.num_resamples == 200
    assert found.datasets["photo"].compared(1.0, "finetuned") is None


def test_both_observations_are_made_on_every_test_set_and_on_the_shift_average(found):
    seen = [(entry.number, entry.dataset) for entry in found.observations]
    assert seen == [(n, d) for d in ("photo", "sketch", "art", "shift average") for n in (1, 2)]
    assert "PACS sketch" in found.observations[2].sentence


def test_classes_gain_or_lose_at_the_chosen_alpha(found):
    source, classes = made("photo", "reference", seed=2).predictions, found.datasets["photo"].classes
    assert [entry.label for entry in classes] == list(range(6))
    inside = source.labels[:, 0] == 2
    assert classes[2].num_samples == inside.sum()
    assert classes[2].zero_shot == pytest.approx(source.correct[0, inside].mean())
    assert classes[2].chosen == pytest.approx(source.correct[ALPHAS.index(found.chosen), inside].mean())
    assert classes[2].finetuned == pytest.approx(source.correct[4, inside].mean())


def test_the_order_of_datasets_changes_no_number():
    sources = [made("photo", "reference", seed=2), made("sketch", seed=3), made("id_val", "id_val", seed=1)]
    one = statistics(sources, MEMBERS, num_resamples=50)
    other = statistics(sources[::-1], MEMBERS, num_resamples=50)
    assert {name: one.datasets[name] for name in sorted(one.datasets)} == dict(sorted(other.datasets.items()))
    assert one.choices == other.choices
    assert one.shift_average == other.shift_average


def test_another_seed_changes_bootstrap_intervals_alone():
    sources = [made("photo", "reference", spec=DatasetSpec(metric="mean_per_class"))]
    one, other = (statistics(sources, MEMBERS, seed=seed, num_resamples=50) for seed in (0, 1))
    first, second = one.datasets["photo"].alphas[2], other.datasets["photo"].alphas[2]
    assert first.interval != second.interval
    assert (first.value, first.top1_interval) == (second.value, second.top1_interval)


def test_the_class_map_tells_two_protocols_of_one_set_apart():
    sources = [made("objectnet"), replace(made("objectnet"), name="mapped", class_map="imagenet_to_objectnet")]
    datasets = statistics(sources, MEMBERS, num_resamples=10).as_dict()["datasets"]
    assert {name: each["class_map"] for name, each in datasets.items()} == {
        "objectnet": None,
        "mapped": "imagenet_to_objectnet",
    }


def test_only_one_dataset_is_in_memory_at_a_time():
    loaded = []

    @dataclass
    class Lazy:
        name: str
        role: str = "shift"
        spec: DatasetSpec = field(default_factory=DatasetSpec)
        class_map: str | None = None

        def load(self):
            gc.collect()
            assert all(reference() is None for reference in loaded)  # what was loaded before is gone
            predictions = made(self.name).predictions
            loaded.append(weakref.ref(predictions))
            return predictions

    found = statistics([Lazy(name) for name in ("a", "bb", "ccc")], MEMBERS, num_resamples=10)
    assert len(found.datasets) == len(loaded) == 3


def test_what_is_written_is_plain_json(found):
    text = json.dumps(found.as_dict(), allow_nan=False)
    content = json.loads(text)
    assert content["datasets"]["sketch"]["alphas"][2]["alpha"] == 0.5
    assert content["choices"][0] == {"name": "fixed", "alpha": 0.5, "uses_shifts": False}
    assert content["datasets"]["sketch"]["alphas"][0]["interval"]["method"] == "clopper_pearson"


def test_infinite_numbers_stay_what_they_are_in_json():
    source = made("photo", "reference")
    source.predictions.log_probs[0, 0] = -np.inf
    found = statistics([source], MEMBERS, num_resamples=10)
    assert found.datasets["photo"].alphas[0].nll == np.inf
    assert found.as_dict()["datasets"]["photo"]["alphas"][0]["nll"] == "inf"


def test_output_space_ensembles_stand_beside_and_take_no_part():
    members = [*MEMBERS, Member(0.25, "output"), Member(0.5, "output")]
    found = statistics([made("photo", "reference", members=members)], members, num_resamples=50)
    photo = found.datasets["photo"]
    assert [entry.alpha for entry in photo.output_space] == [0.25, 0.5]
    assert photo.output_space[1].num_correct == photo.at(0.5).num_correct  # the same mixture, as made up here
    assert {entry.alpha for entry in photo.comparisons} == {0.25, 0.5, 0.75, 1.0}
    assert found.alphas == ALPHAS


def test_a_single_model_has_numbers_and_nothing_to_compare():
    members = [Member(0.7)]
    found = statistics([made("photo", "reference", members=members, zero_shot=None)], members, num_resamples=50)
    photo = found.datasets["photo"]
    assert (photo.comparisons, photo.diversity, found.observations, found.choices) == ((), None, (), ())
    assert found.chosen is None
    assert photo.classes[0].zero_shot is None


def test_without_a_reference_id_val_stands_in_and_without_either_there_is_none():
    assert statistics([made("id_val", "id_val")], MEMBERS, num_resamples=10).reference == "id_val"
    shifts_only = statistics([made("sketch")], MEMBERS, num_resamples=10)
    assert shifts_only.reference is None
    assert [choice.name for choice in shifts_only.choices] == ["fixed", "oracle"]


def test_members_out_of_order_are_refused():
    with pytest.raises(ValueError, match="rising order"):
        statistics([], [Member(1.0), Member(0.0)])


def test_wilds_metrics_are_primary_where_the_description_says_so():
    place, region = np.arange(300) % 12, np.arange(300) % 3
    animals = made(
        "iwildcam",
        "reference",
        metadata={"location": place},
        spec=DatasetSpec(metric="macro_f1", cluster="location", metadata={"location": "npy:0"}),
    )
    maps = made(
        "fmow",
        metadata={"region": region},
        spec=DatasetSpec(
            metric="worst_group",
            group="region",
            group_names=("Asia", "Europe", "Other"),
            excluded_groups=("Other",),
            metadata={"region": "npy:0"},
        ),
    )
    found = statistics([animals, maps], MEMBERS, num_resamples=200)
    entry = found.datasets["iwildcam"].at(0.5)
    assert (entry.interval.method, entry.interval.cluster, entry.interval.num_clusters) == ("bootstrap", "location", 12)
    assert (entry.top1_interval.method, entry.top1_interval.cluster) == ("bootstrap", "location")
    assert entry.value != entry.top1
    entry = found.datasets["fmow"].at(0.5)
    assert set(entry.groups) == {"Asia", "Europe", "Other"}
    assert entry.value == pytest.approx(min(entry.groups["Asia"], entry.groups["Europe"]))
    assert entry.top1_interval.method == "clopper_pearson"


def test_videos_count_anchors_clustered_by_video():
    anchor, offset = np.arange(300) // 5, np.arange(300) % 5 - 2
    frames = made(
        "vid",
        "reference",
        metadata={"anchor": anchor, "offset": offset, "video": anchor // 2},
        spec=DatasetSpec(
            metric="pm0",
            anchor="anchor",
            offset="offset",
            cluster="video",
            neighbours=1,
            metadata={name: f"json:{name}" for name in ("anchor", "offset", "video")},
        ),
    )
    found = statistics([frames], MEMBERS, num_resamples=100).datasets["vid"]
    correct = frames.predictions.correct.reshape(5, 60, 5)
    assert (found.num_units, found.num_samples) == (60, 300)
    assert found.at(0.5).value == pytest.approx(correct[2, :, 2].mean())
    assert found.at(0.5).pm_k == pytest.approx(correct[2, :, 1:4].all(axis=-1).mean())
    assert found.at(0.5).interval.num_clusters == 30


def test_robustness_looks_up_the_reference_by_its_catalog_entry_and_restricts_its_classes():
    """Every image's best class is its own or, where that is not one of ImageNet-R's, the next: never wrong on R's."""
    groups = load_class_map("imagenet_to_imagenet_r", "test").groups
    members, labels = [Member(0.5)], np.arange(1000).repeat(2)
    picked = np.isin(labels, groups)
    logits = np.zeros((1, 2000, 1000))
    logits[0, np.arange(2000), labels] = 1.0
    outside = np.flatnonzero(~np.isin(np.arange(1000), groups))
    logits[0, :, outside[0]] = 2.0  # the best class of all images, but none of R's
    logits[0, np.flatnonzero(picked)[::4], groups[7][0]] = 1.5  # a quarter is taken for one of R's
    reference = Made("val", "reference", predictions_from_logits(logits, labels), DatasetSpec(catalog="imagenet"))
    spec = DatasetSpec(reference="imagenet", reference_classes="imagenet_to_imagenet_r", robustness_fit="imagenet_r")
    found = statistics([made("renditions", members=members, spec=spec), reference], members, num_resamples=10)
    robustness = found.robustness["renditions"]
    right = ~(np.arange(400) % 4 == 0) | (labels[picked] == groups[7][0])
    assert (robustness.num_reference_classes, robustness.num_reference_samples) == (200, 400)
    assert robustness.at(0.5).reference == pytest.approx(right.mean())
    assert robustness.at(0.5).undetermined == 0
    assert robustness.at(0.5).shift == found.datasets["renditions"].at(0.5).value
    assert found.datasets["val"].at(0.5).top1 < 0.01
    assert "val" not in found.robustness


def test_without_its_reference_a_shift_has_no_effective_robustness():
    spec = DatasetSpec(reference="imagenet", robustness_fit="imagenet_v2")
    assert statistics([made("v2", spec=spec)], MEMBERS, num_resamples=10).robustness == {}


def test_a_file_of_ones_own_models_gives_the_line_against_the_runs_reference(tmp_path):
    file = tmp_path / "models.csv"
    rows = [f"sketch,{0.5 + 0.05 * number},{0.3 + 0.05 * number}" for number in range(6)]
    file.write_text("\n".join(["dataset,reference,shift", *rows]))
    sources = [made("photo", "reference"), made("sketch", spec=DatasetSpec(robustness_fit=str(file)))]
    found = statistics(sources, MEMBERS, num_resamples=10)
    robustness = found.robustness["sketch"]
    assert (robustness.reference, robustness.fit) == ("photo", found.own_fits["sketch"])
    assert robustness.fit.pieces[0].num_models == 6
    assert robustness.at(0.5).reference == found.datasets["photo"].at(0.5).top1


def test_imagenet_c_gives_mce_once_all_its_parts_are_there():
    sources = [
        made(f"imagenet_c.{corruption}.{severity}", num_samples=20, members=MEMBERS[:1])
        for corruption in alexnet_errors()
        for severity in range(1, 6)
    ]
    found = statistics(sources, MEMBERS[:1], num_resamples=2)
    (entry,) = found.corruption
    errors = [1 - found.datasets[f"imagenet_c.fog.{severity}"].at(0.0).top1 for severity in range(1, 6)]
    assert entry.corruption_errors["fog"] == pytest.approx(np.mean(errors) / 0.819324)
    assert entry.mce == pytest.approx(np.mean(list(entry.corruption_errors.values())))


def test_statistics_never_import_torch():
    """They are computed on login nodes and laptops, in the time torch takes to be imported."""
    package = "wiseft_dist.evaluate.statistics"
    code = f"import sys, {package}.statistics, {package}.own_fit; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def as_entry(entry, **more):
    """A description as the catalog gives it, of pictures as they are made up here."""
    return DatasetSpec(catalog=entry, **more)


def test_corruptions_of_imagenet_c_are_not_in_the_shift_average_unless_they_are_alone():
    fog = [made(f"fog{n}", seed=n, spec=as_entry(f"imagenet_c.fog.{n}")) for n in (1, 2)]
    found = statistics([made("photo", "reference"), made("sketch", seed=3), *fog], MEMBERS, num_resamples=20)
    assert found.shifts == ("sketch", "fog1", "fog2")
    assert found.averaged_shifts == ("sketch",)
    assert [entry.value for entry in found.shift_average] == list(found.datasets["sketch"].values.values())
    alone = statistics([made("photo", "reference"), *fog], MEMBERS, num_resamples=20)
    assert alone.averaged_shifts == ("fog1", "fog2")
    assert alone.shift_average[0].value == pytest.approx(
        (alone.datasets["fog1"].values[0.0] + alone.datasets["fog2"].values[0.0]) / 2
    )


def test_one_cluster_gives_no_interval_and_shows_nothing():
    one = made(
        "one",
        "reference",
        metadata={"place": np.zeros(300, dtype=np.int64)},
        spec=DatasetSpec(cluster="place", metadata={"place": "npy:0"}),
    )
    found = statistics([one], MEMBERS, num_resamples=20)
    entry = found.datasets["one"].at(0.5)
    assert np.isnan([entry.interval.low, entry.interval.high]).all()
    assert entry.interval.num_clusters == 1
    assert not any(comparison.significant for comparison in found.datasets["one"].comparisons)
    assert [observation.within_noise for observation in found.observations] == [True, True]
    assert all("too little was sampled for an interval: within" in each.sentence for each in found.observations)


def with_robustness(*, metric="top1", reference="imagenet", role="reference", name="inet"):
    shift = DatasetSpec(catalog="imagenet_v2", robustness_fit="imagenet_v2", reference=reference, metric=metric)
    sources = [made(name, role, spec=DatasetSpec(catalog="imagenet")), made("v2", spec=shift)]
    return statistics(sources, MEMBERS, num_resamples=10).robustness


def test_a_published_line_is_of_the_metric_it_was_fitted_on():
    assert list(with_robustness()) == ["v2"]
    assert with_robustness(metric="mean_per_class") == {}


@pytest.mark.parametrize("reference", ["inet", "ImageNet", "image-net"])
def test_the_reference_axis_is_found_by_any_name_of_its_entry(reference):
    assert with_robustness(reference=reference)["v2"].reference == "inet"


def test_the_held_out_piece_is_no_reference_axis():
    assert with_robustness(role="id_val") == {}


def test_cells_without_probabilities_make_no_report():
    photo = made("photo", "reference")
    photo.predictions.confidences[2, 0] = np.nan
    with pytest.raises(RunError, match=r"photo: at alpha 0\.5 1 of 300 samples"):
        statistics([photo], MEMBERS, num_resamples=10)


def test_a_set_of_videos_knows_how_many_anchors_were_published():
    metadata = {"anchor": np.arange(300) // 5, "offset": np.arange(300) % 5 - 2, "video": np.arange(300) // 10}
    columns = {name: f"json:{name}" for name in metadata}
    spec = DatasetSpec(catalog="ytbb_robust", metric="pm0", anchor="anchor", offset="offset", metadata=columns)
    videos = statistics([made("mine", metadata=metadata, spec=spec)], MEMBERS, num_resamples=10).datasets["mine"]
    assert (videos.num_units, videos.num_published_units) == (60, 2030)
    assert statistics([made("photo")], MEMBERS, num_resamples=10).datasets["photo"].num_published_units is None
