"""What the page says of statistics that no run would give."""

from __future__ import annotations

import math
from dataclasses import replace

from made_up import (
    alpha_statistics,
    comparison,
    dataset,
    interval,
    robustness,
    statistics,
    with_dataset,
    without_held_out,
)
from rich.console import Console

from wiseft_dist.evaluate.statistics.metrics.corruption import CorruptionError
from wiseft_dist.evaluate.statistics.statistics import ClassAccuracy, Statistics
from wiseft_dist.report.contents import number_sections
from wiseft_dist.report.history import History
from wiseft_dist.report.page.section import Section
from wiseft_dist.report.rows import rows_of
from wiseft_dist.report.sections.accuracies import lead_sections
from wiseft_dist.report.sections.cautions import cautions
from wiseft_dist.report.table import summary_table


def sections(given: Statistics, classnames: dict[str, tuple[str, ...]] | None = None) -> dict[str, Section]:
    found = [*lead_sections(given), *number_sections(given, classnames or {}, History())]
    by_title = {section.title: section for section in found}
    assert len(by_title) == len(found)
    return by_title


def rows(section: Section) -> dict[str, list[str]]:
    for row in section.rows:
        assert len(row.cells) == len(section.columns) - 1, row.name
    return {row.name: [" ".join(filter(None, (cell.text, cell.small))) for cell in row.cells] for row in section.rows}


def test_each_dataset_is_shown_by_its_own_metric_with_its_interval() -> None:
    every = sections(statistics())["Every alpha"]
    assert every.columns == ("alpha", "photo", "shift average", "sketch", "fmow (worst region)")
    assert rows(every)["0.5"] == [
        *("80.00 (78.00 to 82.00)", "43.61 (30.00 to 45.00)", "65.00 (63.00 to 67.00)", "22.22 (10.00 to 30.00)"),
    ]
    assert "fmow by worst region" in every.note


def test_every_choice_is_named_and_what_saw_the_shifts_is_marked() -> None:
    short = sections(statistics())["In short"]
    assert [(row.name, row.cells[0].text) for row in short.rows] == [
        ("zero-shot", "0"),
        ("fine-tuned", "1"),
        ("ensemble, fixed", "0.5"),
        ("ensemble, chosen on ID-val", "0.5"),
        ("ensemble, oracle (saw the shifts)", "1"),
        ("ensemble, oracle per dataset (saw every test set)", "each"),
    ]
    # 43.61 is the mean of 65.00 and 22.22: each shift at the alpha that is best on it.
    assert rows(short)["ensemble, oracle per dataset (saw every test set)"] == [
        *("each", "85.00 (alpha 1)", "43.61", "65.00 (alpha 0.5)", "22.22 (alpha 0.5)"),
    ]
    assert "Alpha 0.5 was chosen on 1,000 samples held out of the training set; the shifts were not" in short.note


def test_without_a_chosen_alpha_the_ends_are_compared() -> None:
    given = replace(without_held_out(statistics()), chosen=None, choices=())
    found = sections(given)
    assert [row.name for row in found["Calibration"].rows[:2]] == ["photo, zero-shot", "photo, fine-tuned"]
    assert not [title for title in found if "against the ends" in title]
    assert "No alpha was chosen by validation" in found["In short"].note
    # From 50 % to 25 % on every class.
    assert rows(found["Sketches: classes that gain and lose most"])["class 0"][-1] == "-25.00"


def test_the_observations_are_told_in_their_own_words() -> None:
    assert sections(statistics())["The paper's observations"].sentences == (
        "On photo, observation 1 holds: at alpha 0.5 by 5.00 pp.",
        "On shift average, observation 2 holds: at alpha 0.5 by 5.00 pp.",
    )


def test_paired_tests_are_of_the_chosen_alpha_against_both_ends() -> None:
    section = sections(statistics())["Alpha 0.5 against the ends"]
    assert rows(section)["Sketches, against zero-shot"] == [
        *("+2.25 (+0.75 to +3.75)", "61", "39", "0.0352", "0.1408"),
    ]
    assert rows(section)["Sketches, against fine-tuned"][0] == "-0.75 (-2.25 to +0.75)"


