"""The front matter of a model card: what the Hugging Face Hub sorts and shows models by.

Format: https://github.com/huggingface/hub-docs/blob/main/modelcard.md
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from wiseft_dist.config import ModelConfig, RunConfig
from wiseft_dist.evaluate.statistics.statistics import DatasetStatistics, Statistics
from wiseft_dist.printable import printable
from wiseft_dist.report.wording import is_known, metric_name, shown_datasets

METRIC_TYPES = {"top1": "accuracy", "macro_f1": "f1"}
"""Names of the Hub's metrics; the others are ours."""
HUB = "hf-hub:"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
TAGS = ("clip", "open_clip", "wise-ft", "robust-fine-tuning", "distribution-shift")
DIGITS = 6


def front_matter(config: RunConfig, name: str, alpha: float, statistics: Statistics, base: str | None) -> str:
    """YAML between its lines of dashes. No licence: that of the weights and of the data is not known here."""
    task = "zero-shot-image-classification" if is_contrastive(config) else "image-classification"
    tags = [*TAGS, *(["merge"] if 0 < alpha < 1 else [])]
    metadata: dict[str, Any] = {"library_name": "open_clip", "pipeline_tag": task, "tags": tags}
    if base is not None and alpha > 0:
        metadata |= {"base_model": base, "base_model_relation": "finetune"}
    elif base is not None:
        metadata |= {"base_model": base}
    results = list(_results(statistics, alpha, task))
    if results:
        metadata["metrics"] = sorted({result["metrics"][0]["type"] for result in results})
        metadata["model-index"] = [{"name": printable(name), "results": results}]
    text = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=10**6)
    return f"---\n{text}---\n"


def is_contrastive(config: RunConfig) -> bool:
    """Whether texts classify: both towers were trained on pairs."""
    return config.finetune.recipe in ("flyp", "contrastive")


def base_model(model: ModelConfig) -> str | None:
    """The zero-shot model's name on the Hub; None where it has none, or that is not known."""
    if model.architecture.startswith(HUB):
        name = model.architecture.removeprefix(HUB).split("@")[0]
        return name if HUB_NAME.fullmatch(name) and model.pretrained is None else None
    if model.pretrained is None or not re.fullmatch(r"[\w-]+", model.pretrained):
        return None
    from wiseft_dist.models.without_wandb import open_clip

    known = open_clip.get_pretrained_cfg(model.architecture, model.pretrained)
    name = str(known.get("hf_hub", "")).rstrip("/")
    return name if HUB_NAME.fullmatch(name) else None


def _results(statistics: Statistics, alpha: float, task: str) -> Iterator[dict[str, Any]]:
    for name in shown_datasets(statistics):
        dataset = statistics.datasets[name]
        value = dataset.at(alpha).value
        if is_known(value):
            yield {
                "task": {"type": task},
                "dataset": {"name": printable(dataset.title), "type": name},
                "metrics": [_metric(dataset, value)],
            }


def _metric(dataset: DatasetStatistics, value: float) -> dict[str, Any]:
    """A fraction."""
    kind = METRIC_TYPES.get(dataset.metric, dataset.metric)
    return {"type": kind, "name": printable(metric_name(dataset)), "value": round(value, DIGITS)}
