"""Shards to pixels: images a second a core, against open_clip's WebDataset pipeline and against a bare decode loop.

For two picture sets (ImageNet-size photographs; PACS photos of 227 pixels), training and evaluation transforms to 224
pixels, one and two decoding processes, in one run:

* ours: the training stream and the evaluation stream, from tar files to batches in the training process;
* peer: ``open_clip_train.data.get_wds_dataset`` with open_clip's default transforms on the same shards;
* limit: simplejpeg decode and torch's antialiased uint8 resize on bytes in memory, in as many processes, no loader.

Then memory of a decoding process, the cost of resuming in mid-epoch, and a manifest of 100,000 shards.

    WISEFT_TEST_DATA=DIR python -m benchmarks.data [--seconds S] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import simplejpeg
import torch
from open_clip.transform import image_transform
from webdataset.tariterators import tar_file_expander

from wiseft_dist.config import AugmentConfig
from wiseft_dist.data.batch import class_label
from wiseft_dist.data.evaluation import EvaluationStream
from wiseft_dist.data.manifest import Manifest, index_shards
from wiseft_dist.data.stream import TrainStream, sample_order
from wiseft_dist.data.tar import LABEL_FIELDS
from wiseft_dist.data.transforms import Preprocess, evaluation_transform, training_transform
from wiseft_dist.progress import progress_bar

SIZE, BATCH, LANES, BLOCK = 224, 64, 8, 32
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PREPROCESS = Preprocess(SIZE, MEAN, STD)
NUM_SHARDS, SAMPLES_A_SHARD = 8, 150
SETS = {"photographs": "photographs", "pacs": "pacs/photo/train"}


@dataclass(frozen=True)
class Pictures:
    """A picture set as shards, and its encoded pictures in memory."""

    folder: Path
    manifest: Manifest
    encoded: list[bytes]


def main() -> None:
    """Measure and print; the last line is one JSON object."""
    options = _options()
    torch.set_num_threads(1)
    rates: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        sets = {name: _prepare(Path(temporary) / name, _root() / "data" / place) for name, place in SETS.items()}
        cases = [(name, way, workers) for name in sets for way in ("train", "eval") for workers in (1, 2)]
        memory = _WorkerMemory()
        with progress_bar("measuring", total=options.rounds * len(cases), unit="cases") as bar:
            for _ in range(options.rounds):
                for name, way, workers in cases:
                    case = rates.setdefault(f"{name}_{way}_{workers}", {"ours": [], "peer": [], "limit": []})
                    case["ours"].append(_steady(_ours(sets[name], way, workers), workers, options.seconds, memory.look))
                    case["peer"].append(_steady(_peer(sets[name], way, workers), workers, options.seconds))
                    case["limit"].append(_limit(sets[name], way, workers, options.seconds))
                    bar.advance()
        resume = _resume(sets["photographs"])
        manifest = _manifest_of_100k(Path(temporary))
    peaks = {"peak_memory_mb": _own_peak(), "worker_memory_mb": memory.peak_mb}
    print(json.dumps(_figures(rates) | peaks | resume | manifest))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2, help="of all cases; the best counts, of each contestant")
    return parser.parse_args()


def _root() -> Path:
    if "WISEFT_TEST_DATA" not in os.environ:
        sys.exit("benchmarks.data: set WISEFT_TEST_DATA to the folder that holds data/photographs and data/pacs.")
    return Path(os.environ["WISEFT_TEST_DATA"])


def _prepare(folder: Path, source: Path) -> Pictures:
    """Shards that both pipelines read: the same JPEG bytes, a label for ours, a caption for the peer."""
    import webdataset

    encoded = []
    for shard in sorted(source.glob("*.tar")):
        with tarfile.open(shard) as tar:
            encoded += [tar.extractfile(member).read() for member in tar if member.name.endswith(".jpg")]  # type: ignore[union-attr]
    folder.mkdir()
    for shard in range(NUM_SHARDS):
        with webdataset.TarWriter(str(folder / f"{shard}.tar")) as writer:
            for number in range(shard * SAMPLES_A_SHARD, (shard + 1) * SAMPLES_A_SHARD):
                picture = encoded[number % len(encoded)]
                writer.write({"__key__": f"s{number:07d}", "jpg": picture, "cls": b"1", "txt": b"a photo"})
    return Pictures(folder, index_shards(str(folder), target=LABEL_FIELDS), encoded)


def _ours(pictures: Pictures, way: str, workers: int) -> Iterator[int]:
    """Sizes of our batches, without end."""
    if way == "train":
        stream = _train_stream(pictures)
        for batch in stream.batches(first_step=0, rank=0, world_size=1, num_workers=workers):
            yield len(batch)
    many = replace(pictures.manifest, shards=pictures.manifest.shards * 100)  # longer than any measurement
    for batch in EvaluationStream(many, evaluation_transform(PREPROCESS)).batches(BATCH, num_workers=workers):
        yield len(batch)


def _train_stream(pictures: Pictures) -> TrainStream:
    order = sample_order(pictures.manifest, seed=0, lanes=LANES, block_samples=BLOCK)
    return TrainStream(pictures.manifest, order, training_transform(PREPROCESS, AugmentConfig()), class_label, BATCH)


def _peer(pictures: Pictures, way: str, workers: int) -> Iterator[int]:
    """Sizes of open_clip's batches, without end: its workers stay for all passes."""
    from open_clip_train import data

    # webdataset 1.0 marks the end of a shard by an empty dictionary, which open_clip's grouping does not expect.
    data.tar_file_expander = lambda *args, **named: filter(None, tar_file_expander(*args, **named))
    is_train = way == "train"
    shards = f"{pictures.folder}/{{0..{NUM_SHARDS - 1}}}.tar"
    args = SimpleNamespace(
        train_data=shards,
        val_data=shards,
        train_num_samples=10**6,
        val_num_samples=0,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=BATCH,
        world_size=1,
        workers=workers,
    )
    transform = image_transform(SIZE, is_train=is_train, mean=MEAN, std=STD)
    dataset = data.get_wds_dataset(args, transform, is_train=is_train, tokenizer=lambda text: torch.zeros(1, 77))
    while True:
        for images, _ in dataset.dataloader:
            yield len(images)


