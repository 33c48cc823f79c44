"""How models classify a test set: by the head they bring, or by one that their text tower makes of its class names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from wiseft_dist.commits import digest
from wiseft_dist.data.manifest import Manifest
from wiseft_dist.data.vocabulary import Vocabulary
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.catalog.entries import Dataset
from wiseft_dist.evaluate.cells.store import Content, shards_digest
from wiseft_dist.evaluate.class_map import ClassMap, map_for
from wiseft_dist.evaluate.dataset_checks import refuse_other_labels
from wiseft_dist.evaluate.standalone.given_datasets import IndexedDataset
from wiseft_dist.evaluate.standalone.model_sources import OpenedModels
from wiseft_dist.models.files import HEAD_PREFIX


@dataclass(frozen=True)
class Classified:
    """A test set and the head that classifies it."""

    manifest: Manifest
    dataset: Dataset
    """Its class map is the one from the head, None where none is needed."""
    num_classes: int
    """Of the head."""
    prompts: Vocabulary | None
    """What a zero-shot head is made of; None where the models bring theirs."""

    @property
    def head(self) -> str:
        """For people: which head it is. ObjectNet's 113 names and ImageNet's 1,000 classes give other accuracies."""
        if self.prompts is not None:
            return f"zero-shot, {self.num_classes} classes, {len(self.prompts.templates)} templates"
        class_map = self.dataset.class_map
        return f"the model's own, {self.num_classes} classes" + (f", {class_map.name}" if class_map else "")

    def content(self) -> Content:
        """What of it decides the numbers."""
        spec, class_map = self.dataset.spec, self.dataset.class_map
        prompts = None if self.prompts is None else digest([self.prompts.classnames, self.prompts.templates])
        key: dict[str, Any] = {
            "content": self.manifest.content_digest,
            "shards": shards_digest(self.manifest),
            "prompts": prompts,
            "class_map": None if class_map is None else digest(class_map.groups),
            "crop_border": spec.crop_border,
            "labels": spec.labels,
            "metadata": spec.metadata,
        }
        return Content(self.manifest.num_samples, key)


def classify(models: OpenedModels, indexed: IndexedDataset) -> Classified:
    """Decide which head classifies a test set.

    Raises:
        UserError: if the models bring a head for other classes, or nothing says what the classes are called.
    """
    prompts = None if models.has_head else _prompts(indexed.dataset)
    if prompts is not None:
        dataset, num_classes = replace(indexed.dataset, class_map=None), len(prompts.classnames)
    else:
        num_classes = models.models.records[f"{HEAD_PREFIX}weight"].shape[0]
        dataset = replace(indexed.dataset, class_map=_map_of_head(models, indexed.dataset, num_classes))
    refuse_other_labels(dataset, dataset.class_map, num_classes, indexed.manifest)
    return Classified(indexed.manifest, dataset, num_classes, prompts)


def _prompts(dataset: Dataset) -> Vocabulary:
    if dataset.classnames is None or dataset.templates is None:
        what = "class names" if dataset.classnames is None else "prompt templates"
        file = "classnames.txt" if dataset.classnames is None else "zeroshot_classification_templates.txt"
        raise UserError(
            f"{dataset.name}: a zero-shot head is made of class names and prompts, and there are no {what}: put "
            f"{file} beside its shards, or name it in a dataset file."
        )
    return Vocabulary(dataset.classnames, dataset.templates)


def _map_of_head(models: OpenedModels, dataset: Dataset, num_classes: int) -> ClassMap | None:
    """The class map from the models' head; a head that nobody says the classes of has the dataset's."""
    source, names = models.models.zero_shot.source, models.head_classnames
    if names is not None and len(names) != num_classes:
        raise UserError(f"{source}: its head has {num_classes} classes, the list given for it {len(names)} names.")
    if dataset.classnames is None and dataset.class_map is None:
        return None
    if names is not None:
        return map_for(dataset, names)
    if dataset.classnames is None or len(dataset.classnames) != num_classes:
        raise UserError(
            f"{source}: its head has {num_classes} classes and {dataset.name} others; say which they are with "
            "--classnames: a file, or a list of the catalog such as imagenet."
        )
    return None