def test_calibration_is_shown_at_both_ends_and_the_chosen_alpha() -> None:
    section = sections(statistics())["Calibration"]
    assert len(section.rows) == 3 * 3
    # Of the one bin: so sure, and so often right.
    assert rows(section)["photo, chosen"] == ["75.00", "80.00", "1.23", "0.7654", "0.3456"]


def test_an_end_that_was_chosen_is_shown_once() -> None:
    section = sections(replace(statistics(), chosen=1.0))["Calibration"]
    assert [row.name for row in section.rows[:3]] == [
        "photo, zero-shot",
        "photo, fine-tuned, chosen",
        "Sketches, zero-shot",
    ]


def test_effective_robustness_flags_what_is_extrapolated_and_names_what_has_no_line() -> None:
    section = sections(statistics())["Effective robustness"]
    measured = ["70.00 (60.00 to 80.00)", "44.37", "50.00 (40.00 to 60.00)"]
    assert rows(section)["Sketches, zero-shot"] == [*measured, "+5.63", ""]
    assert rows(section)["Sketches, chosen"] == [*measured, "+5.63 (at least +5.13)", ""]
    assert rows(section)["Sketches, fine-tuned"] == [*measured, "+5.63 (at least +4.63)", "extrapolated"]
    assert section.sentences == ("There is no line of standard models for fmow.",)
    assert "the testbed of 2020" in section.note


def test_without_any_line_it_says_so_and_shows_no_table() -> None:
    section = sections(replace(statistics(), robustness={}))["Effective robustness"]
    assert (section.rows, section.sentences) == ((), ("There is no line of standard models for sketch, fmow.",))


def test_diversity_says_with_whom_the_chosen_alpha_agrees() -> None:
    section = sections(statistics())["How zero-shot and fine-tuned differ"]
    assert rows(section)["photo"] == ["21.00", "11.00", "10.00", "24.00", "0.2711", "0.1234", "–", "60.00", "30.00"]


def test_a_dash_for_cka_is_explained_and_no_other() -> None:
    given, title = statistics(), "How zero-shot and fine-tuned differ"
    assert "1 - CKA is missing where" in sections(given)[title].note
    for name, each in given.datasets.items():
        if each.diversity is not None:
            given = with_dataset(given, name, diversity=replace(each.diversity, cka_complement=0.1))
    assert "CKA" not in sections(given)[title].note


def test_the_five_classes_that_gain_most_and_the_five_that_lose_most_are_shown_by_name() -> None:
    names = tuple(f"name {label}" for label in range(11))
    section = sections(statistics(), {"photo": names})["photo: classes that gain and lose most"]
    # Class 0 gains nothing, class 11 gains 11 points; it is beyond the list of names.
    assert [row.name for row in section.rows] == [
        *("class 11", "name 10", "name 9", "name 8", "name 7", "name 4", "name 3", "name 2", "name 1", "name 0"),
    ]
    assert rows(section)["class 11"] == ["40", "50.00", "61.00", "25.00", "+11.00"]
    assert section.is_folded


def test_all_classes_are_listed_where_the_page_has_room_for_them() -> None:
    every = sections(statistics())["photo: all 12 classes"]
    assert len(every.rows) == 12 and every.is_folded
    many = tuple(ClassAccuracy(label, 10, 0.5, 0.5, 0.5) for label in range(1334))  # three datasets share 4,000 rows
    found = sections(with_dataset(statistics(), "photo", classes=many))
    assert "photo: all 1,334 classes" not in found
    assert found["photo: classes that gain and lose most"].note.endswith("All classes are in statistics.json.")


def test_groups_are_shown_with_their_name() -> None:
    section = sections(statistics())["fmow by region"]
    assert section.columns == ("region", "zero-shot", "chosen", "fine-tuned")
    assert rows(section) == {"Asia": ["70.00", "70.00", "70.00"], "Africa": ["11.11", "22.22", "17.77"]}


