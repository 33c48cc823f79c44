"""The numbers of a run, from its cells to files and back."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from made_up import dataset, statistics, with_dataset

from wiseft_dist.config import DatasetSpec
from wiseft_dist.errors import RunError
from wiseft_dist.evaluate.cells.store import CellStore
from wiseft_dist.evaluate.predictions import Member
from wiseft_dist.pipeline import remaining
from wiseft_dist.report.results import gather, read_statistics
from wiseft_dist.report.rows import COLUMNS, to_csv
from wiseft_dist.report.stage import report


def rows_of(text: str) -> dict[tuple[str, str], dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len({(row["dataset"], row["alpha"]) for row in rows}) == len(rows)
    return {(row["dataset"], row["alpha"]): row for row in rows}


@pytest.fixture(scope="module")
def gathered(finished):
    return gather(finished.config, finished.run)


def test_missing_cells_are_named_with_the_command_that_makes_them(copied):
    config = copied.load_config()
    for alpha in (0.0, 1.0):
        shutil.rmtree(CellStore.of_run(config, copied).folder("clipart", Member(alpha)))
    with pytest.raises(
        RunError, match=r"clipart has no result for alpha 0\.0, 1\.0\. Run `wiseft evaluate .* clipart`"
    ):
        gather(config, copied)


def test_the_average_of_the_shifts_counts_every_shift_alike(gathered):
    for alpha in gathered.alphas:
        two = [gathered.datasets[name].at(alpha).top1 for name in ("sketch", "clipart")]
        assert gathered.shift_average_at(alpha).value == pytest.approx(sum(two) / 2)


def test_alphas_are_reported_in_rising_order_however_they_were_listed(finished):
    config = finished.config
    shuffled = config.model_copy(update={"merge": config.merge.model_copy(update={"alphas": (1.0, 0.0, 0.5)})})
    assert gather(shuffled, finished.run).alphas == (0.0, 0.5, 1.0)


def test_the_shifts_are_reported_in_the_order_in_which_they_were_given(gathered):
    assert (gathered.reference, gathered.shifts) == ("photo", ("sketch", "clipart"))
    assert list(gathered.datasets) == ["photo", "sketch", "clipart", "id_val"]


def test_what_was_written_is_read_back_as_it_was(finished, gathered):
    assert read_statistics(finished.run.statistics_file) == gathered


def test_numbers_that_json_does_not_have_are_read_back_as_they_were(tmp_path):
    given = statistics()
    broken = tuple(replace(numbers, nll=math.inf, value=math.nan) for numbers in given.datasets["sketch"].alphas)
    file = tmp_path / "statistics.json"
    file.write_text(json.dumps(with_dataset(given, "sketch", alphas=broken).as_dict(), allow_nan=False))
    found = read_statistics(file)
    assert all(numbers.nll == math.inf and math.isnan(numbers.value) for numbers in found.datasets["sketch"].alphas)
    assert replace(found, datasets={}) == replace(given, datasets={})
    assert found.datasets["fmow"] == given.datasets["fmow"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"reference": "photo"}'])
def test_statistics_of_another_kind_are_answered_with_the_command_that_writes_them(tmp_path, content):
    (tmp_path / "statistics.json").write_text(content)
    with pytest.raises(RunError, match=r"statistics.json cannot be read .*write the report again with `wiseft report`"):
        read_statistics(tmp_path / "statistics.json")


def test_the_columns_that_scripts_know_stay_where_they_were(finished):
    header = finished.run.results_file.read_text().splitlines()[0].split(",")
    assert header[:8] == ["dataset", "role", "alpha", "num_samples", "num_correct", "top1", "ci95_low", "ci95_high"]
    assert header == list(COLUMNS)


def test_results_hold_the_numbers_of_every_alpha_on_the_reference_and_the_shifts(gathered):
    rows = rows_of(to_csv(gathered))
    assert list(rows) == [(name, alpha) for name in ("photo", "sketch", "clipart") for alpha in ("0.0", "0.5", "1.0")]
    for (name, alpha), row in rows.items():
        numbers = gathered.datasets[name].at(float(alpha))
        assert float(row["top1"]) == pytest.approx(numbers.num_correct / int(row["num_samples"]), abs=1e-6)
        assert (row["metric"], row["value"], row["value_low"]) == ("top1", row["top1"], row["ci95_low"])
        assert float(row["nll"]) == pytest.approx(numbers.nll, abs=1e-6)
        assert row["top5"] == "1.000000"  # of three classes
        assert (row["num_skipped"], row["reference_accuracy"], row["extrapolated"]) == ("0", "", "")


def test_a_number_of_another_metric_stands_beside_top_1():
    row = rows_of(to_csv(statistics()))["fmow", "0.5"]
    assert row == {
        **{"dataset": "fmow", "role": "shift", "alpha": "0.5", "num_samples": "1000", "num_correct": "600"},
        **{"top1": "0.600000", "ci95_low": "0.580000", "ci95_high": "0.620000", "metric": "worst_group"},
        **{"value": "0.222200", "value_low": "0.100000", "value_high": "0.300000", "top5": "0.987654"},
        **{"mean_per_class": "0.590000", "ece": "0.012300", "nll": "0.765400", "brier": "0.345600"},
        **{"num_skipped": "0", "reference_accuracy": "", "effective_robustness_pp": "", "extrapolated": ""},
    }


def test_effective_robustness_is_in_percentage_points_beside_its_reference():
    rows = rows_of(to_csv(statistics()))
    columns = ("reference_accuracy", "effective_robustness_pp", "extrapolated")
    assert [rows["sketch", "0.5"][name] for name in columns] == ["0.700000", "5.6300", "false"]
    assert rows["sketch", "1.0"]["extrapolated"] == "true"


def test_a_number_that_is_none_is_an_empty_field_and_an_infinite_one_is_not():
    alphas = dataset("sketch", (600, 650, 500)).alphas
    alphas = tuple(replace(each, mean_per_class=None, ece=math.nan, nll=math.inf) for each in alphas)
    row = rows_of(to_csv(with_dataset(statistics(), "sketch", alphas=alphas)))["sketch", "0.0"]
    assert (row["mean_per_class"], row["ece"], row["nll"]) == ("", "", "inf")


def test_a_run_without_a_reference_has_rows_of_its_shifts_alone():
    rows = rows_of(to_csv(replace(statistics(), reference=None)))
    assert {name for name, _ in rows} == {"sketch", "fmow"}


def test_another_metric_is_a_matter_of_the_report_alone(copied):
    config = copied.load_config()
    given = {"sketch": DatasetSpec(metric="mean_per_class", title="Sketches")}
    config = config.model_copy(update={"data": config.data.model_copy(update={"datasets": given})})
    assert [step.stage for step in remaining(config, copied)] == ["report"]
    before = {path: path.stat().st_mtime_ns for path in copied.cells.rglob("*.parquet")}
    report(config, copied)
    assert remaining(config, copied) == []
    assert before == {path: path.stat().st_mtime_ns for path in copied.cells.rglob("*.parquet")}
    rows = rows_of(copied.results_file.read_text())
    assert {row["metric"] for (name, _), row in rows.items() if name == "sketch"} == {"mean_per_class"}
    assert all(row["value"] == row["mean_per_class"] for (name, _), row in rows.items() if name == "sketch")
    assert "sketch by mean per class" in (copied.report / "index.html").read_text()


def test_a_lost_file_of_the_report_is_written_again(copied):
    config = copied.load_config()
    copied.statistics_file.unlink()
    assert [step.stage for step in remaining(config, copied)] == ["report"]


def test_a_report_needs_no_torch():
    program = "import sys, wiseft_dist.report.stage; print({'torch', 'deepspeed'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
