"""Scoring in memory gives what loading each written ensemble gives."""

from __future__ import annotations

from functools import partial

import pyarrow.parquet
import pytest
import torch

from wiseft_dist.config import MergeConfig
from wiseft_dist.data.evaluation import EvaluationStream
from wiseft_dist.data.stage import load_manifest
from wiseft_dist.data.transforms import EvaluationTransform, evaluation_transform, normalize
from wiseft_dist.evaluate.cells import PREDICTIONS_FILE, CellStore
from wiseft_dist.evaluate.stage import _load_ensemble
from wiseft_dist.evaluate.sweep import sweep
from wiseft_dist.merge.ensemble import Ensemble, load_weights
from wiseft_dist.merge.methods.choice import make_method
from wiseft_dist.merge.writer import write_ensembles
from wiseft_dist.models.classifier import read_classifier
from wiseft_dist.models.clip import preprocess_of, read_config
from wiseft_dist.weights.finetuned import open_models
from wiseft_dist.weights.sources import open_weights

ALPHAS = (0.0, 0.5, 1.0)


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


def by_key(predictions, index):
    return dict(zip(predictions.keys, predictions.predictions[index].tolist(), strict=True))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_cell_holds_what_the_written_ensemble_says_about_each_picture(finished, stream, prepare, alpha):
    store = CellStore(finished.config, finished.run)
    cell = pyarrow.parquet.read_table(store.folder("sketch", alpha) / PREDICTIONS_FILE).to_pylist()
    written = read_classifier(finished.run.ensemble(alpha)).eval()
    expected, labels = {}, {}
    with torch.inference_mode():
        for batch in stream.batches(1, num_workers=0):
            confidence, prediction = written(prepare(batch.images)).softmax(-1).max(-1)
            expected[batch.keys[0]] = (prediction.item(), pytest.approx(confidence.item(), abs=1e-5))
            labels[batch.keys[0]] = batch.targets.item()
    assert {row["key"]: (row["prediction"], row["confidence"]) for row in cell} == expected
    assert {row["key"]: row["label"] for row in cell} == labels
    assert store.read("sketch", alpha).num_correct == sum(row["prediction"] == row["label"] for row in cell)


def test_alphas_do_not_all_predict_alike(finished):
    """Otherwise the tests of this file could not fail."""
    store = CellStore(finished.config, finished.run)
    said = {
        tuple(pyarrow.parquet.read_table(store.folder("sketch", alpha) / PREDICTIONS_FILE)["confidence"].to_pylist())
        for alpha in ALPHAS
    }
    assert len(said) == 3


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


@pytest.mark.parametrize(("batch_size", "cache_images"), [(13, 13), (4, 1), (4, 1000), (5, 8), (1, 3)])
def test_batches_and_cache_do_not_change_predictions(stream, prepare, ensemble, batch_size, cache_images):
    usual = sweep(ensemble, stream.batches(4, num_workers=0), ALPHAS, prepare=prepare, cache_images=2048)
    batches = stream.batches(batch_size, num_workers=0)
    other = sweep(ensemble, batches, ALPHAS, prepare=prepare, cache_images=cache_images)
    assert len(set(usual.keys)) == 13
    for index in range(3):
        assert by_key(other, index) == by_key(usual, index)


def test_every_picture_is_decoded_once_for_all_alphas(monkeypatch, stream, prepare, ensemble):
    decoded = []
    transform = EvaluationTransform.__call__
    monkeypatch.setattr(
        EvaluationTransform, "__call__", lambda self, data, out: decoded.append(data) or transform(self, data, out)
    )
    seen = []
    batches = stream.batches(4, num_workers=0)
    sweep(ensemble, batches, ALPHAS, prepare=prepare, cache_images=4, on_progress=seen.append)
    assert len(decoded) == len(set(decoded)) == 13
    assert sum(seen) == 13
