"""Models of any kind as what is evaluated: their weights, their architecture, and whether they bring a head."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wiseft_dist import storage
from wiseft_dist.commits import digest, is_committed, read_commit
from wiseft_dist.config import MergeConfig, refuse_number_of_models
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.catalog.lists import read_classnames
from wiseft_dist.merge.side_files import side_files
from wiseft_dist.models.clip import complete_config, config_of_architecture
from wiseft_dist.models.files import CLASSES_FILE, CONFIG_FILE, HEAD_PREFIX
from wiseft_dist.weights.fisher import open_fisher
from wiseft_dist.weights.pairing import Models, match
from wiseft_dist.weights.records import Weights
from wiseft_dist.weights.sources import open_weights

VISUAL_PREFIX = "visual."


@dataclass(frozen=True)
class ModelSources:
    """A model, or the models of an ensemble, as they were named."""

    zero_shot: str
    """theta_0; or the only model."""
    finetuned: tuple[str, ...] = ()
    """theta_1, theta_2, ...; none for a plain model."""
    merge: MergeConfig = field(default_factory=lambda: MergeConfig(alphas=(0.0,)))
    carry: tuple[str, ...] = ()
    """Patterns of tensors that only theta_0 needs to have."""
    allow_missing_head: bool = False
    """Whether the head may be in one model only; every ensemble has that one."""
    average: bool = False
    """Whether theta_1 is the moving average that the checkpoint holds."""
    architecture: str | None = None
    """For weights that lie without an ``open_clip_config.json``."""
    classnames: str | None = None
    """Of the head in the models, where nothing beside them says it: a file, or a list of the catalog."""

    @property
    def title(self) -> str:
        """What results call it."""
        return " + ".join((self.zero_shot, *self.finetuned))


@dataclass(frozen=True)
class OpenedModels:
    """Models that fit together."""

    models: Models
    config: dict[str, Any]
    """``model_cfg`` and ``preprocess_cfg``."""
    head_classnames: tuple[str, ...] | None
    """Of the head in the models, if it is said beside them."""
    merge: MergeConfig
    """How they are merged."""
    identity: dict[str, Any]
    """What decides the weights, for content keys."""

    @property
    def is_ensemble(self) -> bool:
        """Whether there is anything to mix."""
        return self.models.finetuned[0] is not self.models.zero_shot

    @property
    def has_head(self) -> bool:
        """Whether the models classify as they are; otherwise a zero-shot head is built for each dataset."""
        return has_head(self.models.records)


@contextmanager
def opened(sources: ModelSources) -> Iterator[OpenedModels]:
    """Open models and check that they fit together.

    Raises:
        UserError: if one cannot be read, has no architecture, or does not fit to the others.
    """
    _refuse_method(sources)
    with ExitStack() as stack:
        zero_shot = stack.enter_context(open_weights(sources.zero_shot))
        finetuned = [stack.enter_context(open_weights(each, average=sources.average)) for each in sources.finetuned]
        fisher = [stack.enter_context(open_fisher(each)) for each in sources.merge.fisher]
        beside = side_files(sources.zero_shot)
        models = _matched(sources, zero_shot, finetuned or [zero_shot], fisher)
        if sources.classnames is not None and not has_head(models.records):
            raise UserError(f"{sources.title}: has no head whose classes --classnames could name: leave it out.")
        yield OpenedModels(
            models,
            _config(sources, beside),
            _head_classnames(sources, beside),
            sources.merge,
            _identity(sources, [zero_shot, *finetuned, *fisher]),
        )


def has_head(names: Mapping[str, Any]) -> bool:
    """Whether tensors of these names classify without a text tower."""
    return f"{HEAD_PREFIX}weight" in names


def _refuse_method(sources: ModelSources) -> None:
    if sources.merge.method == "greedy_soup":
        raise UserError("greedy_soup chooses its models on a run's ID-val: use `wiseft run` with merge.models.")
    if not sources.finetuned:
        return
    try:
        refuse_number_of_models(sources.merge, len(sources.finetuned))
    except ValueError as error:
        raise UserError(f"wiseft evaluate: {error}.") from None


def _matched(
    sources: ModelSources, zero_shot: Weights, finetuned: Sequence[Weights], fisher: Sequence[Weights]
) -> Models:
    """With a head the text tower classifies nothing: any of the models may be without one."""
    head = [f"{HEAD_PREFIX}*"] if sources.allow_missing_head else []
    carry, take = [*sources.carry, *head], list(head)
    if any(map(has_head, (zero_shot, *finetuned))):
        names = {name for weights in (zero_shot, *finetuned) for name in weights}
        texts = [name for name in sorted(names) if not name.startswith((VISUAL_PREFIX, HEAD_PREFIX))]
        carry, take = carry + texts, take + texts
    return match(zero_shot, finetuned, carry=carry, take=take, fisher=fisher)


def _config(sources: ModelSources, beside: Mapping[str, bytes]) -> dict[str, Any]:
    if sources.architecture is not None:
        return config_of_architecture(sources.architecture)
    if CONFIG_FILE not in beside:
        raise UserError(
            f"{sources.zero_shot}: nothing beside it says which architecture it is; name it with --architecture "
            "ViT-B-16, or ViT-B-16:openai for that tag's activation and preprocessing."
        )
    return complete_config(json.loads(beside[CONFIG_FILE]))


def _head_classnames(sources: ModelSources, beside: Mapping[str, bytes]) -> tuple[str, ...] | None:
    if sources.classnames is not None:
        return read_classnames(sources.classnames, "--classnames")
    found = next((each[CLASSES_FILE] for each in _all(sources, beside) if CLASSES_FILE in each), None)
    return None if found is None else tuple(json.loads(found)["classnames"])


def _all(sources: ModelSources, beside: Mapping[str, bytes]) -> Iterator[Mapping[str, bytes]]:
    """What lies beside each model."""
    yield beside
    yield from map(side_files, sources.finetuned)


def _identity(sources: ModelSources, weights: Sequence[Weights]) -> dict[str, Any]:
    settings = ("method", "layers", "lines", "density", "seed")
    merge = sources.merge.model_dump(mode="json", include=set(settings)) if sources.finetuned else {}
    return {
        "models": [_identity_of(each) for each in weights],
        "merge": merge | {"average": sources.average, "carry": list(sources.carry)},
    }


def _identity_of(weights: Weights) -> str:
    """The files as they are now; of a committed folder also what is in it, and not where it lies."""
    prints = weights.fingerprint()
    folders = {Path(str(file)).parent for file in weights.files() if isinstance(file, Path)}
    if len(folders) == 1 and is_committed(folder := folders.pop()):
        # The record says what was committed. Another file of the same size in its place has another time.
        found = {os.path.relpath(name, folder): each for name, each in prints.items()}
        return digest([read_commit(folder)["files"], found])
    return digest({name if storage.is_remote(name) else os.path.realpath(name): each for name, each in prints.items()})
