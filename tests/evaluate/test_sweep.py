"""Scoring in memory gives what loading each written ensemble gives, however it is batched, cached and shared."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from made_up_images import NUM_IMAGES, batches, classifier, ensemble_of, images, two_models
from made_up_images import prepare as prepare_noise
from torch.nn import functional

from wiseft_dist.config import MergeConfig
from wiseft_dist.data.evaluation import EvaluationStream
from wiseft_dist.data.receipt import BadSample
from wiseft_dist.data.stage import load_manifest
from wiseft_dist.data.transforms import EvaluationTransform, evaluation_transform, normalize
from wiseft_dist.errors import RunError
from wiseft_dist.evaluate.cells.store import CellStore
from wiseft_dist.evaluate.predictions import Member
from wiseft_dist.evaluate.stage import _load_ensemble
from wiseft_dist.evaluate.sweep import cache_size
from wiseft_dist.evaluate.sweep.cache_size import images_that_fit
from wiseft_dist.evaluate.sweep.shared_layers import PlainModel
from wiseft_dist.evaluate.sweep.sweep import sweep
from wiseft_dist.merge.ensemble import Ensemble, load_weights
from wiseft_dist.merge.methods.choice import make_method
from wiseft_dist.merge.writer import write_ensembles
from wiseft_dist.models.classifier import read_classifier
from wiseft_dist.models.clip import preprocess_of, read_config
from wiseft_dist.weights.finetuned import open_models
from wiseft_dist.weights.sources import open_weights

ALPHAS = (0.0, 0.5, 1.0)
MEMBERS = [Member(alpha) for alpha in ALPHAS]
SCORES = ("classes", "top5", "confidences", "margins", "log_probs", "briers", "divergences")


@pytest.fixture
def stream(finished):
    preprocess = preprocess_of(read_config(finished.run.zero_shot))
    return EvaluationStream(load_manifest(finished.run, "sketch"), evaluation_transform(preprocess))


@pytest.fixture
def prepare(finished):
    preprocess = preprocess_of(read_config(finished.run.zero_shot))
    return partial(normalize, preprocess=preprocess, dtype=torch.float32)


@pytest.fixture
def ensemble(finished):
    module = read_classifier(finished.run.zero_shot).eval()
    with open_weights(finished.run.zero_shot) as first, open_weights(finished.run.finished_checkpoint()) as second:
        cpu = torch.device("cpu")
        return Ensemble(module, load_weights(first, module, device=cpu), [load_weights(second, module, device=cpu)])


def differing(first, at, second, index) -> list[str]:
    """The columns in which a member of one sweep differs from a member of another in any bit."""
    pairs = [(name, getattr(first, name)[at], getattr(second, name)[index]) for name in SCORES]
    return [name for name, one, other in pairs if one.tobytes() != other.tobytes()]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_written_ensemble_scores_as_the_one_in_memory_to_the_last_bit(finished, stream, prepare, ensemble, alpha):
    """At the ends it is theta_0 and theta_1 themselves: they give back their own evaluation."""
    written = PlainModel(read_classifier(finished.run.ensemble(alpha)).eval())
    own = sweep(written, stream.batches(4, num_workers=0), [Member(1.0)], prepare=prepare)
    found = sweep(ensemble, stream.batches(4, num_workers=0), MEMBERS, prepare=prepare, cache_images=8)
    assert found.keys == own.keys
    assert differing(own, 0, found, ALPHAS.index(alpha)) == []


def test_the_inputs_themselves_score_as_the_ends(finished, stream, prepare, ensemble):
    found = sweep(ensemble, stream.batches(4, num_workers=0), MEMBERS, prepare=prepare)
    for index, source in ((0, finished.run.zero_shot), (2, finished.run.finished_checkpoint())):
        module = read_classifier(finished.run.zero_shot).eval()
        with open_weights(source) as weights:
            module.load_state_dict(load_weights(weights, module, device=torch.device("cpu")))
        own = sweep(PlainModel(module), stream.batches(4, num_workers=0), [Member(0.0)], prepare=prepare)
        assert differing(own, 0, found, index) == []


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_cell_holds_what_the_written_ensemble_says_about_each_picture(finished, stream, prepare, alpha):
    cell = CellStore.of_run(finished.config, finished.run).read("sketch", [Member(alpha)])
    written = read_classifier(finished.run.ensemble(alpha)).eval()
    expected = {}
    with torch.inference_mode():
        for batch in stream.batches(1, num_workers=0):
            confidence, prediction = written(prepare(batch.images)).softmax(-1).max(-1)
            expected[batch.keys[0]] = (
                batch.targets.item(),
                prediction.item(),
                pytest.approx(confidence.item(), abs=1e-5),
            )
    columns = (cell.labels[:, 0].tolist(), cell.classes[0].tolist(), cell.confidences[0].tolist())
    assert dict(zip(cell.keys, zip(*columns, strict=True), strict=True)) == expected


def test_alphas_do_not_all_predict_alike(finished):
    """Otherwise the tests of this file could not fail."""
    cells = CellStore.of_run(finished.config, finished.run).read("sketch", MEMBERS)
    assert len({row.tobytes() for row in cells.confidences}) == 3


def test_the_ends_are_theta_0_and_theta_1_bit_for_bit(finished, ensemble):
    for alpha, source in ((0.0, finished.run.zero_shot), (1.0, finished.run.finished_checkpoint())):
        ensemble.set_alpha(alpha)
        with open_weights(source) as weights:
            for name, value in ensemble.module.state_dict().items():
                assert torch.equal(value, weights.tensor(name).reshape(value.shape)), name


@pytest.mark.parametrize("method", ["ties", "slerp"])
def test_an_ensemble_of_any_method_is_what_would_be_written(finished, tmp_path, method):
    config = finished.config.model_copy(update={"merge": MergeConfig(method=method, layers={"head.*": {"scale": 0.5}})})
    with open_models(config, finished.run) as models:
        write_ensembles(
            models, make_method(config.merge), {0.4: tmp_path / "out"}, dtype=torch.float32, side_files=lambda *_: {}
        )
    ensemble = _load_ensemble(config, finished.run, torch.device("cpu"))
    ensemble.set_alpha(0.4)
    with open_weights(tmp_path / "out") as written, open_weights(finished.run.zero_shot) as zero_shot:
        held = ensemble.module.state_dict()
        assert all(torch.equal(value, written.tensor(name)) for name, value in held.items())
        assert not all(torch.equal(value, zero_shot.tensor(name)) for name, value in held.items())


@pytest.mark.parametrize(("batch_size", "cache_images"), [(13, 13), (4, 1), (4, 1000), (5, 8), (1, 3), (4, None)])
def test_batches_and_cache_do_not_change_predictions(stream, prepare, ensemble, batch_size, cache_images):
    usual = sweep(ensemble, stream.batches(4, num_workers=0), MEMBERS, prepare=prepare, cache_images=2048)
    other = sweep(
        ensemble, stream.batches(batch_size, num_workers=0), MEMBERS, prepare=prepare, cache_images=cache_images
    )
    assert len(set(usual.keys)) == 13
    assert other.keys == usual.keys
    assert other.classes.tolist() == usual.classes.tolist()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_samples_come_in_the_order_of_their_positions(stream, prepare, ensemble):
    """Several decoding processes take turns: their batches are out of order."""
    usual = sweep(ensemble, stream.batches(4, num_workers=0), MEMBERS, prepare=prepare)
    read = list(stream.batches(2, num_workers=3))
    assert np.concatenate([batch.positions for batch in read]).tolist() != list(range(13))
    found = sweep(ensemble, read, MEMBERS, prepare=prepare)
    assert found.positions.tolist() == list(range(13))
    assert (found.keys, found.labels.tolist()) == (usual.keys, usual.labels.tolist())
    assert found.classes.tolist() == usual.classes.tolist()


def test_every_picture_is_decoded_once_for_all_alphas(monkeypatch, stream, prepare, ensemble):
    decoded = []
    transform = EvaluationTransform.__call__
    monkeypatch.setattr(
        EvaluationTransform, "__call__", lambda self, data, out: decoded.append(data) or transform(self, data, out)
    )
    seen = []
    members = [*MEMBERS, Member(0.5, "output")]
    sweep(
        ensemble,
        stream.batches(4, num_workers=0),
        members,
        prepare=prepare,
        cache_images=4,
        compare=True,
        on_progress=seen.append,
    )
    assert len(decoded) == len(set(decoded)) == 13
    assert seen == [4, 4, 4, 1]


def logits_of(module, weights) -> torch.Tensor:
    module.load_state_dict(weights)
    with torch.inference_mode():
        return module(prepare_noise(images()))


def test_output_space_mixes_logits_of_two_passes_whatever_the_number_of_alphas():
    module = classifier()
    zero_shot, finetuned = two_models(module, ("",))
    first, second = logits_of(module, zero_shot), logits_of(module, finetuned)
    ensemble = Ensemble(module, zero_shot, [finetuned])
    runs = []
    module.head.register_forward_hook(lambda *_: runs.append(1))
    alphas = (0.0, 0.25, 0.8, 1.0)
    found = sweep(ensemble, batches(4), [Member(alpha, "output") for alpha in alphas], prepare=prepare_noise)
    assert len(runs) == 2 * 3  # two models, three batches
    for index, alpha in enumerate(alphas):
        mixed = ((1 - alpha) * first.double() + alpha * second.double()).log_softmax(-1)
        wanted = mixed[torch.arange(NUM_IMAGES), torch.arange(NUM_IMAGES) % 7]
        assert found.log_probs[index] == pytest.approx(wanted.numpy(), abs=1e-4)
    both = sweep(ensemble, batches(4), [Member(0.0), Member(1.0)], prepare=prepare_noise)
    assert differing(both, 0, found, 0) == differing(both, 1, found, 3) == []


def test_with_a_linear_head_on_a_frozen_encoder_weight_and_output_space_are_one():
    """The logits are linear in the head's weights (arXiv 2109.01903, section 3)."""
    alphas = (0.0, 0.2, 0.5, 0.7, 1.0)
    members = [Member(alpha, space) for space in ("weight", "output") for alpha in alphas]
    frozen = sweep(
        ensemble_of(classifier(), ("head.",), amount=20.0), batches(4), members, prepare=prepare_noise, compare=True
    )
    assert frozen.classes[:5].tolist() == frozen.classes[5:].tolist()
    assert frozen.log_probs[:5] == pytest.approx(frozen.log_probs[5:], abs=1e-3)
    assert frozen.divergences[:5] == pytest.approx(frozen.divergences[5:], abs=1e-3)
    assert frozen.classes[0].tolist() != frozen.classes[4].tolist()
    assert frozen.features.linear_cka() == pytest.approx(1.0)
    end_to_end = sweep(ensemble_of(classifier(), ("",), amount=2.0), batches(4), members, prepare=prepare_noise)
    assert end_to_end.log_probs[2] != pytest.approx(end_to_end.log_probs[7], abs=1e-2)


