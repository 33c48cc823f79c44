"""The table that ends a run: zero-shot, fine-tuned, and the ensembles worth naming."""

from __future__ import annotations

from rich.table import Table

from wiseft_dist.report.results import Results


def named_alphas(results: Results) -> dict[str, float]:
    """The rows of the table, in order."""
    rows = {}
    if 0.0 in results.alphas:
        rows["zero-shot"] = 0.0
    if 1.0 in results.alphas:
        rows["fine-tuned"] = 1.0
    if fixed := results.choice("fixed"):
        rows["ensemble, fixed"] = fixed.alpha
    if id_val := results.choice("id_val"):
        rows["ensemble, chosen on ID-val"] = id_val.alpha
    if oracle := results.choice("oracle"):
        rows["ensemble, oracle (saw the shifts)"] = oracle.alpha
    return rows


def summary_table(results: Results) -> Table:
    """Accuracies in percent; a column each for the reference, the shifts' average and every shift."""
    table = Table(title="Top-1 accuracy (%)")
    table.add_column("model")
    for column in ("alpha", results.reference, *(["shift avg"] if results.shifts else []), *results.shifts):
        table.add_column(column, justify="right")
    for name, alpha in named_alphas(results).items():
        values = [results.top1(results.reference)[alpha]]
        if results.shifts:
            values += [
                results.shift_average[alpha],
                *(results.top1(shift)[alpha] for shift in results.shifts),
            ]
        table.add_row(name, f"{alpha:g}", *(f"{100 * value:.1f}" for value in values))
    return table
