"""pm-0 and pm-k: whether an anchor frame is right, and whether its neighbours are right as well.

Source: Do image classifiers generalize across time? (arXiv 1906.02168), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AnchorResults:
    """K ensembles on the anchors of a video dataset."""

    frames: np.ndarray
    """int64 ``[anchors]``: the sample that is the anchor itself."""
    pm0: np.ndarray
    """bool ``[K, anchors]``: the anchor is right."""
    pm_k: np.ndarray
    """bool ``[K, anchors]``: the anchor and every neighbour up to k frames away are right."""


def score_anchors(correct: np.ndarray, anchors: np.ndarray, offsets: np.ndarray, neighbours: int) -> AnchorResults:
    """Right anchors. One whose own frame was not scored counts nowhere.

    Args:
        correct: bool ``[K, n]``: the predicted class is one of the frame's right ones.
        anchors: int64 ``[n]``: which anchor a frame lies around.
        offsets: int64 ``[n]``: how many frames it lies away from it; 0 is the anchor.
        neighbours: k.
    """
    own = np.flatnonzero(offsets == 0)
    names, first = np.unique(anchors[own], return_index=True)
    frames = own[first]
    near = np.flatnonzero(np.abs(offsets) <= neighbours)
    place = np.searchsorted(names, anchors[near])
    known = place < len(names)
    known[known] = names[place[known]] == anchors[near][known]
    wrong = np.stack([np.bincount(place[known], ~row[near][known], len(names)) for row in correct])
    return AnchorResults(frames, correct[:, frames], wrong == 0)
