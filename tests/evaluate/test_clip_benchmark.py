"""A peer evaluates the written ensembles on the same shards: equal accuracies, prediction by prediction."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wiseft_dist.config import EvaluateConfig, MergeConfig
from wiseft_dist.evaluate.predictions import Predictions
from wiseft_dist.evaluate.standalone.files import evaluate_files
from wiseft_dist.evaluate.standalone.given_datasets import given_datasets
from wiseft_dist.evaluate.standalone.model_sources import ModelSources
from wiseft_dist.merge.files import merge_files
from wiseft_dist.models.files import WEIGHTS_FILE

DATA = os.environ.get("WISEFT_TEST_DATA")
pytestmark = [
    pytest.mark.pictures,
    pytest.mark.skipif(DATA is None, reason="WISEFT_TEST_DATA does not say where pictures and a real model are"),
]
ALPHAS = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A real theta_0, and a theta_1 that differs enough to predict other classes."""
    zero_shot = Path(str(DATA)) / "models" / "pacs-clip"
    finetuned = tmp_path_factory.mktemp("models") / "finetuned.safetensors"
    save_file({name: _moved(each) for name, each in load_file(zero_shot / WEIGHTS_FILE).items()}, finetuned)
    return zero_shot, finetuned


def _moved(tensor: Tensor) -> Tensor:
    if tensor.ndim < 2:
        return tensor
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
    return tensor + 0.5 * tensor.std() * noise


@pytest.mark.parametrize(
    ("domain", "num_shards"),
    [
        ("photo", 1),
        *(pytest.param(*each, marks=pytest.mark.matrix) for each in [("photo", 2), ("art_painting", 3), ("sketch", 5)]),
    ],
)
def test_clip_benchmark_predicts_the_same_classes_with_the_written_ensembles(models, tmp_path, domain, num_shards):
    zero_shot, finetuned = models
    shards = _first_shards(Path(str(DATA)) / "data" / "pacs" / domain, num_shards, tmp_path / "photo")
    settings = MergeConfig(alphas=ALPHAS)
    written, _ = merge_files(zero_shot, [finetuned], tmp_path / "written", settings)
    ours = _ours(ModelSources(str(zero_shot), (str(finetuned),), settings), shards, tmp_path / "evaluation")
    theirs = list(_theirs(written, shards))
    for index, (logits, labels) in enumerate(theirs):
        classes, best = logits.argmax(dim=-1).numpy(), logits.topk(2).values
        is_clear = (best[:, 0] - best[:, 1] > 1e-3).numpy()
        assert len(ours) == len(labels) and is_clear.mean() > 0.98
        assert np.array_equal(ours.labels[:, 0], labels.numpy())
        assert np.array_equal(ours.classes[index][is_clear], classes[is_clear])
        assert ours.num_correct[index] == (classes == labels.numpy()).sum()
    assert len({tuple(logits.argmax(dim=-1).tolist()) for logits, _ in theirs}) == len(ALPHAS)


def _first_shards(source: Path, num_shards: int, folder: Path) -> Path:
    """A dataset of some shards of another."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text(str(num_shards))
    for name in (
        "classnames.txt",
        "zeroshot_classification_templates.txt",
        *(f"test/{n}.tar" for n in range(num_shards)),
    ):
        (folder / name).symlink_to(source / name)
    return folder


def _ours(sources: ModelSources, shards: Path, output: Path) -> Predictions:
    settings = EvaluateConfig(preprocess="exact", workers=0)
    given = given_datasets([str(shards)], None)
    (scored,) = evaluate_files([sources], given, output, settings, reference="photo").scored
    return scored.store.read("photo", scored.members)


def _theirs(written: Sequence[Path], shards: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels of each model as clip_benchmark finds them, in fp32; the pictures are decoded once."""
    peer = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification", reason="clip-benchmark is missing")
    from clip_benchmark.datasets.builder import build_wds_dataset

    loaded = [open_clip.create_model_and_transforms(f"local-dir:{folder}") for folder in written]
    dataset = build_wds_dataset("photo", transform=loaded[0][2], data_dir=str(shards))
    batches = list(torch.utils.data.DataLoader(dataset.batched(64), batch_size=None))
    tokenizer = open_clip.get_tokenizer(f"local-dir:{written[0]}")
    for model, _, _ in loaded:
        model.eval()
        classifier = peer.zero_shot_classifier(model, tokenizer, dataset.classes, dataset.templates, "cpu", amp=False)
        yield peer.run_classification(model, classifier, batches, "cpu", amp=False)
