"""The shards stage: what a run will read is counted and checked before anything else starts."""

from __future__ import annotations

from pathlib import Path

from wiseft_dist.config import RunConfig
from wiseft_dist.data.manifest import CAPTION_FIELDS, LABEL_FIELDS, Manifest, index_shards
from wiseft_dist.data.vocabulary import check_labels, load_vocabulary
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.run import Run

TRAIN = "train"
ID_VAL = "id_val"
"""The dataset made of the training set's held-out samples."""


def index_all(config: RunConfig) -> dict[str, Manifest]:
    """Read and check the training shards and every test set.

    Raises:
        UserError: naming the first shard, sample or class list that does not fit.
    """
    return {name: _index_one(config, name) for name in _patterns(config)}


def index(config: RunConfig, run: Run) -> dict[str, Manifest]:
    """Index what the run has not indexed yet, and write the manifests to it."""
    run.manifests.mkdir(parents=True, exist_ok=True)
    manifests = {}
    for name, pattern in _patterns(config).items():
        file = _manifest_file(run, name)
        if not _is_current(file, pattern):
            _index_one(config, name).save(file)
        manifests[name] = Manifest.load(file)
    return manifests


def _patterns(config: RunConfig) -> dict[str, str]:
    return {TRAIN: config.data.train} | config.data.evaluated


def _index_one(config: RunConfig, name: str) -> Manifest:
    return _index_training(config) if name == TRAIN else _index_test(config, name)


def _index_training(config: RunConfig) -> Manifest:
    """Read and check the training shards."""
    contrastive = config.finetune.recipe == "contrastive"
    manifest = index_shards(
        config.data.train,
        target=CAPTION_FIELDS if contrastive else LABEL_FIELDS,
        held_out_fraction=config.data.id_val_fraction,
    )
    if manifest.num_training < config.data.lanes:
        raise UserError(
            f"data.train: {config.data.train} has {manifest.num_training} samples to train on, fewer than "
            f"data.lanes={config.data.lanes}. Set data.lanes lower."
        )
    if not contrastive:
        check_labels(TRAIN, config.data.train, manifest, load_vocabulary(config.data).classnames)
    return manifest


def _index_test(config: RunConfig, name: str) -> Manifest:
    """Read and check the shards of a test set."""
    pattern = config.data.evaluated[name]
    manifest = index_shards(pattern, target=LABEL_FIELDS)
    check_labels(name, pattern, manifest, load_vocabulary(config.data).classnames)
    return manifest


def load_manifest(run: Run, name: str) -> Manifest:
    """A manifest that :func:`index` wrote.

    Raises:
        RunError: if it was not indexed.
    """
    file = _manifest_file(run, TRAIN if name == ID_VAL else name)
    if not file.is_file():
        raise RunError(f"{file}: not indexed yet. Start this run with `wiseft run`.")
    return Manifest.load(file)


def datasets_to_evaluate(config: RunConfig, run: Run) -> list[str]:
    """Every test set of an indexed run, and the held-out piece of its training set; largest first."""
    sizes = {name: load_manifest(run, name).num_samples for name in config.data.evaluated}
    if sizes:
        sizes[ID_VAL] = load_manifest(run, TRAIN).num_held_out
    return sorted((name for name, size in sizes.items() if size), key=lambda name: -sizes[name])


def _manifest_file(run: Run, name: str) -> Path:
    return run.manifests / f"{name}.json"


def _is_current(file: Path, pattern: str) -> bool:
    return file.is_file() and Manifest.load(file).source == pattern
