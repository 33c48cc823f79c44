"""What is known of a test set: its classes, how its labels are scored, and which columns say more of a sample."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from wiseft_dist.config.section import Section

Metric = Literal["top1", "mean_per_class", "macro_f1", "worst_group", "pm0"]

COLUMN_PLACE = re.compile(r"npy:(\d+)|json:(.+)")
"""Where a column stands: at an index of the sample's ``.npy`` vector, or at a key of its ``.json`` object."""


class DatasetSpec(Section):
    """A test set, as ``data.datasets`` or the catalog describes it. What is left out is the catalog's, if it has it."""

    catalog: str | None = None
    """The entry of the catalog to start from. Left out: the one of the dataset's name, if there is one. ``none``:
    nothing is taken from the catalog."""

    title: str | None = None
    """What tables and figures call it."""

    num_samples: PositiveInt | None = None
    """How many samples there are, held against the shards: other counts are refused if you give this, reported if it
    is the catalog's."""

    classnames: str | None = None
    """The classes of its labels: a file with one name a line, or a list of the catalog (``imagenet``). Left out:
    ``classnames.txt`` beside its shards, or else the run's classes."""

    templates: str | None = None
    """The prompt templates of its published zero-shot accuracy: a file, or a list of the catalog (``openai_80``)."""

    class_map: str | None = None
    """How logits of another class list become those of its classes: a JSON file, or a map of the catalog
    (``imagenet_to_objectnet``)."""

    metric: Metric = "top1"
    """The number that stands for the dataset."""

    metadata: dict[str, str] = Field(default_factory=dict)
    """What else is kept of a sample, as ``column: place``. A place is ``npy:2`` (an index of its ``.npy`` vector) or
    ``json:video`` (a key of its ``.json`` object)."""

    labels: str | None = None
    """Where the right labels of a sample stand if it may have several (``json:labels``). Left out: its class label."""

    group: str | None = None
    """The column whose groups ``worst_group`` compares."""

    group_names: tuple[str, ...] = ()
    """What the groups 0, 1, 2, ... are called; or, where the column holds texts, which texts there are."""

    excluded_groups: tuple[int | str, ...] = ()
    """Groups, by number or name, that cannot be the worst."""

    cluster: str | None = None
    """The column that says which samples belong together (a place, a video): intervals draw those as one."""

    anchor: str | None = None
    """pm-k: the column that says around which anchor a frame lies."""

    offset: str | None = None
    """pm-k: the column with a frame's distance to its anchor, in frames; 0 is the anchor itself."""

    neighbours: NonNegativeInt = 10
    """pm-k: k, the frames on each side of an anchor that are looked at."""

    crop_border: NonNegativeInt = 0
    """Pixels that are cut off each side of a picture before it is resized."""

    reference: str | None = None
    """The dataset on the reference axis of effective robustness."""

    reference_classes: str | None = None
    """The class map whose classes the reference axis is restricted to. Left out: all."""

    robustness_fit: str | None = None
    """What predicts its accuracy from the reference's: a published fit (``imagenet_v2``), or a CSV or JSON file of your
    own models with the columns ``dataset``, ``reference`` and ``shift``, at least five of the dataset."""

    @model_validator(mode="after")
    def _columns_are_there(self) -> Self:
        for column, place in (*self.metadata.items(), ("labels", self.labels or "json:labels")):
            if not COLUMN_PLACE.fullmatch(place):
                raise ValueError(f"{column} stands at {place!r}: write npy:INDEX or json:KEY")
        for use in ("group", "cluster", "anchor", "offset"):
            column = getattr(self, use)
            if column is not None and self.metadata and column not in self.metadata:
                raise ValueError(f"{use} is {column!r}, but metadata has {', '.join(self.metadata)}")
        return self

    @model_validator(mode="after")
    def _group_names_tell_groups_apart(self) -> Self:
        repeated = [name for name in self.group_names if self.group_names.count(name) > 1]
        if repeated:
            raise ValueError(f"group_names has {repeated[0]!r} twice: give each group a name of its own")
        numbers = [name for name in self.group_names if re.fullmatch(r"\s*-?\d+\s*", name)]
        if numbers:
            raise ValueError(f"group_names has {numbers[0]!r}, which could be taken for a group's number: use a word")
        return self

    @model_serializer(mode="wrap")
    def _only_what_was_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without defaults: read again, those would go before what the catalog says."""
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}
