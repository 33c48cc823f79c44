"""Predictions as a sweep would make them, from logits that a test makes up."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax

from wiseft_dist.evaluate.predictions import NUM_TOP, Predictions


def predictions_from_logits(logits, labels, *, metadata=None, zero_shot=0, bad=(), features=None):
    """logits [K, n, C]; labels [n] or [n, L]; ``zero_shot`` is the row that divergences are taken from, or None."""
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    labels = labels[:, None] if labels.ndim == 1 else labels
    num_members, num_samples, num_classes = logits.shape
    log_probs = log_softmax(logits, axis=-1)
    order = np.argsort(-logits, axis=-1, kind="stable")
    top5 = np.full((num_members, num_samples, NUM_TOP), -1, dtype=np.int32)
    top5[..., : min(NUM_TOP, num_classes)] = order[..., :NUM_TOP]
    of_labels = np.where(labels >= 0, log_probs[:, np.arange(num_samples)[:, None], labels], -np.inf)
    right = labels[np.arange(num_samples), of_labels.argmax(axis=-1)]
    ranked = np.sort(logits, axis=-1)
    if zero_shot is None:
        divergences = np.full((num_members, num_samples), np.nan)
    else:
        first = log_probs[zero_shot]
        divergences = (np.exp(first) * (first - log_probs)).sum(axis=-1)
    return Predictions(
        keys=tuple(f"s{number:07d}" for number in range(num_samples)),
        positions=np.arange(num_samples),
        labels=labels,
        classes=order[..., 0].astype(np.int32),
        top5=top5,
        confidences=np.exp(log_probs.max(axis=-1)).astype(np.float32),
        margins=(ranked[..., -1] - ranked[..., -2]).astype(np.float32),
        log_probs=of_labels.max(axis=-1).astype(np.float32),
        briers=((np.exp(log_probs) - (right[..., None] == np.arange(num_classes))) ** 2).sum(-1).astype(np.float32),
        divergences=divergences.astype(np.float32),
        metadata=metadata or {},
        bad=bad,
        features=features,
    )
