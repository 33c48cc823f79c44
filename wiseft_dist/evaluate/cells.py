"""A cell is one alpha on one dataset: per-sample predictions and metrics, committed under a content key.

The key hashes everything that decides the numbers, so that nothing finished is computed twice and nothing stale is
taken for current.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import wiseft_dist
from wiseft_dist.config import RunConfig
from wiseft_dist.data.stage import ID_VAL, load_manifest
from wiseft_dist.run import Run, alpha_name, committing, digest, is_committed
from wiseft_dist.weights.finetuned import describe_models, without_places

if TYPE_CHECKING:
    from wiseft_dist.evaluate.sweep import Predictions

PREDICTIONS_FILE = "predictions.parquet"
METRICS_FILE = "metrics.json"
METHOD_SETTINGS = ("method", "layers", "lines", "density", "seed")
"""Of ``merge``: what decides the weights of an ensemble, beside the models and alpha."""


@dataclass(frozen=True)
class Cell:
    """The metrics of one alpha on one dataset."""

    dataset: str
    alpha: float
    num_samples: int
    num_correct: int
    num_skipped: int = 0
    """Samples that could not be decoded: they count in no accuracy."""

    @property
    def top1(self) -> float:
        """Accuracy as a fraction."""
        return self.num_correct / self.num_samples


class CellStore:
    """The cells of a run, for the weights and settings it has now."""

    def __init__(self, config: RunConfig, run: Run) -> None:
        self._config, self._run = config, run
        self._weights = {
            "models": without_places(describe_models(config, run)),
            "merge": config.merge.model_dump(mode="json", include=set(METHOD_SETTINGS)),
            "precision": config.evaluate.precision,
            "preprocess": config.evaluate.preprocess,
            "code": wiseft_dist.__version__,
        }
        self._data: dict[str, str] = {}

    def folder(self, dataset: str, alpha: float) -> Path:
        """Where the cell is, or will be."""
        if dataset not in self._data:
            manifest = load_manifest(self._run, dataset)
            # Keys are often just numbers: two versions of a test set can have the same, so the place counts too.
            self._data[dataset] = digest([manifest.content_digest, [shard.url for shard in manifest.shards]])
        content = {"data": self._data[dataset], "held_out": dataset == ID_VAL, "alpha": alpha}
        return self._run.cells / dataset / f"{alpha_name(alpha)}-{digest(self._weights | content)}"

    def missing(self, dataset: str, alphas: tuple[float, ...]) -> list[float]:
        """The alphas without a committed cell."""
        return [alpha for alpha in alphas if not is_committed(self.folder(dataset, alpha))]

    def report_digest(self, datasets: Iterable[str]) -> str:
        """One hash for every cell of these datasets and their roles: a report is current while it stays the same."""
        data, alphas = self._config.data, self._config.merge.alphas
        cells = [self.folder(name, alpha).name for name in datasets for alpha in alphas]
        return digest([list(data.reference), list(data.shifts), cells])

    def write(self, dataset: str, alpha: float, predictions: Predictions, index: int) -> Cell:
        """Commit the cell of the ``index``-th ensemble of a sweep."""
        import pyarrow.parquet

        cell = Cell(dataset, alpha, len(predictions.keys), int(predictions.num_correct[index]), len(predictions.bad))
        table = pyarrow.table(
            {
                "key": list(predictions.keys),
                "label": predictions.labels,
                "prediction": predictions.predictions[index],
                "confidence": predictions.confidences[index],
            }
        )
        with committing(self.folder(dataset, alpha), dataset=dataset, alpha=alpha) as folder:
            pyarrow.parquet.write_table(table.sort_by("key"), folder / PREDICTIONS_FILE)
            metrics = {
                "num_samples": cell.num_samples,
                "num_correct": cell.num_correct,
                "top1": cell.top1,
                "skipped": [str(entry) for entry in predictions.bad],
            }
            (folder / METRICS_FILE).write_text(json.dumps(metrics, indent=1))
        return cell

    def read(self, dataset: str, alpha: float) -> Cell | None:
        """The cell, if it is committed."""
        folder = self.folder(dataset, alpha)
        if not is_committed(folder):
            return None
        metrics = json.loads((folder / METRICS_FILE).read_text())
        return Cell(dataset, alpha, metrics["num_samples"], metrics["num_correct"], len(metrics["skipped"]))
