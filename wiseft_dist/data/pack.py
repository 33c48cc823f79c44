"""Writing shards as ``clip-benchmark`` does: ``classnames.txt``, templates, ``SPLIT/{n}.tar``, ``nshards.txt``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

CLASSNAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"


@dataclass(frozen=True)
class EncodedSample:
    """An image as it will lie in the shard, with its label and, for contrastive training, its caption."""

    image: bytes
    image_format: str
    label: int
    caption: str | None = None


def write_split(samples: Iterable[EncodedSample], folder: Path, *, samples_per_shard: int) -> int:
    """Write samples to ``folder/{n}.tar`` with keys ``s0000000``, ``s0000001``, ...

    Returns:
        How many samples were written.
    """
    import webdataset  # brings torch, which whoever only needs the file names can do without

    folder.mkdir(parents=True, exist_ok=True)
    samples = iter(samples)
    num_samples = num_shards = 0
    while group := list(islice(samples, samples_per_shard)):
        with webdataset.TarWriter(str(folder / f"{num_shards}.tar")) as writer:
            for sample in group:
                writer.write(_record(sample, num_samples))
                num_samples += 1
        num_shards += 1
    (folder / "nshards.txt").write_text(str(num_shards))
    return num_samples


def _record(sample: EncodedSample, index: int) -> dict[str, str | bytes]:
    record: dict[str, str | bytes] = {
        "__key__": f"s{index:07d}",
        sample.image_format: sample.image,
        "cls": str(sample.label).encode(),
    }
    return record if sample.caption is None else record | {"txt": sample.caption.encode()}


def write_vocabulary(folder: Path, *, classnames: Sequence[str], templates: Sequence[str]) -> None:
    """Write the class names and prompt templates beside the splits."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CLASSNAMES_FILE).write_text("\n".join(classnames))
    (folder / TEMPLATES_FILE).write_text("\n".join(templates))
