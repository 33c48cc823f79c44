"""A data set on a web server is the data set that it is on disk."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from file_server import WithoutRanges, WithRanges, serve
from PIL import Image

from wiseft_dist.config import DataConfig
from wiseft_dist.data.manifest import index_shards
from wiseft_dist.data.pack import EncodedSample, write_split, write_vocabulary
from wiseft_dist.data.tar import LABEL_FIELDS
from wiseft_dist.data.vocabulary import load_vocabulary


@pytest.fixture
def dataset(served: Path) -> Path:
    """13 samples in shards 0 to 2 under ``train``, with a vocabulary."""
    samples = []
    for number in range(13):
        stream = io.BytesIO()
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(stream, "png")
        samples.append(EncodedSample(stream.getvalue(), "png", number % 3))
    write_split(samples, served / "train", samples_per_shard=5)
    write_vocabulary(served, classnames=["a", "b", "c"], templates=["a {c}"])
    return served


@pytest.mark.parametrize("handler", [WithRanges, WithoutRanges])
@pytest.mark.parametrize("pattern", ["{}/train", "{}/train/", "{}/train/{{0..2}}.tar"])
def test_shards_on_a_web_server_are_indexed_as_on_disk(dataset, pattern, handler):
    with serve(dataset, handler) as url:
        remote = index_shards(pattern.format(url), target=LABEL_FIELDS, held_out_fraction=0.3, trust_counts=False)
    local = index_shards(str(dataset / "train"), target=LABEL_FIELDS, held_out_fraction=0.3, trust_counts=False)
    assert remote.content_digest == local.content_digest
    assert [shard.num_samples for shard in remote.shards] == [5, 5, 3]


def test_the_vocabulary_is_found_on_a_web_server(dataset, web):
    assert load_vocabulary(DataConfig(train=f"{web}/train")).classnames == ("a", "b", "c")
