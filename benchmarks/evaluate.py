"""K ensembles on the PACS test shards: one decode for every alpha, against a decode for each.

The peer is the published script's way in the same precision: for each alpha, load the written ensemble, decode every
image with Pillow through open_clip's transform, run the model. The limit is one decode plus K forward passes on
pixels in memory. theta_1 is theta_0 with noise: what the weights are does not change what they cost. With noise on the
head alone, K alphas are held against one. Where there is a GPU, larger models are measured on it.

    WISEFT_TEST_DATA=DIR python -m benchmarks.evaluate [--images N] [--alphas K] [--batch-size B]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2

from benchmarks import evaluate_gpu
from wiseft_dist.config import ModelConfig
from wiseft_dist.data.batch import Batch
from wiseft_dist.data.evaluation import EvaluationStream
from wiseft_dist.data.manifest import Manifest, index_shards
from wiseft_dist.data.shards import read_shard
from wiseft_dist.data.tar import LABEL_FIELDS
from wiseft_dist.data.transforms import Preprocess, evaluation_transform, normalize
from wiseft_dist.data.vocabulary import Vocabulary
from wiseft_dist.evaluate.predictions import Member, Predictions
from wiseft_dist.evaluate.sweep.shared_layers import HOST_IMAGES_PER_THREAD
from wiseft_dist.evaluate.sweep.sweep import sweep
from wiseft_dist.merge.ensemble import Ensemble
from wiseft_dist.merge.methods.wise import interpolate
from wiseft_dist.models.classifier import Classifier, read_classifier, write_zero_shot
from wiseft_dist.models.clip import create_clip, preprocess_of, read_config
from wiseft_dist.models.files import HEAD_PREFIX
from wiseft_dist.models.zero_shot import zero_shot_head
from wiseft_dist.progress import progress_bar

Weights = dict[str, torch.Tensor]
DOMAINS = ("photo", "art_painting", "cartoon", "sketch")


@dataclass
class Clock:
    """Seconds by name."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time of a block."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


@dataclass(frozen=True)
class Setting:
    """What is the same for ours, the peer and the limit."""

    folder: Path
    alphas: list[float]
    batch_size: int


def main() -> None:
    """Measure and print; the last line is one JSON object."""
    options = _options()
    root = Path(os.environ["WISEFT_TEST_DATA"])
    clock = Clock()
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        count = max(2, options.alphas)
        alphas = [index / (count - 1) for index in range(count)]
        setting = Setting(Path(temporary), alphas, options.batch_size)
        zero_shot, finetuned = _prepare(root, setting)
        images = 0
        with progress_bar("measuring", total=len(DOMAINS), unit="datasets") as bar:
            for domain in DOMAINS:
                manifest = index_shards(str(root / "data" / "pacs" / domain / "test"), target=LABEL_FIELDS)
                dataset = _Dataset(setting, manifest, options.images)
                images += _measure(dataset, zero_shot, finetuned, clock)
                _measure_linear_head(dataset, zero_shot, finetuned, clock)
                bar.advance()
    figures = _figures(clock.seconds, images, setting)
    if torch.cuda.is_available():
        figures["gpu"] = {"name": torch.cuda.get_device_name()} | {
            name: evaluate_gpu.measure(name, count, alphas) for name, count in evaluate_gpu.NUM_IMAGES.items()
        }
    print(json.dumps(figures))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--images", type=int, default=None, help="at most this many images of each dataset")
    parser.add_argument("--alphas", type=int, default=11)
    parser.add_argument("--batch-size", type=int, default=256)
    options = parser.parse_args()
    if "WISEFT_TEST_DATA" not in os.environ:
        sys.exit("benchmarks.evaluate: set WISEFT_TEST_DATA to the folder that holds data/pacs and models/pacs-clip.")
    return options


def _prepare(root: Path, setting: Setting) -> tuple[Weights, Weights]:
    """Write theta_0 and every ensemble; return the endpoints' weights."""
    vocabulary = Vocabulary(
        tuple((root / "data/pacs/photo/classnames.txt").read_text().splitlines()),
        tuple((root / "data/pacs/photo/zeroshot_classification_templates.txt").read_text().splitlines()),
    )
    clip = create_clip(ModelConfig(architecture=str(root / "models" / "pacs-clip")))
    head = zero_shot_head(clip, vocabulary.classnames, vocabulary.templates, device=torch.device("cpu"))
    classifier = Classifier(clip.model.visual, head)  # type: ignore[arg-type]
    zero_shot = {name: value.clone() for name, value in classifier.state_dict().items()}
    random = torch.Generator().manual_seed(0)
    finetuned = {
        name: value + 0.01 * value.std().nan_to_num() * torch.randn(value.shape, generator=random)
        for name, value in zero_shot.items()
    }
    for index, alpha in enumerate(setting.alphas):
        for name, target in classifier.state_dict().items():
            interpolate(zero_shot[name], finetuned[name], alpha, out=target)
        folder = setting.folder / str(index)
        folder.mkdir()
        write_zero_shot(folder, clip, head, vocabulary)
    return zero_shot, finetuned