def test_divergences_are_from_theta_0_whether_it_is_asked_for_or_not():
    module = classifier()
    zero_shot, finetuned = two_models(module, ("",))
    first, second = (logits_of(module, each).double().log_softmax(-1) for each in (zero_shot, finetuned))
    assert first.argmax(-1).tolist() != second.argmax(-1).tolist()
    wanted = functional.kl_div(second, first, reduction="none", log_target=True).sum(-1)
    ensemble = Ensemble(module, zero_shot, [finetuned])
    alone = sweep(ensemble, batches(4), [Member(1.0)], prepare=prepare_noise, compare=True)
    assert alone.divergences[0] == pytest.approx(wanted.numpy(), rel=1e-3, abs=1e-6)
    beside = sweep(ensemble, batches(3), [Member(1.0), Member(0.0)], prepare=prepare_noise, compare=True)
    assert beside.divergences[0] == pytest.approx(wanted.numpy(), rel=1e-3, abs=1e-6)
    assert beside.divergences[1].tolist() == [0.0] * NUM_IMAGES
    unasked = sweep(ensemble, batches(4), [Member(0.0), Member(1.0)], prepare=prepare_noise)
    assert np.isnan(unasked.divergences).all()
    assert unasked.features is None


def test_moments_are_those_of_the_features_of_both_ends():
    module = classifier()
    zero_shot, finetuned = two_models(module, ("",))
    features = []
    for weights in (zero_shot, finetuned):
        module.load_state_dict(weights)
        with torch.inference_mode():
            features.append(module.features(prepare_noise(images())).double().numpy())
    ensemble = Ensemble(module, zero_shot, [finetuned])
    found = sweep(ensemble, batches(4), [Member(1.0)], prepare=prepare_noise, compare=True, cache_images=5).features
    x, y = features
    assert found.num_samples == NUM_IMAGES
    assert found.xy == pytest.approx(x.T @ y, abs=1e-5)
    assert found.yy == pytest.approx(y.T @ y, abs=1e-5)
    assert found.x == pytest.approx(x.sum(axis=0), abs=1e-5)
    assert 0.1 < found.linear_cka() < 0.999
    none = sweep(ensemble, batches(4), [Member(0.5)], prepare=prepare_noise, compare=True)
    assert none.features is None


