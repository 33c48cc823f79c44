"""A run so small that the whole road takes half a minute: 16-pixel pictures of three classes, one layer, 8 steps."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from wiseft_dist.data.pack import EncodedSample, write_split, write_vocabulary

SIZES = {"train": 40, "photo": 11, "sketch": 13, "clipart": 7}
CLASSNAMES = ("red", "green", "blue")
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
CONFIG = """
output: {folder}/run
model:
  architecture: {folder}/model.json
data:
  train: {folder}/data/train
  reference:
    photo: {folder}/data/photo
  shifts:
    sketch: {folder}/data/sketch
    clipart: {folder}/data/clipart
  id_val_fraction: 0.3
  lanes: 2
  workers: 0
finetune:
  epochs: 2
  global_batch_size: 8
  zero_stage: 2
  log_every: 2
  optimizer:
    lr: 0.003
  schedule:
    warmup_steps: 1
merge:
  alphas: [0, 0.5, 1]
evaluate:
  workers: 0
  batch_size: 4
wandb:
  mode: disabled
launch:
  executor: local
  finetune:
    tasks_per_node: 2
"""


@dataclass(frozen=True)
class World:
    """Shards, a model and the configuration of a run on them, in one folder."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def data(self) -> Path:
        return self.folder / "data"


def make_world(folder: Path) -> World:
    """Write everything that a run needs."""
    world = World(folder)
    for number, (name, size) in enumerate(SIZES.items()):
        samples = (EncodedSample(picture(1000 * number + i, i % 3), "png", i % 3) for i in range(size))
        write_split(samples, world.data / name, samples_per_shard=5)
    write_vocabulary(world.data, classnames=CLASSNAMES, templates=["a {c} picture", "{c}"])
    (folder / "model.json").write_text(json.dumps({"model_cfg": MODEL}))
    world.config.write_text(CONFIG.format(folder=folder))
    return world


def picture(number: int, label: int) -> bytes:
    """Noise with a tint of its class, as PNG."""
    pixels = np.random.default_rng(number).integers(0, 200, (16, 20, 3), dtype=np.uint8)
    pixels[..., label] += 40
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def command(*arguments: object) -> list[str]:
    """The `wiseft` command of this interpreter."""
    return [sys.executable, "-m", "wiseft_dist", *map(str, arguments)]


def wiseft(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the `wiseft` command to its end."""
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=300, env=os.environ | environment
    )