@dataclass(frozen=True)
class _Dataset:
    """The test shards of a domain, decoded anew whenever they are read."""

    setting: Setting
    manifest: Manifest
    limit: int | None

    @cached_property
    def preprocess(self) -> Preprocess:
        return preprocess_of(read_config(self.setting.folder / "0"))

    def batches(self) -> Iterator[Batch]:
        stream = EvaluationStream(self.manifest, evaluation_transform(self.preprocess))
        num_batches = None if self.limit is None else max(1, self.limit // self.setting.batch_size)
        return islice(stream.batches(self.setting.batch_size, num_workers=0), num_batches)

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        return normalize(pixels, self.preprocess, torch.float32)

    def score(self, ensemble: Ensemble, alphas: list[float]) -> Predictions:
        members = [Member(alpha) for alpha in alphas]
        return sweep(ensemble, self.batches(), members, prepare=self.prepare)


def _measure(dataset: _Dataset, zero_shot: Weights, finetuned: Weights, clock: Clock) -> int:
    """Time ours, the peer and the parts of the limit on one dataset.

    Returns:
        How many images were scored.
    """
    setting = dataset.setting
    with clock.measure("ours"):
        ensemble = Ensemble(read_classifier(setting.folder / "0").eval(), zero_shot, [finetuned])
        ours = dataset.score(ensemble, setting.alphas)
    with clock.measure("peer"):
        theirs = [_peer(setting, index, dataset.manifest, len(ours)) for index in range(len(setting.alphas))]
    differing = int((torch.stack(theirs).numpy() != ours.classes).sum())
    # A picture on the edge between two classes may differ at every alpha: pixels differ by a level here and there.
    if differing > max(len(setting.alphas), 0.001 * ours.classes.size):
        sys.exit(f"benchmarks.evaluate: ours and the peer differ in {differing} of {ours.classes.size} predictions.")
    with clock.measure("decode"):
        pixels = [dataset.prepare(batch.images) for batch in dataset.batches()]
    with clock.measure("forward"):
        for _ in setting.alphas:
            for images in pixels:
                for piece in torch.split(images, HOST_IMAGES_PER_THREAD * torch.get_num_threads()):
                    ensemble.module(piece)
    return len(ours)


def _measure_linear_head(dataset: _Dataset, zero_shot: Weights, finetuned: Weights, clock: Clock) -> None:
    """Time one alpha and all of them where fine-tuning changed the head alone."""
    heads = {name: value for name, value in finetuned.items() if name.startswith(HEAD_PREFIX)}
    module = read_classifier(dataset.setting.folder / "0").eval()
    ensemble = Ensemble(module, zero_shot, [zero_shot | heads])
    dataset.score(ensemble, [0.0])
    with clock.measure("linear_head_one"):
        dataset.score(ensemble, [0.5])
    with clock.measure("linear_head_all"):
        dataset.score(ensemble, dataset.setting.alphas)


def _peer(setting: Setting, index: int, manifest: Manifest, num_images: int) -> torch.Tensor:
    """One alpha the published way: load its file, decode everything again with Pillow, predict."""
    model = read_classifier(setting.folder / str(index)).eval()
    preprocess = preprocess_of(read_config(setting.folder / str(index)))
    transform: Callable[[Any], torch.Tensor] = image_transform_v2(
        PreprocessCfg(size=preprocess.size, mean=preprocess.mean, std=preprocess.std), is_train=False
    )
    tensors = (transform(_pillow(data)) for data in islice(_images(manifest), num_images))
    predictions = []
    while batch := list(islice(tensors, setting.batch_size)):
        predictions.append(model(torch.stack(batch)).argmax(dim=-1))
    return torch.cat(predictions)


def _images(manifest: Manifest) -> Iterator[bytes]:
    for shard in manifest.shards:
        for sample in read_shard(shard):
            yield sample.fields["jpg"]


def _pillow(data: bytes) -> Any:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(data))


def _figures(seconds: dict[str, float], images: int, setting: Setting) -> dict[str, Any]:
    limit = seconds["decode"] + seconds["forward"]
    return {
        "benchmark": "evaluate",
        "vs_peer": round(seconds["peer"] / seconds["ours"], 3),
        "vs_limit": round(min(1.0, limit / seconds["ours"]), 3),
        "linear_head_cost": round(seconds["linear_head_all"] / seconds["linear_head_one"], 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "images": images,
        "alphas": len(setting.alphas),
        "batch_size": setting.batch_size,
        "threads": torch.get_num_threads(),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "image_alphas_per_second": round(images * len(setting.alphas) / seconds["ours"], 1),
        "versions": {"torch": torch.__version__, "open_clip": open_clip.__version__},
    }


if __name__ == "__main__":
    main()