def test_a_class_map_comes_before_every_score():
    """Of 7 classes the dataset has two: the better of 0 and 3, and 5; a third is never predicted."""

    def class_map(logits):
        never = torch.full_like(logits[:, 0], -math.inf)
        return torch.stack([logits[:, [0, 3]].max(dim=-1).values, logits[:, 5], never], dim=-1)

    module = classifier()
    zero_shot, finetuned = two_models(module, ("",))
    targets = torch.arange(NUM_IMAGES) % 2
    found = sweep(
        Ensemble(module, zero_shot, [finetuned]),
        batches(4, targets=targets),
        [Member(0.0), Member(1.0), Member(0.5, "output")],
        prepare=prepare_noise,
        class_map=class_map,
        compare=True,
    )
    first, second = logits_of(module, zero_shot), logits_of(module, finetuned)
    for index, logits in enumerate((first, second, (first + second) / 2)):
        mapped = class_map(logits)
        assert found.classes[index].tolist() == mapped.argmax(-1).tolist()
        wanted = mapped.log_softmax(-1)[torch.arange(NUM_IMAGES), targets]
        assert found.log_probs[index] == pytest.approx(wanted.numpy(), abs=1e-4)
    assert set(found.top5[0, :, 2].tolist()) == {2}
    assert np.isfinite(found.divergences).all()


