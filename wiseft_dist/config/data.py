"""The section ``data``: where the shards are, in which order they are read, and what becomes of a picture."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from wiseft_dist.config.dataset import DatasetSpec
from wiseft_dist.config.section import Fraction, Probability, Section


class AugmentConfig(Section):
    """What training does to a picture, and to a batch of them. Evaluation does none of it."""

    crop_scale: tuple[PositiveFloat, PositiveFloat] = (0.9, 1.0)
    """Area that a random resized crop keeps. The default is the paper's minimal crop (arXiv 2109.01903, appendix D);
    (0.08, 1.0) is the Inception crop."""

    horizontal_flip: Probability = 0.0
    """Probability of mirroring a picture."""

    rand_augment_ops: NonNegativeInt = 0
    """RandAugment (arXiv 1909.13719): operations a picture, 0 for none."""

    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """RandAugment: strength of each operation."""

    random_erasing: Probability = 0.0
    """Probability of painting a rectangle of a picture with the mean colour (arXiv 1708.04896)."""

    mixup: NonNegativeFloat = 0.0
    """Mixup (arXiv 1710.09412): alpha of the Beta distribution, 0 for none."""

    cutmix: NonNegativeFloat = 0.0
    """CutMix (arXiv 1905.04899): alpha of the Beta distribution, 0 for none. With mixup: one of both a batch."""

    scaled_decode: bool = False
    """Let the JPEG decoder shrink large pictures on the way (in the DCT domain). Faster; changes pixels slightly."""

    @model_validator(mode="after")
    def _crops_are_parts(self) -> Self:
        low, high = self.crop_scale
        if not low <= high <= 1:
            raise ValueError(
                f"data.augment.crop_scale is [{low:g}, {high:g}]: give the smaller share first, neither above 1"
            )
        return self


class DataConfig(Section):
    """Where the shards are and how training samples are drawn from them."""

    train: str
    """Training shards: a folder, a glob or a brace range (``s3://bucket/in1k/{0000..0146}.tar``)."""

    reference: dict[str, str] = Field(default_factory=dict)
    """The in-distribution test set, as ``name: shards``. Empty: only the held-out piece of the training set
    is evaluated."""

    shifts: dict[str, str] = Field(default_factory=dict)
    """The out-of-distribution test sets, as ``name: shards``."""

    datasets: dict[str, DatasetSpec] = Field(default_factory=dict)
    """What is known of the test sets, by their names in ``reference`` and ``shifts``, or ``id_val``. Needed only for
    what the catalog does not know: ``wiseft evaluate --list`` shows it."""

    classnames: str | None = None
    """A file with one class name a line. Left out: ``classnames.txt`` beside the training shards."""

    templates: str | None = None
    """A file with one prompt template a line, ``{c}`` for the class, ``{a c}`` for the class with its article. Left
    out: the file beside the training shards."""

    id_val_fraction: Fraction = 0.02
    """Part of the training set, spread evenly over its shards, that is never trained on."""

    augment: AugmentConfig = AugmentConfig()
    """What training does to a picture."""

    lanes: PositiveInt = 16
    """Canonical lanes of the sample order. Fixed for the life of a run; any of its divisors can be the world size."""

    block_samples: PositiveInt = 512
    """Samples of a lane that are shuffled together. Memory of a rank: its lanes x this x the bytes of a sample."""

    workers: NonNegativeInt = 2
    """Decoding processes a rank. Does not change the order of the samples."""

    max_bad_samples: NonNegativeInt = 16
    """Training samples an epoch that may fail to decode before the run stops. Each is named; none is lost silently."""

    cache: str | None = None
    """Folder on a node's own disk that keeps shards once they were read, shared by the node's processes."""

    cache_gb: PositiveFloat = 200.0
    """Size of the cache, in 10^9 bytes; the shards unused for longest go first."""

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        if len(self.reference) > 1:
            raise ValueError(f"data.reference names {len(self.reference)} datasets: give exactly one")
        if self.shifts and not self.reference:
            raise ValueError("data.shifts needs a data.reference beside it: the trade-off is drawn against it")
        for name in [*self.reference, *self.shifts]:
            if name in ("train", "id_val") or not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(
                    f"dataset name {name!r}: use letters, digits, '-', '_' and '.'; 'train' and 'id_val' are taken"
                )
        if twice := set(self.reference) & set(self.shifts):
            raise ValueError(f"dataset {min(twice)!r} is both the reference and a shift")
        return self

    @model_validator(mode="after")
    def _datasets_are_those_of_the_run(self) -> Self:
        known = [*self.evaluated, "id_val"]
        for name in self.datasets:
            if name not in known:
                raise ValueError(f"data.datasets describes {name!r}, but the run's datasets are {', '.join(known)}")
        return self

    @property
    def evaluated(self) -> dict[str, str]:
        """Every test set: the reference first, then the shifts."""
        return self.reference | self.shifts
