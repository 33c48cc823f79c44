"""Whether a run's test sets are what they are taken for: their classes, their labels, how many samples they have.

Done before anything is submitted. What is read later is checked again, sample by sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from wiseft_dist.config import DatasetSpec, RunConfig
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.pack import CLASSNAMES_FILE
from wiseft_dist.data.stage import ID_VAL
from wiseft_dist.data.vocabulary import find_vocabulary_file, load_vocabulary, read_lines, refuse_labels_from
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.catalog.entries import NO_ENTRY, Dataset, describe_dataset
from wiseft_dist.evaluate.class_map import ClassMap, first_difference, map_for, same_classes
from wiseft_dist.printable import printable

SAME_ORDER = 0.5
"""Share of equal names from which two lists are versions of one list, if no name stands elsewhere."""


def check_datasets(config: RunConfig, manifests: Mapping[str, Manifest]) -> list[str]:
    """Hold every test set of a run against the run's classes and against what is known of it.

    Args:
        config: The run.
        manifests: Of its datasets, by name.

    Returns:
        Sentences about what may be wrong: the catalog's number of samples is another.

    Raises:
        UserError: naming the dataset, if its classes do not follow from the run's, a label is none of its classes,
            or it has not the number of samples that the configuration gives.
    """
    if config.finetune.recipe == "contrastive":
        return []
    classnames = load_vocabulary(config.data).classnames
    map_for(describe_dataset(ID_VAL, config.data.datasets.get(ID_VAL)), classnames)
    warnings = []
    for name, url in config.data.evaluated.items():
        given = config.data.datasets.get(name)
        dataset = with_own_classes(describe_dataset(name, given), url)
        refuse_other_labels(dataset, map_for(dataset, classnames), len(classnames), manifests[name])
        warnings += unlike_published(dataset, given, manifests[name])
    return warnings


def with_own_classes(dataset: Dataset, url: str) -> Dataset:
    """The dataset with the class list that lies beside its shards, where no other is known.

    Raises:
        UserError: if another is known, and the two are no versions of one list.
    """
    file = find_vocabulary_file(url, CLASSNAMES_FILE)
    if file is None:
        return dataset
    beside, known = read_lines(file), dataset.classnames
    if known is None:
        return replace(dataset, classnames=beside)
    if not same_classes(known, beside, share=SAME_ORDER):
        at, pair = first_difference(beside, known)
        entry = dataset.spec.catalog
        way_out = f" or {dataset.key}.catalog={NO_ENTRY}" if entry else ""
        raise UserError(
            f"{dataset.name}: its class list {file} has {len(beside)} names, {dataset.spec.classnames} "
            f"{'of the catalog ' if entry else ''}has {len(known)}, and class {at} is {pair[0]} there and {pair[1]} "
            f"here. Give {dataset.key}.classnames the list that the labels were made with{way_out}."
        )
    return dataset


def refuse_other_labels(dataset: Dataset, class_map: ClassMap | None, num_head: int, manifest: Manifest) -> None:
    """Refuse labels that are none of the dataset's classes.

    Args:
        dataset: The dataset.
        class_map: From the head's classes; None: they are the dataset's.
        num_head: Classes of the head.
        manifest: What was read. Shards whose counts were trusted have no labels yet; those are checked when read.

    Raises:
        UserError: naming the shard and the label.
    """
    if dataset.spec.labels is not None:
        return  # they stand elsewhere, and are checked when they are read
    if class_map is None:
        reason = f"the class list has {num_head} names (0 to {num_head - 1}). Check the head's class list."
        refuse_labels_from(num_head, dataset.name, manifest, reason)
        return
    last = class_map.num_classes - 1
    reason = (
        f"{class_map.name} leads to {class_map.num_classes} classes (0 to {last}). Labels are the dataset's own "
        "classes, not the head's."
    )
    refuse_labels_from(class_map.num_classes, dataset.name, manifest, reason)


def unlike_published(dataset: Dataset, given: DatasetSpec | None, manifest: Manifest) -> list[str]:
    """A sentence if the catalog's number of samples is another than the shards'.

    Raises:
        UserError: if the number was given by the user.
    """
    wanted = dataset.spec.num_samples
    if wanted is None or wanted == manifest.num_samples:
        return []
    found = f"{dataset.name}: {manifest.source} holds {manifest.num_samples:,} samples"
    if given is not None and given.num_samples is not None:
        raise UserError(f"{found}, but its num_samples is {wanted:,}.")
    title = printable(str(dataset.spec.title))
    return [
        f"{found}, but {title} has {wanted:,}: its numbers cannot be compared with published ones. If it is "
        f"another dataset, give it another name, or catalog: {NO_ENTRY}."
    ]