def test_labels_and_columns_are_taken_from_the_targets():
    targets = torch.tensor([[1, 4, -1, 100, -5], [2, -1, -1, 200, 0], [0, 5, 6, 300, 5]])
    found = sweep(
        PlainModel(classifier()),
        batches(2, images(3), targets),
        [Member(1.0)],
        prepare=prepare_noise,
        columns=("video", "offset"),
    )
    assert found.labels.tolist() == [[1, 4, -1], [2, -1, -1], [0, 5, 6]]
    assert {name: column.tolist() for name, column in found.metadata.items()} == {
        "video": [100, 200, 300],
        "offset": [-5, 0, 5],
    }
    assert found.num_correct[0] == sum(
        int(label in row) for label, row in zip(found.classes[0].tolist(), found.labels.tolist(), strict=True)
    )


def test_damaged_samples_are_handed_on_and_a_batch_may_hold_nothing_else():
    bad = BadSample(3, "0.tar", "k03", "does not decode")
    whole = list(batches(4))
    nothing = replace(whole[0], images=whole[0].images[:0], targets=torch.empty(0).long(), keys=(), bad=(bad,))
    nothing = replace(nothing, positions=np.empty(0, np.int64))
    found = sweep(PlainModel(classifier()), [nothing, *whole], [Member(1.0)], prepare=prepare_noise)
    assert (len(found), found.bad) == (NUM_IMAGES, (bad,))
    empty = sweep(PlainModel(classifier()), [nothing], [Member(1.0)], prepare=prepare_noise, columns=("a",))
    assert (len(empty), empty.bad, empty.labels.shape) == (0, (bad,), (0, 1))
    assert [getattr(empty, name).shape for name in SCORES] == [(1, 0), (1, 0, 5), *[(1, 0)] * 5]
    assert empty.metadata["a"].shape == (0,)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("space", ["weight", "output"])
