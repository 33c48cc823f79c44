"""Tiny real shards: every picture is different, so that two samples cannot be mistaken for each other."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wiseft_dist.data.manifest import Manifest, index_shards
from wiseft_dist.data.pack import EncodedSample, write_split
from wiseft_dist.data.tar import LABEL_FIELDS

MakeShards = Callable[..., Path]
WriteTar = Callable[..., Path]


def picture(number: int, size: tuple[int, int] = (20, 16)) -> bytes:
    """A PNG that holds noise of its own."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """Write ``num_samples`` samples of three classes to a folder of shards."""

    def make(num_samples: int = 23, *, samples_per_shard: int = 5, name: str = "shards") -> Path:
        samples = (EncodedSample(picture(i), "png", i % 3, f"picture {i}") for i in range(num_samples))
        write_split(samples, tmp_path / name, samples_per_shard=samples_per_shard)
        return tmp_path / name

    return make


@pytest.fixture
def write_tar(tmp_path: Path) -> WriteTar:
    """Write files, as (name, content), to a tar file."""

    def write(name: str, files: list[tuple[str, bytes]]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for file, content in files:
                member = tarfile.TarInfo(file)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return path

    return write


@pytest.fixture
def manifest(make_shards: MakeShards) -> Manifest:
    """23 samples in 5 shards, of which about a third are held out."""
    return index_shards(str(make_shards()), target=LABEL_FIELDS, held_out_fraction=0.35)
