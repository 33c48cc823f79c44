"""The numbers of a run, gathered from its cells."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import cached_property

from wiseft_dist.config import RunConfig
from wiseft_dist.data.stage import ID_VAL, datasets_to_evaluate, load_manifest
from wiseft_dist.errors import RunError
from wiseft_dist.evaluate.cells import Cell, CellStore
from wiseft_dist.evaluate.selection import Choice, choose_alphas
from wiseft_dist.run import Run

COLUMNS = ("dataset", "role", "alpha", "num_samples", "num_correct", "top1", "ci95_low", "ci95_high")


@dataclass(frozen=True)
class Results:
    """Accuracy by dataset and alpha."""

    reference: str
    """The reference test set; in a run without one, the held-out piece of the training set stands in."""
    shifts: tuple[str, ...]
    alphas: tuple[float, ...]
    """Rising."""
    cells: dict[tuple[str, float], Cell]
    cells_digest: str
    """Of the cells' content keys and the datasets' roles."""

    @property
    def role_of_reference(self) -> str:
        """``reference``, or ``id_val`` where the held-out piece stands in."""
        return ID_VAL if self.reference == ID_VAL else "reference"

    def top1(self, dataset: str) -> dict[float, float]:
        """Accuracy by alpha, as fractions; empty for a dataset that was not evaluated."""
        return {a: self.cells[dataset, a].top1 for a in self.alphas if (dataset, a) in self.cells}

    @cached_property
    def shift_average(self) -> dict[float, float]:
        """Accuracy by alpha, averaged over the shifts."""
        if not self.shifts:
            return {}
        return {a: sum(self.cells[s, a].top1 for s in self.shifts) / len(self.shifts) for a in self.alphas}

    @cached_property
    def choices(self) -> list[Choice]:
        """The alphas worth naming."""
        return choose_alphas(self.top1(ID_VAL), self.top1(self.reference), self.shift_average)

    def choice(self, name: str) -> Choice | None:
        """A choice by its name, where there is one."""
        return next((choice for choice in self.choices if choice.name == name), None)

    def to_csv(self) -> str:
        """The reference's and the shifts' cells as a table with 95 % Clopper-Pearson intervals."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for dataset in (self.reference, *self.shifts):
            role = self.role_of_reference if dataset == self.reference else "shift"
            for alpha in self.alphas:
                cell = self.cells[dataset, alpha]
                low, high = interval(cell)
                row = (dataset, role, alpha, cell.num_samples, cell.num_correct)
                writer.writerow((*row, f"{cell.top1:.6f}", f"{low:.6f}", f"{high:.6f}"))
        return text.getvalue()


def interval(cell: Cell) -> tuple[float, float]:
    """The 95 % Clopper-Pearson interval of the accuracy."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(cell.num_correct, cell.num_samples, alpha=0.05, method="beta")
    return float(low), float(high)


def gather(config: RunConfig, run: Run) -> Results:
    """Every cell of the run.

    Raises:
        RunError: naming the cells that are missing, or one whose sample count is not its manifest's.
    """
    store = CellStore(config, run)
    names = datasets_to_evaluate(config, run)
    missing = {name: alphas for name in names if (alphas := store.missing(name, config.merge.alphas))}
    if missing:
        name, alphas = next(iter(missing.items()))
        raise RunError(
            f"{run.path}: {name} has no result for alpha {', '.join(map(str, alphas))}. "
            f"Run `wiseft evaluate {run.path} --dataset {name}` first."
        )
    cells = {}
    for name in names:
        manifest = load_manifest(run, name)
        expected = manifest.num_held_out if name == ID_VAL else manifest.num_samples
        for alpha in config.merge.alphas:
            cell = store.read(name, alpha)
            assert cell is not None  # it was not missing
            if cell.num_samples + cell.num_skipped != expected:
                raise RunError(
                    f"{store.folder(name, alpha)} has {cell.num_samples} samples and {cell.num_skipped} skipped ones, "
                    f"expected {expected}."
                )
            cells[name, alpha] = cell
    return Results(
        next(iter(config.data.reference), ID_VAL),
        tuple(config.data.shifts),
        tuple(sorted(config.merge.alphas)),
        cells,
        store.report_digest(names),
    )