def _steady(
    batches: Iterator[int], workers: int, seconds: float, afterwards: Callable[[], None] = lambda: None
) -> float:
    """Images/s a process once it runs evenly: what was decoded ahead while nobody looked is drained first."""
    for _ in islice(batches, 8 * workers):
        pass
    started, images = time.perf_counter(), 0
    for size in batches:
        images += size
        if (elapsed := time.perf_counter() - started) > seconds:
            break
    afterwards()
    return images / elapsed / workers


def _limit(pictures: Pictures, way: str, workers: int, seconds: float) -> float:
    """Images/s a process of the bare loop, in as many processes at once."""
    context = multiprocessing.get_context("fork")
    results: Any = context.SimpleQueue()
    loops = [context.Process(target=_bare_loop, args=(pictures.encoded, way, seconds, results)) for _ in range(workers)]
    for loop in loops:
        loop.start()
    rates = [results.get() for _ in loops]
    for loop in loops:
        loop.join()
    return sum(rates) / workers


def _bare_loop(encoded: list[bytes], way: str, seconds: float, results: Any) -> None:
    torch.set_num_threads(1)
    largest = max(height * width * 3 for height, width, *_ in map(simplejpeg.decode_jpeg_header, encoded))
    buffer = np.empty(largest, dtype=np.uint8)
    resize = _resize_square if way == "train" else _resize_shortest
    started, images = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        pixels = simplejpeg.decode_jpeg(encoded[images % len(encoded)], buffer=buffer)
        resize(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        images += 1
    results.put(images / elapsed)


def _resize_square(pixels: torch.Tensor) -> None:
    _interpolate(pixels, SIZE, SIZE)


def _resize_shortest(pixels: torch.Tensor) -> None:
    height, width = pixels.shape[2:]
    scale = SIZE / min(height, width)
    _interpolate(pixels, max(SIZE, int(height * scale)), max(SIZE, int(width * scale)))


def _interpolate(pixels: torch.Tensor, height: int, width: int) -> None:
    torch.nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True)


