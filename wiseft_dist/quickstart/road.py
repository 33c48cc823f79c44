"""The whole road on the picture world: draw, pack, pre-train, fine-tune, merge, evaluate, report."""

from __future__ import annotations

import io
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from wiseft_dist.commits import committing, is_committed
from wiseft_dist.config import load_config
from wiseft_dist.data.pack import EncodedSample, write_split, write_vocabulary
from wiseft_dist.launch.start import start
from wiseft_dist.progress import progress_bar
from wiseft_dist.quickstart.world import CLASSES, DOMAINS, TEMPLATES, Picture, pictures

HERE = Path(__file__).parent
REFERENCE = "photo"
SAMPLES_PER_SHARD = 250
SEEDS = {"pretrain": 1, "train": 2, "test": 3}
SIZES = {"pretrain": 1500, "train": 1500, "test": 400}
"""Pictures a domain. Different seeds: no picture is in two splits."""


@dataclass(frozen=True)
class Split:
    """A set of pictures to be drawn and packed."""

    name: str
    domain: str

    def draw(self, folder: Path) -> None:
        """Draw the pictures and write them as shards, with labels and captions."""
        drawn = pictures(SIZES[self.name], domain=self.domain, seed=SEEDS[self.name])
        samples = (EncodedSample(_jpeg(p), "jpg", p.label, p.caption) for p in drawn)
        write_split(samples, folder / self.domain / self.name, samples_per_shard=SAMPLES_PER_SHARD)


def quickstart(output: Path) -> None:
    """Make everything under ``output``: ``pictures/``, the pre-training run and the fine-tuning run.

    Interrupted and called again, it goes on where it was.

    Raises:
        UserError: if ``output`` belongs to something else.
        RunError: if a job fails.
    """
    began = time.monotonic()
    output = output.absolute()
    data = draw_pictures(output / "pictures")
    _say("1/2 pre-training a tiny CLIP on captions of all domains (the zero-shot model)")
    pretrained = start(
        load_config(
            HERE / "pretrain.yaml",
            [
                f"output={output / 'pretrain'}",
                f"model.architecture={HERE / 'model.json'}",
                f"data.train={data}/{{{','.join(DOMAINS)}}}/pretrain/*.tar",
            ],
        )
    )
    _say(f"2/2 fine-tuning on {REFERENCE}s, merging, evaluating")
    shifts = [f"data.shifts.{domain}={data / domain / 'test'}" for domain in DOMAINS if domain != REFERENCE]
    start(
        load_config(
            HERE / "finetune.yaml",
            [
                f"output={output / 'finetune'}",
                f"model.architecture={pretrained.ensemble(1.0)}",
                f"data.train={data / REFERENCE / 'train'}",
                f"data.reference.{REFERENCE}={data / REFERENCE / 'test'}",
                *shifts,
            ],
        )
    )
    _say(f"all of it took {time.monotonic() - began:.0f} s")


def draw_pictures(folder: Path) -> Path:
    """Draw every split once.

    Returns:
        The folder, with a sub-folder a domain in the ``clip-benchmark`` layout.
    """
    if is_committed(folder):
        return folder
    splits = [Split("train", REFERENCE)]
    splits += [Split(name, domain) for name in ("pretrain", "test") for domain in DOMAINS]
    with committing(folder) as aside, ProcessPoolExecutor() as pool:
        for domain in DOMAINS:
            write_vocabulary(aside / domain, classnames=CLASSES, templates=TEMPLATES)
        with progress_bar("drawing pictures", total=len(splits), unit="splits") as bar:
            for drawn in [pool.submit(split.draw, aside) for split in splits]:
                drawn.result()
                bar.advance()
    return folder


def _jpeg(picture: Picture) -> bytes:
    encoded = io.BytesIO()
    picture.image.save(encoded, format="JPEG", quality=95)
    return encoded.getvalue()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