def test_ensembles_of_outputs_are_compared_with_those_of_weights() -> None:
    outputs = (alpha_statistics(0.5, 640),)
    found = sections(with_dataset(statistics(), "sketch", output_space=outputs))
    assert rows(found["Ensembles of weights against ensembles of outputs"]) == {"0.5": ["+1.00"]}
    assert "Ensembles of weights against ensembles of outputs" not in sections(statistics())


def test_corruption_errors_are_in_percent_of_alexnets() -> None:
    corruption = (CorruptionError(0.0, None, {"fog": 0.6}), CorruptionError(0.5, 0.5432, {"fog": 0.5, "snow": 1.0}))
    section = sections(replace(statistics(), corruption=corruption))["ImageNet-C"]
    assert section.columns == ("alpha", "mCE", "fog", "snow")
    assert rows(section) == {"0": ["–", "60.00", "–"], "0.5": ["54.32", "50.00", "100.00"]}


def test_frames_have_a_column_for_pm_k() -> None:
    frames = dataset("ytbb", (0, 0, 0), metric="pm0", alphas=tuple(
        alpha_statistics(alpha, 500, pm_k=0.4 + alpha / 10) for alpha in (0.0, 0.5, 1.0)
    ))  # fmt: skip
    given = statistics()
    given = replace(given, shifts=("ytbb",), datasets=given.datasets | {"ytbb": frames})
    every = sections(given)["Every alpha"]
    assert every.columns[-2:] == ("ytbb (pm-0)", "ytbb (pm-k)")
    assert rows(every)["1"][-2:] == ["50.00 (48.00 to 52.00)", "50.00"]


def test_a_run_with_nothing_to_warn_of_warns_of_nothing() -> None:
    clean = with_dataset(statistics(), "fmow", alphas=statistics().datasets["sketch"].alphas)
    assert cautions(replace(clean, robustness={}), {"photo": 1000, "sketch": 1000}) == []


def test_skipped_samples_are_counted() -> None:
    given = with_dataset(with_dataset(statistics(), "sketch", num_skipped=1), "id_val", num_skipped=1200)
    found = cautions(given, {})
    assert "sketch: 1 sample could not be decoded and counts in no number." in found
    assert "id_val: 1,200 samples could not be decoded and count in no number." in found


def test_a_count_that_is_not_the_published_one_is_told_with_both_numbers() -> None:
    found = cautions(with_dataset(statistics(), "sketch", num_skipped=5), {"sketch": 50_889, "photo": 1000})
    assert any("sketch has 1,005 samples here and 50,889 as published" in sentence for sentence in found)
    assert not any("photo has" in sentence for sentence in found)


def test_a_skipped_sample_is_no_missing_one() -> None:
    found = cautions(with_dataset(statistics(), "sketch", num_samples=995, num_skipped=5), {"sketch": 1000})
    assert not any("as published" in sentence for sentence in found)


def test_an_extrapolated_line_is_told_with_its_alphas() -> None:
    assert any(
        sentence.startswith("sketch: at alpha 1 the accuracy on photo lies outside")
        for sentence in cautions(statistics(), {})
    )


def test_few_clusters_are_told() -> None:
    assert any("fmow: its intervals draw 12 groups" in sentence for sentence in cautions(statistics(), {}))
    around = interval(0.1, 0.3, method="bootstrap", cluster="location", num_clusters=30)
    alphas = tuple(alpha_statistics(alpha, 600, interval=around) for alpha in (0.0, 0.5, 1.0))
    assert not any("groups" in text for text in cautions(with_dataset(statistics(), "fmow", alphas=alphas), {}))


def test_a_run_without_a_held_out_piece_is_told_so() -> None:
    assert any("nothing was held out" in sentence for sentence in cautions(without_held_out(statistics()), {}))


