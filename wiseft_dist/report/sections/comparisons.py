"""The page's sections that compare models: paired tests, and how differently the ends err."""

from __future__ import annotations

from collections.abc import Iterator

from wiseft_dist.evaluate.statistics.paired import ENDPOINTS, Endpoint
from wiseft_dist.evaluate.statistics.statistics import Statistics
from wiseft_dist.report.page.section import Row, Section
from wiseft_dist.report.sections.numbers import count_cell, number_cell, p_cell, percent_cell, points_with_interval
from wiseft_dist.report.wording import shown_datasets

WITHOUT_CKA = (
    " 1 - CKA is missing where the image features of both ends were not scored together, hardly vary, or are of parts "
    "that overlap because evaluate.part_samples changed."
)
ENDS: dict[Endpoint, str] = {"zero_shot": "zero-shot", "finetuned": "fine-tuned"}


def paired_sections(statistics: Statistics) -> Iterator[Section]:
    """The chosen alpha against both ends, on the same samples."""
    if statistics.chosen is None:
        return
    datasets = [statistics.datasets[name] for name in shown_datasets(statistics)]
    # The ends are compared once, as fine-tuned against zero-shot: where zero-shot is chosen too.
    alpha = ENDPOINTS["finetuned"] if statistics.chosen == ENDPOINTS["zero_shot"] else statistics.chosen
    rows = []
    for dataset in datasets:
        for against, end in ENDS.items():
            found = dataset.compared(alpha, against)
            if found is not None:
                test = found.mcnemar
                rows.append(
                    Row(
                        f"{dataset.title}, against {end}",
                        (
                            points_with_interval(found.difference, found.interval),
                            count_cell(test.num_only_first),
                            count_cell(test.num_only_second),
                            p_cell(test.p_value),
                            p_cell(found.adjusted_p_value),
                        ),
                    )
                )
    if rows:
        yield Section(
            f"Alpha {alpha:g} against the ends" if alpha == statistics.chosen else "Fine-tuned against zero-shot",
            ("dataset", "difference (pp)", "only it is right", "only the end is right", "McNemar p", "Holm p"),
            tuple(rows),
            note="On the same samples. The difference is of the dataset's own metric, with the 95 % interval of a "
            "paired bootstrap; McNemar's test is on samples that only one of the two has right; Holm's correction is "
            "for all comparisons on the dataset.",
        )


def diversity_sections(statistics: Statistics) -> Iterator[Section]:
    """In what zero-shot and fine-tuned differ, and whom the chosen alpha follows."""
    datasets = [statistics.datasets[name] for name in shown_datasets(statistics)]
    rows = []
    for dataset in datasets:
        found = dataset.diversity
        if found is None:
            continue
        override = next((each for each in found.overrides if each.alpha == statistics.chosen), None)
        rows.append(
            Row(
                dataset.title,
                (
                    percent_cell(found.prediction_diversity),
                    percent_cell(found.only_zero_shot_right),
                    percent_cell(found.only_finetuned_right),
                    percent_cell(found.disagreement),
                    number_cell(found.kappa_complement),
                    number_cell(found.mean_kl),
                    number_cell(found.cka_complement),
                    percent_cell(None if override is None else override.follows_zero_shot),
                    percent_cell(None if override is None else override.follows_finetuned),
                ),
            )
        )
    is_without_cka = any(each.diversity and each.diversity.cka_complement is None for each in datasets)
    if rows:
        yield Section(
            "How zero-shot and fine-tuned differ",
            (
                *("dataset", "one is right (%)", "only zero-shot (%)", "only fine-tuned (%)", "disagree (%)"),
                *("1 - kappa", "KL (nats)", "1 - CKA", "follows zero-shot (%)", "follows fine-tuned (%)"),
            ),
            tuple(rows),
            note="The last two columns say with whom the chosen alpha agrees where the two disagree."
            + (WITHOUT_CKA if is_without_cka else ""),
        )