def test_logits_that_are_not_finite_are_no_predictions(value, space):
    """Of three models only theta_1 has a bad weight; in its group, and so first, comes a picture that shows it."""
    module = classifier()
    zero_shot, finetuned = two_models(module, ("",))
    finetuned["head.bias"][2] = value
    members = [Member(0.0), Member(0.5, space), Member(1.0)]
    message = (
        rf"^sketch: alpha 0\.5 in {space} space gives sample 'k00' logits that are not finite \(8 of 8 samples\): "
        r"in fp16 set evaluate\.precision to bf16 or fp32; .* `wiseft merge --inspect`: .* merge\.allow_nonfinite\.$"
    )
    with pytest.raises(RunError, match=message):
        ensemble = Ensemble(module, zero_shot, [finetuned])
        sweep(ensemble, batches(4), members, prepare=prepare_noise, cache_images=8, dataset="sketch")
    alone = sweep(Ensemble(module, zero_shot, [finetuned]), batches(4), members[:1], prepare=prepare_noise)
    assert np.isfinite(alone.confidences).all()


def test_pixels_that_overflow_are_named_and_classes_that_are_ruled_out_are_not():
    module = classifier()
    bad = images()
    bad[6] = 255

    def overflowing(pixels):
        floats = prepare_noise(pixels)
        return torch.where((pixels == 255).all(dim=(1, 2, 3))[:, None, None, None], torch.nan, floats)

    with pytest.raises(RunError, match=r"^alpha 1 in weight space gives sample 'k06' logits .* \(1 of 4 samples\)"):
        sweep(PlainModel(module), batches(4, bad), [Member(1.0)], prepare=overflowing, cache_images=4)

    def nothing_is_left(logits):
        return torch.full_like(logits, -math.inf)

    with pytest.raises(RunError, match="that are not finite"):
        sweep(PlainModel(module), batches(4), [Member(1.0)], prepare=prepare_noise, class_map=nothing_is_left)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_that_of_the_module_and_scores_stay_in_fp32(dtype):
    module = classifier()
    zero_shot, finetuned = two_models(module, ("head.", "visual.proj"))
    ensemble = Ensemble(module.to(dtype), zero_shot, [finetuned])
    found = sweep(ensemble, batches(4), MEMBERS, prepare=lambda pixels: prepare_noise(pixels).to(dtype), compare=True)
    ensemble.set_alpha(0.5)
    with torch.inference_mode():
        logits = torch.cat([module(prepare_noise(batch.images).to(dtype)) for batch in batches(4)])
    assert logits.dtype == torch.float32
    assert found.classes[1].tolist() == logits.argmax(-1).tolist()
    assert found.confidences[1].tolist() == logits.softmax(-1).max(-1).values.numpy().tolist()


def test_the_cache_is_a_share_of_what_is_free_and_at_least_one_image(monkeypatch):
    class Memory:
        available = 10_000_000

    monkeypatch.setattr(cache_size.psutil, "virtual_memory", Memory)
    cpu = torch.device("cpu")
    assert images_that_fit(1000, cpu) == 2000
    assert images_that_fit(3_000_000, cpu) == 1
    assert images_that_fit(1, cpu) == cache_size.MOST_IMAGES
    Memory.available = 10**12
    assert images_that_fit(2**20, cpu) == 2048  # 2 GiB


def test_what_is_cached_of_an_image_decides_how_many_fit(monkeypatch):
    """The features of a frozen encoder take less than the images: 24 bytes instead of 768."""
    asked = []
    monkeypatch.setattr(
        "wiseft_dist.evaluate.sweep.sweep.images_that_fit", lambda size, device: asked.append((size, str(device))) or 4
    )
    seen = []
    for changed in (("",), ("head.",)):
        ensemble = ensemble_of(classifier(), changed)
        sweep(ensemble, batches(2), MEMBERS, prepare=prepare_noise, on_progress=seen.append)
    assert asked == [(768, "cpu"), (24, "cpu")]
    assert seen == [4, 4, 3] * 2