class _WorkerMemory:
    """The most memory that a decoding process has for itself. Asking holds it up, so this is done outside the clock."""

    def __init__(self) -> None:
        self.peak_mb = 0.0

    def look(self) -> None:
        """Look at the processes that decode now."""
        for child in psutil.Process().children():
            try:
                self.peak_mb = max(self.peak_mb, round(child.memory_full_info().uss / 1e6, 1))
            except psutil.Error:
                continue


def _resume(pictures: Pictures) -> dict[str, float]:
    """Seconds to the first batch at the start of an epoch and in its middle, and the samples that are read again."""
    stream = _train_stream(pictures)
    middle = stream.order.num_samples // (2 * BATCH)

    def first_batch(step: int) -> float:
        started = time.perf_counter()
        next(iter(stream.batches(first_step=step, rank=0, world_size=1, num_workers=0)))
        return round(time.perf_counter() - started, 4)

    _, offset = stream.order.lane_offset(middle * BATCH, 0)
    return {
        "first_batch_seconds": first_batch(0),
        "resumed_first_batch_seconds": first_batch(middle),
        "resume_reads_again_samples_a_lane": offset % BLOCK,
    }


_MANIFEST_SCRIPT = """
import json, sys, time
from pathlib import Path
from wiseft_dist.data.manifest import Manifest, index_shards
from wiseft_dist.data.order import SampleOrder
from wiseft_dist.data.tar import LABEL_FIELDS

folder, seconds = Path(sys.argv[1]), {}

def timed(name, function):
    started = time.perf_counter()
    result = function()
    seconds[f"manifest_{name}_seconds"] = round(time.perf_counter() - started, 3)
    return result

def plan(manifest):
    counts = tuple(manifest.training_counts.tolist())
    order = SampleOrder(counts, seed=0, lanes=1024, block_samples=512)
    return sum(len(stretch) for lane in range(0, 1024, 128) for stretch in order.stretches(0, lane))

def build():
    manifest = index_shards(str(folder), target=LABEL_FIELDS, held_out_fraction=0.02)
    manifest.save(folder / "manifest.saved")

timed("build", build)
assert timed("plan", lambda: plan(timed("load", lambda: Manifest.load(folder / "manifest.saved")))) > 0
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # of this program, not its parent
seconds["manifest_peak_memory_mb"] = round(int(peak.split()[1]) / 1024, 1)
print(json.dumps(seconds))
"""


def _manifest_of_100k(temporary: Path) -> dict[str, float]:
    """List 100,000 made-up shards with a ``sizes.json``, write their manifest, load it, lay out an epoch for a rank."""
    folder = temporary / "many"
    folder.mkdir()
    whole = (temporary / "pacs" / "0.tar").read_bytes()
    names = [f"{number:06d}.tar" for number in range(100_000)]
    for name in names:
        (folder / name).touch()
    (folder / names[0]).write_bytes(whole)
    (folder / "sizes.json").write_text(json.dumps(dict.fromkeys(names, SAMPLES_A_SHARD)))
    command = [sys.executable, "-c", _MANIFEST_SCRIPT, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _own_peak() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _figures(rates: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    best = {case: {who: max(values) for who, values in of.items()} for case, of in rates.items()}

    def mean(ratio: Callable[[dict[str, float]], float], chosen: str = "") -> float:
        values = [math.log(ratio(of)) for case, of in best.items() if case.startswith(chosen)]
        return round(math.exp(sum(values) / len(values)), 3)

    return {
        "vs_peer": mean(lambda of: of["ours"] / of["peer"]),
        "vs_limit": mean(lambda of: min(1.0, of["ours"] / of["limit"])),
        **{f"vs_peer_{name}": mean(lambda of: of["ours"] / of["peer"], name) for name in SETS},
        **{f"vs_limit_{name}": mean(lambda of: of["ours"] / of["limit"], name) for name in SETS},
        "images_per_second_a_core": {case: {who: round(rate) for who, rate in of.items()} for case, of in best.items()},
    }


if __name__ == "__main__":
    main()
