"""The shards stage: what a run will read is counted and checked before anything else starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from wiseft_dist import storage
from wiseft_dist.config import RunConfig
from wiseft_dist.data.manifest import Manifest, index_shards
from wiseft_dist.data.tar import CAPTION_FIELDS, LABEL_FIELDS
from wiseft_dist.data.vocabulary import check_labels, check_own_labels, load_vocabulary
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.run import Run, newest_checkpoint

TRAIN = "train"
ID_VAL = "id_val"
"""The dataset made of the training set's held-out samples."""


def index_all(
    config: RunConfig, run: Run | None = None, *, known: Mapping[str, Manifest] | None = None
) -> dict[str, Manifest]:
    """List the training shards and every test set; read and check what is new. Writes nothing.

    Args:
        config: The run's configuration.
        run: Shards that this run has indexed and that have not changed are not read again.
        known: The same for what another run on some of these shards has just indexed.

    Raises:
        UserError: naming the first URL, shard, sample or class list that does not fit, or a training shard that
            changed after the run was trained on it.
    """
    refuse_credentials(config)
    before = dict(known or {}) | ({} if run is None else _known(config, run))
    manifests = {TRAIN: _index_training(config, before.get(TRAIN))}
    if run is not None:
        refuse_other_training_data(run, manifests[TRAIN])
    for name in config.data.evaluated:
        manifests[name] = _index_test(config, name, before.get(name))
    return manifests


def refuse_other_training_data(run: Run, now: Manifest) -> None:
    """A run that has begun to train goes on with the samples that it began with, wherever they lie now.

    Raises:
        UserError: naming the first difference.
    """
    file, checkpoint = _manifest_file(run, TRAIN), newest_checkpoint(run)
    if checkpoint is None or not file.is_file():
        return
    difference = _difference(Manifest.load(file), now)
    if difference is not None:
        raise UserError(
            f"data.train: {difference}, but {run.path} was trained on it as it was (up to {checkpoint.name}). "
            "Put it back, or choose another output for a run on the new data."
        )


def index(config: RunConfig, run: Run, manifests: dict[str, Manifest] | None = None) -> dict[str, Manifest]:
    """:func:`index_all`, and write to the run the manifests that are new or changed.

    Args:
        config: The run's configuration.
        run: Where the manifests are written.
        manifests: What :func:`index_all` has just answered; left out, it is asked here.

    Raises:
        UserError: as :func:`index_all`.
    """
    if manifests is None:
        manifests = index_all(config, run)
    known = _known(config, run)
    run.manifests.mkdir(parents=True, exist_ok=True)
    for name, manifest in manifests.items():
        if known.get(name) != manifest:
            manifest.save(_manifest_file(run, name))
    return manifests


def refuse_credentials(config: RunConfig) -> None:
    """Refuse URLs with passwords or signatures: the configuration is written into the run directory.

    Raises:
        UserError: naming the URL without its secret.
    """
    for section in (config.data, config.model, config.merge, config.finetune):
        for text in _texts(section.model_dump()):
            storage.refuse_credentials(text)


def _texts(value: object) -> Iterator[str]:
    """Every piece of text in a section, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _known(config: RunConfig, run: Run) -> dict[str, Manifest]:
    """The manifests that the run has, by dataset."""
    files = {name: _manifest_file(run, name) for name in (TRAIN, *config.data.evaluated)}
    return {name: Manifest.load(file) for name, file in files.items() if file.is_file()}


def _index_training(config: RunConfig, known: Manifest | None) -> Manifest:
    """List and check the training shards."""
    contrastive = config.finetune.recipe == "contrastive"
    manifest = index_shards(
        config.data.train,
        target=CAPTION_FIELDS if contrastive else LABEL_FIELDS,
        held_out_fraction=config.data.id_val_fraction,
        known=known,
    )
    if manifest.num_training < config.data.lanes:
        raise UserError(
            f"data.train: {config.data.train} has {manifest.num_training} samples to train on, fewer than "
            f"data.lanes={config.data.lanes}. Set data.lanes lower."
        )
    if not contrastive:
        check_labels(TRAIN, config.data.train, manifest, load_vocabulary(config.data).classnames)
    return manifest


def _index_test(config: RunConfig, name: str, known: Manifest | None) -> Manifest:
    """List and check the shards of a test set. Its results are told apart by key, so a key must not occur twice.

    Its classes may be others than the run's: how those lead to it is the evaluation's to check.
    """
    pattern = config.data.evaluated[name]
    manifest = index_shards(pattern, target=LABEL_FIELDS, known=known, unique_keys=True)
    check_own_labels(name, pattern, manifest)
    return manifest


def _difference(before: Manifest, now: Manifest) -> str | None:
    """The first way in which the samples of two manifests differ; places and versions of files do not count."""
    if before.held_out_fraction != now.held_out_fraction:
        return (
            f"the held-out fraction of {now.source} is {now.held_out_fraction:g} and was {before.held_out_fraction:g}"
        )
    if len(before.shards) != len(now.shards):
        return _added_or_gone([shard.url for shard in before.shards], [shard.url for shard in now.shards])
    for old, new in zip(before.shards, now.shards, strict=True):
        if old.num_samples != new.num_samples:
            return f"{new.url} holds {new.num_samples} samples and held {old.num_samples}"
        if old.content_digest and new.content_digest and old.content_digest != new.content_digest:
            return f"{new.url} holds other samples than before (their names, sizes or labels differ)"
    return None


def _added_or_gone(before: list[str], now: list[str]) -> str:
    counts = f"({len(now)} shards, there were {len(before)})"
    if len(now) > len(before):
        earlier = frozenset(before)
        return f"{next(url for url in now if url not in earlier)} was added {counts}"
    present = frozenset(now)
    return f"{next(url for url in before if url not in present)} is gone {counts}"


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
    """The names of :func:`sizes_to_evaluate`."""
    return list(sizes_to_evaluate(config, run))


def sizes_to_evaluate(config: RunConfig, run: Run) -> dict[str, int]:
    """As :func:`evaluated_sizes`, of an indexed run."""
    return evaluated_sizes(config, {name: load_manifest(run, name) for name in (TRAIN, *config.data.evaluated)})


def evaluated_sizes(config: RunConfig, manifests: Mapping[str, Manifest]) -> dict[str, int]:
    """The samples of every test set, and of the held-out piece of the training set; largest first.

    None where no head is trained.
    """
    if config.finetune.recipe == "contrastive":
        return {}
    sizes = {name: manifests[name].num_samples for name in config.data.evaluated}
    sizes[ID_VAL] = manifests[TRAIN].num_held_out
    return {name: sizes[name] for name in sorted(sizes, key=lambda name: -sizes[name]) if sizes[name]}


def _manifest_file(run: Run, name: str) -> Path:
    return run.manifests / f"{name}.json"
