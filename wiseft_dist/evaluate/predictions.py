"""What ensembles said about samples, as plain arrays: the sweep fills them, cells keep them, statistics read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from wiseft_dist.data.receipt import BadSample

NUM_TOP = 5
"""Classes of a sample that are kept, the best first."""
SMALLEST_SPREAD = 1e-10
"""Features whose centred sums are this small beside the others are one point, and what is left of them is rounding."""


@dataclass(frozen=True, order=True)
class Member:
    """What is scored: an alpha, in one of two spaces."""

    alpha: float
    space: Literal["weight", "output"] = "weight"
    """``weight``: the model theta_alpha. ``output``: the logits ``(1 - alpha) f(theta_0) + alpha f(theta_1)``."""


def members_at(alphas: Iterable[float], *, output_space: bool) -> list[Member]:
    """Every alpha in the order given, and then the mixture of both ends' logits at each between them, if wanted."""
    alphas = list(alphas)
    mixtures = [Member(alpha, "output") for alpha in alphas if 0 < alpha < 1] if output_space else []
    return [*map(Member, alphas), *mixtures]


@dataclass(frozen=True)
class FeatureMoments:
    """Sums over samples of the normalised features x of theta_0 and y of theta_1, all fp64; they add up over parts."""

    num_samples: int
    x: np.ndarray
    """``[embedding]``: the sum of x."""
    y: np.ndarray
    xx: np.ndarray
    """``[embedding, embedding]``: the sum of the outer products of x with itself."""
    yy: np.ndarray
    xy: np.ndarray

    def __add__(self, other: FeatureMoments) -> FeatureMoments:
        """Those of the samples of both."""
        return FeatureMoments(
            self.num_samples + other.num_samples,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.yy + other.yy,
            self.xy + other.xy,
        )

    def linear_cka(self) -> float:
        """Linear centred kernel alignment of the two models' features, in [0, 1]; NaN where one hardly varies.

        Source: Kornblith et al., Similarity of neural network representations revisited (arXiv 1905.00414), section 3.
        """
        xx = self.xx - np.outer(self.x, self.x) / self.num_samples
        yy = self.yy - np.outer(self.y, self.y) / self.num_samples
        xy = self.xy - np.outer(self.x, self.y) / self.num_samples
        norms = [float(np.linalg.norm(each)) for each in (xx, yy)]
        smallest = [SMALLEST_SPREAD * float(np.linalg.norm(each)) for each in (self.xx, self.yy)]
        if not (norms[0] > smallest[0] and norms[1] > smallest[1]):
            return float("nan")
        return min(1.0, float((xy**2).sum()) / (norms[0] * norms[1]))


@dataclass(frozen=True)
class Predictions:
    """What each of K ensembles said about each of n samples, in the order of their positions."""

    keys: tuple[str, ...]
    positions: np.ndarray
    """int64 ``[n]``: where the samples stand in their dataset."""
    labels: np.ndarray
    """int64 ``[n, L]``: the right classes, -1 fills; L is 1 where a sample has one label."""
    classes: np.ndarray
    """int32 ``[K, n]``: the class with the largest logit, of equal ones the first."""
    top5: np.ndarray
    """int32 ``[K, n, 5]``: the best class first, of equal ones the lower; -1 fills where there are fewer classes."""
    confidences: np.ndarray
    """float32 ``[K, n]``: the largest softmax probability."""
    margins: np.ndarray
    """float32 ``[K, n]``: the largest logit minus the second; Inf where there is one class."""
    log_probs: np.ndarray
    """float32 ``[K, n]``: the log of the right class's probability; of several right classes the likeliest's."""
    briers: np.ndarray
    """float32 ``[K, n]``: sum over classes of (probability - 1 if it is the right class)^2; of several right classes
    the likeliest counts as right."""
    divergences: np.ndarray
    """float32 ``[K, n]``: KL(p_theta_0 || p_theta_alpha) in nats, NaN where theta_0 was not asked."""
    metadata: Mapping[str, np.ndarray] = field(default_factory=dict)
    """int64 ``[n]`` by column; of text, a hash."""
    bad: tuple[BadSample, ...] = ()
    """Samples that could not be used; they are none of the n."""
    features: FeatureMoments | None = None
    """Only where theta_0 and theta_1 were both scored and compared."""

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.keys)

    @property
    def correct(self) -> np.ndarray:
        """Whether the predicted class is one of the right ones, bool ``[K, n]``."""
        return np.asarray((self.classes[:, :, None] == self.labels).any(axis=-1))

    @property
    def num_correct(self) -> np.ndarray:
        """Correct predictions of each ensemble, int64 ``[K]``."""
        return np.asarray(self.correct.sum(axis=1))