def test_a_number_that_cannot_be_known_is_a_dash_and_not_nan() -> None:
    given = statistics()
    alphas = tuple(
        replace(each, value=math.nan, interval=interval(math.nan, math.nan), nll=math.inf)
        for each in given.datasets["sketch"].alphas
    )
    given = with_dataset(replace(given, oracles={}), "sketch", alphas=alphas)
    found = sections(given)
    assert rows(found["Every alpha"])["0"][2] == "–"
    assert rows(found["Calibration"])["Sketches, chosen"][3] == "inf"
    console = Console(width=100)
    with console.capture() as capture:
        console.print(summary_table(given))
    assert "nan" not in capture.get() and "–" in capture.get()


def test_the_final_table_names_the_metric_that_is_not_top_1() -> None:
    console = Console(width=100)
    with console.capture() as capture:
        console.print(summary_table(statistics()))
    text = capture.get()
    assert "fmow (worst" in text and "region)" in text
    assert "Top-1 accuracy (%), or what is named" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    line = next(line for line in text.splitlines() if "chosen on ID-val" in line)
    assert [cell.strip() for cell in line.split("│")[2:-1]] == ["0.5", "80.0", "43.6", "65.0", "22.2"]


def test_where_zero_shot_is_chosen_fine_tuned_is_compared_with_it() -> None:
    ends = (comparison(1.0, "zero_shot", -3.5),)
    given = with_dataset(replace(statistics(), chosen=0.0), "sketch", comparisons=ends)
    section = sections(given)["Fine-tuned against zero-shot"]
    assert rows(section)["Sketches, against zero-shot"][0] == "-3.50 (-5.00 to -2.00)"


def test_a_point_of_which_it_is_not_known_whether_it_is_extrapolated_is_told_in_words() -> None:
    points = tuple(replace(point, extrapolated=None) for point in robustness().points)
    given = replace(statistics(), robustness={"sketch": replace(robustness(), points=points)})
    section = sections(given)["Effective robustness"]
    assert rows(section)["Sketches, zero-shot"][-1] == "perhaps extrapolated"
    assert "sketch: the upper end of the fitted range is not known" in section.sentences[1]
    assert rows_of_csv(given)["sketch"] == {""}
    assert not any("extrapolated" in sentence for sentence in cautions(given, {}))


def rows_of_csv(given: Statistics) -> dict[str, set[object]]:
    """What stands under ``extrapolated``, by dataset."""
    found: dict[str, set[object]] = {}
    for each in rows_of(given):
        found.setdefault(str(each["dataset"]), set()).add(each.get("extrapolated"))
    return found


def test_other_anchors_than_published_and_skipped_frames_are_told() -> None:
    alphas = tuple(alpha_statistics(alpha, 600, pm_k=0.5) for alpha in (0.0, 0.5, 1.0))
    given = with_dataset(statistics(), "sketch", alphas=alphas, num_published_units=1109, num_skipped=3)
    found = cautions(given, {})
    assert any("sketch has 1,000 anchors here and 1,109 as published" in sentence for sentence in found)
    assert any(sentence.startswith("sketch: a skipped frame may be a neighbour") for sentence in found)
    same = cautions(with_dataset(given, "sketch", num_published_units=1000, num_skipped=0), {})
    assert not any("anchors" in sentence or "neighbour" in sentence for sentence in same)


def test_what_the_shift_average_leaves_out_is_said() -> None:
    given = replace(statistics(), averaged_shifts=("sketch",))
    assert "counts every shift alike, ImageNet-C's sets aside." in sections(given)["Every alpha"].note
    # The oracles' average is over the same shifts.
    assert rows(sections(given)["In short"])["ensemble, oracle per dataset (saw every test set)"][2] == "65.00"


def test_a_single_cluster_is_told_as_no_interval() -> None:
    around = interval(math.nan, math.nan, method="bootstrap", cluster="location", num_clusters=1)
    alphas = tuple(alpha_statistics(alpha, 600, interval=around) for alpha in (0.0, 0.5, 1.0))
    found = cautions(with_dataset(statistics(), "fmow", alphas=alphas), {})
    assert "fmow: all its samples belong together (by location), so there are no intervals." in found
